// Package store manages the content of a data root: blobs, layers, and the database with their records. Leases protect objects
// while an operation is under way, and collections remove the objects that no record needs.
//
// Invariants:
//   - A record is written only after the objects that it refers to are durable.
//   - An operation leases an object before it checks whether the object exists, and keeps the lease until a record refers to the
//     object. A collection removes no object that a record needs, that is leased, or that is younger than the grace time.
//   - What is unknown is kept: while a record is damaged, or the database is in doubt because it is older than the data root, a
//     collection removes nothing.
//   - Each record, but those of build steps, is repeated in a file beside the data (Lost, Rebuild, RepeatRecords). The file
//     follows the record, so it may be older after a crash; it is read only when the record is lost.
//   - Leases are in memory only. The database admits one process, so all leases end with the process. Objects that a crash leaves
//     without a record are protected by the grace time, so that the next attempt can use them.
package store

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"time"

	"ply/internal/durable"
	"ply/internal/oci"
	"ply/internal/store/blob"
	"ply/internal/store/gc"
	"ply/internal/store/layer"
	"ply/internal/store/meta"
)

// DefaultGrace is the grace time: a collection does not remove a younger object, even if nothing refers to it.
const DefaultGrace = 24 * time.Hour

// Options of Open.
type Options struct {
	FS    durable.FS    // nil = the real one
	Grace time.Duration // 0 = DefaultGrace
	Meta  meta.Options

	// DamagedBlob is called after a blob was removed because its bytes had another digest. nil = not told
	DamagedBlob func(d, got oci.Digest)

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

	beside    beside
	Retention *Retention
	Health    *Health

	grace   time.Duration
	records recorder

	mu       sync.Mutex             // guards the fields below; not held while anything is read or removed
	leased   map[node]int           // number of leases
	removing map[node]chan struct{} // closed when the object is gone
	marking  int                    // collections that read the records and have not chosen yet
	touched  map[node]struct{}      // objects whose lease began or ended meanwhile
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
		leased: map[node]int{}, removing: map[node]chan struct{}{}, touched: map[node]struct{}{},
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
	if err := errors.Join(s.FS.MkdirAll(filepath.Dir(root), 0o711), s.FS.MkdirAll(root, 0o700)); err != nil {
		return nil, err
	}
	s.beside = beside{durable.OS, root} // no operation depends on these files
	opts.Meta.FS, opts.Meta.Committed = s.FS, s.beside.follow
	opts.Meta.Occupied = func() (bool, error) { return occupied(s.FS, root) }
	// The driver refuses a root with layers of a later release, in which Open must not change the database either.
	opts.Meta.Before = func() (err error) {
		s.Layers, err = driver(s.FS, root)
		return err
	}
	if s.Meta, err = meta.Open(filepath.Join(root, "meta.db"), opts.Meta); err != nil {
		if s.Layers != nil {
			err = errors.Join(err, s.Layers.Close())
		}
		return nil, err
	}
	s.records.db = s.Meta
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Meta.Close())
		}
	}()
	// Not earlier, because a data root of a later release must stay as it is.
	if err := durable.MkdirPrivate(s.FS, root); err != nil {
		return nil, err
	}
	if err := s.beside.open(); err != nil {
		return nil, err
	}
	if s.Blobs, err = blob.Open(s.FS, root); err != nil {
		return nil, err
	}
	s.Blobs.Damaged = opts.DamagedBlob
	return s, nil
}

// Close closes the driver and the database.
func (s *Store) Close() error { return errors.Join(s.Layers.Close(), s.Meta.Close()) }

// RecordLayer records a committed layer and, if form is not nil, a compressed form of it. If the form is recorded already, it
// gets the new repositories. The caller has leased the layer.
func (s *Store) RecordLayer(info layer.Info, form *meta.LayerBlob) error {
	return s.records.write(info, form)
}

// Collect removes the objects that no record needs, that are not leased, and that are older than the grace time. It returns the
// size of the removed blobs in bytes. While the database is in doubt nothing is removed (errs.DataLoss). An object that cannot be removed is in the error; the others are removed all the same.
func (s *Store) Collect(ctx context.Context) (int64, error) {
	if err := s.held(); err != nil {
		return 0, err
	}
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

// Reclaim removes, of the given objects, those that no record needs and that are not leased, whatever their age. It is for an
// operation that has just removed the references to them. It returns the freed bytes: the sum of the sizes of tars and blobs.
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
					continue // the size is unknown, but the space is freed
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

// sweep removes the objects that no record needs, that are not leased, and for which keep returns false.
//
// It reads the records without mu, because that may wait for the disk. A record that is written after the reading began is
// not seen, but whoever writes it has leased its objects; see choose.
func (s *Store) sweep(ctx context.Context, all []node, keep func(node) bool, sizes map[node]int64) (int64, error) {
	s.mu.Lock()
	s.marking++
	s.mu.Unlock()
	live, err := s.mark()
	dead := s.choose(all, live, keep, err == nil)
	if err != nil || len(dead) == 0 {
		return 0, err
	}
	// Both the transaction and the removal wait for the disk, so they run at the same time.
	forgotten := make(chan error, 1)
	go func() { forgotten <- s.forgetLayers() }()
	freed, failed := s.removeAll(ctx, dead, sizes)
	return freed, errors.Join(failed, <-forgotten)
}

// choose ends a marking and, if it succeeded, chooses the objects to remove. It keeps those that were leased at any time since
// the marking began: a record that mark did not see may need them.
func (s *Store) choose(all []node, live map[node]struct{}, keep func(node) bool, marked bool) (dead []node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if marked {
		dead = gc.Sweep(all, live, func(n node) bool {
			_, touched := s.touched[n]
			return keep(n) || touched || s.leased[n] > 0 || s.removing[n] != nil
		})
	}
	if s.marking--; s.marking == 0 {
		clear(s.touched)
	}
	for _, n := range dead {
		s.removing[n] = make(chan struct{})
	}
	return dead
}

// claim chooses one object to remove, unless it is leased or being removed already. The caller calls remove then.
func (s *Store) claim(n node) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leased[n] > 0 || s.removing[n] != nil {
		return false
	}
	s.removing[n] = make(chan struct{})
	return true
}

// removers is the number of objects that are removed at a time. Removing a large file keeps the kernel busy, and with some file
// systems the disk.
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

// remove removes one object that sweep has chosen. Then the leases that wait for it continue.
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

// mark returns every object that a record needs. Reading does not wait for writers.
func (s *Store) mark() (live map[node]struct{}, err error) {
	if err := s.held(); err != nil {
		return nil, err
	}
	err = s.Meta.View(func(tx *meta.Tx) error {
		live, err = graph{tx, s.Layers.Keys}.live()
		return err
	})
	return live, err
}

// forgetLayers deletes the records of layers that no image or container needs and no lease protects. It decides inside
// the transaction that deletes them: an image may have been recorded since the collection began.
func (s *Store) forgetLayers() error {
	if err := s.held(); err != nil {
		return err
	}
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
