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
