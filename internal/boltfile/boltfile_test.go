package boltfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
)

// sound returns a file with pages of every kind.
func sound(t *testing.T) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{PageSize: 1024, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	put := func(from, to int) {
		err := db.Update(func(tx *bbolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists([]byte("many"))
			if err != nil {
				return err
			}
			inline, err := tx.CreateBucketIfNotExists([]byte("few"))
			if err != nil {
				return err
			}
			for i := from; i < to; i++ {
				if err := b.Put(fmt.Appendf(nil, "key-%03d", i), bytes.Repeat([]byte("x"), 1+i%9*300)); err != nil {
					return err
				}
			}
			return inline.Put([]byte("k"), []byte("v"))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	put(0, 120)
	put(50, 130)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := Check(bytes.NewReader(b), int64(len(b))); err != nil {
		t.Fatal(err)
	}
	return b
}

// pages calls visit with the offset of each page of a kind.
func pages(b []byte, kind uint16, visit func(at int)) {
	for at := 2048; at+1024 <= len(b); at += 1024 {
		if binary.NativeEndian.Uint16(b[at+8:]) == kind && int(binary.NativeEndian.Uint64(b[at:])) == at/1024 {
			visit(at)
		}
	}
}

// sign makes the checksum of a header right.
func sign(b []byte, page int) {
	h := b[page*1024+HeaderSize:]
	sum := fnv.New64a()
	sum.Write(h[:metaBytes])
	binary.NativeEndian.PutUint64(h[metaBytes:], sum.Sum64())
}

// What would lead bbolt around in a circle, or out of the pages that were checked, is refused.
func TestHostileFiles(t *testing.T) {
	good := sound(t)
	for name, c := range map[string]struct {
		change func(b []byte)
		want   string
	}{
		"a page that refers to itself": {func(b []byte) {
			pages(b, BranchPage, func(at int) {
				for i := range int(binary.NativeEndian.Uint16(b[at+10:])) {
					binary.NativeEndian.PutUint64(b[at+HeaderSize+i*pageElement+8:], uint64(at/1024))
				}
			})
		}, "used twice"},
		"a page that refers to a header": {func(b []byte) {
			pages(b, BranchPage, func(at int) { binary.NativeEndian.PutUint64(b[at+HeaderSize+8:], 0) })
		}, "not inside the file"},
		"a page behind the file": {func(b []byte) {
			pages(b, BranchPage, func(at int) { binary.NativeEndian.PutUint64(b[at+HeaderSize+8:], uint64(len(b)/1024)) })
		}, "not inside the file"},
		"a page of all others": {func(b []byte) {
			pages(b, LeafPage, func(at int) { binary.NativeEndian.PutUint32(b[at+12:], 1<<31) })
		}, "ends behind the file"},
		"header pages of different sizes": {func(b []byte) {
			for page := range 2 {
				binary.NativeEndian.PutUint32(b[page*1024+HeaderSize+8:], uint32(1024<<page))
				sign(b, page)
			}
		}, "different page sizes"},
		"a header of another place": {func(b []byte) {
			b[HeaderSize] ^= 1
			binary.NativeEndian.PutUint32(b[1024+HeaderSize+8:], 2048)
			sign(b, 1)
		}, "says that pages have 2048 bytes"},
		"pages of 3 bytes": {func(b []byte) {
			binary.NativeEndian.PutUint32(b[HeaderSize+8:], 3)
			sign(b, 0)
		}, "says that pages have 3 bytes"},
		"no header": {func(b []byte) { b[HeaderSize] ^= 1; b[1024+HeaderSize] ^= 1 }, "both header pages"},
	} {
		t.Run(name, func(t *testing.T) {
			b := bytes.Clone(good)
			c.change(b)
			for what, err := range map[string]error{"Check": Check(bytes.NewReader(b), int64(len(b))), "CheckToRead": CheckToRead(bytes.NewReader(b), int64(len(b)), 1<<20)} {
				var page *PageError
				if !errors.As(err, &page) || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%s: %v, want %q", what, err, c.want)
				}
			}
		})
	}
}

// The pages that are looked at together are bounded; the list of free pages is none of them.
func TestMemory(t *testing.T) {
	b := sound(t)
	r := bytes.NewReader(b)
	if err := CheckToRead(r, int64(len(b)), 2048); err == nil || !strings.Contains(err.Error(), "more than expected") {
		t.Error(err)
	}
	pages(b, FreelistPage, func(at int) { binary.NativeEndian.PutUint64(b[at+HeaderSize:], 2) })
	if err := CheckToRead(r, int64(len(b)), 1<<20); err != nil {
		t.Error(err)
	}
	if err := Check(r, int64(len(b))); err == nil {
		t.Error("the list of free pages is not checked")
	}
}

// Whatever bytes differ, bbolt reads what was accepted to its end.
func TestAcceptedFilesCanBeRead(t *testing.T) {
	good := sound(t)
	path := filepath.Join(t.TempDir(), "db")
	random := rand.New(rand.NewPCG(1, 2))
	accepted := 0
	for range 800 {
		b := bytes.Clone(good)
		for range 1 + random.IntN(2) {
			at := 2048 + random.IntN(len(b)-2048)
			if random.IntN(4) > 0 { // in the header or the elements of a page
				at = at/1024*1024 + random.IntN(128)
			}
			b[at] = byte(random.IntN(256))
		}
		if CheckToRead(bytes.NewReader(b), int64(len(b)), 1<<20) != nil {
			continue
		}
		accepted++
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		err = db.View(func(tx *bbolt.Tx) error {
			return tx.ForEach(func(_ []byte, b *bbolt.Bucket) error {
				n := 0
				return b.ForEach(func(k, v []byte) error {
					if n++; n > 1000 {
						return errors.New("without end")
					}
					_ = b.Get(k)
					return nil
				})
			})
		})
		if err := errors.Join(err, db.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if accepted < 40 {
		t.Errorf("only %d files were accepted", accepted)
	}
}
