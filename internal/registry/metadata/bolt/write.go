package bolt

import (
	"bytes"
	"context"
	"slices"
	"time"

	"ply/internal/errs"
	"ply/internal/registry/content"
	"ply/internal/registry/metadata"
)

// PutManifest stores a manifest and its tags.
func (s *Store) PutManifest(ctx context.Context, w metadata.Write) error {
	return s.update(ctx, func(t *tx) error {
		for _, tag := range w.Tags {
			if err := t.holds(w.Repository, tag, w.Condition); err != nil {
				return err
			}
		}
		for _, tag := range w.Fixed {
			if err := t.fixed(w.Repository, tag, w.Digest); err != nil {
				return err
			}
		}
		if !w.Missing {
			if missing := t.missing(w.Repository, w.Parsed); !missing.Empty() {
				return missing
			}
		}
		return t.putManifest(w, s.now().UTC())
	})
}

// holds checks a condition on a tag.
func (t *tx) holds(repo content.Repository, tag content.Tag, c metadata.Condition) error {
	r, ok, err := t.tag(repo, tag)
	switch {
	case err != nil:
		return err
	case c.Absent && ok:
		return errs.New(errs.Precondition, "tag %s of repository %s exists", tag, repo)
	case c.Any && !ok, c.OneOf != nil && !(ok && slices.Contains(c.OneOf, r.Digest)):
		return errs.New(errs.Precondition, "tag %s of repository %s is not what the request expects", tag, repo)
	}
	return nil
}

// fixed refuses to move a tag.
func (t *tx) fixed(repo content.Repository, tag content.Tag, d content.Digest) error {
	r, ok, err := t.tag(repo, tag)
	if err == nil && ok && r.Digest != d {
		err = errs.New(errs.Conflict, "tag %s of repository %s is immutable and points at %s", tag, repo, r.Digest)
	}
	return err
}

// missing returns what a manifest refers to and the repository does not have. A subject may be missing.
func (t *tx) missing(repo content.Repository, m *content.Manifest) *metadata.MissingError {
	e := &metadata.MissingError{}
	for _, b := range m.Blobs {
		if !b.Foreign() && !t.has(bucketLinks, key(repo, b.Digest)) {
			e.Blobs = append(e.Blobs, b.Digest)
		}
	}
	for _, c := range m.Manifests {
		if !t.has(bucketManifests, key(repo, c.Digest)) && !t.has(bucketLinks, key(repo, c.Digest)) {
			e.Manifests = append(e.Manifests, c.Digest)
		}
	}
	return e
}

func (t *tx) putManifest(w metadata.Write, now time.Time) error {
	repo, d, m := w.Repository, w.Digest, w.Parsed
	if !t.has(bucketRepositories, []byte(repo)) {
		if err := t.putRecord(bucketRepositories, []byte(repo), repositoryVersion, repositoryRecord{Created: now}); err != nil {
			return err
		}
	}
	if !bytes.Equal(t.get(bucketPayloads, []byte(d)), w.Payload) || len(w.Payload) == 0 {
		if err := t.put(bucketPayloads, []byte(d), w.Payload); err != nil {
			return err
		}
	}
	if err := t.mark(bucketPayloadUses, key(d, repo)); err != nil {
		return err
	}
	r := manifestRecord{MediaType: m.MediaType, Size: int64(len(w.Payload)), ArtifactType: m.ArtifactType, Pushed: now}
	if m.Subject != nil {
		r.Subject, r.Annotations = m.Subject.Digest, m.Annotations
		if err := t.mark(bucketReferrers, key3(repo, r.Subject, d)); err != nil {
			return err
		}
	}
	if err := t.putRecord(bucketManifests, key(repo, d), manifestVersion, r); err != nil {
		return err
	}
	for _, target := range targets(m) {
		if err := t.mark(bucketReferences, key3(repo, target, d)); err != nil {
			return err
		}
	}
	for _, tag := range w.Tags {
		if err := t.putTag(repo, tag, d, now); err != nil {
			return err
		}
	}
	return nil
}

// targets returns the digests that a manifest refers to, each once.
func targets(m *content.Manifest) (list []content.Digest) {
	seen := map[content.Digest]bool{}
	for _, ds := range [][]content.Descriptor{m.Blobs, m.Manifests} {
		for _, d := range ds {
			if !seen[d.Digest] {
				seen[d.Digest] = true
				list = append(list, d.Digest)
			}
		}
	}
	return list
}

func (t *tx) putTag(repo content.Repository, tag content.Tag, d content.Digest, now time.Time) error {
	old, ok, err := t.tag(repo, tag)
	if err != nil {
		return err
	}
	if ok {
		if err := t.delete(bucketTagged, key3(repo, old.Digest, tag)); err != nil {
			return err
		}
	}
	if err := t.mark(bucketTagged, key3(repo, d, tag)); err != nil {
		return err
	}
	return t.putRecord(bucketTags, key(repo, tag), tagVersion, tagRecord{Digest: d, Updated: now})
}

// DeleteTag removes a tag.
func (s *Store) DeleteTag(ctx context.Context, repo content.Repository, tag content.Tag, c metadata.Condition) error {
	return s.update(ctx, func(t *tx) error {
		r, ok, err := t.tag(repo, tag)
		if err != nil {
			return err
		}
		if !ok {
			return unknownTag(repo, tag)
		}
		if err := t.holds(repo, tag, c); err != nil {
			return err
		}
		if err := t.delete(bucketTagged, key3(repo, r.Digest, tag)); err != nil {
			return err
		}
		return t.delete(bucketTags, key(repo, tag))
	})
}

// DeleteManifest removes a manifest and its tags.
func (s *Store) DeleteManifest(ctx context.Context, repo content.Repository, d content.Digest) error {
	return s.update(ctx, func(t *tx) error {
		r, ok, err := t.manifest(repo, d)
		if err != nil {
			return err
		}
		if !ok {
			return unknownManifest(repo, d)
		}
		return t.deleteManifest(repo, d, r)
	})
}

func (t *tx) deleteManifest(repo content.Repository, d content.Digest, r manifestRecord) error {
	for _, k := range t.keys(bucketTagged, key3(repo, d, "")) {
		if err := t.delete(bucketTags, key(repo, behind(k))); err != nil {
			return err
		}
		if err := t.delete(bucketTagged, k); err != nil {
			return err
		}
	}
	if r.Subject != "" {
		if err := t.delete(bucketReferrers, key3(repo, r.Subject, d)); err != nil {
			return err
		}
	}
	if m, err := content.ParseManifest(t.get(bucketPayloads, []byte(d)), r.MediaType); err == nil {
		for _, target := range targets(m) {
			if err := t.delete(bucketReferences, key3(repo, target, d)); err != nil {
				return err
			}
		}
	} else if err := t.deleteReferences(repo, d); err != nil { // the bytes are damaged
		return err
	}
	if err := t.delete(bucketManifests, key(repo, d)); err != nil {
		return err
	}
	if err := t.delete(bucketPayloadUses, key(d, repo)); err != nil {
		return err
	}
	if !t.any(bucketPayloadUses, key(d, "")) {
		if err := t.delete(bucketPayloads, []byte(d)); err != nil {
			return err
		}
	}
	if !t.any(bucketManifests, key(repo, "")) {
		return t.delete(bucketRepositories, []byte(repo))
	}
	return nil
}

// deleteReferences removes the references from a manifest by searching all those of the repository.
func (t *tx) deleteReferences(repo content.Repository, from content.Digest) error {
	for _, k := range t.keys(bucketReferences, key(repo, "")) {
		if behind(k) == string(from) {
			if err := t.delete(bucketReferences, k); err != nil {
				return err
			}
		}
	}
	return nil
}

// DeleteRepository removes everything of a repository.
func (s *Store) DeleteRepository(ctx context.Context, repo content.Repository) error {
	return s.update(ctx, func(t *tx) error {
		if !t.has(bucketRepositories, []byte(repo)) && !t.any(bucketLinks, key(repo, "")) {
			return unknownRepository(repo)
		}
		for _, k := range t.keys(bucketManifests, key(repo, "")) {
			d := content.Digest(behind(k))
			r, _, err := t.manifest(repo, d)
			if err != nil {
				r = manifestRecord{} // a record that cannot be read is removed as well
			}
			if err := t.deleteManifest(repo, d, r); err != nil {
				return err
			}
		}
		for _, k := range t.keys(bucketLinks, key(repo, "")) {
			if err := t.deleteLink(repo, content.Digest(behind(k))); err != nil {
				return err
			}
		}
		return nil
	})
}

// PutLink links a blob to a repository.
func (s *Store) PutLink(ctx context.Context, l metadata.Link) error {
	return s.update(ctx, func(t *tx) error { return t.putLink(l.Repository, l.Digest, l.Size, s.now().UTC()) })
}

func (t *tx) putLink(repo content.Repository, d content.Digest, size int64, now time.Time) error {
	if err := t.mark(bucketHolders, key(d, repo)); err != nil {
		return err
	}
	return t.putRecord(bucketLinks, key(repo, d), linkVersion, linkRecord{Size: size, Linked: now})
}

// Mount links a blob of another repository.
func (s *Store) Mount(ctx context.Context, from, to content.Repository, d content.Digest) error {
	return s.update(ctx, func(t *tx) error {
		r, ok, err := t.link(from, d)
		if err != nil {
			return err
		}
		if !ok {
			return unknownBlob(from, d)
		}
		return t.putLink(to, d, r.Size, s.now().UTC())
	})
}

// DeleteLink removes a link.
func (s *Store) DeleteLink(ctx context.Context, repo content.Repository, d content.Digest) error {
	return s.update(ctx, func(t *tx) error {
		if !t.has(bucketLinks, key(repo, d)) {
			return unknownBlob(repo, d)
		}
		return t.deleteLink(repo, d)
	})
}

func (t *tx) deleteLink(repo content.Repository, d content.Digest) error {
	if err := t.delete(bucketHolders, key(d, repo)); err != nil {
		return err
	}
	return t.delete(bucketLinks, key(repo, d))
}

// CollectLink removes a link that nothing needs.
func (s *Store) CollectLink(ctx context.Context, repo content.Repository, d content.Digest, before time.Time) (done bool, err error) {
	end, err := s.collecting.begin(ctx, s.slot(repo, d))
	if err != nil {
		return false, err
	}
	defer end()
	err = s.update(ctx, func(t *tx) error {
		done = false
		r, ok, err := t.link(repo, d)
		if err != nil || !ok || !r.Linked.Before(before) || s.touchedSince(repo, d, before) || t.any(bucketReferences, key3(repo, d, "")) {
			return err
		}
		done = true
		return t.deleteLink(repo, d)
	})
	return done && err == nil, err
}

// CollectManifest removes a manifest that nothing needs.
func (s *Store) CollectManifest(ctx context.Context, repo content.Repository, d content.Digest, before time.Time) (done bool, err error) {
	end, err := s.collecting.begin(ctx, s.slot(repo, d))
	if err != nil {
		return false, err
	}
	defer end()
	err = s.update(ctx, func(t *tx) error {
		done = false
		r, ok, err := t.manifest(repo, d)
		if err != nil || !ok || s.touchedSince(repo, d, before) || !t.loose(repo, d, r, before) {
			return err
		}
		done = true
		return t.deleteManifest(repo, d, r)
	})
	return done && err == nil, err
}
