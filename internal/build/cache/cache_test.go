package cache

import (
	"context"
	"errors"
	"testing"
	"time"

	"ply/internal/build/solver"
	"ply/internal/errs"
	"ply/internal/image/imagetest"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/store/meta"
)

// world is a cache on a store.
type world struct {
	*testing.T
	f  *imagetest.Fixture
	st *store.Store
	c  *Cache
}

func newWorld(t *testing.T) *world {
	t.Helper()
	f := imagetest.New(t)
	return &world{t, f, f.Store, New(f.Store, nil)}
}

func key(s string) oci.Digest { return oci.DigestOf([]byte(s)) }

// save remembers a step with one layer under two keys.
func (w *world) save(name string, base oci.Chain) oci.Chain {
	w.Helper()
	chain := append(base[:len(base):len(base)], w.f.Layer(imagetest.Tar(w.T, "f", name), base...))
	r := &solver.Record{ID: key(name), Outputs: map[int]oci.Chain{0: chain}, Name: name, Parts: []solver.Part{{What: "x", Sum: "1"}}, Created: time.Now().UTC()}
	if err := w.c.Save(context.Background(), r, key(name), key(name+" by content")); err != nil {
		w.Fatal(err)
	}
	return chain
}

func (w *world) find(name string) (*solver.Record, error) {
	lease := w.st.Lease()
	defer lease.Release()
	return w.c.Find(context.Background(), lease, key(name))
}

func TestFind(t *testing.T) {
	w := newWorld(t)
	chain := w.save("a", nil)
	for _, k := range []string{"a", "a by content"} {
		r, err := w.find(k)
		if err != nil || r.ID != key("a") || r.Outputs[0].ID() != chain.ID() || len(r.Parts) != 1 {
			t.Errorf("%s: %+v, %v", k, r, err)
		}
	}
	if _, err := w.find("b"); !errors.Is(err, errs.NotFound) {
		t.Errorf("an unknown key: %v", err)
	}
	if err := w.c.Alias(context.Background(), key("b"), key("a")); err != nil {
		t.Fatal(err)
	}
	if r, err := w.find("b"); err != nil || r.ID != key("a") {
		t.Errorf("one more key: %+v, %v", r, err)
	}
	if r := w.c.Last(context.Background(), "a"); r == nil || r.ID != key("a") {
		t.Errorf("the last of its name: %+v", r)
	}
}

// A result whose layer is gone, or whose record is damaged, is not found; the step is executed again.
func TestFindNothingBroken(t *testing.T) {
	w := newWorld(t)
	chain := w.save("a", nil)
	w.save("b", nil)
	if err := w.st.Layers.Remove(context.Background(), w.st.Layers.Keys(chain)[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := w.find("a"); !errors.Is(err, errs.NotFound) {
		t.Errorf("a missing layer: %v", err)
	}
	err := w.st.Meta.Update(func(tx *meta.Tx) error { return tx.Steps.Delete(key("b")) })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.find("b"); !errors.Is(err, errs.NotFound) {
		t.Errorf("a key that leads nowhere: %v", err)
	}
}

// Entries are listed by last use, with the size of what only they add; what is removed frees its layers, unless an image has them.
func TestListAndRemove(t *testing.T) {
	w := newWorld(t)
	first := w.save("a", nil)
	w.save("b", first)
	kept := w.save("kept", nil)
	err := w.st.Meta.Update(func(tx *meta.Tx) error {
		return tx.Images.Put(oci.ImageID(key("image")), meta.Image{Format: oci.FormatOCI, Chain: kept})
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.find("a"); err != nil { // it is now the one that was used last
		t.Fatal(err)
	}
	list, err := w.c.List()
	if err != nil || len(list) != 3 {
		t.Fatalf("%+v, %v", list, err)
	}
	if list[2].Name != "a" || list[2].Uses != 2 || list[2].Size != 1 || list[2].Shared {
		t.Errorf("the last entry is %+v", list[2])
	}
	for _, e := range list {
		if e.Shared != (e.Name == "kept") {
			t.Errorf("shared: %+v", e)
		}
	}
	freed, err := w.c.Remove(context.Background(), []oci.Digest{key("b"), key("kept")})
	if err != nil || freed == 0 {
		t.Errorf("%d, %v", freed, err)
	}
	for name, there := range map[string]bool{"a": true, "b": false, "kept": false, "b by content": false} {
		if _, err := w.find(name); (err == nil) != there {
			t.Errorf("%s after the removal: %v", name, err)
		}
	}
	if !w.c.Has(key("a")) || w.c.Has(key("b")) {
		t.Error("Has is wrong")
	}
	if _, err := w.st.Layers.Stat(context.Background(), kept); err != nil {
		t.Errorf("a layer of an image was removed: %v", err)
	}
}

// A cache has grown when a result was saved, and not when one was found. That of an earlier start counts as grown once: its limit may be another one now.
func TestCacheKnowsThatItHasGrown(t *testing.T) {
	w := newWorld(t)
	if !w.c.Grown() || w.c.Grown() {
		t.Error("a cache that was opened has grown once")
	}
	w.save("a", nil)
	if !w.c.Grown() || w.c.Grown() {
		t.Error("a cache has grown once by a result")
	}
	if _, err := w.find("a"); err != nil || w.c.Grown() {
		t.Errorf("a cache has grown by a hit (%v)", err)
	}
}
