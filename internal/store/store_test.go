package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/layer"
	"ply/internal/store/meta"
)

// memLayers is a driver in memory, as far as collections and Health need one: its objects are keyed by diffID.
type memLayers struct {
	layer.Driver
	mu      sync.Mutex
	objects map[layer.Key]time.Time
	remove  func(layer.Key) error
	verify  func(oci.DiffID) error
	damaged map[oci.DiffID]bool
	keys    func(oci.Chain) // called by Keys, which in a driver may read the disk
}

func (m *memLayers) Stat(_ context.Context, c oci.Chain) (layer.Info, error) {
	if !m.has(c.Top()) {
		return layer.Info{}, errs.New(errs.NotFound, "layer %s: not here", c.Top())
	}
	return layer.Info{DiffID: c.Top()}, nil
}

func (m *memLayers) Verify(_ context.Context, c oci.Chain) error {
	if m.verify != nil {
		return m.verify(c.Top())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.damaged[c.Top()] {
		return errs.New(errs.DataLoss, "layer %s: damaged", c.Top())
	}
	return nil
}

func (m *memLayers) damage(d oci.DiffID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.damaged[d] = true
}

func (m *memLayers) repair(d oci.DiffID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.damaged, d)
}

func (m *memLayers) Keys(c oci.Chain) []layer.Key {
	if m.keys != nil {
		m.keys(c)
	}
	keys := make([]layer.Key, len(c))
	for i, d := range c {
		keys[i] = layer.Key(d)
	}
	return keys
}

func (m *memLayers) Walk(_ context.Context, visit func(layer.Key, time.Time) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for k, t := range m.objects {
		if err := visit(k, t); err != nil {
			return err
		}
	}
	return nil
}

func (m *memLayers) Remove(_ context.Context, k layer.Key) error {
	if m.remove != nil {
		if err := m.remove(k); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, k)
	return nil
}

func (m *memLayers) Close() error { return nil }

func (m *memLayers) has(d oci.DiffID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.objects[layer.Key(d)]
	return ok
}

type world struct {
	t      *testing.T
	s      *Store
	layers *memLayers
}

func newWorld(t *testing.T, grace time.Duration) *world {
	t.Helper()
	return newWorldWith(t, Options{Grace: grace})
}

func newWorldWith(t *testing.T, opts Options) *world {
	t.Helper()
	w := &world{t: t, layers: &memLayers{objects: map[layer.Key]time.Time{}, damaged: map[oci.DiffID]bool{}}}
	var err error
	if w.s, err = Open(t.TempDir(), w.layers, opts); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.s.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func diffID(n int) oci.DiffID { return oci.DiffID(oci.DigestOf(fmt.Appendf(nil, "layer %d", n))) }

func (w *world) layer(n int) oci.DiffID {
	d := diffID(n)
	w.layers.mu.Lock()
	w.layers.objects[layer.Key(d)] = time.Now()
	w.layers.mu.Unlock()
	if err := w.s.RecordLayer(layer.Info{DiffID: d, Size: int64(n), TarSize: 100}, nil); err != nil {
		w.t.Fatal(err)
	}
	return d
}

func (w *world) image(name string, layers ...int) (oci.ImageID, oci.Chain) {
	w.t.Helper()
	config, err := w.s.Blobs.Put([]byte("config of " + name))
	if err != nil {
		w.t.Fatal(err)
	}
	manifest, err := w.s.Blobs.Put([]byte("manifest of " + name))
	if err != nil {
		w.t.Fatal(err)
	}
	var chain oci.Chain
	for _, n := range layers {
		chain = append(chain, w.layer(n))
	}
	id := oci.ImageID(config)
	err = w.s.Meta.Update(func(tx *meta.Tx) error {
		return errors.Join(tx.Images.Put(id, meta.Image{Chain: chain, Manifests: []oci.Descriptor{{Digest: manifest}}}), tx.Names.Put(name, meta.Name{Image: id}))
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return id, chain
}

func (w *world) drop(id oci.ImageID, name string) {
	w.t.Helper()
	if err := w.s.Meta.Update(func(tx *meta.Tx) error {
		return errors.Join(tx.Images.Delete(id), tx.Names.Delete(name))
	}); err != nil {
		w.t.Fatal(err)
	}
}

func TestReclaimTakesOnlyWhatNothingNeeds(t *testing.T) {
	w := newWorld(t, 0)
	one, chain := w.image("one", 1, 2)
	w.image("two", 1, 3)
	w.drop(one, "one")
	freed, err := w.s.Reclaim(t.Context(), []oci.Chain{chain}, []oci.Digest{oci.Digest(one)})
	if err != nil || freed < 100 || freed > 200 {
		t.Fatalf("Reclaim = %d, %v; want one layer's 100 bytes and a config", freed, err)
	}
	if w.layers.has(diffID(2)) || !w.layers.has(diffID(1)) || !w.layers.has(diffID(3)) {
		t.Errorf("layers left: %v", w.layers.objects)
	}
	if _, err := w.s.Blobs.Stat(oci.Digest(one)); !errors.Is(err, errs.NotFound) {
		t.Errorf("the config is still there: %v", err)
	}
	w.s.Meta.View(func(tx *meta.Tx) error {
		if tx.Layers.Has(diffID(2)) || !tx.Layers.Has(diffID(1)) {
			t.Error("layer records do not follow the layers")
		}
		return nil
	})
}

func TestContainersAndLeasesProtect(t *testing.T) {
	w := newWorld(t, 0)
	id, chain := w.image("one", 1, 2)
	w.drop(id, "one")
	raw, _ := json.Marshal(map[string]any{"image": id, "chain": chain[:1]})
	if err := w.s.Meta.Update(func(tx *meta.Tx) error { return tx.Containers.Put("c", raw) }); err != nil {
		t.Fatal(err)
	}
	lease := w.s.Lease()
	lease.Layer(chain[1:])
	if _, err := w.s.Reclaim(t.Context(), []oci.Chain{chain}, []oci.Digest{oci.Digest(id)}); err != nil {
		t.Fatal(err)
	}
	if !w.layers.has(chain[0]) || !w.layers.has(chain[1]) {
		t.Errorf("a layer of a container or a lease is gone: %v", w.layers.objects)
	}
	if _, err := w.s.Blobs.Stat(oci.Digest(id)); err != nil {
		t.Errorf("the config of a container's image is gone: %v", err)
	}
	lease.Release()
	lease.Release()
	if _, err := w.s.Reclaim(t.Context(), []oci.Chain{chain}, nil); err != nil {
		t.Fatal(err)
	}
	if w.layers.has(chain[1]) {
		t.Error("the layer is still there after the lease")
	}
}

// The layers of an image that a container mounts stay when the image goes.
func TestMountedImagesProtect(t *testing.T) {
	w := newWorld(t, 0)
	base, chain := w.image("base", 1)
	mounted, layers := w.image("mounted", 2, 3)
	raw, _ := json.Marshal(map[string]any{"image": base, "chain": chain, "mounts": []map[string]any{{"Type": "bind"}, {"Type": "image", "Chain": layers}}})
	if err := w.s.Meta.Update(func(tx *meta.Tx) error { return tx.Containers.Put("c", raw) }); err != nil {
		t.Fatal(err)
	}
	w.drop(mounted, "mounted")
	if _, err := w.s.Reclaim(t.Context(), []oci.Chain{layers}, []oci.Digest{oci.Digest(mounted)}); err != nil {
		t.Fatal(err)
	}
	if !w.layers.has(layers[0]) || !w.layers.has(layers[1]) {
		t.Errorf("a layer of a mounted image is gone: %v", w.layers.objects)
	}
	if err := w.s.Meta.Update(func(tx *meta.Tx) error { return tx.Containers.Delete("c") }); err != nil {
		t.Fatal(err)
	}
	if _, err := w.s.Reclaim(t.Context(), []oci.Chain{layers}, nil); err != nil {
		t.Fatal(err)
	}
	if w.layers.has(layers[0]) || w.layers.has(layers[1]) {
		t.Errorf("the layers are still there after the container: %v", w.layers.objects)
	}
}

func TestGrace(t *testing.T) {
	for _, c := range []struct {
		grace time.Duration
		kept  bool
	}{{time.Hour, true}, {time.Nanosecond, false}} {
		w := newWorld(t, c.grace)
		d := w.layer(1)
		blob, err := w.s.Blobs.Put([]byte("a blob that nothing refers to"))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
		if _, err := w.s.Collect(t.Context()); err != nil {
			t.Fatal(err)
		}
		if w.layers.has(d) != c.kept {
			t.Errorf("grace %s: layer kept = %v, want %v", c.grace, !c.kept, c.kept)
		}
		if _, err := w.s.Blobs.Stat(blob); (err == nil) != c.kept {
			t.Errorf("grace %s: blob kept = %v, want %v", c.grace, !c.kept, c.kept)
		}
	}
}

// A lease on an object that is being removed begins after the removal, so that its owner sees that the object is gone.
func TestLeaseWaitsForRemoval(t *testing.T) {
	w := newWorld(t, 0)
	id, chain := w.image("one", 1)
	w.drop(id, "one")
	started, goOn := make(chan struct{}), make(chan struct{})
	w.layers.remove = func(layer.Key) error { close(started); <-goOn; return nil }
	done := make(chan error)
	go func() {
		_, err := w.s.Reclaim(context.Background(), []oci.Chain{chain}, nil)
		done <- err
	}()
	<-started
	leased := make(chan bool)
	lease := w.s.Lease()
	go func() {
		lease.Layer(chain)
		leased <- w.layers.has(chain[0])
	}()
	select {
	case <-leased:
		t.Fatal("the lease did not wait")
	case <-time.After(20 * time.Millisecond):
	}
	close(goOn)
	if there := <-leased; there {
		t.Error("the lease was given before the object was gone")
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	lease.Release()
}

// stalledReading starts a collection of a chain whose reading of the records stalls at the layers of another image, and
// returns when it has stalled. finish lets it go on and waits for its end.
func (w *world) stalledReading(chain oci.Chain, blobs ...oci.Digest) (finish func()) {
	w.t.Helper()
	_, other := w.image("other", 50)
	stalled, goOn, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	var once sync.Once
	w.layers.keys = func(c oci.Chain) {
		if slices.Equal(c, other) {
			once.Do(func() {
				close(stalled)
				select {
				case <-goOn:
				case <-time.After(time.Minute):
					w.t.Error("the test did not go on while the collection read")
				}
			})
		}
	}
	go func() {
		_, err := w.s.Reclaim(context.Background(), []oci.Chain{chain}, blobs)
		done <- err
	}()
	<-stalled
	return func() {
		w.t.Helper()
		close(goOn)
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	}
}

// A lease does not wait for a collection that reads records or asks the driver, both of which may wait for the disk.
func TestLeaseDoesNotWaitForReading(t *testing.T) {
	w := newWorld(t, 0)
	id, chain := w.image("one", 1)
	w.drop(id, "one")
	finish := w.stalledReading(chain)
	l := w.s.Lease()
	l.Layer(chain)
	l.Blob(oci.Digest(id))
	finish()
	if !w.layers.has(chain[0]) {
		t.Error("a layer was removed that had been leased")
	}
	l.Release()
}

// What was leased while a collection read the records stays, because a record that the collection did not see may need it.
// A lease may have begun before, and have ended since.
func TestLeaseDuringReadingProtects(t *testing.T) {
	for _, before := range []bool{true, false} {
		t.Run(fmt.Sprintf("begun before=%v", before), func(t *testing.T) {
			w := newWorld(t, 0)
			id, chain := w.image("one", 1)
			w.drop(id, "one")
			lease := w.s.Lease()
			if before {
				lease.Layer(chain)
				lease.Blob(oci.Digest(id))
			}
			finish := w.stalledReading(chain, oci.Digest(id))
			if !before {
				lease.Layer(chain)
				lease.Blob(oci.Digest(id))
			}
			w.image("one", 1)
			lease.Release()
			finish()
			if _, err := w.s.Blobs.Stat(oci.Digest(id)); err != nil || !w.layers.has(chain[0]) {
				t.Errorf("the collection removed objects of an image: config %v, layers %v", err, w.layers.objects)
			}
			// The next collection knows nothing of these leases.
			w.drop(id, "one")
			if _, err := w.s.Reclaim(t.Context(), []oci.Chain{chain}, nil); err != nil || w.layers.has(chain[0]) {
				t.Errorf("the layer stays for ever: %v", err)
			}
		})
	}
}

// An image that is recorded while a collection removes other objects keeps the records of its layers.
func TestImageRecordedDuringCollection(t *testing.T) {
	w := newWorld(t, 0)
	id, chain := w.image("one", 1)
	w.drop(id, "one")
	var once sync.Once
	w.layers.remove = func(layer.Key) error { once.Do(func() { w.image("two", 9) }); return nil }
	if _, err := w.s.Reclaim(t.Context(), []oci.Chain{chain}, nil); err != nil {
		t.Fatal(err)
	}
	w.s.Meta.View(func(tx *meta.Tx) error {
		if !tx.Layers.Has(diffID(9)) || tx.Layers.Has(diffID(1)) {
			t.Error("the records of layers do not follow the images")
		}
		return nil
	})
}

func TestOneBadObjectDoesNotKeepTheRest(t *testing.T) {
	w := newWorld(t, 0)
	id, chain := w.image("one", 1, 2, 3)
	w.drop(id, "one")
	boom := errors.New("busy")
	w.layers.remove = func(k layer.Key) error {
		if k == layer.Key(chain[1]) {
			return boom
		}
		return nil
	}
	if _, err := w.s.Reclaim(t.Context(), []oci.Chain{chain}, nil); !errors.Is(err, boom) {
		t.Errorf("error = %v", err)
	}
	if w.layers.has(chain[0]) || !w.layers.has(chain[1]) || w.layers.has(chain[2]) {
		t.Errorf("left: %v", w.layers.objects)
	}
}

// A damaged record of a container stops a collection, because it is unknown what the container needs.
func TestDamagedRecordStopsCollection(t *testing.T) {
	w := newWorld(t, time.Nanosecond)
	d := w.layer(1)
	if err := w.s.Meta.Update(func(tx *meta.Tx) error { return tx.Containers.Put("c", json.RawMessage(`{"chain":7}`)) }); err != nil {
		t.Fatal(err)
	}
	if _, err := w.s.Collect(t.Context()); !errors.Is(err, errs.DataLoss) {
		t.Errorf("Collect = %v, want class DataLoss", err)
	}
	if !w.layers.has(d) {
		t.Error("a layer was taken")
	}
}

func TestRecordLayerMerges(t *testing.T) {
	w := newWorld(t, 0)
	info := layer.Info{DiffID: diffID(1), Size: 5, TarSize: 10}
	form := func(repo string) *meta.LayerBlob {
		return &meta.LayerBlob{Descriptor: oci.Descriptor{Digest: oci.DigestOf([]byte("gz")), Size: 3}, Repositories: []string{repo}}
	}
	for _, r := range []string{"a/x", "b/y", "a/x"} {
		if err := w.s.RecordLayer(info, form(r)); err != nil {
			t.Fatal(err)
		}
	}
	w.s.Meta.View(func(tx *meta.Tx) error {
		l, err := tx.Layers.Get(info.DiffID)
		if err != nil || len(l.Blobs) != 1 || !slices.Equal(l.Blobs[0].Repositories, []string{"a/x", "b/y"}) || l.Size != 5 {
			t.Errorf("record = %+v, %v", l, err)
		}
		return nil
	})
}

func TestOneProcessAtATime(t *testing.T) {
	w := newWorld(t, 0)
	if s, err := Open(w.s.Root, w.layers, Options{}); !errors.Is(err, errs.Unavailable) {
		t.Errorf("second Open = %v, %v; want class Unavailable", s, err)
	}
}
