package meta

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"ply/internal/boltfile"
	"ply/internal/durable"
	"ply/internal/errs"
)

// memPath returns the path of a database in memory, where possible: these tests open thousands, and need no durable disk.
func memPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "ply-meta-")
	if err != nil {
		return newPath(t)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "meta.db")
}

// filled makes a database with pages of every kind: branches, leaves, overflow, inline buckets, a list of free pages. It
// returns the file's content and the records.
func filled(t *testing.T) (content []byte, records map[string]string) {
	t.Helper()
	path := memPath(t)
	db := mustOpen(t, path)
	records = map[string]string{}
	for i := range 24 {
		update(t, db, func(tx *Tx) error {
			for j := range 6 {
				name := fmt.Sprintf("volume-%02d-%d", i, j)
				records[name] = strings.Repeat("x", 10+i*j)
				if i == 7 && j == 3 {
					records[name] = strings.Repeat("y", 20000)
				}
				if err := tx.Volumes.Put(name, Volume{Driver: records[name]}); err != nil {
					return err
				}
			}
			return tx.Names.Put("n", goldenName)
		})
	}
	for i := range 10 {
		update(t, db, func(tx *Tx) error {
			name := fmt.Sprintf("volume-%02d-0", i)
			delete(records, name)
			return tx.Volumes.Delete(name)
		})
	}
	// The last write changes nothing, so that the older header page leads to the same records.
	update(t, db, func(tx *Tx) error { return tx.Names.Put("n", goldenName) })
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	content, _ = file(t, path)
	h, err := boltfile.ReadHeader(bytes.NewReader(content), int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	return content[:int64(h.End)*h.PageSize], records // the rest was never written
}

// openPlain opens a file and puts no other in its place.
func openPlain(path string) (*DB, error) {
	db, err := openFile(path, Options{}, false)
	if err != nil {
		return nil, err
	}
	db.mark.fs, db.mark.path = durable.OS, path
	if db.gen, err = db.read(); err != nil {
		err = errors.Join(err, db.bolt.Close())
	}
	return db, err
}

// outcome opens a database and compares its records: none may differ, and where one is missing, something must be damaged.
func outcome(path string, records map[string]string) (refused bool, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	db, err := openPlain(path)
	if err != nil {
		if !errors.Is(err, errs.DataLoss) && !errors.Is(err, errs.Precondition) || !strings.Contains(err.Error(), path) {
			return true, fmt.Errorf("Open = %w, want class DataLoss and the path", err)
		}
		return true, nil
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	seen, bad := 0, 0
	err = db.View(func(tx *Tx) error {
		for k, r := range tx.Volumes.All() {
			if r.Err != nil {
				bad++
				continue
			}
			seen++
			if want, ok := records[k]; !ok || want != r.Value.Driver {
				return fmt.Errorf("record %s has changed unnoticed", k)
			}
		}
		return nil
	})
	if err == nil && seen < len(records) && bad == 0 {
		err = fmt.Errorf("%d of %d records are there, and none is damaged", seen, len(records))
	}
	if err == nil {
		err = db.Update(func(tx *Tx) error { return tx.Names.Put("n2", goldenName) })
	}
	return false, err
}

// A byte that changes in any page is found: Open refuses the file, or the record in which it is cannot be decoded. Only a
// page that is not in use, or the older of the header pages, may change.
func TestFlippedByteIsFound(t *testing.T) {
	content, records := filled(t)
	path := memPath(t)
	kinds := map[uint16]int{}
	refusals := 0
	for page := 0; page+4096 <= len(content); page += 4096 {
		kinds[binary.NativeEndian.Uint16(content[page+8:])]++
		offsets := []int{0, 5, 8, 9, 10, 12, 15, 16, 17, 20, 21, 24, 28, 31, 32, 33, 36, 48, 56, 64, 72, 80, 100, 400, 1000, 2000, 3000, 4000, 4095}
		for _, at := range offsets {
			damaged := append([]byte(nil), content...)
			damaged[page+at] ^= 0x55
			if err := os.WriteFile(path, damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			refused, err := outcome(path, records)
			if err != nil {
				t.Errorf("byte %d of page %d: %v", at, page/4096, err)
			}
			if refused {
				refusals++
				if after, _ := file(t, path); string(after) != string(damaged) {
					t.Errorf("byte %d of page %d: the refused file was changed", at, page/4096)
				}
			}
		}
	}
	if kinds[boltfile.BranchPage] == 0 || kinds[boltfile.LeafPage] < 5 || kinds[boltfile.HeaderPage] != 2 || kinds[boltfile.FreelistPage] == 0 || refusals < 20 {
		t.Errorf("pages by kind %v, %d refusals: the test has lost its subject", kinds, refusals)
	}
}

// A file that ends early is refused, wherever it ends, and the whole file opens.
func TestTruncatedFileIsRefused(t *testing.T) {
	content, records := filled(t)
	path := memPath(t)
	used := 0
	for size := 4096; size <= len(content); size += 4096 {
		for _, n := range []int{size - 1, size - 4000, size} {
			if err := os.WriteFile(path, content[:n], 0o600); err != nil {
				t.Fatal(err)
			}
			refused, err := outcome(path, records)
			if err != nil {
				t.Errorf("%d of %d bytes: %v", n, len(content), err)
			}
			if n == len(content) && refused {
				t.Error("the whole file is refused")
			}
			if refused {
				used++
			}
		}
	}
	if used < 20 {
		t.Errorf("only %d files are refused", used)
	}
}

// A file that loses its end while it is open gives an error that names it and the way out, for reads and for writes, and
// Close returns. Before that it works.
func TestTruncatedWhileOpen(t *testing.T) {
	content, _ := filled(t)
	for _, size := range []int64{0, 4096, 3 * 4096, 5 * 4096} {
		path := memPath(t)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		db, err := Open(path, Options{})
		if err != nil {
			t.Fatal(err)
		}
		walk := func() error {
			return db.View(func(tx *Tx) error {
				for _, r := range tx.Volumes.All() {
					if r.Err != nil {
						return r.Err
					}
				}
				return nil
			})
		}
		put := func() error { return db.Update(func(tx *Tx) error { return tx.Names.Put("n", goldenName) }) }
		if err := errors.Join(walk(), put()); err != nil {
			t.Errorf("%d: before the damage: %v", size, err)
		}
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			for what, err := range map[string]error{"View": walk(), "Update": put()} {
				if !errors.Is(err, errs.DataLoss) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "Restart plyd") {
					t.Errorf("%d: %s = %v, want class DataLoss, the path and the way out", size, what, err)
				}
			}
		}
		if err := db.Close(); err != nil {
			t.Errorf("%d: Close: %v", size, err)
		}
		if again, err := openPlain(path); err == nil && size > 0 {
			t.Errorf("%d: the truncated file opens again", size)
			_ = again.Close()
		} else if err == nil {
			_ = again.bolt.Close()
		}
	}
}

// A page in use that is listed as free would be overwritten by a later record.
func TestFreelistWithUsedPageIsRefused(t *testing.T) {
	content, records := filled(t)
	h, err := boltfile.ReadHeader(bytes.NewReader(content), int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	at := int64(h.Freelist) * h.PageSize
	if binary.NativeEndian.Uint16(content[at+10:]) == 0 {
		t.Fatal("no free pages")
	}
	binary.NativeEndian.PutUint64(content[at+boltfile.HeaderSize:], h.Root)
	path := memPath(t)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if refused, err := outcome(path, records); err != nil || !refused {
		t.Errorf("refused = %v, %v", refused, err)
	}
}

// A record of a build that wrote no checksums is read, and has one as soon as it is written again.
func TestRecordWithoutChecksum(t *testing.T) {
	path := memPath(t)
	db := mustOpen(t, path)
	update(t, db, func(tx *Tx) error { return tx.Volumes.Put("v", goldenVolume) })
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	raw(t, path, func(tx *bbolt.Tx) error {
		data := string(tx.Bucket([]byte("volumes")).Get([]byte("v")))
		at := strings.Index(data, sumField)
		return errors.Join(put("volumes", "old", data[:at]+"}")(tx), put("volumes", "moved", data)(tx),
			put("volumes", "v", strings.Replace(data, `"local"`, `"loCal"`, 1))(tx))
	})
	db = mustOpen(t, path)
	view(t, db, func(tx *Tx) {
		if v, err := tx.Volumes.Get("old"); err != nil || v.Driver != "local" {
			t.Errorf("old = %+v, %v", v, err)
		}
		for _, key := range []string{"v", "moved"} { // changed, and under the key of another record
			if _, err := tx.Volumes.Get(key); !errors.Is(err, errs.DataLoss) || !strings.Contains(err.Error(), "checksum") {
				t.Errorf("%s: %v, want class DataLoss", key, err)
			}
		}
	})
}
