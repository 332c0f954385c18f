package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/check"
	"ply/internal/store/layer"
	"ply/internal/store/meta"
	"ply/internal/store/meta/metatest"
)

// examined is memLayers with layers that can be examined and salvaged.
type examined struct {
	*memLayers
	salvage map[oci.DiffID]string
}

func (m *examined) Examine(ctx context.Context, c oci.Chain, _ bool) error {
	time.Sleep(3 * time.Millisecond) // reading takes time, in which images come and go
	if _, err := m.Stat(ctx, c); err != nil {
		return err
	}
	return m.Verify(ctx, c)
}

func (m *examined) Salvage(_ context.Context, c oci.Chain) (io.ReadCloser, error) {
	tar, ok := m.salvage[c.Top()]
	if !ok {
		return nil, errs.New(errs.NotFound, "layer %s: its tar is gone", c.Top().Short())
	}
	return io.NopCloser(strings.NewReader(tar)), nil
}

func (m *examined) Create(context.Context) (layer.Writer, error) { return &memWriter{m: m}, nil }

// memWriter writes a layer whose diffID is the digest of its bytes.
type memWriter struct {
	layer.Writer
	m    *examined
	data []byte
}

func (w *memWriter) Write(p []byte) (int, error) { w.data = append(w.data, p...); return len(p), nil }
func (w *memWriter) Abort() error                { return nil }

func (w *memWriter) Commit(_ context.Context, _ oci.Chain, want oci.DiffID) (layer.Info, error) {
	if got := oci.DiffID(oci.DigestOf(w.data)); got != want {
		return layer.Info{}, errs.New(errs.Invalid, "layer has the digest %s, want %s", got, want)
	}
	w.m.mu.Lock()
	w.m.objects[layer.Key(want)] = time.Now()
	w.m.mu.Unlock()
	w.m.repair(want)
	return layer.Info{DiffID: want}, nil
}

// examination runs a check and returns its findings as lines "kind object: problem [repaired]".
func (w *world) examination(o check.Options) (lines []string) {
	w.t.Helper()
	r := check.New(o, check.Listener{Found: func(f check.Finding) {
		if f.Heal == "" {
			w.t.Errorf("finding without a way to heal it: %+v", f)
		}
		line := f.Kind + " " + f.Object + ": " + f.Problem
		if f.Repaired != "" {
			line += " [" + f.Repaired + "]"
		}
		lines = append(lines, line)
	}})
	if err := w.s.Check(w.t.Context(), r); err != nil {
		w.t.Fatal(err)
	}
	return lines
}

// named is image with a config that a check can read. Layer n has the content "layer n".
func (w *world) named(name string, layers ...int) (oci.ImageID, oci.Chain) {
	w.t.Helper()
	var chain oci.Chain
	for _, n := range layers {
		d := w.layer(n)
		if err := w.s.RecordLayer(layer.Info{DiffID: d}, nil); err != nil {
			w.t.Fatal(err)
		}
		chain = append(chain, d)
	}
	raw, err := json.Marshal(oci.Config{Architecture: "amd64", OS: "linux", Comment: name, RootFS: oci.RootFS{Type: "layers", DiffIDs: chain}})
	if err != nil {
		w.t.Fatal(err)
	}
	d, err := w.s.Blobs.Put(raw)
	if err != nil {
		w.t.Fatal(err)
	}
	id := oci.ImageID(d)
	err = w.s.Meta.Update(func(tx *meta.Tx) error {
		return errors.Join(tx.Images.Put(id, meta.Image{Chain: chain}), tx.Names.Put("docker.io/library/"+name+":latest", meta.Name{Image: id}))
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return id, chain
}

func newExaminedWorld(t *testing.T) (*world, *examined) {
	t.Helper()
	w := newWorld(t, 0)
	x := &examined{w.layers, map[oci.DiffID]string{}}
	w.s.Layers = x
	return w, x
}

func want(t *testing.T, got []string, parts ...string) {
	t.Helper()
	if len(got) != len(parts) {
		t.Fatalf("findings:\n%s\nwant %q", strings.Join(got, "\n"), parts)
	}
	for i, p := range parts {
		if !strings.Contains(got[i], p) {
			t.Errorf("finding %q, want %q in it", got[i], p)
		}
	}
}

func TestCheckFindsDamageAndRepairsIt(t *testing.T) {
	w, x := newExaminedWorld(t)
	_, chain := w.named("one", 1, 2)
	w.named("two", 1, 3)
	want(t, w.examination(check.Options{Full: true}))

	x.damage(chain[1])
	want(t, w.examination(check.Options{}), "layer "+string(chain[1]))
	if got := w.s.Health.State(t.Context(), chain); got != LayerDamaged {
		t.Errorf("state of the damaged layer = %v: a pull would not write it again", got)
	}
	want(t, w.examination(check.Options{Repair: true}), "layer "+string(chain[1])) // nothing is left of its bytes
	x.salvage[chain[1]] = "other bytes"
	if got := w.examination(check.Options{Repair: true}); strings.Contains(got[0], "[") {
		t.Errorf("repaired with other bytes: %q", got)
	}
	x.salvage[chain[1]] = "layer 2"
	want(t, w.examination(check.Options{Repair: true}), "[written again from its tar]")
	if got := w.s.Health.State(t.Context(), chain); got != LayerPresent {
		t.Errorf("state of the repaired layer = %v", got)
	}
	want(t, w.examination(check.Options{Full: true}))
}

func TestCheckRepairsRecords(t *testing.T) {
	w, _ := newExaminedWorld(t)
	id, chain := w.named("one", 1)
	manifest, err := json.Marshal(oci.Manifest{SchemaVersion: 2, MediaType: oci.MediaTypeOCIManifest, Layers: []oci.Descriptor{},
		Config: oci.Descriptor{MediaType: oci.MediaTypeOCIConfig, Digest: oci.Digest(id), Size: 1}})
	if err != nil {
		t.Fatal(err)
	}
	d, err := w.s.Blobs.Put(manifest)
	if err != nil {
		t.Fatal(err)
	}
	layers := w.s.Layers
	w.reopen(func(path string) {
		metatest.Damage(t, path, "images", string(id))
		metatest.Damage(t, path, "layers", string(chain[0]))
	})
	w.s.Layers = layers
	if got := w.examination(check.Options{}); len(got) != 2 {
		t.Fatalf("findings: %q", got)
	}
	hide := filepath.Join(w.s.Root, "hidden")
	if err := os.Rename(filepath.Join(w.s.Root, "records"), hide); err != nil {
		t.Fatal(err)
	}
	want(t, w.examination(check.Options{Repair: true}), "[written again from the config", "[written again;")
	if err := os.RemoveAll(hide); err != nil {
		t.Fatal(err)
	}
	err = w.s.Meta.View(func(tx *meta.Tx) error {
		rec, err := tx.Images.Get(id)
		if err != nil || !slices.Equal(rec.Chain, chain) || len(rec.Manifests) != 1 || rec.Manifests[0].Digest != d {
			t.Errorf("record = %+v, %v", rec, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want(t, w.examination(check.Options{Full: true}))
}

// A repair takes a damaged record from its copy beside the data, with everything that the record says.
func TestCheckTakesRecordsFromTheirCopies(t *testing.T) {
	w, _ := newExaminedWorld(t)
	id, chain := w.named("one", 1)
	const name = "docker.io/library/one:latest"
	read := func() (image meta.Image, named meta.Name, layer meta.Layer) {
		t.Helper()
		err := w.s.Meta.View(func(tx *meta.Tx) (err error) {
			if image, err = tx.Images.Get(id); err != nil {
				return err
			}
			if named, err = tx.Names.Get(name); err != nil {
				return err
			}
			layer, err = tx.Layers.Get(chain[0])
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return image, named, layer
	}
	image, named, layer := read()
	layers := w.s.Layers
	w.reopen(func(path string) {
		metatest.Damage(t, path, "images", string(id))
		metatest.Damage(t, path, "names", name)
		metatest.Damage(t, path, "layers", string(chain[0]))
	})
	w.s.Layers = layers
	const healed = "[written again from the copy beside the data"
	want(t, w.examination(check.Options{Repair: true}), healed, healed, healed)
	if i, n, l := read(); !reflect.DeepEqual(i, image) || !reflect.DeepEqual(n, named) || !reflect.DeepEqual(l, layer) {
		t.Errorf("after the repair: %+v %+v %+v\nbefore: %+v %+v %+v", i, n, l, image, named, layer)
	}
	want(t, w.examination(check.Options{Full: true}))
}

// Images come and go while a check runs: none of that is a finding, and nothing of a removed image stays.
func TestCheckDuringWorkFindsNothing(t *testing.T) {
	w, _ := newExaminedWorld(t)
	w.named("steady", 7)
	done := make(chan struct{})
	var work sync.WaitGroup
	work.Go(func() {
		for n := 10; ; n++ {
			select {
			case <-done:
				return
			default:
			}
			lease := w.s.Lease()
			lease.Layer(oci.Chain{diffID(n % 3)})
			id, chain := w.named(fmt.Sprint("image", n%4), n%3)
			lease.Release()
			w.drop(id, fmt.Sprintf("docker.io/library/image%d:latest", n%4))
			if _, err := w.s.Reclaim(t.Context(), []oci.Chain{chain}, []oci.Digest{oci.Digest(id)}); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for n := range 60 {
		if got := w.examination(check.Options{Full: n%2 == 0, Repair: n%3 == 0}); len(got) > 0 {
			t.Errorf("findings in a store that works: %q", got)
			break
		}
	}
	close(done)
	work.Wait()
	left := 0
	if err := w.s.Blobs.Walk(func(oci.Digest, int64, time.Time) error { left++; return nil }); err != nil || left != 1 {
		t.Errorf("%d blobs are left, want the config of the steady image: %v", left, err)
	}
}

func TestCheckEndsWithItsContext(t *testing.T) {
	w, _ := newExaminedWorld(t)
	_, chain := w.named("one", 1, 2)
	ctx, cancel := context.WithCancelCause(t.Context())
	stopped := errors.New("stopped")
	w.layers.verify = func(oci.DiffID) error { cancel(stopped); return nil }
	err := w.s.Check(ctx, check.New(check.Options{Full: true}, check.Listener{Found: func(f check.Finding) { t.Errorf("%+v", f) }}))
	if !errors.Is(err, stopped) {
		t.Errorf("Check = %v, want the cause of the end", err)
	}
	lease := w.s.Lease()
	defer lease.Release()
	lease.Layer(chain)
	if n := w.s.leased[node{layer: layer.Key(chain[0])}]; n != 1 {
		t.Errorf("%d leases on a layer, want this one only", n)
	}
}
