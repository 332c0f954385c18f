// Package gc removes what the registry no longer needs, while it serves.
//
// A collection marks from the tags of a repository: through indexes to their children, and from a subject to its referrers. What is
// not marked and older than a grace time is removed in transactions of their own, each of which checks again that nothing has come
// to need the object meanwhile. Then it removes the links that no manifest refers to, and at last the bytes that no repository
// links, under the lock of their digest. No lock is held over more than one object, and no client waits for a collection.
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
	workers = 8 // objects that are removed at the same time
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
	graph, err := c.Metadata.Graph(ctx, repo)
	if err != nil {
		return err
	}
	var left []content.Digest
	for _, n := range Unmarked(graph) {
		if n.Pushed.Before(before) {
			left = append(left, n.Digest)
		}
	}
	if c.DryRun {
		r.Manifests += len(left)
		return nil
	}
	// An index goes before its children and a subject before its referrers; each pass removes those that have become free.
	for removed := true; removed; {
		done, err := together(left, func(d content.Digest) (bool, error) { return c.Metadata.CollectManifest(ctx, repo, d, before) })
		all = errors.Join(all, err)
		var still []content.Digest
		for i, d := range left {
			if !done[i] {
				still = append(still, d)
			}
		}
		removed = len(still) < len(left)
		r.Manifests += len(left) - len(still)
		left = still
	}
	return all
}

// together asks for all items, some at once so that they share the transactions and syncs of the database: one at a time, a collection would be
// slower than clients who push. It returns the answers and all errors.
func together[T any](items []T, ask func(T) (bool, error)) (answers []bool, _ error) {
	answers, failures := make([]bool, len(items)), make([]error, len(items))
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
