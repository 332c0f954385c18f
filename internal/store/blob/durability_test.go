package blob

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"ply/internal/durable"
	"ply/internal/durable/faultfs"
	"ply/internal/durable/powercut"
	"ply/internal/oci"
)

// waysToStore are all ways in which content becomes a blob.
var waysToStore = map[string]func(s *Store, data []byte) error{
	"Put": func(s *Store, data []byte) error { _, err := s.Put(data); return err },
	"Writer": func(s *Store, data []byte) error {
		w, err := s.Create()
		if err != nil {
			return err
		}
		if _, err := w.Write(data); err != nil {
			return errors.Join(err, w.Abort())
		}
		_, _, err = w.Commit(oci.DigestOf(data))
		return err
	},
	"Partial": func(s *Store, data []byte) error {
		p, err := s.Partial(oci.DigestOf(data))
		if err != nil {
			return err
		}
		if _, err := p.File().WriteAt(data, 0); err != nil {
			return errors.Join(err, p.Keep())
		}
		if err := p.SetPrefix(int64(len(data))); err != nil {
			return errors.Join(err, p.Keep())
		}
		return p.Commit()
	},
}

// A blob is synced before it gets its name, and its name before it is acknowledged.
func TestOrder(t *testing.T) {
	for name, store := range waysToStore {
		order := &faultfs.Order{Under: durable.OS, Report: func(problem string) { t.Errorf("%s: %s", name, problem) }}
		var ops []string
		s := open(t, &faultfs.FS{Under: order, Trace: func(op string) { op, _, _ = strings.Cut(op, " "); ops = append(ops, op) }}, t.TempDir())
		ops = nil
		if err := store(s, []byte(name)); err != nil {
			t.Fatal(err)
		}
		for _, u := range order.Unsynced() {
			if !strings.Contains(u, "/partial") { // the progress of a download is a hint
				t.Errorf("%s: not durable when it has returned: %s", name, u)
			}
		}
		if i := slices.Index(ops, "rename"); i < 1 || ops[i-1] != "sync" || i+1 == len(ops) || ops[i+1] != "syncdir" {
			t.Errorf("%s: operations %v, want sync, rename, syncdir", name, ops)
		}
	}
}

// A blob that was acknowledged survives a power cut. Others are there completely or not at all, and a download may have lost
// data but not its meaning.
func TestPowerCut(t *testing.T) {
	for _, kind := range powercut.Kinds {
		t.Run(string(kind), func(t *testing.T) { testPowerCut(t, kind) })
	}
}

func testPowerCut(t *testing.T, kind powercut.Kind) {
	disk := powercut.New(t, kind)
	content := func(name string, i int) []byte { return bytes.Repeat([]byte(fmt.Sprint(name, i)), 20_000) }
	for i := range 6 {
		s := open(t, durable.OS, disk.Dir)
		for j := range i {
			for name := range waysToStore {
				data := content(name, j)
				if b, err := s.Bytes(oci.DigestOf(data), 1<<20); err != nil || !bytes.Equal(b, data) {
					t.Errorf("after cut %d: an acknowledged blob is lost (%s): %v", i, name, err)
				}
			}
		}
		unfinished, err := s.Partial(oci.DigestOf([]byte("unfinished")))
		if err != nil {
			t.Fatal(err)
		}
		if fi, err := unfinished.File().Stat(); err != nil || unfinished.Prefix() > fi.Size() {
			t.Errorf("after cut %d: a download claims %d bytes of %d", i, unfinished.Prefix(), fi.Size())
		}
		for name, store := range waysToStore {
			if err := store(s, content(name, i)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := unfinished.File().WriteAt(content("unfinished", i), 0); err != nil {
			t.Fatal(err)
		}
		if err := unfinished.SetPrefix(1000); err != nil {
			t.Fatal(err)
		}
		disk.Cut(kind.Cuts()[i%len(kind.Cuts())])
		_ = unfinished.Keep() // the disk is gone
		disk.Restart()
	}
}
