package build_test

import (
	"bytes"
	"testing"

	"ply/internal/oci"
	"ply/internal/store/meta"
	"ply/internal/transfer"
)

// An index survives a save and a load byte for byte, with its images and attestations, also when the store has lost the forms in which it lists its layers.
func TestIndexArchives(t *testing.T) {
	for _, lost := range []bool{false, true} {
		w, to := newWorld(t), newWorld(t)
		res, _ := w.must(input{
			file: "FROM scratch\nARG TARGETARCH\nCOPY a /a\nLABEL arch=$TARGETARCH\n", context: sampleFiles, tags: []string{"multi:1"}, exports: exports("image"),
			options: map[string]string{"platform": "linux/amd64,linux/arm64", "attest:provenance": "mode=min"},
		})
		before, err := w.images.Index("multi:1")
		if err != nil || before == nil || len(before.Artifacts) != 2 {
			t.Fatalf("%+v, %v", before, err)
		}
		if lost {
			w.loseForms(res.Images[0])
		}
		var b bytes.Buffer
		if err := w.archive.Save(t.Context(), []string{"multi:1"}, transfer.SaveOptions{}, &b); err != nil {
			t.Fatal(err)
		}
		if got := bytes.Contains(b.Bytes(), []byte(`"io.ply.image.index"`)); got != lost {
			t.Errorf("lost %t: the archive names the index beside its images: %t", lost, got)
		}
		if err := to.archive.Load(t.Context(), &b, transfer.LoadOptions{}, transfer.Discard); err != nil {
			t.Fatalf("lost %t: %v", lost, err)
		}
		after, err := to.images.Index("multi:1")
		if err != nil || after == nil {
			t.Fatalf("lost %t: %+v, %v", lost, after, err)
		}
		if !bytes.Equal(before.Raw, after.Raw) || len(after.Images) != 2 || len(after.Artifacts) != 2 || len(after.Blobs) != len(before.Blobs) {
			t.Errorf("lost %t: %+v, want %+v", lost, after, before)
		}
		for _, platform := range []string{"linux/amd64", "linux/arm64"} {
			if img, err := to.images.GetFor(t.Context(), "multi:1", platform); err != nil || img.Config.Platform().String() != platform {
				t.Errorf("lost %t: %s: %v", lost, platform, err)
			}
		}
	}
}

// loseForms removes the compressed forms of the layers of an image.
func (w *world) loseForms(id oci.ImageID) {
	w.t.Helper()
	img, err := w.images.Get(w.t.Context(), string(id))
	if err != nil {
		w.t.Fatal(err)
	}
	err = w.store.Meta.Update(func(tx *meta.Tx) error {
		for _, d := range img.Chain {
			rec, err := tx.Layers.Get(d)
			if err != nil {
				return err
			}
			rec.Blobs = nil
			if err := tx.Layers.Put(d, rec); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
}
