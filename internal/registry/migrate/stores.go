package migrate

import (
	"context"
	"errors"
	"io"
	"slices"

	"ply/internal/errs"
	"ply/internal/registry/blobs"
	"ply/internal/registry/content"
	"ply/internal/registry/metadata"
)

// Stores is a registry of this program.
type Stores struct {
	Metadata metadata.Store
	Bytes    blobs.Store
}

var _ Source = Stores{}

// Repositories visits the repositories with a manifest, and those that only link blobs.
func (s Stores) Repositories(ctx context.Context, visit func(content.Repository) error) error {
	var all []content.Repository
	for after := content.Repository(""); ; {
		repos, err := s.Metadata.Repositories(ctx, after, page)
		if err != nil {
			return err
		}
		all = append(all, repos...)
		if len(repos) < page {
			break
		}
		after = repos[len(repos)-1]
	}
	err := s.links(ctx, "", func(l metadata.Link) error {
		if n := len(all); n == 0 || all[n-1] != l.Repository {
			all = append(all, l.Repository)
		}
		return nil
	})
	if err != nil {
		return err
	}
	slices.Sort(all)
	for _, repo := range slices.Compact(all) {
		if err := visit(repo); err != nil {
			return err
		}
	}
	return nil
}

// Documents lists documents, or with the kind "" their kinds.
func (s Stores) Documents(ctx context.Context, kind, after string, limit int) ([]metadata.Document, error) {
	return s.Metadata.Documents(ctx, kind, after, limit)
}

// links visits the links of a repository; "" = of all.
func (s Stores) links(ctx context.Context, repo content.Repository, visit func(metadata.Link) error) error {
	for after := (metadata.Link{Repository: repo}); ; {
		links, err := s.Metadata.Links(ctx, after, page)
		if err != nil {
			return err
		}
		for _, l := range links {
			if repo != "" && l.Repository != repo {
				return nil
			}
			if err := visit(l.Link); err != nil {
				return err
			}
		}
		if len(links) < page {
			return nil
		}
		after = links[len(links)-1].Link
	}
}

// Blobs visits the blobs of a repository.
func (s Stores) Blobs(ctx context.Context, repo content.Repository, visit func(content.Digest) error) error {
	return s.links(ctx, repo, func(l metadata.Link) error { return visit(l.Digest) })
}

// Manifests visits the manifests of a repository.
func (s Stores) Manifests(ctx context.Context, repo content.Repository, visit func(content.Digest, string) error) error {
	nodes, err := s.Metadata.Graph(ctx, repo)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		m, err := s.Metadata.Manifest(ctx, repo, n.Digest)
		if errors.Is(err, errs.NotFound) {
			continue // deleted meanwhile
		}
		if err != nil {
			return err
		}
		if err := visit(n.Digest, m.MediaType); err != nil {
			return err
		}
	}
	return nil
}

// Manifest returns a manifest.
func (s Stores) Manifest(ctx context.Context, repo content.Repository, d content.Digest) ([]byte, error) {
	_, payload, err := s.Metadata.Payload(ctx, repo, d)
	return payload, err
}

// Tags visits the tags of a repository.
func (s Stores) Tags(ctx context.Context, repo content.Repository, visit func(content.Tag, content.Digest) error) error {
	return metadata.EachTarget(ctx, s.Metadata, repo, func(t metadata.Tag) error { return visit(t.Name, t.Digest) })
}

// Open opens a blob.
func (s Stores) Open(ctx context.Context, d content.Digest) (io.ReadCloser, int64, error) {
	return s.Bytes.Open(ctx, d)
}
