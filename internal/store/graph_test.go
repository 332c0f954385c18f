package store

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/layer"
	"ply/internal/store/meta"
	"ply/internal/store/meta/metatest"
)

// reopen closes the store, lets edit change its database, and opens it again.
func (w *world) reopen(edit func(path string)) {
	w.t.Helper()
	root, grace := w.s.Root, w.s.grace
	if err := w.s.Close(); err != nil {
		w.t.Fatal(err)
	}
	edit(filepath.Join(root, "meta.db"))
	var err error
	if w.s, err = Open(root, w.layers, Options{Grace: grace}); err != nil {
		w.t.Fatal(err)
	}
}

// text writes nodes of a graph as sorted lines.
func text(nodes map[node]struct{}) string {
	var lines []string
	for n := range nodes {
		lines = append(lines, strings.TrimSpace(fmt.Sprint(n.image, n.container, n.step, n.record, n.blob, n.layer)))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func TestGraphReachesEverythingThatRecordsName(t *testing.T) {
	w := newWorld(t, 0)
	id, chain := w.image("one", 1, 2)
	form := oci.Descriptor{Digest: oci.DigestOf([]byte("compressed 2"))}
	if err := w.s.RecordLayer(layer.Info{DiffID: chain[1]}, &meta.LayerBlob{Descriptor: form}); err != nil {
		t.Fatal(err)
	}
	unused := w.layer(7) // recorded, but in no image
	if err := w.s.RecordLayer(layer.Info{DiffID: unused}, &meta.LayerBlob{Descriptor: oci.Descriptor{Digest: oci.DigestOf([]byte("compressed 7"))}}); err != nil {
		t.Fatal(err)
	}
	gone := oci.ImageID(oci.DigestOf([]byte("an image that was removed by force")))
	only := w.layer(3)
	raw := fmt.Sprintf(`{"version":1,"image":%q,"chain":[%q,%q]}`, gone, chain[0], only)
	if err := w.s.Meta.Update(func(tx *meta.Tx) error { return tx.Containers.Put("c1", []byte(raw)) }); err != nil {
		t.Fatal(err)
	}
	built, step := w.layer(4), oci.DigestOf([]byte("step"))
	err := w.s.Meta.Update(func(tx *meta.Tx) error {
		return tx.Steps.Put(step, meta.Step{Outputs: []meta.StepOutput{{Chain: oci.Chain{chain[0], built}}}})
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[node]struct{}{
		{step: step}: {}, {record: built}: {}, {layer: layer.Key(built)}: {},
		{image: id}: {}, {blob: oci.Digest(id)}: {}, {blob: oci.DigestOf([]byte("manifest of one"))}: {},
		{record: chain[0]}: {}, {record: chain[1]}: {}, {layer: layer.Key(chain[0])}: {}, {layer: layer.Key(chain[1])}: {},
		{blob: form.Digest}: {},
		{container: "c1"}:   {}, {blob: oci.Digest(gone)}: {}, {record: only}: {}, {layer: layer.Key(only)}: {},
	}
	live, err := w.s.mark()
	if err != nil {
		t.Fatal(err)
	}
	if got := text(live); got != text(want) {
		t.Errorf("reached:\n%s\nwant:\n%s", got, text(want))
	}
}

// What a damaged record needs is unknown, so a collection removes nothing until the record is gone.
func TestDamagedReferenceStopsCollection(t *testing.T) {
	for _, c := range []struct {
		bucket, key string
		remove      func(tx *meta.Tx, id oci.ImageID, chain oci.Chain) error
	}{
		{"images", "", func(tx *meta.Tx, id oci.ImageID, _ oci.Chain) error { return tx.Images.Delete(id) }},
		{"layers", string(diffID(1)), func(tx *meta.Tx, id oci.ImageID, chain oci.Chain) error { return tx.Images.Delete(id) }},
		{"containers", "c1", func(tx *meta.Tx, id oci.ImageID, _ oci.Chain) error {
			return errors.Join(tx.Containers.Delete("c1"), tx.Images.Delete(id))
		}},
	} {
		t.Run(c.bucket, func(t *testing.T) {
			w := newWorld(t, time.Nanosecond)
			id, chain := w.image("one", 1)
			unused := w.layer(2)
			err := w.s.Meta.Update(func(tx *meta.Tx) error { return tx.Containers.Put("c1", []byte(`{"version":1}`)) })
			if err != nil {
				t.Fatal(err)
			}
			if c.key == "" {
				c.key = string(id)
			}
			w.reopen(func(path string) { metatest.Damage(t, path, c.bucket, c.key) })
			if _, err := w.s.Collect(t.Context()); !errors.Is(err, errs.DataLoss) || !strings.Contains(err.Error(), "system check --repair") {
				t.Errorf("Collect = %v, want class DataLoss and what to do", err)
			}
			if !w.layers.has(chain[0]) || !w.layers.has(unused) {
				t.Errorf("a collection with a damaged record took a layer: %v", w.layers.objects)
			}
			if err := w.s.Meta.Update(func(tx *meta.Tx) error { return c.remove(tx, id, chain) }); err != nil {
				t.Fatal(err)
			}
			if _, err := w.s.Collect(t.Context()); err != nil {
				t.Errorf("Collect after the record was removed: %v", err)
			}
			if w.layers.has(chain[0]) || w.layers.has(unused) {
				t.Errorf("left: %v", w.layers.objects)
			}
			left := 0
			if err := w.s.Meta.View(func(tx *meta.Tx) error { left = tx.Layers.Len(); return nil }); err != nil || left != 0 {
				t.Errorf("%d records of layers are left, %v", left, err)
			}
		})
	}
}

// A damaged record of a layer that no image has stops nothing and goes with the next collection.
func TestDamagedRecordOfAnUnusedLayerIsDeleted(t *testing.T) {
	w := newWorld(t, time.Nanosecond)
	_, chain := w.image("one", 1)
	unused := w.layer(2)
	w.reopen(func(path string) { metatest.Damage(t, path, "layers", string(unused)) })
	if _, err := w.s.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !w.layers.has(chain[0]) || w.layers.has(unused) {
		t.Errorf("left: %v", w.layers.objects)
	}
	err := w.s.Meta.View(func(tx *meta.Tx) error {
		if tx.Layers.Has(unused) || !tx.Layers.Has(chain[0]) {
			t.Error("the records of layers do not follow the layers")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
