// Package store is what is on disk under a data root: blobs, layers and the database of what they mean,
// with the leases and the collection that keep the three together.
//
// Invariants:
//   - a record is written only after what it speaks of is durable;
//   - an operation takes a lease on an object before it looks whether the object is there, and holds it until a
//     record refers to the object; a collection takes nothing that is leased, referred to, or younger than Grace;
//   - leases live in memory: the database admits one process, so a lease ends with its owner, and what a crash
//     leaves is protected by Grace until the next try has picked it up.
package store

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"time"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/blob"
	"ply/internal/store/gc"
	"ply/internal/store/layer"
	"ply/internal/store/meta"
)

// DefaultGrace is how long an object that nothing refers to is left alone.
const DefaultGrace = 24 * time.Hour

// Options of Open.
type Options struct {
	FS    durable.FS    // nil = the real one
	Grace time.Duration // 0 = DefaultGrace
	Meta  meta.Options

	Retain       Retain // "" = RetainAuto
	RetainBudget int64  // bytes of compressed layers that RetainAuto keeps; 0 = a small part of what the layers take
}

// Store is an open data root. Safe for concurrent use.
type Store struct {
	Root   string
	FS     durable.FS
	Meta   *meta.DB
	Blobs  *blob.Store
	Layers layer.Driver

	Retention *Retention
	Health    *Health

	grace time.Duration

	mu       sync.Mutex // guards the two maps, never held over I/O
	leased   map[node]int
	removing map[node]chan struct{} // closed when the object is gone
}

// Open is OpenWith for a driver that is open already. The store closes the driver, except when Open fails.
func Open(root string, driver layer.Driver, opts Options) (*Store, error) {
	return OpenWith(root, func(durable.FS, string) (layer.Driver, error) { return driver, nil }, opts)
}

// OpenWith opens the data root. It makes root when it does not exist. The database comes first: it admits one process per
// root and refuses a root of a newer release, and neither the driver nor the blobs are touched before it has done so.
// driver opens the layers; the store owns what it returns.
func OpenWith(root string, driver func(fsys durable.FS, root string) (layer.Driver, error), opts Options) (_ *Store, err error) {
	s := &Store{
		Root: root, FS: opts.FS, grace: opts.Grace,
		leased: map[node]int{}, removing: map[node]chan struct{}{},
	}
	if s.FS == nil {
		s.FS = durable.OS
	}
	if s.grace == 0 {
		s.grace = DefaultGrace
	}
	s.Health = newHealth(s)
	if s.Retention, err = newRetention(s, opts.Retain, opts.RetainBudget); err != nil {
		return nil, err
	}
	if err := s.FS.MkdirAll(root, 0o711); err != nil {
		return nil, err
	}
	if s.Meta, err = meta.Open(filepath.Join(root, "meta.db"), opts.Meta); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Meta.Close())
		}
	}()
	if s.Blobs, err = blob.Open(s.FS, root); err != nil {
		return nil, err
	}
	if s.Layers, err = driver(s.FS, root); err != nil {
		return nil, err
	}
	return s, nil
}

// Close closes the driver and the database.
func (s *Store) Close() error { return errors.Join(s.Layers.Close(), s.Meta.Close()) }

// RecordLayer writes down a committed layer, and one stored form of it when blob is not nil: a form known already
// gets the new repositories. Call it while the layer is leased.
func (s *Store) RecordLayer(info layer.Info, form *meta.LayerBlob) error {
	return s.Meta.Update(func(tx *meta.Tx) error {
		l, err := tx.Layers.Get(info.DiffID)
		if err != nil && !errors.Is(err, errs.NotFound) && !errors.Is(err, errs.DataLoss) {
			return err
		}
		l.Size, l.TarSize = info.Size, info.TarSize
		if form != nil {
			l.Blobs = mergeForm(l.Blobs, *form)
		}
		return tx.Layers.Put(info.DiffID, l)
	})
}

func mergeForm(forms []meta.LayerBlob, f meta.LayerBlob) []meta.LayerBlob {
	for i := range forms {
		if forms[i].Digest != f.Digest {
			continue
		}
		known := map[string]bool{}
		for _, r := range forms[i].Repositories {
			known[r] = true
		}
		for _, r := range f.Repositories {
			if !known[r] {
				forms[i].Repositories = append(forms[i].Repositories, r)
			}
		}
		if f.Codec != "" {
			forms[i].Codec = f.Codec
		}
		return forms
	}
	return append(forms, f)
}

// Collect removes whatever nothing refers to, nobody leases, and is older than the grace time. It returns the bytes of
// the blobs it freed; what cannot be removed is reported and does not keep the rest.
func (s *Store) Collect(ctx context.Context) (int64, error) {
	started := time.Now()
	var all []node
	sizes := map[node]int64{}
	young := map[node]bool{}
	err := s.Blobs.Walk(func(d oci.Digest, size int64, made time.Time) error {
		n := node{blob: d}
		all = append(all, n)
		sizes[n] = size
		young[n] = started.Sub(made) < s.grace
		return nil
	})
	if err != nil {
		return 0, err
	}
	err = s.Layers.Walk(ctx, func(k layer.Key, made time.Time) error {
		n := node{layer: k}
		all = append(all, n)
		young[n] = started.Sub(made) < s.grace
		return nil
	})
	if err != nil {
		return 0, err
	}
	freed, err := s.sweep(ctx, all, func(n node) bool { return young[n] }, sizes)
	return freed, errors.Join(err, s.Blobs.RemoveStale(started))
}

// Reclaim removes those of the given objects that nothing refers to and nobody leases, whatever their age: for an
// operation that has just dropped the references itself. It returns the bytes freed, counted as tar and blob sizes.
func (s *Store) Reclaim(ctx context.Context, chains []oci.Chain, blobs []oci.Digest) (int64, error) {
	var all []node
	sizes := map[node]int64{}
	seen := map[node]bool{}
	add := func(n node, size int64) {
		if !seen[n] {
			seen[n] = true
			all = append(all, n)
			sizes[n] = size
		}
	}
	err := s.Meta.View(func(tx *meta.Tx) error {
		for _, c := range chains {
			for _, k := range s.Layers.Keys(c) {
				add(node{layer: k}, 0)
			}
			for i, d := range c {
				rec, err := tx.Layers.Get(d)
				if err != nil {
					continue // a damaged record costs a number, not the space
				}
				if keys := s.Layers.Keys(c[:i+1]); len(keys) > 0 {
					sizes[node{layer: keys[len(keys)-1]}] = rec.TarSize
				}
				for _, f := range rec.Blobs {
					if size, err := s.Blobs.Stat(f.Digest); err == nil {
						add(node{blob: f.Digest}, size)
					}
				}
			}
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	for _, d := range blobs {
		if size, err := s.Blobs.Stat(d); err == nil {
			add(node{blob: d}, size)
		}
	}
	return s.sweep(ctx, all, func(node) bool { return false }, sizes)
}

// sweep condemns the dead under the lock that leases need, then removes them without it.
func (s *Store) sweep(ctx context.Context, all []node, keep func(node) bool, sizes map[node]int64) (int64, error) {
	s.mu.Lock()
	live, err := s.mark()
	if err != nil {
		s.mu.Unlock()
		return 0, err
	}
	dead := gc.Sweep(all, live, func(n node) bool { return keep(n) || s.leased[n] > 0 || s.removing[n] != nil })
	for _, n := range dead {
		s.removing[n] = make(chan struct{})
	}
	s.mu.Unlock()

	if len(dead) == 0 {
		return 0, nil
	}
	// The transaction waits for the disk as long as the removal does; they need not wait for each other.
	forgotten := make(chan error, 1)
	go func() { forgotten <- s.forgetLayers() }()
	freed, failed := s.removeAll(ctx, dead, sizes)
	return freed, errors.Join(failed, <-forgotten)
}

// removers is how many objects are removed at a time: freeing a large file is work for the kernel, on some file
// systems for the disk as well.
const removers = 4

func (s *Store) removeAll(ctx context.Context, dead []node, sizes map[node]int64) (freed int64, failed error) {
	var mu sync.Mutex
	var work sync.WaitGroup
	slots := make(chan struct{}, removers)
	for _, n := range dead {
		slots <- struct{}{}
		work.Go(func() {
			defer func() { <-slots }()
			err := s.remove(ctx, n)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = errors.Join(failed, err)
				return
			}
			freed += sizes[n]
		})
	}
	work.Wait()
	return freed, failed
}

// remove removes one condemned object and lets waiting leases go on.
func (s *Store) remove(ctx context.Context, n node) error {
	err := ctx.Err()
	if err == nil && n.blob != "" {
		err = s.Blobs.Remove(n.blob)
	} else if err == nil {
		err = s.Layers.Remove(ctx, n.layer)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.removing[n])
	delete(s.removing, n)
	return err
}

// mark returns every object that a record needs. The caller holds mu, so that no lease begins between this reading of the
// records and the decision what to remove. Reading does not wait for writers.
func (s *Store) mark() (live map[node]struct{}, err error) {
	err = s.Meta.View(func(tx *meta.Tx) error {
		live, err = graph{tx, s.Layers.Keys}.live()
		return err
	})
	return live, err
}

// forgetLayers deletes the records of layers that no image or container needs and no lease protects. It decides inside
// the transaction that deletes them: an image may have been recorded since the collection began.
func (s *Store) forgetLayers() error {
	return s.Meta.Update(func(tx *meta.Tx) error {
		live, err := graph{tx: tx}.live()
		if err != nil {
			return err
		}
		var gone []oci.DiffID
		for id := range tx.Layers.Keys() {
			n := node{record: id}
			if _, needed := live[n]; !needed && !s.isLeased(n) {
				gone = append(gone, id)
			}
		}
		for _, id := range gone {
			if err := tx.Layers.Delete(id); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *Store) isLeased(n node) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leased[n] > 0
}
