package blob

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"ply/internal/durable"
	"ply/internal/durable/faultfs"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/record"
	"ply/internal/record/recordtest"
)

func open(t *testing.T, fsys durable.FS, dir string) *Store {
	t.Helper()
	s, err := Open(fsys, dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestPutGetRemove(t *testing.T) {
	s := open(t, durable.OS, t.TempDir())
	data := []byte("manifest")
	d, err := s.Put(data)
	if err != nil || d != oci.DigestOf(data) {
		t.Fatalf("Put = %s, %v", d, err)
	}
	if again, err := s.Put(data); err != nil || again != d {
		t.Errorf("second Put = %s, %v", again, err)
	}
	if b, err := s.Bytes(d, 100); err != nil || !bytes.Equal(b, data) {
		t.Errorf("Bytes = %q, %v", b, err)
	}
	if size, err := s.Stat(d); err != nil || size != int64(len(data)) {
		t.Errorf("Stat = %d, %v", size, err)
	}
	seen := 0
	err = s.Walk(func(got oci.Digest, size int64, made time.Time) error {
		seen++
		if got != d || size != int64(len(data)) || time.Since(made) > time.Hour {
			t.Errorf("Walk visits %s, %d, %s", got, size, made)
		}
		return nil
	})
	if err != nil || seen != 1 {
		t.Errorf("Walk saw %d blobs, %v", seen, err)
	}
	if err := errors.Join(s.Remove(d), s.Remove(d)); err != nil {
		t.Errorf("Remove: %v", err)
	}
	if _, err := s.Bytes(d, 100); !errors.Is(err, errs.NotFound) {
		t.Errorf("Bytes after Remove: %v", err)
	}
	if _, err := s.Open(d); !errors.Is(err, errs.NotFound) {
		t.Errorf("Open after Remove: %v", err)
	}
}

// A changed bit is reported, damaged content is never returned, and the next Put repairs the blob.
func TestDamageIsReportedAndHealed(t *testing.T) {
	s := open(t, durable.OS, t.TempDir())
	data := []byte("config")
	d, err := s.Put(data)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.path(d), []byte("donfig"), 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := s.Bytes(d, 100); !errors.Is(err, errs.DataLoss) {
		t.Fatalf("Bytes of a damaged blob = %q, %v", b, err)
	}
	if err := os.WriteFile(s.path(d), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Put(data); err != nil {
		t.Fatal(err)
	}
	if b, err := s.Bytes(d, 100); err != nil || !bytes.Equal(b, data) {
		t.Errorf("after Put: %q, %v", b, err)
	}
}

// healingFS stores a blob again while its damaged copy is being read.
type healingFS struct {
	durable.FS
	heal func()
}

func (f *healingFS) OpenFile(name string, flag int, perm fs.FileMode) (durable.File, error) {
	file, err := f.FS.OpenFile(name, flag, perm)
	if heal := f.heal; heal != nil && flag == os.O_RDONLY {
		f.heal = nil
		heal()
	}
	return file, err
}

// Repair removes a blob only because of its own bytes, and never one that was stored again meanwhile.
func TestRepair(t *testing.T) {
	fsys := &healingFS{FS: durable.OS}
	s := open(t, fsys, t.TempDir())
	var told []oci.Digest
	s.Damaged = func(d, _ oci.Digest) { told = append(told, d) }
	data := []byte("config")
	d, err := s.Put(data)
	if err != nil {
		t.Fatal(err)
	}
	if removed, err := s.Repair(d); removed || err != nil {
		t.Errorf("Repair of a whole blob = %v, %v", removed, err)
	}
	damage := func() {
		t.Helper()
		if err := os.WriteFile(s.path(d), []byte("donfig"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	damage()
	fsys.heal = func() {
		if err := durable.WriteFile(durable.OS, s.path(d), data, 0o600); err != nil {
			t.Error(err)
		}
	}
	if removed, err := s.Repair(d); removed || err != nil {
		t.Errorf("Repair of a blob that was replaced = %v, %v", removed, err)
	}
	if got, err := s.Bytes(d, 100); err != nil || !bytes.Equal(got, data) || told != nil {
		t.Errorf("a blob that was stored again: %q, %v, told %v", got, err, told)
	}
	damage()
	if removed, err := s.Repair(d); !removed || err != nil {
		t.Errorf("Repair of a damaged blob = %v, %v", removed, err)
	}
	if _, err := s.Stat(d); !errors.Is(err, errs.NotFound) || len(told) != 1 || told[0] != d {
		t.Errorf("after Repair: %v, told %v", err, told)
	}
	if removed, err := s.Repair(d); removed || !errors.Is(err, errs.NotFound) {
		t.Errorf("Repair of nothing = %v, %v", removed, err)
	}
}

func TestWriterRefusesAnotherDigest(t *testing.T) {
	dir := t.TempDir()
	s := open(t, durable.OS, dir)
	w, err := s.Create()
	if err != nil {
		t.Fatal(err)
	}
	w.Write([]byte("layer"))
	if _, _, err := w.Commit(oci.DigestOf([]byte("other"))); !errors.Is(err, errs.Invalid) {
		t.Errorf("Commit of another digest: %v", err)
	}
	entries, _ := os.ReadDir(s.dir)
	if len(entries) != 0 {
		t.Errorf("left: %v", entries)
	}
	w, _ = s.Create()
	w.Write([]byte("layer"))
	if d, size, err := w.Commit(""); err != nil || size != 5 || d != oci.DigestOf([]byte("layer")) {
		t.Errorf("Commit = %s, %d, %v", d, size, err)
	}
	if err := w.Abort(); err != nil {
		t.Errorf("Abort after Commit: %v", err)
	}
}

// A download outlives its process with its prefix, has one user at a time, and becomes a blob.
func TestPartial(t *testing.T) {
	dir := t.TempDir()
	s := open(t, durable.OS, dir)
	data := bytes.Repeat([]byte("x"), 1000)
	d := oci.DigestOf(data)
	p, err := s.Partial(d)
	if err != nil || p.Prefix() != 0 {
		t.Fatal(p, err)
	}
	if _, err := s.Partial(d); !errors.Is(err, errs.Conflict) {
		t.Errorf("second user: %v", err)
	}
	p.File().WriteAt(data[:600], 0)
	if err := errors.Join(p.SetPrefix(600), p.Keep()); err != nil {
		t.Fatal(err)
	}
	s = open(t, durable.OS, dir)
	if p, err = s.Partial(d); err != nil || p.Prefix() != 600 {
		t.Fatalf("after reopening: prefix %d, %v", p.Prefix(), err)
	}
	p.File().WriteAt(data[600:], 600)
	if err := p.Commit(); err != nil {
		t.Fatal(err)
	}
	if b, err := s.Bytes(d, 2000); err != nil || !bytes.Equal(b, data) {
		t.Errorf("Bytes = %d bytes, %v", len(b), err)
	}
	entries, _ := os.ReadDir(filepath.Join(dir, "partial"))
	if len(entries) != 0 {
		t.Errorf("left: %v", entries)
	}
}

// A record that claims more than the file has, as after a power cut, is not trusted.
func TestPartialPrefixIsClamped(t *testing.T) {
	dir := t.TempDir()
	s := open(t, durable.OS, dir)
	d := oci.DigestOf([]byte("x"))
	p, err := s.Partial(d)
	if err != nil {
		t.Fatal(err)
	}
	p.File().WriteAt([]byte("abc"), 0)
	if err := errors.Join(p.SetPrefix(1<<40), p.Keep()); err != nil {
		t.Fatal(err)
	}
	if p, err = s.Partial(d); err != nil || p.Prefix() != 3 {
		t.Errorf("prefix = %d, %v; want the file's 3 bytes", p.Prefix(), err)
	}
	if err := errors.Join(p.Reset(), p.Keep()); err != nil {
		t.Fatal(err)
	}
	if p, err = s.Partial(d); err != nil || p.Prefix() != 0 {
		t.Errorf("after Reset: %d, %v", p.Prefix(), err)
	}
	if err := p.Discard(); err != nil {
		t.Error(err)
	}
}

func TestRemoveStale(t *testing.T) {
	s := open(t, durable.OS, t.TempDir())
	old, busy := oci.DigestOf([]byte("old")), oci.DigestOf([]byte("busy"))
	p, _ := s.Partial(old)
	p.SetPrefix(0)
	p.Keep()
	b, _ := s.Partial(busy)
	defer b.Discard()
	if err := s.RemoveStale(time.Now().Add(PartialTTL + time.Hour)); err != nil {
		t.Fatal(err)
	}
	entries, _ := os.ReadDir(s.partial)
	if len(entries) != 1 || entries[0].Name() != busy.Hex() {
		t.Errorf("left: %v, want only the one in use", entries)
	}
}

// Each operation fails, once or from then on: the error is reported, and what is visible is complete.
func TestFaults(t *testing.T) {
	data := bytes.Repeat([]byte("layer"), 1000)
	d := oci.DigestOf(data)
	for name, store := range waysToStore {
		f := func(s *Store) error { return store(s, data) }
		for _, forever := range []bool{false, true} {
			for n := 1; ; n++ {
				dir := t.TempDir()
				open(t, durable.OS, dir)
				faulty := &faultfs.FS{Under: durable.OS, FailAt: n, Forever: forever, Err: syscall.ENOSPC}
				s, err := Open(faulty, dir)
				if err == nil {
					err = f(s)
				}
				if !faulty.Hit() {
					if err != nil {
						t.Fatalf("%s without a fault: %v", name, err)
					}
					break
				}
				again := open(t, durable.OS, dir)
				b, gerr := again.Bytes(d, 1<<20)
				if err == nil && gerr != nil {
					t.Errorf("%s, fault at %d: acknowledged, but %v", name, n, gerr)
				}
				if gerr == nil && !bytes.Equal(b, data) || errors.Is(gerr, errs.DataLoss) {
					t.Errorf("%s, fault at %d: what is visible is not whole: %v", name, n, gerr)
				}
				if err := f(again); err != nil {
					t.Errorf("%s, fault at %d: the next try fails: %v", name, n, err)
				}
			}
		}
	}
}

// The form in which the progress of a download is stored. The files of builds before the first release decode too.
func TestGoldenPartial(t *testing.T) {
	v := partialState{Prefix: 123456}
	recordtest.Filled(t, v)
	data, err := record.Marshal(partialVersion, v)
	if err != nil {
		t.Fatal(err)
	}
	recordtest.Golden(t, "partial.v1.json", data)
	recordtest.Decodes(t, "partial.v1.json", partialVersion, v)
	recordtest.Decodes(t, "partial.unversioned.json", partialVersion, v)
}

// A download of an earlier build goes on where it ended. One of a newer release stops Open before anything is changed. A
// damaged record costs the download's progress.
func TestPartialOfOtherReleases(t *testing.T) {
	d := oci.DigestOf([]byte("x"))
	for text, want := range map[string]int64{
		`{"prefix":3}` + "\n": 3, `{"version":1,"writer":"0.0.1","prefix":3}`: 3, "{": 0, "": 0, `{"version":0,"prefix":3}`: 0,
	} {
		dir := t.TempDir()
		s := open(t, durable.OS, dir)
		p, err := s.Partial(d)
		if err != nil {
			t.Fatal(err)
		}
		p.File().WriteAt([]byte("abcdef"), 0)
		if err := p.Keep(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(s.partialPath(d)+".json", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		s = open(t, durable.OS, dir)
		if p, err = s.Partial(d); err != nil || p.Prefix() != want {
			t.Errorf("record %q: prefix %d, %v; want %d", text, p.Prefix(), err, want)
		}
		if err := p.Discard(); err != nil {
			t.Error(err)
		}
	}
	dir := t.TempDir()
	s := open(t, durable.OS, dir)
	newer := `{"version":2,"writer":"9.8.7","prefix":3}`
	if err := errors.Join(
		os.WriteFile(s.partialPath(d)+".json", []byte(newer), 0o600),
		os.WriteFile(durable.TempName(s.dir), nil, 0o600), // Open would remove it
	); err != nil {
		t.Fatal(err)
	}
	f := &faultfs.FS{Under: durable.OS}
	if _, err := Open(f, dir); !errors.Is(err, errs.Precondition) || !strings.Contains(err.Error(), "ply 9.8.7") || f.Count() != 0 {
		t.Errorf("Open with a newer download: %v after %d changes", err, f.Count())
	}
	if _, err := s.Partial(d); !errors.Is(err, errs.Precondition) {
		t.Errorf("Partial with a newer record: %v", err)
	}
	if b, err := os.ReadFile(s.partialPath(d) + ".json"); err != nil || string(b) != newer {
		t.Errorf("the record is now %s, %v", b, err)
	}
}
