// Package cache remembers the results of build steps in the database of the store, lists them, and removes those that were not used for the longest
// time.
//
// Invariants: a result is recorded after its layers are durable, and found only while its top layer is there; the layers of recorded results are kept by
// collections; the time of the last use is written behind, so a crash may lose some minutes of it.
package cache

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"ply/internal/build/solver"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/store/meta"
)

// Cache implements solver.Cache. Safe for concurrent use.
type Cache struct {
	st  *store.Store
	log *slog.Logger

	grown atomic.Bool // a result was saved since Grown was asked

	mu   sync.Mutex
	used map[oci.Digest]use // not written yet
}

type use struct {
	at time.Time
	n  int
}

var _ solver.Cache = (*Cache)(nil)

// New returns the cache of a store.
func New(st *store.Store, log *slog.Logger) *Cache {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	c := &Cache{st: st, log: log, used: map[oci.Digest]use{}}
	c.grown.Store(true)
	return c
}

// Find implements solver.Cache.
func (c *Cache) Find(ctx context.Context, l solver.Leaser, key oci.Digest) (rec *solver.Record, err error) {
	var id oci.Digest
	var step meta.Step
	err = c.st.Meta.View(func(tx *meta.Tx) error {
		k, err := tx.StepKeys.Get(string(key))
		if err == nil {
			id = k.Step
			step, err = tx.Steps.Get(id)
		}
		return err
	})
	if errors.Is(err, errs.DataLoss) {
		c.log.Warn("damaged record in the build cache: the step will be executed", "key", key, "err", err)
		err = errs.New(errs.NotFound, "build cache: %v", err)
	}
	if err != nil {
		return nil, err
	}
	for _, o := range step.Outputs {
		if len(o.Chain) == 0 {
			continue
		}
		l.Layer(o.Chain) // before the look, so that no collection removes it afterwards
		// A chain is built on results that were found the same way, so its lower layers were looked at already.
		if _, err := c.st.Layers.Stat(ctx, o.Chain); err != nil {
			return nil, errs.New(errs.NotFound, "build cache: layer %s: %v", o.Chain.Top().Short(), err)
		}
	}
	c.mu.Lock()
	c.used[id] = use{time.Now().UTC(), c.used[id].n + 1}
	c.mu.Unlock()
	return record(id, &step), nil
}

func record(id oci.Digest, step *meta.Step) *solver.Record {
	r := &solver.Record{ID: id, Outputs: map[int]oci.Chain{}, Name: step.Name, Created: step.Created, Took: step.Took}
	for _, o := range step.Outputs {
		r.Outputs[o.Index] = o.Chain
	}
	for _, p := range step.Parts {
		r.Parts = append(r.Parts, solver.Part(p))
	}
	return r
}

func nameKey(name string) string {
	return "name " + string(oci.DigestOf([]byte(solver.Title(name))))
}

// Save implements solver.Cache.
func (c *Cache) Save(_ context.Context, r *solver.Record, keys ...oci.Digest) error {
	step := meta.Step{Name: r.Name, Created: r.Created, Used: time.Now().UTC(), Uses: 1, Took: r.Took}
	for _, i := range slices.Sorted(maps.Keys(r.Outputs)) {
		step.Outputs = append(step.Outputs, meta.StepOutput{Index: i, Chain: r.Outputs[i]})
	}
	for _, p := range r.Parts {
		step.Parts = append(step.Parts, meta.StepPart(p))
	}
	c.grown.Store(true)
	return c.st.Meta.Update(func(tx *meta.Tx) error {
		if err := tx.Steps.Put(r.ID, step); err != nil {
			return err
		}
		names := []string{nameKey(r.Name)}
		for _, k := range keys {
			names = append(names, string(k))
		}
		for _, k := range names {
			if err := tx.StepKeys.Put(k, meta.StepKey{Step: r.ID}); err != nil {
				return err
			}
		}
		return nil
	})
}

// Alias implements solver.Cache.
func (c *Cache) Alias(_ context.Context, key, id oci.Digest) error {
	return c.st.Meta.Update(func(tx *meta.Tx) error { return tx.StepKeys.Put(string(key), meta.StepKey{Step: id}) })
}

// Last implements solver.Cache.
func (c *Cache) Last(_ context.Context, name string) (rec *solver.Record) {
	err := c.st.Meta.View(func(tx *meta.Tx) error {
		k, err := tx.StepKeys.Get(nameKey(name))
		if err != nil {
			return err
		}
		step, err := tx.Steps.Get(k.Step)
		if err == nil {
			rec = record(k.Step, &step)
		}
		return err
	})
	if err != nil {
		return nil // it only explains
	}
	return rec
}

// Grown reports whether results were saved since it was asked before. The first answer is true, because the bounds may have changed since the last start.
func (c *Cache) Grown() bool { return c.grown.Swap(false) }

// Flush writes the times of last uses.
func (c *Cache) Flush() error {
	c.mu.Lock()
	used := c.used
	c.used = map[oci.Digest]use{}
	c.mu.Unlock()
	if len(used) == 0 {
		return nil
	}
	return c.st.Meta.Update(func(tx *meta.Tx) error {
		for id, u := range used {
			step, err := tx.Steps.Get(id)
			if err != nil {
				continue // removed meanwhile, or damaged
			}
			step.Used, step.Uses = u.at, step.Uses+u.n
			if err := tx.Steps.Put(id, step); err != nil {
				return err
			}
		}
		return nil
	})
}

// Entry is a result in the cache, for lists.
type Entry struct {
	ID      oci.Digest
	Name    string
	Size    int64 // bytes of the files in the layers that only it adds
	Created time.Time
	Used    time.Time
	Uses    int
	Shared  bool // an image has the layers, so removing the entry frees nothing
	InUse   bool // a build is using the layers
	Type    Type
}

// Type is what an entry is, in BuildKit's words.
type Type string

// The types of entries.
const (
	Regular    Type = "regular"         // the result of a step
	CacheMount Type = "exec.cachemount" // a directory of RUN --mount=type=cache
)

// ShortID returns the ID as clients show it.
func (e *Entry) ShortID() string { return e.ID.Hex()[:25] }

// List returns the entries, the one that was used last at the end.
func (c *Cache) List() (list []Entry, err error) {
	if err := c.Flush(); err != nil {
		return nil, err
	}
	err = c.st.Meta.View(func(tx *meta.Tx) error {
		inImages := map[oci.DiffID]bool{}
		for _, img := range tx.Images.All() {
			if img.Err != nil || img.Value.Step != "" {
				continue // an image with a damaged record only counts as one that shares nothing
			}
			for _, d := range img.Value.Chain {
				inImages[d] = true
			}
		}
		for id, r := range tx.Steps.All() {
			step := r.Value // of a damaged record only the ID is known: it can be removed
			e := Entry{ID: id, Name: step.Name, Created: step.Created, Used: step.Used, Uses: step.Uses, Shared: true, Type: Regular}
			for _, o := range step.Outputs {
				if len(o.Chain) == 0 {
					continue
				}
				if l, err := tx.Layers.Get(o.Chain.Top()); err == nil {
					e.Size += l.Size
				}
				e.Shared = e.Shared && inImages[o.Chain.Top()]
				e.InUse = e.InUse || c.st.Leased(o.Chain)
			}
			list = append(list, e)
		}
		return nil
	})
	slices.SortFunc(list, func(a, b Entry) int { return a.Used.Compare(b.Used) })
	return list, err
}

// Remove removes entries. It returns the freed bytes.
func (c *Cache) Remove(ctx context.Context, ids []oci.Digest) (int64, error) {
	var chains []oci.Chain
	gone := map[oci.Digest]bool{}
	err := c.st.Meta.Update(func(tx *meta.Tx) error {
		for _, id := range ids {
			step, err := tx.Steps.Get(id)
			if err == nil {
				for _, o := range step.Outputs {
					chains = append(chains, o.Chain)
				}
			}
			gone[id] = true
			if err := tx.Steps.Delete(id); err != nil {
				return err
			}
		}
		var keys []string
		for k := range tx.StepKeys.Keys() {
			if target, err := tx.StepKeys.Get(k); err != nil || gone[target.Step] || !tx.Steps.Has(target.Step) {
				keys = append(keys, k)
			}
		}
		for _, k := range keys {
			if err := tx.StepKeys.Delete(k); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil || len(chains) == 0 {
		return 0, err
	}
	return c.st.Reclaim(context.WithoutCancel(ctx), chains, nil)
}

// Has reports whether a step is in the cache.
func (c *Cache) Has(id oci.Digest) bool {
	found := false
	_ = c.st.Meta.View(func(tx *meta.Tx) error { found = tx.Steps.Has(id); return nil }) // a failed read finds nothing
	return found
}
