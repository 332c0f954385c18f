package meta

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ply/internal/boltfile"
	"ply/internal/durable"
	"ply/internal/durable/faultfs"
	"ply/internal/durable/powercut"
	"ply/internal/errs"
)

// rooted is a data root with a database.
type rooted struct {
	t     *testing.T
	path  string
	db    *DB
	empty bool // nothing is in the root to which records could refer
	fs    durable.FS
}

func newRooted(t *testing.T) *rooted {
	r := &rooted{t: t, path: memPath(t), empty: true}
	r.open()
	r.empty = false
	t.Cleanup(func() { _ = r.db.Close() })
	return r
}

func (r *rooted) open() {
	r.t.Helper()
	db, err := Open(r.path, Options{FS: r.fs, Occupied: func() (bool, error) { return !r.empty, nil }})
	if err != nil {
		r.t.Fatal(err)
	}
	r.db = db
}

func (r *rooted) put(names ...string) {
	r.t.Helper()
	for _, n := range names {
		update(r.t, r.db, func(tx *Tx) error { return tx.Volumes.Put(n, goldenVolume) })
	}
}

// names are the records that are there.
func (r *rooted) names() (all []string) {
	view(r.t, r.db, func(tx *Tx) { all = slices.Collect(tx.Volumes.Keys()) })
	return all
}

func (r *rooted) close() {
	r.t.Helper()
	if err := r.db.Close(); err != nil {
		r.t.Fatal(err)
	}
}

// kill ends the process without Close.
func (r *rooted) kill() {
	r.t.Helper()
	if err := errors.Join(r.db.mark.close(), r.db.bolt.Close()); err != nil {
		r.t.Fatal(err)
	}
	r.db.closed = true
}

func (r *rooted) copy() {
	r.t.Helper()
	if err := r.db.Copy(); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rooted) read(path string) []byte {
	r.t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		r.t.Fatal(err)
	}
	return b
}

func (r *rooted) write(b []byte) {
	r.t.Helper()
	if err := os.WriteFile(r.path, b, 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// aside are the databases that were set aside.
func (r *rooted) aside() []string {
	all, err := filepath.Glob(r.path + ".damaged-*")
	if err != nil {
		r.t.Fatal(err)
	}
	return all
}

// Whatever happens to the file of the database while plyd does not run, the next Open works, keeps the file, and has the
// records of the newest good copy. It says when records may be missing, and only then.
func TestOpenAfterDamage(t *testing.T) {
	flip := func(at int) func(*rooted, []byte) []byte {
		return func(_ *rooted, b []byte) []byte { b[at] ^= 0x55; return b }
	}
	for _, c := range []struct {
		name  string
		dirty bool // plyd was killed
		edit  func(r *rooted, b []byte) []byte
		doubt string
		keeps bool     // the file stays where it is
		want  []string // nil = a and b
	}{
		{name: "nothing", edit: func(_ *rooted, b []byte) []byte { return b }, keeps: true},
		{name: "nothing, killed", dirty: true, edit: func(_ *rooted, b []byte) []byte { return b }, keeps: true, want: []string{"a", "b", "c"}},
		{name: "leaf", edit: func(r *rooted, b []byte) []byte { return flipRoot(r, b) }},
		{name: "leaf, killed", dirty: true, edit: func(r *rooted, b []byte) []byte { return flipRoot(r, b) }, doubt: "damaged"},
		{name: "both headers", edit: func(_ *rooted, b []byte) []byte { b[30] ^= 1; b[4096+30] ^= 1; return b }},
		{name: "magic, killed", dirty: true, edit: func(_ *rooted, b []byte) []byte { b[16] ^= 1; b[4096+16] ^= 1; return b }, doubt: "damaged"},
		{name: "truncated", edit: func(_ *rooted, b []byte) []byte { return b[:9000] }},
		{name: "truncated, killed", dirty: true, edit: func(_ *rooted, b []byte) []byte { return b[:9000] }, doubt: "damaged"},
		{name: "empty", edit: func(*rooted, []byte) []byte { return []byte{} }},
		{name: "empty, killed", dirty: true, edit: func(*rooted, []byte) []byte { return []byte{} }, doubt: "empty"},
		{name: "missing", edit: func(*rooted, []byte) []byte { return nil }},
		{name: "missing, killed", dirty: true, edit: func(*rooted, []byte) []byte { return nil }, doubt: "missing"},
		{name: "text", dirty: true, edit: func(*rooted, []byte) []byte { return []byte(strings.Repeat("no database ", 1000)) }, doubt: "damaged"},
		{name: "older copy", edit: func(r *rooted, _ []byte) []byte { return r.oldest() }},
		{name: "older copy, killed", dirty: true, edit: func(r *rooted, _ []byte) []byte { return r.oldest() }, doubt: "older"},
		{name: "newer copy", dirty: true, edit: func(r *rooted, b []byte) []byte { return r.later(b) }, doubt: "younger", keeps: true, want: []string{"a", "b", "c", "later"}},
		{name: "other root", edit: func(r *rooted, _ []byte) []byte { return r.other() }},
		{name: "other root, killed", dirty: true, edit: func(r *rooted, _ []byte) []byte { return r.other() }, doubt: "another data root"},
		{name: "no mark", edit: func(r *rooted, b []byte) []byte { os.Remove(markPath(r.path)); return b }, doubt: "mark of the data root is missing", keeps: true},
		{name: "damaged mark", edit: func(r *rooted, b []byte) []byte { os.WriteFile(markPath(r.path), []byte("x"), 0o600); return b }, doubt: "mark of the data root is damaged", keeps: true},
		{name: "first header", dirty: true, edit: flip(40), keeps: true, want: nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRooted(t)
			r.put("a")
			r.copy()
			r.put("b")
			if !c.dirty {
				r.copy()
				r.close()
			} else {
				r.copy()
				r.put("c") // which no copy has
				r.kill()
			}
			b := c.edit(r, r.read(r.path))
			if b == nil {
				os.Remove(r.path)
			} else {
				r.write(b)
			}
			r.open()
			if c.name == "first header" {
				// It may be the newer or the older of the two: then the last record is lost, and that is noticed.
				if n := len(r.names()); n == 2 && r.db.Doubt() == "" || n == 3 && r.db.Doubt() != "" || n < 2 {
					t.Errorf("records %v, doubt %q", r.names(), r.db.Doubt())
				}
				return
			}
			want := c.want
			if want == nil {
				want = []string{"a", "b"}
			}
			if got := r.names(); !slices.Equal(got, want) {
				t.Errorf("records %v, want %v", got, want)
			}
			if doubt := r.db.Doubt(); (doubt == "") != (c.doubt == "") || !strings.Contains(doubt, c.doubt) {
				t.Errorf("doubt %q, want %q", doubt, c.doubt)
			}
			aside := r.aside()
			if kept := b == nil || len(aside) == 1 && string(r.read(aside[0])) == string(b); !c.keeps && !kept {
				t.Errorf("the file was not set aside: %v", aside)
			}
			if c.keeps != (len(r.db.Notices()) == 0) || c.keeps && len(aside) > 0 {
				t.Errorf("notices %q, set aside %v", r.db.Notices(), aside)
			}
			// It works on, the doubt stays over a restart, and ends when it is told to.
			r.put("z")
			r.close()
			r.open()
			if doubt := r.db.Doubt(); (doubt == "") != (c.doubt == "") || len(r.names()) != len(want)+1 || len(r.db.Notices()) != 0 {
				t.Errorf("after a restart: records %v, doubt %q, notices %q", r.names(), doubt, r.db.Notices())
			}
			if err := r.db.Trust(); err != nil {
				t.Fatal(err)
			}
			r.kill()
			r.open()
			if doubt := r.db.Doubt(); doubt != "" {
				t.Errorf("doubt after Trust: %q", doubt)
			}
		})
	}
}

func flipRoot(r *rooted, b []byte) []byte {
	h, err := boltfile.ReadHeader(strings.NewReader(string(b)), int64(len(b)))
	if err != nil {
		r.t.Fatal(err)
	}
	b[int64(h.Root)*h.PageSize+8] ^= 0x10
	return b
}

// oldest returns the oldest copy.
func (r *rooted) oldest() []byte {
	all, err := listCopies(r.db.mark.fs, r.path)
	if err != nil || len(all) != 2 {
		r.t.Fatalf("copies %v, %v", all, err)
	}
	return r.read(all[1].path)
}

// later returns the database after two more runs, and puts the mark back.
func (r *rooted) later(b []byte) []byte {
	mark := r.read(markPath(r.path))
	for range 2 {
		r.open()
		if !slices.Contains(r.names(), "later") {
			r.put("later")
		}
		r.close()
	}
	r.open()
	r.put("later")
	r.close()
	if err := os.WriteFile(markPath(r.path), mark, 0o600); err != nil {
		r.t.Fatal(err)
	}
	return r.read(r.path)
}

func (r *rooted) other() []byte {
	o := newRooted(r.t)
	o.put("foreign")
	o.close()
	return o.read(o.path)
}

// Without a copy a new database takes the place, with a doubt unless the root is empty.
func TestOpenWithoutCopies(t *testing.T) {
	for _, empty := range []bool{true, false} {
		r := newRooted(t)
		r.put("a")
		r.kill()
		b := flipRoot(r, r.read(r.path))
		r.write(b)
		r.empty = empty
		r.open()
		if n := len(r.names()); n != 0 || (r.db.Doubt() == "") != empty || len(r.aside()) != 1 {
			t.Errorf("empty %v: %d records, doubt %q, set aside %v", empty, n, r.db.Doubt(), r.aside())
		}
		if len(r.db.Notices()) != 2 {
			t.Errorf("notices %q", r.db.Notices())
		}
	}
}

// A start, or several, without a change is no reason for doubt, and neither is a kill at any moment.
func TestRestartsWithoutDoubt(t *testing.T) {
	r := newRooted(t)
	for i := range 40 {
		if i%3 == 0 {
			r.put(fmt.Sprint("r", i))
		}
		if i%2 == 0 {
			r.close()
		} else {
			r.kill()
		}
		r.open()
		if d := r.db.Doubt(); d != "" || len(r.db.Notices()) != 0 {
			t.Fatalf("restart %d: doubt %q, notices %q", i, d, r.db.Notices())
		}
	}
	if n := len(r.names()); n != 14 {
		t.Errorf("%d records", n)
	}
}

// A database of a build before the first release gets a generation, and no doubt.
func TestGenerationOfAnOlderBuild(t *testing.T) {
	r := &rooted{t: t, path: memPath(t)}
	raw(t, r.path, put("meta", "version", "1"))
	r.open()
	r.put("a")
	r.kill()
	r.open()
	if d := r.db.Doubt(); d != "" || len(r.names()) != 1 {
		t.Errorf("doubt %q, records %v", d, r.names())
	}
	r.close()
}

// The copies are few, readable, and none is made of a database with a damaged record.
func TestCopies(t *testing.T) {
	r := newRooted(t)
	for i := range 20 {
		r.put(fmt.Sprint("r", i))
		r.copy()
		r.copy() // of the same generation: nothing is made
	}
	all, err := listCopies(r.db.mark.fs, r.path)
	if err != nil || len(all) < 2 || len(all) > 4 {
		t.Fatalf("copies %v, %v", all, err)
	}
	for _, c := range all {
		if g, err := checkCopy(c.path); err != nil || g.Commits != c.gen.Commits {
			t.Errorf("copy %s: %v, %v", c.path, g, err)
		}
	}
	update(t, r.db, func(tx *Tx) error { return tx.Raw("volumes").Put("bad", []byte(`{"driver":7}`)) })
	if err := r.db.Copy(); err != nil {
		t.Errorf("Copy of whole records = %v", err) // Raw does not know that the driver is no number
	}
	r.close()
	raw(t, r.path, put("volumes", "worse", "{"))
	r.open()
	r.put("more")
	if err := r.db.Copy(); !errors.Is(err, errs.DataLoss) {
		t.Errorf("Copy of a damaged record = %v, want class DataLoss", err)
	}
	left, err := os.ReadDir(copiesDir(r.path))
	if err != nil || len(left) > 4 {
		t.Errorf("%d files in the directory of the copies, %v", len(left), err)
	}
}

// A copy that fails at any operation leaves the older copies, and no file that looks like one and is not whole. The next
// copy succeeds and clears up.
func TestCopyFailsAtEveryOperation(t *testing.T) {
	for _, forever := range []bool{false, true} {
		for n := 1; ; n++ {
			f := &faultfs.FS{Under: durable.OS, Forever: forever, Short: true}
			r := &rooted{t: t, path: memPath(t), empty: true, fs: f}
			r.open()
			for i := range 4 { // so that the next one removes a copy
				r.put(fmt.Sprint("a", i))
				r.copy()
			}
			r.put("b")
			f.FailAt = f.Count() + n
			err := r.db.Copy()
			hit := f.Hit()
			f.FailAt = 0
			if hit && err == nil {
				t.Errorf("operation %d failed, Copy did not", n)
			}
			all, listErr := listCopies(f, r.path)
			if listErr != nil || len(all) < 3 {
				t.Errorf("operation %d: copies %v, %v", n, all, listErr)
			}
			for _, c := range all {
				if _, err := checkCopy(c.path); err != nil {
					t.Errorf("operation %d: copy %s: %v", n, c.path, err)
				}
			}
			r.put("c")
			r.copy()
			if left, err := os.ReadDir(copiesDir(r.path)); err != nil || len(left) > 4 {
				t.Errorf("operation %d: left %v, %v", n, left, err)
			}
			r.close()
			if !hit {
				if n < 6 {
					t.Errorf("a copy takes %d operations", n-1)
				}
				break
			}
		}
	}
}

// A power cut during or after a copy leaves a database without a doubt, and copies of which the newest good one is found.
func TestPowerCutAroundCopies(t *testing.T) {
	disk := powercut.New(t, powercut.Ext4)
	r := &rooted{t: t, path: filepath.Join(disk.Dir, "meta.db"), empty: true}
	r.open()
	r.empty = false
	acknowledged := 0
	for i := range 4 {
		for range 5 {
			r.put(fmt.Sprintf("r%03d", acknowledged))
			acknowledged++
		}
		done := make(chan error, 1)
		go func() { done <- r.db.Copy() }()
		if i%2 == 0 {
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
		disk.Cut([]powercut.Cut{powercut.Journal, powercut.NoJournal}[i%2])
		if i%2 == 1 {
			<-done // it may have failed
		}
		r.kill()
		disk.Restart()
		if i == 3 { // the database is lost too
			if err := os.Remove(r.path); err != nil {
				t.Fatal(err)
			}
		}
		r.open()
		n := len(r.names())
		if i < 3 && (n != acknowledged || r.db.Doubt() != "" || len(r.db.Notices()) > 0) {
			t.Errorf("cut %d: %d of %d records, doubt %q, notices %q", i, n, acknowledged, r.db.Doubt(), r.db.Notices())
		}
		if i == 3 && (n < acknowledged-5 || r.db.Doubt() == "") {
			t.Errorf("after the loss: %d records, want those of the copy before, %d; doubt %q", n, acknowledged-5, r.db.Doubt())
		}
	}
	r.close()
}
