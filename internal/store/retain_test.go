package store

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/layer"
	"ply/internal/store/meta"
)

// download leaves a finished download of a compressed layer of n bytes, as a pull does, and records the layer.
func (w *world) download(name byte, n int) oci.Descriptor {
	w.t.Helper()
	data := bytes.Repeat([]byte{name}, n)
	d := oci.Descriptor{Digest: oci.DigestOf(data), Size: int64(n)}
	part, err := w.s.Blobs.Partial(d.Digest)
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := part.File().WriteAt(data, 0); err != nil {
		w.t.Fatal(err)
	}
	if err := errors.Join(part.SetPrefix(d.Size), part.Keep()); err != nil {
		w.t.Fatal(err)
	}
	info := layer.Info{DiffID: oci.DiffID(oci.DigestOf([]byte{name})), TarSize: d.Size}
	if err := w.s.RecordLayer(info, &meta.LayerBlob{Descriptor: d}); err != nil {
		w.t.Fatal(err)
	}
	return d
}

func (w *world) isBlob(d oci.Descriptor) bool {
	_, err := w.s.Blobs.Stat(d.Digest)
	return err == nil
}

func TestRetentionPolicies(t *testing.T) {
	for policy, want := range map[Retain]string{
		RetainNever: "", RetainAlways: "abc", RetainAuto: "bc", "": "bc",
	} {
		t.Run("policy "+string(policy), func(t *testing.T) {
			w := newWorldWith(t, Options{Retain: policy, RetainBudget: 2500})
			if w.s.Retention.None() != (policy == RetainNever) {
				t.Errorf("None() = %v", w.s.Retention.None())
			}
			kept := ""
			var all []oci.Descriptor
			for _, name := range []byte("abc") {
				d := w.download(name, 1000)
				if err := w.s.Retention.Decide(d); err != nil {
					t.Fatal(err)
				}
				all = append(all, d)
			}
			for i, d := range all {
				if w.isBlob(d) {
					kept += string("abc"[i])
				}
			}
			if kept != want {
				t.Errorf("kept %q, want %q", kept, want)
			}
		})
	}
}

func TestRetentionEvictsTheLeastRecentlyUsed(t *testing.T) {
	w := newWorldWith(t, Options{RetainBudget: 2500})
	a, b := w.download('a', 1000), w.download('b', 1000)
	if err := errors.Join(w.s.Retention.Decide(a), w.s.Retention.Decide(b)); err != nil {
		t.Fatal(err)
	}
	w.s.Retention.Touch(a.Digest)
	c := w.download('c', 1000)
	if err := w.s.Retention.Decide(c); err != nil {
		t.Fatal(err)
	}
	if !w.isBlob(a) || w.isBlob(b) || !w.isBlob(c) {
		t.Errorf("kept a %v, b %v, c %v; want a and c", w.isBlob(a), w.isBlob(b), w.isBlob(c))
	}
}

func TestRetentionLeavesOtherBlobsAlone(t *testing.T) {
	w := newWorldWith(t, Options{RetainBudget: 10})
	id, _ := w.image("one", 1)
	d := w.download('a', 1000)
	if err := w.s.Retention.Decide(d); err != nil {
		t.Fatal(err)
	}
	if w.isBlob(d) {
		t.Error("a compressed layer larger than the budget was kept")
	}
	if _, err := w.s.Blobs.Stat(oci.Digest(id)); err != nil {
		t.Errorf("the config of an image was evicted: %v", err)
	}
}

// A blob that a layer lists as its compressed form can be needed by someone else too.
func TestRetentionEvictsOnlyCaches(t *testing.T) {
	w := newWorldWith(t, Options{RetainBudget: 10})
	id, _ := w.image("one", 1)
	config, manifest := oci.Digest(id), oci.DigestOf([]byte("manifest of one"))
	leased := w.download('l', 1000)
	lease := w.s.Lease()
	defer lease.Release()
	lease.Blob(leased.Digest)
	part, err := w.s.Blobs.Partial(leased.Digest)
	if err != nil {
		t.Fatal(err)
	}
	if err := part.Commit(); err != nil {
		t.Fatal(err)
	}
	for i, d := range []oci.Digest{config, manifest} {
		form := &meta.LayerBlob{Descriptor: oci.Descriptor{Digest: d, Size: 1}}
		if err := w.s.RecordLayer(layer.Info{DiffID: diffID(10 + i), TarSize: 1}, form); err != nil {
			t.Fatal(err)
		}
	}
	d := w.download('a', 5)
	if err := w.s.Retention.Decide(d); err != nil {
		t.Fatal(err)
	}
	for what, d := range map[string]oci.Digest{"config": config, "manifest": manifest, "leased layer": leased.Digest} {
		if _, err := w.s.Blobs.Stat(d); err != nil {
			t.Errorf("the %s was evicted: %v", what, err)
		}
	}
	lease.Release()
	if err := w.s.Retention.Decide(w.download('b', 5)); err != nil {
		t.Fatal(err)
	}
	if w.isBlob(leased) {
		t.Error("a compressed layer over the budget stays after its lease has ended")
	}
}

func TestRetentionDiscardsAnUnfinishedDownload(t *testing.T) {
	w := newWorldWith(t, Options{Retain: RetainAlways})
	d := w.download('a', 1000)
	d.Size = 2000
	if err := w.s.Retention.Decide(d); err != nil {
		t.Fatal(err)
	}
	part, err := w.s.Blobs.Partial(d.Digest)
	if err != nil || part.Prefix() != 0 || w.isBlob(d) {
		t.Errorf("after Decide: prefix %d, blob %v, %v; want nothing", part.Prefix(), w.isBlob(d), err)
	}
	if err := part.Discard(); err != nil {
		t.Fatal(err)
	}
}

func TestUnknownRetentionPolicyIsRefused(t *testing.T) {
	s, err := Open(t.TempDir(), &memLayers{}, Options{Retain: "sometimes"})
	if !errors.Is(err, errs.Invalid) || s != nil {
		t.Errorf("Open = %v, %v; want class Invalid", s, err)
	}
	if want := `retain-blobs "sometimes": unknown`; err != nil && !bytes.Contains([]byte(fmt.Sprint(err)), []byte(want)) {
		t.Errorf("error %q, want %q in it", err, want)
	}
}
