package bolt

import (
	"bytes"
	"context"
	"time"

	"ply/internal/errs"
	"ply/internal/record"
	"ply/internal/registry/content"
	"ply/internal/registry/metadata"
)

func unknownRepository(repo content.Repository) error {
	return errs.New(errs.NotFound, "repository %s does not exist", repo)
}

func unknownManifest(repo content.Repository, d content.Digest) error {
	return errs.New(errs.NotFound, "manifest %s is not in repository %s", d, repo)
}

func unknownTag(repo content.Repository, tag content.Tag) error {
	return errs.New(errs.NotFound, "tag %s is not in repository %s", tag, repo)
}

func unknownBlob(repo content.Repository, d content.Digest) error {
	return errs.New(errs.NotFound, "blob %s is not in repository %s", d, repo)
}

func (r manifestRecord) manifest(d content.Digest) metadata.Manifest {
	return metadata.Manifest{Digest: d, MediaType: r.MediaType, Size: r.Size, ArtifactType: r.ArtifactType, Subject: r.Subject, Annotations: r.Annotations, Pushed: r.Pushed}
}

// Manifest returns what is known about a manifest.
func (s *Store) Manifest(_ context.Context, repo content.Repository, d content.Digest) (m metadata.Manifest, err error) {
	return m, s.view(func(t *tx) error {
		r, ok, err := t.manifest(repo, d)
		if err == nil && !ok {
			err = unknownManifest(repo, d)
		}
		m = r.manifest(d)
		return err
	})
}

// Payload returns a manifest with its bytes.
func (s *Store) Payload(_ context.Context, repo content.Repository, d content.Digest) (m metadata.Manifest, payload []byte, err error) {
	return m, payload, s.view(func(t *tx) error {
		r, ok, err := t.manifest(repo, d)
		if err != nil {
			return err
		}
		if !ok {
			return unknownManifest(repo, d)
		}
		m = r.manifest(d)
		b := t.get(bucketPayloads, []byte(d))
		if b == nil || int64(len(b)) != r.Size {
			return errs.New(errs.DataLoss, "manifest %s of repository %s: its bytes are lost", d, repo).WithHint("Push it again.")
		}
		payload = bytes.Clone(b)
		return nil
	})
}

// Tag returns a tag.
func (s *Store) Tag(_ context.Context, repo content.Repository, tag content.Tag) (out metadata.Tag, err error) {
	return out, s.view(func(t *tx) error {
		r, ok, err := t.tag(repo, tag)
		if err == nil && !ok {
			err = unknownTag(repo, tag)
		}
		out = metadata.Tag{Name: tag, Digest: r.Digest, Updated: r.Updated}
		return err
	})
}

// Tags lists tags of a repository that exists.
func (s *Store) Tags(_ context.Context, repo content.Repository, after content.Tag, limit int) (tags []content.Tag, err error) {
	return tags, s.view(func(t *tx) error {
		if !t.has(bucketRepositories, []byte(repo)) {
			return unknownRepository(repo)
		}
		if limit <= 0 {
			return nil
		}
		return t.scan(bucketTags, key(repo, ""), key(repo, after), func(k, _ []byte) (bool, error) {
			tags = append(tags, content.Tag(behind(k)))
			return len(tags) < limit, nil
		})
	})
}

// Repositories lists the repositories that have a manifest.
func (s *Store) Repositories(_ context.Context, after content.Repository, limit int) (repos []content.Repository, err error) {
	if limit <= 0 {
		return nil, nil
	}
	return repos, s.view(func(t *tx) error {
		return t.scan(bucketRepositories, nil, []byte(after), func(k, _ []byte) (bool, error) {
			repos = append(repos, content.Repository(k))
			return len(repos) < limit, nil
		})
	})
}

// Referrers lists the manifests that have a subject.
func (s *Store) Referrers(_ context.Context, repo content.Repository, subject, after content.Digest, limit int) (list []metadata.Manifest, err error) {
	if limit <= 0 {
		return nil, nil
	}
	return list, s.view(func(t *tx) error {
		return t.scan(bucketReferrers, key3(repo, subject, ""), key3(repo, subject, after), func(k, _ []byte) (bool, error) {
			d := content.Digest(behind(k))
			r, ok, err := t.manifest(repo, d)
			if err != nil {
				return false, err
			}
			if ok {
				list = append(list, r.manifest(d))
			}
			return len(list) < limit, nil
		})
	})
}

// Link returns the link of a repository to a blob.
func (s *Store) Link(_ context.Context, repo content.Repository, d content.Digest) (l metadata.Link, err error) {
	return l, s.view(func(t *tx) error {
		r, ok, err := t.link(repo, d)
		if err == nil && !ok {
			err = unknownBlob(repo, d)
		}
		l = metadata.Link{Repository: repo, Digest: d, Size: r.Size, Linked: r.Linked}
		return err
	})
}

// Holders lists the repositories that a blob is linked to.
func (s *Store) Holders(_ context.Context, d content.Digest, after content.Repository, limit int) (repos []content.Repository, err error) {
	if limit <= 0 {
		return nil, nil
	}
	return repos, s.view(func(t *tx) error {
		return t.scan(bucketHolders, key(d, ""), key(d, after), func(k, _ []byte) (bool, error) {
			repos = append(repos, content.Repository(behind(k)))
			return len(repos) < limit, nil
		})
	})
}

// Links lists links of all repositories.
func (s *Store) Links(_ context.Context, after metadata.Link, limit int) (links []metadata.HeldLink, err error) {
	if limit <= 0 {
		return nil, nil
	}
	var from []byte
	if after.Repository != "" {
		from = key(after.Repository, after.Digest)
	}
	return links, s.view(func(t *tx) error {
		return t.scan(bucketLinks, nil, from, func(k, v []byte) (bool, error) {
			repo, d := splitLink(k)
			var r linkRecord
			if err := record.Unmarshal("link of "+string(repo)+" to "+string(d), v, linkVersion, &r); err != nil {
				return false, err
			}
			links = append(links, metadata.HeldLink{
				Link: metadata.Link{Repository: repo, Digest: d, Size: r.Size, Linked: r.Linked},
				Held: t.any(bucketReferences, key3(repo, d, "")),
			})
			return len(links) < limit, nil
		})
	})
}

// loosePage is how many manifests Loose looks at in one transaction.
const loosePage = 2000

// Loose lists manifests that nothing needs.
func (s *Store) Loose(_ context.Context, repo content.Repository, before time.Time, after content.Digest) (loose []content.Digest, next content.Digest, err error) {
	var from []byte
	if after != "" {
		from = key(repo, after)
	}
	return loose, next, s.view(func(t *tx) error {
		n := 0
		return t.scan(bucketManifests, key(repo, ""), from, func(k, v []byte) (bool, error) {
			d := content.Digest(behind(k))
			if n++; n == loosePage {
				next = d
			}
			var r manifestRecord
			if err := record.Unmarshal("manifest "+string(repo)+"@"+string(d), v, manifestVersion, &r); err != nil {
				return false, err
			}
			if t.loose(repo, d, r, before) {
				loose = append(loose, d)
			}
			return next == "", nil
		})
	})
}

// Graph returns the manifests of a repository with what they refer to.
func (s *Store) Graph(_ context.Context, repo content.Repository) (nodes []metadata.Node, err error) {
	return nodes, s.view(func(t *tx) error {
		at := map[content.Digest]int{}
		err := t.scan(bucketManifests, key(repo, ""), nil, func(k, v []byte) (bool, error) {
			d := content.Digest(behind(k))
			var r manifestRecord
			if err := record.Unmarshal("manifest "+string(repo)+"@"+string(d), v, manifestVersion, &r); err != nil {
				return false, err
			}
			at[d] = len(nodes)
			nodes = append(nodes, metadata.Node{Digest: d, Tagged: t.any(bucketTagged, key3(repo, d, "")), Subject: r.Subject, Size: r.Size, Pushed: r.Pushed})
			return true, nil
		})
		if err != nil {
			return err
		}
		return t.scan(bucketReferences, key(repo, ""), nil, func(k, _ []byte) (bool, error) {
			target, from, _ := bytes.Cut(k[len(repo)+1:], []byte{0})
			if i, ok := at[content.Digest(from)]; ok {
				nodes[i].Children = append(nodes[i].Children, content.Digest(target))
			}
			return true, nil
		})
	})
}
