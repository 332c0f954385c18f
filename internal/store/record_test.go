package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/layer"
	"ply/internal/store/meta"
)

// transactions returns the number of the last one, from bbolt's two meta pages.
func transactions(t *testing.T, w *world) uint64 {
	t.Helper()
	f, err := os.Open(filepath.Join(w.s.Root, "meta.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var last uint64
	for page := range int64(2) {
		var b [8]byte
		if _, err := f.ReadAt(b[:], page*int64(os.Getpagesize())+64); err != nil {
			t.Fatal(err)
		}
		last = max(last, binary.LittleEndian.Uint64(b[:]))
	}
	return last
}

// queued waits until a call has taken the records that it writes from the queue, and n are in the queue again. Without a wait for the first call, others may
// join it.
func queued(w *world, n int) {
	r := &w.s.records
	for ok := false; !ok; time.Sleep(time.Millisecond) {
		r.mu.Lock()
		ok = r.busy && len(r.queue) == n
		r.mu.Unlock()
	}
}

// Records of layers that wait for the database are written together, and a call returns only when its record is written.
func TestRecordLayerInGroups(t *testing.T) {
	w := newWorld(t, 0)
	const calls = 30
	info := func(i int) layer.Info {
		return layer.Info{DiffID: oci.DiffID(oci.DigestOf(fmt.Append(nil, i))), Size: int64(i), TarSize: int64(2 * i)}
	}
	form := func(i int) *meta.LayerBlob {
		return &meta.LayerBlob{Descriptor: oci.Descriptor{Digest: oci.DigestOf([]byte("form"))}, Repositories: []string{fmt.Sprint("registry/", i)}}
	}
	var work sync.WaitGroup
	var before uint64
	if err := w.s.Meta.Update(func(*meta.Tx) error {
		before = transactions(t, w)
		for i := range calls {
			work.Go(func() {
				if err := w.s.RecordLayer(info(i), form(i)); err != nil {
					t.Errorf("RecordLayer %d: %v", i, err)
				}
				if err := w.s.Meta.View(func(tx *meta.Tx) error {
					_, err := tx.Layers.Get(info(i).DiffID)
					return err
				}); err != nil {
					t.Errorf("RecordLayer %d returned before its record was there: %v", i, err)
				}
			})
			if i == 0 {
				queued(w, 0)
			}
		}
		queued(w, calls-1)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	work.Wait()
	if got := transactions(t, w) - before; got > 4 {
		t.Errorf("%d records took %d transactions, want 3 with the one that blocked them", calls, got)
	}
	err := w.s.Meta.View(func(tx *meta.Tx) error {
		for i := range calls {
			l, err := tx.Layers.Get(info(i).DiffID)
			if err != nil || l.Size != int64(i) || l.TarSize != int64(2*i) || len(l.Blobs) != 1 || l.Blobs[0].Repositories[0] != fmt.Sprint("registry/", i) {
				t.Errorf("record %d = %+v, %v", i, l, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// One record that cannot be written does not stop those that wait with it, and the next call works again.
func TestRecordLayerOneBad(t *testing.T) {
	w := newWorld(t, 0)
	good := func(i int) layer.Info { return layer.Info{DiffID: oci.DiffID(oci.DigestOf(fmt.Append(nil, i)))} }
	bad := layer.Info{DiffID: ""} // bbolt refuses an empty key
	var work sync.WaitGroup
	all := make([]error, 8)
	if err := w.s.Meta.Update(func(*meta.Tx) error {
		for i := range all {
			work.Go(func() {
				info := good(i)
				if i == 3 {
					info = bad
				}
				all[i] = w.s.RecordLayer(info, nil)
			})
			if i == 0 {
				queued(w, 0)
			}
		}
		queued(w, len(all)-1)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	work.Wait()
	for i, err := range all {
		if bad := i == 3; (err != nil) != bad {
			t.Errorf("RecordLayer %d = %v, want an error: %t", i, err, bad)
		}
	}
	if err := w.s.RecordLayer(good(99), nil); err != nil {
		t.Errorf("RecordLayer after an error: %v", err)
	}
	err := w.s.Meta.View(func(tx *meta.Tx) error {
		_, err := tx.Layers.Get(good(3).DiffID)
		return err
	})
	if !errors.Is(err, errs.NotFound) {
		t.Errorf("a record that was refused: %v", err)
	}
}
