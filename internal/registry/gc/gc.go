// Package gc removes what the registry no longer needs, while it serves.
//
// A manifest is needed when it has a tag, is in an index, or its subject exists. What nothing needs and is older than a grace time is
// removed in transactions of their own, each of which checks again that nothing has come to need the object meanwhile; then what only
// that needed. Then it removes the links that no manifest refers to, and at last the bytes that no repository links, under the lock of
// their digest. No lock is held over more than one object, and no client waits for a collection. A collection has some thousand
// digests in memory, however large a repository is.
package gc

import (
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"ply/internal/errs"
	"ply/internal/registry/blobs"
	"ply/internal/registry/content"
	"ply/internal/registry/metadata"
)

// Collector collects one registry.
type Collector struct {
	Metadata metadata.Store
	Blobs    blobs.Store
	// Untagged lets manifests go that no tag leads to. Otherwise manifests stay until they are deleted.
	Untagged bool
	// DryRun counts what would go and removes nothing.
	DryRun bool
}

// Report says what a collection removed.
type Report struct {
	Uploads   int   `json:"uploads"`
	Manifests int   `json:"manifests"`
	Links     int   `json:"links"`
	Blobs     int   `json:"blobs"`
	Bytes     int64 `json:"bytes"` // of the blobs
}

const (
	page    = 500
	workers = 8  // objects that are removed at the same time
	batch   = 64 // objects that are asked for together

	remembered   = 10_000 // manifests that have become free
	fewChildren  = 1000   // of an index, that are remembered
	fewReferrers = 20     // of a manifest, that are remembered; each comes with its annotations
)

// Run collects once. Before is the end of the grace time: what was pushed, linked or used since then stays. Uploads that no one
// has used since idle are cancelled. Run goes on after an error of one object and returns all of them. The error's class is
// errs.Conflict when another collection of the registry is running, in this process or another one.
func (c *Collector) Run(ctx context.Context, before, idle time.Time) (Report, error) {
	var r Report
	var all error
	if !c.DryRun {
		held, release, err := c.Metadata.Sweep(ctx)
		if err != nil {
			return r, err
		}
		defer release()
		ctx = held
		n, err := c.Blobs.Expire(ctx, idle)
		r.Uploads, all = n, err
	}
	if c.Untagged {
		all = errors.Join(all, c.manifests(ctx, before, &r))
	}
	all = errors.Join(all, c.links(ctx, before, &r), c.bytes(ctx, before, &r))
	return r, all
}

// manifests removes the manifests that no tag leads to.
func (c *Collector) manifests(ctx context.Context, before time.Time, r *Report) (all error) {
	for after := content.Repository(""); ; {
		repos, err := c.Metadata.Repositories(ctx, after, page)
		if err != nil {
			return errors.Join(all, err)
		}
		for _, repo := range repos {
			if err := ctx.Err(); err != nil {
				return errors.Join(all, err)
			}
			all = errors.Join(all, c.repository(ctx, repo, before, r))
		}
		if len(repos) < page {
			return all
		}
		after = repos[len(repos)-1]
	}
}

func (c *Collector) repository(ctx context.Context, repo content.Repository, before time.Time, r *Report) (all error) {
	if c.DryRun {
		graph, err := c.Metadata.Graph(ctx, repo)
		for _, n := range Unmarked(graph) {
			if n.Pushed.Before(before) {
				r.Manifests++
			}
		}
		return err
	}
	// What has become free is removed at once, so that a chain of manifests costs one look at the repository. Only when more has become
	// free than is remembered, there is another one.
	for more := true; more; {
		more = false
		for after := content.Digest(""); ; {
			free, next, err := c.Metadata.Loose(ctx, repo, before, after)
			if err != nil {
				return errors.Join(all, err)
			}
			for len(free) > 0 && ctx.Err() == nil {
				some := free[:min(len(free), batch)]
				released, err := together(some, func(d content.Digest) (*released, error) { return c.manifest(ctx, repo, d, before) })
				all = errors.Join(all, err)
				free = slices.Clone(free[len(some):]) // without what was before them
				for _, f := range released {
					if f == nil {
						continue
					}
					r.Manifests++
					room := max(0, remembered-len(free))
					more = more || f.more || len(f.manifests) > room
					free = append(free, f.manifests[:min(room, len(f.manifests))]...)
				}
			}
			if err := ctx.Err(); err != nil {
				return errors.Join(all, err)
			}
			if after = next; next == "" {
				break
			}
		}
	}
	return all
}

// released are the manifests that nothing may need any more because one was removed.
type released struct {
	manifests []content.Digest
	more      bool // than these
}

// manifest removes a manifest that nothing needs; otherwise it returns nil. An index goes before its children and a subject before its referrers.
func (c *Collector) manifest(ctx context.Context, repo content.Repository, d content.Digest, before time.Time) (*released, error) {
	m, payload, err := c.Metadata.Payload(ctx, repo, d)
	if errors.Is(err, errs.NotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	done, err := c.Metadata.CollectManifest(ctx, repo, d, before)
	if err != nil || !done {
		return nil, err
	}
	r := &released{}
	if parsed, err := content.ParseManifest(payload, m.MediaType); err == nil { // otherwise it has no children
		children := parsed.Manifests[:min(len(parsed.Manifests), fewChildren)]
		for _, child := range children {
			r.manifests = append(r.manifests, child.Digest)
		}
		r.more = len(children) < len(parsed.Manifests)
	}
	referrers, err := c.Metadata.Referrers(ctx, repo, d, "", fewReferrers)
	for _, f := range referrers {
		r.manifests = append(r.manifests, f.Digest)
	}
	r.more = r.more || len(referrers) == fewReferrers
	return r, err
}

// together asks for all items, some at once so that they share the transactions and syncs of the database: one at a time, a collection would be
// slower than clients who push. It returns the answers and all errors.
func together[T, A any](items []T, ask func(T) (A, error)) (answers []A, _ error) {
	answers, failures := make([]A, len(items)), make([]error, len(items))
	var g errgroup.Group
	g.SetLimit(workers)
	for i, item := range items {
		g.Go(func() error {
			answers[i], failures[i] = ask(item)
			return nil
		})
	}
	_ = g.Wait() // the errors are in failures
	return answers, errors.Join(failures...)
}

// Unmarked returns the manifests of a repository that no tag leads to.
func Unmarked(graph []metadata.Node) (rest []metadata.Node) {
	at := make(map[content.Digest]int, len(graph))
	referrers := map[content.Digest][]content.Digest{}
	for i, n := range graph {
		at[n.Digest] = i
		if n.Subject != "" {
			referrers[n.Subject] = append(referrers[n.Subject], n.Digest)
		}
	}
	marked := make([]bool, len(graph))
	var reach []content.Digest
	for _, n := range graph {
		if n.Tagged {
			reach = append(reach, n.Digest)
		}
	}
	for len(reach) > 0 {
		d := reach[len(reach)-1]
		reach = reach[:len(reach)-1]
		i, ok := at[d]
		if !ok || marked[i] { // a blob, or seen before
			continue
		}
		marked[i] = true
		reach = append(append(reach, graph[i].Children...), referrers[d]...)
	}
	for i, n := range graph {
		if !marked[i] {
			rest = append(rest, n)
		}
	}
	return rest
}

// links removes the links that no manifest refers to.
func (c *Collector) links(ctx context.Context, before time.Time, r *Report) (all error) {
	for after := (metadata.Link{}); ; {
		links, err := c.Metadata.Links(ctx, after, page)
		if err != nil {
			return errors.Join(all, err)
		}
		free := slices.DeleteFunc(slices.Clone(links), func(l metadata.HeldLink) bool { return l.Held || !l.Linked.Before(before) })
		if c.DryRun {
			r.Links += len(free)
		} else {
			done, err := together(free, func(l metadata.HeldLink) (bool, error) {
				return c.Metadata.CollectLink(ctx, l.Repository, l.Digest, before)
			})
			all = errors.Join(all, err)
			for _, d := range done {
				if d {
					r.Links++
				}
			}
		}
		if len(links) < page {
			return all
		}
		after = links[len(links)-1].Link
		if err := ctx.Err(); err != nil {
			return errors.Join(all, err)
		}
	}
}

// bytes removes the blobs that no repository links.
func (c *Collector) bytes(ctx context.Context, before time.Time, r *Report) error {
	var all error
	err := c.Blobs.Walk(ctx, func(d content.Digest, size int64, stored time.Time) error {
		if !stored.Before(before) {
			return nil
		}
		free, err := c.free(ctx, d)
		if err == nil && free {
			free, err = c.remove(ctx, d)
		}
		if free {
			r.Blobs++
			r.Bytes += size
		}
		all = errors.Join(all, err)
		return ctx.Err()
	})
	return errors.Join(all, err)
}

func (c *Collector) free(ctx context.Context, d content.Digest) (bool, error) {
	holders, err := c.Metadata.Holders(ctx, d, "", 1)
	return len(holders) == 0, err
}

// remove removes a blob unless someone has linked it meanwhile. No one can link it before the lock is released.
func (c *Collector) remove(ctx context.Context, d content.Digest) (bool, error) {
	if c.DryRun {
		return true, nil
	}
	held, release, err := c.Metadata.Lock(ctx, d)
	if err != nil {
		return false, err
	}
	defer release()
	free, err := c.free(held, d)
	if err != nil || !free {
		return false, err
	}
	err = c.Blobs.Remove(held, d)
	return err == nil, err
}

// Schedule says when to collect.
type Schedule struct {
	Interval time.Duration // between two collections
	Grace    time.Duration // how long an object that nothing needs is kept
	Idle     time.Duration // how long an upload that no one uses is kept
}

// Loop collects until ctx is done.
func (c *Collector) Loop(ctx context.Context, s Schedule, done func(Report, error)) {
	tick := time.NewTicker(s.Interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			now, err := c.Metadata.Now(ctx)
			if err != nil {
				done(Report{}, err)
				continue
			}
			if r, err := c.Run(ctx, now.Add(-s.Grace), now.Add(-s.Idle)); !errors.Is(err, errs.Conflict) { // another replica collects
				done(r, err)
			}
		}
	}
}
