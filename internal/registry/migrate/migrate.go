// Package migrate copies a registry into another one.
//
// Invariants: the source is only read, and may serve meanwhile. Every byte is hashed on its way. Blobs are linked before the
// manifests that refer to them, and a manifest is there before its tags; so the destination is a registry at any moment, and may
// serve, too. What the destination has is not copied again: a copy that ended early goes on where it was, and a second one brings
// what was pushed meanwhile. What cannot be copied is reported, and the rest goes on.
package migrate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"ply/internal/errs"
	"ply/internal/registry/blobs"
	"ply/internal/registry/content"
	"ply/internal/registry/metadata"
)

// Source is a registry to copy. Lists end with the first error of visit.
type Source interface {
	Repositories(ctx context.Context, visit func(content.Repository) error) error
	// Blobs visits the blobs that a repository may read.
	Blobs(ctx context.Context, repo content.Repository, visit func(content.Digest) error) error
	// Manifests visits the manifests of a repository with their media types; "" = what the document says.
	Manifests(ctx context.Context, repo content.Repository, visit func(d content.Digest, mediaType string) error) error
	Manifest(ctx context.Context, repo content.Repository, d content.Digest) ([]byte, error)
	Tags(ctx context.Context, repo content.Repository, visit func(content.Tag, content.Digest) error) error
	// Open opens a blob and returns its size.
	Open(ctx context.Context, d content.Digest) (io.ReadCloser, int64, error)
}

// Copier copies.
type Copier struct {
	From     Source
	Metadata metadata.Store
	Blobs    blobs.Store
	// Delete removes what the source does not have from the destination. Nothing else must have been pushed there.
	Delete bool
	// Served says that another process serves the source. Then work that waits is left to it.
	Served bool
	// Problem is told what cannot be copied. It is not called concurrently.
	Problem func(error)

	mu sync.Mutex
}

// documented is a source with the records of other parts of the registry.
type documented interface {
	Documents(ctx context.Context, kind, after string, limit int) ([]metadata.Document, error)
}

// What is done with documents, by their kinds. Those of any other kind are copied when the destination has none of their key.
var (
	// usersKind has the users and keys of a database, which are copied by who knows their form.
	usersKind = "auth"
	// queueKinds wait to be done by the source, which does them while it serves.
	queueKinds = []string{"replication", "webhooks"}
	// mirroredKinds are removed with what they are about.
	mirroredKinds = []string{"access-tokens", metadata.CopiesKind}
)

// Report counts what was copied; what was there before is not counted.
type Report struct {
	Repositories int // looked at
	Blobs        int
	Bytes        int64
	Links        int
	Manifests    int
	Tags         int
	Documents    int
	Deleted      int
	Problems     int
}

const (
	workers  = 4 // blobs that are copied at the same time
	page     = 500
	tagBatch = 50 // tags of one transaction
)

// Run copies once.
func (c *Copier) Run(ctx context.Context) (Report, error) {
	r := &Report{}
	if d, ok := c.From.(*Distribution); ok {
		d.problem = func(err error) error { return c.problem(r, err) }
	}
	err := c.From.Repositories(ctx, func(repo content.Repository) error {
		r.Repositories++
		return c.repository(ctx, repo, r)
	})
	if from, ok := c.From.(documented); ok && err == nil {
		err = c.documents(ctx, from, r)
	}
	if err == nil && c.Delete {
		if r.Problems > 0 {
			return *r, errs.New(errs.Precondition, "nothing is deleted after %d problems with the source, because what it has is not known for sure", r.Problems)
		}
		err = c.delete(ctx, r)
	}
	return *r, err
}

// problem reports what cannot be copied because of the source. Any other error ends the copy.
func (c *Copier) problem(r *Report, err error) error {
	if err == nil {
		return nil
	}
	if !errors.Is(err, errs.NotFound) && !errors.Is(err, errs.Invalid) && !errors.Is(err, errs.DataLoss) {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r.Problems++
	if c.Problem != nil {
		c.Problem(err)
	}
	return nil
}

func (c *Copier) repository(ctx context.Context, repo content.Repository, r *Report) error {
	group, inner := errgroup.WithContext(ctx)
	group.SetLimit(workers)
	err := c.From.Blobs(inner, repo, func(d content.Digest) error {
		group.Go(func() error { return c.problem(r, c.blob(inner, repo, d, r)) })
		return inner.Err()
	})
	if werr := group.Wait(); werr != nil {
		return fmt.Errorf("repository %s: %w", repo, werr)
	}
	if err != nil {
		return err
	}
	known := map[content.Digest]string{} // media types
	err = c.From.Manifests(ctx, repo, func(d content.Digest, mediaType string) error {
		known[d] = mediaType
		if _, err := c.Metadata.Manifest(ctx, repo, d); !errors.Is(err, errs.NotFound) {
			return err
		}
		err := c.manifest(ctx, repo, d, mediaType, nil)
		if err == nil {
			r.Manifests++
		}
		return c.problem(r, err)
	})
	if err != nil {
		return err
	}
	return c.tags(ctx, repo, known, r)
}

// blob copies a blob and links it.
func (c *Copier) blob(ctx context.Context, repo content.Repository, d content.Digest, r *Report) error {
	if l, err := c.Metadata.Link(ctx, repo, d); err == nil {
		if size, err := c.Blobs.Stat(ctx, d); err == nil && size == l.Size {
			return nil
		}
	} else if !errors.Is(err, errs.NotFound) {
		return err
	}
	held, release, err := c.Metadata.Lock(ctx, d)
	if err != nil {
		return err
	}
	defer release()
	size, err := c.Blobs.Stat(held, d)
	if errors.Is(err, errs.NotFound) {
		if size, err = c.bytes(held, repo, d); err == nil {
			c.mu.Lock()
			r.Blobs, r.Bytes = r.Blobs+1, r.Bytes+size
			c.mu.Unlock()
		}
	}
	if err != nil {
		return err
	}
	if err := c.Metadata.PutLink(held, metadata.Link{Repository: repo, Digest: d, Size: size}); err != nil {
		return err
	}
	c.mu.Lock()
	r.Links++
	c.mu.Unlock()
	return nil
}

func (c *Copier) bytes(ctx context.Context, repo content.Repository, d content.Digest) (size int64, err error) {
	from, size, err := c.From.Open(ctx, d)
	if err != nil {
		return 0, fmt.Errorf("repository %s: blob %s: %w", repo, d, err)
	}
	defer errs.Close(&err, from)
	u, err := c.Blobs.Begin(ctx, blobs.Session{ID: blobs.NewID(), Repository: repo, Algorithm: d.Algorithm(), Started: time.Now().UTC().Truncate(time.Second)})
	if err != nil {
		return 0, err
	}
	err = u.Append(ctx, from, size)
	if err == nil {
		size, err = u.Store(ctx, d)
	} else {
		err = errors.Join(err, u.Cancel(context.WithoutCancel(ctx)))
	}
	return size, errors.Join(err, u.Close())
}

// manifest copies a manifest, whatever else the repository has, because the source has it.
func (c *Copier) manifest(ctx context.Context, repo content.Repository, d content.Digest, mediaType string, tags []content.Tag) error {
	payload, err := c.From.Manifest(ctx, repo, d)
	if err != nil {
		return fmt.Errorf("repository %s: manifest %s: %w", repo, d, err)
	}
	if got := d.Algorithm().Of(payload); got != d {
		return errs.New(errs.DataLoss, "repository %s: manifest %s has digest %s", repo, d, got)
	}
	m, err := content.ParseManifest(payload, mediaType)
	if err != nil {
		return fmt.Errorf("repository %s: manifest %s: %w", repo, d, err)
	}
	return c.Metadata.PutManifest(ctx, metadata.Write{Repository: repo, Digest: d, Payload: payload, Parsed: m, Tags: tags, Missing: true})
}

// tags points the tags at what they point at in the source.
func (c *Copier) tags(ctx context.Context, repo content.Repository, known map[content.Digest]string, r *Report) error {
	move := map[content.Digest][]content.Tag{}
	put := func(d content.Digest) error {
		err := c.manifest(ctx, repo, d, known[d], move[d])
		if err == nil {
			r.Tags += len(move[d])
		}
		delete(move, d)
		return c.problem(r, err)
	}
	err := c.From.Tags(ctx, repo, func(tag content.Tag, d content.Digest) error {
		t, err := c.Metadata.Tag(ctx, repo, tag)
		if err == nil && t.Digest == d {
			return nil
		}
		if err != nil && !errors.Is(err, errs.NotFound) {
			return err
		}
		if move[d] = append(move[d], tag); len(move[d]) >= tagBatch {
			return put(d)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for d := range move {
		if err := put(d); err != nil {
			return err
		}
	}
	return nil
}

// documents copies those that the destination does not have.
func (c *Copier) documents(ctx context.Context, from documented, r *Report) error {
	var kinds []string
	err := eachDocument(ctx, from, "", func(docs []metadata.Document) error {
		for _, d := range docs {
			kinds = append(kinds, d.Key)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, kind := range kinds {
		if kind == usersKind || c.Served && slices.Contains(queueKinds, kind) {
			continue
		}
		err := eachDocument(ctx, from, kind, func(docs []metadata.Document) error {
			for _, d := range docs {
				err := c.Metadata.SwapDocument(ctx, kind, d.Key, nil, d.Value)
				if err == nil {
					r.Documents++
				} else if !errors.Is(err, errs.Precondition) {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// eachDocument visits the documents of a kind, a page at a time.
func eachDocument(ctx context.Context, from documented, kind string, visit func([]metadata.Document) error) error {
	for after := ""; ; {
		docs, err := from.Documents(ctx, kind, after, page)
		if err != nil {
			return err
		}
		if err := visit(docs); err != nil || len(docs) < page {
			return err
		}
		after = docs[len(docs)-1].Key
	}
}

// deleteDocuments removes those that the source does not have, such as tokens that were revoked there.
func (c *Copier) deleteDocuments(ctx context.Context, from documented, r *Report) error {
	for _, kind := range mirroredKinds {
		there := map[string]bool{}
		err := eachDocument(ctx, from, kind, func(docs []metadata.Document) error {
			for _, d := range docs {
				there[d.Key] = true
			}
			return nil
		})
		if err != nil {
			return err
		}
		err = eachDocument(ctx, c.Metadata, kind, func(docs []metadata.Document) error {
			for _, d := range docs {
				if there[d.Key] {
					continue
				}
				if err := c.Metadata.PutDocuments(ctx, kind, metadata.Document{Key: d.Key}); err != nil {
					return err
				}
				r.Deleted++
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// deleteTags removes the tags that the source does not have.
func (c *Copier) deleteTags(ctx context.Context, repo content.Repository, seen map[content.Tag]bool, r *Report) error {
	return metadata.EachTag(ctx, c.Metadata, repo, func(tag content.Tag) error {
		if seen[tag] {
			return nil
		}
		if err := c.Metadata.DeleteTag(ctx, repo, tag, metadata.Condition{}); err != nil && !errors.Is(err, errs.NotFound) {
			return err
		}
		r.Deleted++
		return nil
	})
}

// delete removes what the source does not have. It reads the lists of the source again, because all of them must be without a problem.
func (c *Copier) delete(ctx context.Context, r *Report) error {
	err := c.From.Repositories(ctx, func(repo content.Repository) error {
		known, seen := map[content.Digest]bool{}, map[content.Tag]bool{}
		err := c.From.Manifests(ctx, repo, func(d content.Digest, _ string) error {
			known[d] = true
			return nil
		})
		if err != nil {
			return err
		}
		err = c.From.Tags(ctx, repo, func(tag content.Tag, _ content.Digest) error {
			seen[tag] = true
			return nil
		})
		if err != nil || r.Problems > 0 {
			return err
		}
		if err := c.deleteTags(ctx, repo, seen, r); err != nil {
			return err
		}
		return c.deleteManifests(ctx, repo, known, r)
	})
	if err != nil || r.Problems > 0 {
		return err
	}
	if from, ok := c.From.(documented); ok {
		if err := c.deleteDocuments(ctx, from, r); err != nil {
			return err
		}
	}
	return c.deleteRepositories(ctx, r)
}

func (c *Copier) deleteManifests(ctx context.Context, repo content.Repository, known map[content.Digest]bool, r *Report) error {
	nodes, err := c.Metadata.Graph(ctx, repo)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if known[n.Digest] {
			continue
		}
		if err := c.Metadata.DeleteManifest(ctx, repo, n.Digest); err != nil && !errors.Is(err, errs.NotFound) {
			return err
		}
		r.Deleted++
	}
	return nil
}

func (c *Copier) deleteRepositories(ctx context.Context, r *Report) error {
	var there []content.Repository
	err := c.From.Repositories(ctx, func(repo content.Repository) error {
		there = append(there, repo)
		return nil
	})
	if err != nil {
		return err
	}
	slices.Sort(there)
	for after := content.Repository(""); ; {
		repos, err := c.Metadata.Repositories(ctx, after, page)
		if err != nil {
			return err
		}
		for _, repo := range repos {
			if _, ok := slices.BinarySearch(there, repo); ok {
				continue
			}
			if err := c.Metadata.DeleteRepository(ctx, repo); err != nil && !errors.Is(err, errs.NotFound) {
				return err
			}
			r.Deleted++
		}
		if len(repos) < page {
			return nil
		}
		after = repos[len(repos)-1]
	}
}
