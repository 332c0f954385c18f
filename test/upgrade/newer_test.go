package upgrade

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

// TestDataRootOfALaterBuild starts plyd on data roots in which one thing is of a newer version. plyd must refuse, name the
// release that wrote it, and change nothing.
func TestDataRootOfALaterBuild(t *testing.T) {
	roots := unpackRoots(t)
	root := filepath.Join(roots, "erofs")
	what := []string{"schema"}
	db := openDB(t, root)
	if err := db.View(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(name []byte, _ *bbolt.Bucket) error {
			if string(name) != "meta" {
				what = append(what, string(name))
			}
			return nil
		})
	}); err != nil {
		t.Fatal(err)
	}
	closeDB(t, db)
	if len(what) < 7 {
		t.Fatalf("kinds of records in the database: %q", what)
	}
	for _, driver := range drivers {
		files, err := filepath.Glob(filepath.Join(roots, driver, "layers/sha256/*/*.json"))
		if err != nil || len(files) == 0 {
			t.Fatalf("records of layers: %q, %v", files, err)
		}
		slices.SortFunc(files, func(a, b string) int { return strings.Compare(filepath.Base(a), filepath.Base(b)) })
		for _, f := range slices.CompactFunc(files, func(a, b string) bool { return filepath.Base(a) == filepath.Base(b) }) {
			what = append(what, strings.TrimPrefix(f, roots+"/"))
		}
	}
	for _, kind := range what {
		t.Run(kind, func(t *testing.T) {
			dir, driver := mustMkdirTemp(t), "erofs"
			if d, file, ok := strings.Cut(kind, "/"); ok {
				driver = d
				copyTree(t, filepath.Join(roots, driver), dir)
				makeNewer(t, filepath.Join(dir, file))
			} else {
				copyTree(t, root, dir)
				writeNewer(t, dir, kind)
			}
			m := newMachine(t, dir, driver)
			before := tree(t, dir)
			m.run(bin)
			err := m.ends()
			text := m.tail()
			if err == nil || !strings.Contains(text, "ply 9.8.7") || !strings.Contains(text, "version 99") {
				t.Errorf("plyd ended with %v and said:\n%s", err, text)
			}
			t.Logf("%v: %s", err, strings.TrimSpace(text))
			after := tree(t, dir)
			if strings.Contains(kind, "/") {
				before[dir] = after[dir] // the driver tries in a temporary directory what the file system can do
			}
			for _, path := range slices.Sorted(maps.Keys(before)) {
				if after[path] != before[path] {
					t.Errorf("%s was %q and is %q", path, before[path], after[path])
				}
			}
			if len(after) != len(before) {
				t.Errorf("%d files before, %d after", len(before), len(after))
			}
		})
	}
}

func openDB(t *testing.T, root string) *bbolt.DB {
	t.Helper()
	db, err := bbolt.Open(filepath.Join(root, "meta.db"), 0o600, &bbolt.Options{Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return db
}

func closeDB(t *testing.T, db *bbolt.DB) {
	t.Helper()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// writeNewer changes the schema, or one record of a bucket, to a version that release 9.8.7 wrote.
func writeNewer(t *testing.T, root, kind string) {
	t.Helper()
	db := openDB(t, root)
	defer closeDB(t, db)
	err := db.Update(func(tx *bbolt.Tx) error {
		if kind == "schema" {
			b := tx.Bucket([]byte("meta"))
			if err := b.Put([]byte("version"), []byte("99")); err != nil {
				return err
			}
			return b.Put([]byte("writer"), []byte(`"9.8.7"`))
		}
		b := tx.Bucket([]byte(kind))
		key, old := b.Cursor().First()
		record := map[string]any{}
		if key == nil {
			key = []byte("some")
		} else if err := json.Unmarshal(old, &record); err != nil {
			return err
		}
		record["version"], record["writer"] = 99, "9.8.7"
		data, err := json.Marshal(record)
		if err != nil {
			return err
		}
		return b.Put(bytes.Clone(key), data)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// ends waits for a plyd that must end by itself.
func (m *machine) ends() error {
	m.t.Helper()
	plyd := m.plyd
	timer := time.AfterFunc(time.Minute, func() {
		m.t.Errorf("plyd runs on such a data root")
		_ = plyd.Process.Signal(syscall.SIGTERM)
	})
	defer timer.Stop()
	m.plyd = nil
	return plyd.Wait()
}

// tree returns what there is to know of every file below a directory.
func tree(t *testing.T, root string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		text := fmt.Sprintf("%v %d:%d size %d, inode %d, changed %d.%d, modified %d.%d", fi.Mode(), st.Uid, st.Gid, fi.Size(), st.Ino, st.Ctim.Sec, st.Ctim.Nsec, st.Mtim.Sec, st.Mtim.Nsec)
		if fi.Mode().IsRegular() {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text += fmt.Sprintf(", %x", sha256.Sum256(b))
		}
		files[path] = text
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
