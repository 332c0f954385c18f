// Package check examines the stores of a registry, and repairs what can be repaired.
//
// A check reads every blob and every manifest and compares them with their digests, and every tag and link with what it names. It
// goes on while the registry serves: what was deleted meanwhile is looked at again before it is reported. A repair only removes what
// cannot be served, so that clients see that it is missing and push it again: bytes with another digest, links without bytes,
// manifests without their bytes, and tags without a manifest. Each removal looks again, under the lock of a digest where there are
// bytes.
package check

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"ply/internal/errs"
	"ply/internal/registry/blobs"
	"ply/internal/registry/content"
	"ply/internal/registry/metadata"
)

// Kind says what is wrong.
type Kind string

// The kinds.
const (
	Damaged        Kind = "damaged blob"     // its bytes have another digest or size
	MissingBytes   Kind = "missing blob"     // a link names bytes that are not there
	LostManifest   Kind = "lost manifest"    // its bytes are gone or have another digest
	DanglingTag    Kind = "dangling tag"     // it points at no manifest
	MissingContent Kind = "incomplete image" // a manifest refers to what the repository does not have
)

// Finding is something that is wrong.
type Finding struct {
	Kind       Kind
	Repository content.Repository // "" = all
	Tag        content.Tag
	Digest     content.Digest
	Detail     string
	Repaired   bool
}

func (f Finding) String() string {
	s := string(f.Kind) + " "
	if f.Repository != "" {
		s += string(f.Repository)
	}
	if f.Tag != "" {
		s += ":" + string(f.Tag)
	}
	if f.Digest != "" {
		s += "@" + string(f.Digest)
	}
	if f.Detail != "" {
		s += ": " + f.Detail
	}
	if f.Repaired {
		s += " (removed)"
	}
	return s
}

// Checker examines one registry.
type Checker struct {
	Metadata metadata.Store
	Blobs    blobs.Store
	Quick    bool // compares sizes, and does not read blobs
	Repair   bool
	Missing  bool // manifests may refer to what is not there
	Found    func(Finding)
}

// Report counts what was examined.
type Report struct {
	Repositories, Manifests, Tags, Links, Blobs int
	Bytes                                       int64 // that were read
	Unlinked                                    int   // blobs that no repository links; collections remove them
	Findings, Repaired                          int
}

const page = 500

// Run examines everything. Its error says that the examination could not go on.
func (c *Checker) Run(ctx context.Context) (Report, error) {
	var r Report
	if err := c.bytes(ctx, &r); err != nil {
		return r, err
	}
	if err := c.links(ctx, &r); err != nil {
		return r, err
	}
	for after := content.Repository(""); ; {
		repos, err := c.Metadata.Repositories(ctx, after, page)
		if err != nil {
			return r, err
		}
		for _, repo := range repos {
			r.Repositories++
			if err := c.repository(ctx, repo, &r); err != nil {
				return r, fmt.Errorf("repository %s: %w", repo, err)
			}
		}
		if len(repos) < page {
			return r, nil
		}
		after = repos[len(repos)-1]
	}
}

// found reports a finding, after its repair.
func (c *Checker) found(r *Report, f Finding, repair func() error) error {
	if c.Repair && repair != nil {
		if err := repair(); err != nil && !errors.Is(err, errs.NotFound) {
			return err
		}
		f.Repaired = true
		r.Repaired++
	}
	r.Findings++
	if c.Found != nil {
		c.Found(f)
	}
	return nil
}

// bytes compares blobs with their digests.
func (c *Checker) bytes(ctx context.Context, r *Report) error {
	return c.Blobs.Walk(ctx, func(d content.Digest, size int64, _ time.Time) error {
		r.Blobs++
		holders, err := c.Metadata.Holders(ctx, d, "", 1)
		if err != nil {
			return err
		}
		if len(holders) == 0 {
			r.Unlinked++
		}
		if c.Quick {
			return nil
		}
		why, n, err := c.read(ctx, d)
		r.Bytes += n
		if err != nil || why == "" {
			return err
		}
		return c.found(r, Finding{Kind: Damaged, Digest: d, Detail: why}, func() error { return c.remove(ctx, d) })
	})
}

// read reads a blob and returns what is wrong with it; "" = nothing, or it is gone.
func (c *Checker) read(ctx context.Context, d content.Digest) (why string, n int64, err error) {
	b, _, err := c.Blobs.Open(ctx, d)
	if errors.Is(err, errs.NotFound) {
		return "", 0, nil
	}
	if err != nil {
		return "", 0, err
	}
	defer errs.Close(&err, b)
	h := d.Algorithm().New()
	n, err = io.Copy(h, contextReader{ctx, b})
	if err != nil {
		if ctx.Err() != nil || errors.Is(err, errs.Unavailable) {
			return "", n, err
		}
		return "it cannot be read: " + err.Error(), n, nil
	}
	if got := d.Algorithm().Sum(h); got != d {
		return fmt.Sprintf("its %d bytes have digest %s", n, got), n, nil
	}
	return "", n, nil
}

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// remove removes bytes that are still wrong.
func (c *Checker) remove(ctx context.Context, d content.Digest) error {
	held, release, err := c.Metadata.Lock(ctx, d)
	if err != nil {
		return err
	}
	defer release()
	why, _, err := c.read(held, d)
	if err != nil || why == "" {
		return err
	}
	return c.Blobs.Remove(held, d)
}

// links compares links with blobs.
func (c *Checker) links(ctx context.Context, r *Report) error {
	for after := (metadata.Link{}); ; {
		links, err := c.Metadata.Links(ctx, after, page)
		if err != nil {
			return err
		}
		for _, l := range links {
			r.Links++
			if err := c.link(ctx, l.Link, r); err != nil {
				return err
			}
		}
		if len(links) < page {
			return nil
		}
		after = links[len(links)-1].Link
	}
}

func (c *Checker) link(ctx context.Context, l metadata.Link, r *Report) error {
	why, err := c.broken(ctx, l)
	if err != nil || why == "" {
		return err
	}
	f := Finding{Kind: MissingBytes, Repository: l.Repository, Digest: l.Digest, Detail: why}
	return c.found(r, f, func() error {
		held, release, err := c.Metadata.Lock(ctx, l.Digest)
		if err != nil {
			return err
		}
		defer release()
		why, err := c.broken(held, l)
		if err != nil || why == "" {
			return err
		}
		return c.Metadata.DeleteLink(held, l.Repository, l.Digest)
	})
}

// broken returns what is wrong with a link; "" = nothing, or it is gone.
func (c *Checker) broken(ctx context.Context, l metadata.Link) (string, error) {
	size, err := c.Blobs.Stat(ctx, l.Digest)
	if err == nil && size == l.Size {
		return "", nil
	}
	if err != nil && !errors.Is(err, errs.NotFound) {
		return "", err
	}
	now, lerr := c.Metadata.Link(ctx, l.Repository, l.Digest) // again: it may have been deleted, or pushed again
	switch {
	case errors.Is(lerr, errs.NotFound):
		return "", nil
	case lerr != nil:
		return "", lerr
	case err != nil:
		return "its bytes are not there", nil
	case now.Size == size:
		return "", nil
	}
	return fmt.Sprintf("it has %d bytes, not %d", size, now.Size), nil
}

func (c *Checker) repository(ctx context.Context, repo content.Repository, r *Report) error {
	nodes, err := c.Metadata.Graph(ctx, repo)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		r.Manifests++
		if err := c.manifest(ctx, repo, n.Digest, r); err != nil {
			return err
		}
	}
	return metadata.EachTag(ctx, c.Metadata, repo, func(tag content.Tag) error {
		r.Tags++
		return c.tag(ctx, repo, tag, r)
	})
}

func (c *Checker) manifest(ctx context.Context, repo content.Repository, d content.Digest, r *Report) error {
	m, payload, err := c.Metadata.Payload(ctx, repo, d)
	f := Finding{Kind: LostManifest, Repository: repo, Digest: d}
	remove := func() error { return c.Metadata.DeleteManifest(ctx, repo, d) }
	switch {
	case errors.Is(err, errs.NotFound):
		return nil // deleted meanwhile
	case errors.Is(err, errs.DataLoss):
		f.Detail = err.Error()
		return c.found(r, f, remove)
	case err != nil:
		return err
	case d.Algorithm().Of(payload) != d:
		f.Detail = "its bytes have digest " + string(d.Algorithm().Of(payload))
		return c.found(r, f, remove)
	}
	parsed, err := content.ParseManifest(payload, m.MediaType)
	if err != nil || c.Missing { // what another release has accepted can be served
		return nil
	}
	for _, b := range parsed.Blobs {
		if b.Foreign() {
			continue
		}
		if _, err := c.Metadata.Link(ctx, repo, b.Digest); err == nil {
			continue
		} else if !errors.Is(err, errs.NotFound) {
			return err
		}
		if _, err := c.Metadata.Manifest(ctx, repo, d); err != nil {
			return ignore(err) // deleted meanwhile
		}
		if _, err := c.Metadata.Document(ctx, metadata.CopiesKind, string(repo)+" "+string(d)); !errors.Is(err, errs.NotFound) {
			return err // a copy gets its blobs when clients ask for them
		}
		return c.found(r, Finding{Kind: MissingContent, Repository: repo, Digest: d, Detail: "blob " + string(b.Digest) + " is not in the repository"}, nil)
	}
	return nil
}

func ignore(err error) error {
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	return err
}

func (c *Checker) tag(ctx context.Context, repo content.Repository, tag content.Tag, r *Report) error {
	t, err := c.Metadata.Tag(ctx, repo, tag)
	if err != nil {
		return ignore(err)
	}
	if _, err := c.Metadata.Manifest(ctx, repo, t.Digest); !errors.Is(err, errs.NotFound) {
		return err
	}
	again, err := c.Metadata.Tag(ctx, repo, tag)
	if err != nil || again.Digest != t.Digest {
		return ignore(err)
	}
	return c.found(r, Finding{Kind: DanglingTag, Repository: repo, Tag: tag, Digest: t.Digest}, func() error {
		return c.Metadata.DeleteTag(ctx, repo, tag, metadata.Condition{OneOf: []content.Digest{t.Digest}})
	})
}
