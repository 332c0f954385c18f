package build

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/build/cache"
	"ply/internal/errs"
	"ply/internal/events"
	"ply/internal/filter"
	"ply/internal/oci"
	"ply/internal/store/meta"
)

// PruneOptions of Prune. Entries that a build is using now stay.
type PruneOptions struct {
	All     bool          // entries whose layers an image has too
	Unused  time.Duration // only entries that were not used for this long
	Filters filter.Args
	Space   Space
}

// Space bounds the bytes of the cache that no image has. The zero value removes everything. When the bounds contradict each other, Reserved prevails.
type Space struct {
	Reserved int64 // may always stay
	MaxUsed  int64 // may stay at most; 0 = no bound
	MinFree  int64 // must be free on the file system afterwards
}

// Limit returns how many bytes may stay of total, while free bytes are free.
func (s Space) Limit(total, free int64) int64 {
	if s == (Space{}) {
		return 0
	}
	keep := s.MaxUsed
	if keep == 0 && s.MinFree > 0 {
		keep = math.MaxInt64
	}
	if lack := s.MinFree - free; lack > 0 {
		keep = min(keep, total-lack)
	}
	return max(keep, s.Reserved)
}

// PruneFilters are the conditions of Prune. Entries have no labels and no parents: `docker system prune --filter label=x` asks for labels of
// everything that it prunes.
var PruneFilters = filter.Table[*cache.Entry]{
	"label":       filter.Labels(noLabels),
	"label!":      filter.NotAllLabels(noLabels),
	"parent":      filter.Any(func(*cache.Entry, string) bool { return false }),
	"until":       filter.Until(func(e *cache.Entry) time.Time { return e.Used }),
	"unused-for":  filter.Until(func(e *cache.Entry) time.Time { return e.Used }),
	"shared":      filter.Bool(func(e *cache.Entry, v bool) bool { return e.Shared == v }),
	"private":     filter.Bool(func(e *cache.Entry, v bool) bool { return e.Shared != v }),
	"inuse":       filter.Bool(func(e *cache.Entry, v bool) bool { return e.InUse == v }),
	"description": filter.Exact(func(e *cache.Entry) string { return e.Name }),
	"type":        filter.Exact(func(e *cache.Entry) string { return string(e.Type) }),
	"id":          filter.Text(func(e *cache.Entry) []string { return []string{string(e.ID)} }),
}

func noLabels(*cache.Entry) map[string]string { return nil }

// Pruned is the result of Prune.
type Pruned struct {
	Entries []oci.Digest // results
	Mounts  []oci.Digest // directories of cache mounts
	Freed   int64        // bytes
}

// Prune removes results from the cache, those first that were not used for the longest time, until the rest is within opts.Space. What steps that
// failed left goes like a result of the same age.
func (s *Service) Prune(ctx context.Context, opts PruneOptions) (*Pruned, error) {
	out, err := s.prune(ctx, opts)
	if err == nil && s.o.Events != nil {
		s.o.Events.Publish(events.Event{Type: "builder", Action: "prune", Attributes: map[string]string{"reclaimed": strconv.FormatInt(out.Freed, 10)}})
	}
	return out, err
}

func (s *Service) prune(ctx context.Context, opts PruneOptions) (*Pruned, error) {
	if opts.Filters.Has("until") && opts.Filters.Has("unused-for") { // two names of one condition
		return nil, errs.New(errs.Invalid, "conflicting filters: until and unused-for")
	}
	match, err := PruneFilters.Compile(opts.Filters)
	if err != nil {
		return nil, err
	}
	list, err := s.Cache(ctx)
	if err != nil {
		return nil, err
	}
	var total, free int64
	for _, e := range list {
		if !e.Shared {
			total += e.Size
		}
	}
	if opts.Space.MinFree > 0 {
		if free, err = freeSpace(s.o.DataRoot); err != nil {
			return nil, err
		}
	}
	var mounts []oci.Digest
	sizes := map[oci.Digest]int64{}
	out, limit, before := &Pruned{}, opts.Space.Limit(total, free), time.Now().Add(-opts.Unused)
	bounded := opts.Space != Space{}
	var newest time.Time // use of a result that goes
	for i := range list {
		e := &list[i]
		if bounded && total <= limit {
			break
		}
		if e.InUse || e.Shared && (bounded || !opts.All) || opts.Unused > 0 && e.Used.After(before) || !match(e) {
			continue
		}
		if !e.Shared {
			total -= e.Size
		}
		if e.Type == cache.CacheMount {
			mounts = append(mounts, e.ID)
			sizes[e.ID] = e.Size
			continue
		}
		out.Entries = append(out.Entries, e.ID)
		if e.Used.After(newest) {
			newest = e.Used
		}
	}
	if len(mounts) > 0 {
		gone, err := s.runner.RemoveCacheMounts(mounts) // those that no step has begun to use meanwhile
		for _, id := range gone {
			out.Mounts = append(out.Mounts, id)
			out.Freed += sizes[id]
		}
		if err != nil {
			return nil, err
		}
	}
	known := make(map[string]bool, len(list)) // of the results of this list: whether they stay
	for i := range list {
		known[string(list[i].ID)] = true
	}
	for _, id := range out.Entries {
		known[string(id)] = false
	}
	// The images of steps need the layers, so they go first; so do those of results that went before, while a container used the image.
	_, freed, err := s.o.Images.RemoveSteps(ctx, func(step string, used time.Time) bool {
		switch step {
		case meta.StepOfBase, meta.StepOfRun:
			return false
		case meta.StepFailed, meta.StepOfStack: // in no cache: they go as if they were results
			if bounded {
				return used.Before(newest)
			}
			return (opts.Unused == 0 || !used.After(before)) && match(&cache.Entry{Type: cache.Regular, Used: used})
		}
		stays, ok := known[step]
		return !stays && (ok || !s.cache.Has(oci.Digest(step)))
	})
	if err != nil {
		return nil, err
	}
	out.Freed += freed
	if len(out.Entries) == 0 {
		return out, nil
	}
	more, err := s.cache.Remove(ctx, out.Entries)
	out.Freed += more
	return out, err
}

// freeSpace returns the bytes that may still be written on a file system.
func freeSpace(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, errs.New(errs.Internal, "build cache: free space of %s: %w", dir, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// defaultKeep is what the cache may keep beside what images have, in bytes.
const defaultKeep = 20 << 30

// policy is what is pruned after builds.
type policy struct {
	rules []PruneOptions
	timed bool // a rule depends on more than the size of the cache

	mu   sync.Mutex
	last time.Time // when it was applied
}

// policyPause is the time between two applications of rules that can apply although the cache has not grown.
const policyPause = 10 * time.Minute

func newPolicy(rules []PruneOptions) (*policy, error) {
	if rules == nil {
		rules = []PruneOptions{{All: true, Space: Space{MaxUsed: defaultKeep}}}
	}
	p := &policy{rules: rules}
	for i, r := range rules {
		if _, err := PruneFilters.Compile(r.Filters); err != nil {
			return nil, fmt.Errorf("builder.gc.policy: rule %d: %w", i+1, err)
		}
		p.timed = p.timed || len(r.Filters) > 0 || r.Unused > 0 || r.Space.MinFree > 0
	}
	return p, nil
}

// apply prunes if the cache has grown; a build from the cache leaves nothing to prune for its size.
func (p *policy) apply(ctx context.Context, s *Service) error {
	grown := s.cache.Grown()
	p.mu.Lock()
	due := grown || p.timed && time.Since(p.last) > policyPause
	if due {
		p.last = time.Now()
	}
	p.mu.Unlock()
	if !due {
		return nil
	}
	for _, r := range p.rules {
		if _, err := s.prune(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// Policy returns what is pruned after builds.
func (s *Service) Policy() []PruneOptions { return s.policy.rules }
