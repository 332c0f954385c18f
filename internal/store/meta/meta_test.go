package meta

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"ply/internal/durable/powercut"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/version"
)

func mustOpen(t *testing.T, path string) *DB {
	t.Helper()
	db, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func newPath(t *testing.T) string { return filepath.Join(t.TempDir(), "meta.db") }

func update(t *testing.T, db *DB, f func(*Tx) error) {
	t.Helper()
	if err := db.Update(f); err != nil {
		t.Fatal(err)
	}
}

func view(t *testing.T, db *DB, f func(*Tx)) {
	t.Helper()
	if err := db.View(func(tx *Tx) error { f(tx); return nil }); err != nil {
		t.Fatal(err)
	}
}

// raw changes a closed database without this package's rules; edit may create buckets.
func raw(t *testing.T, path string, edit func(tx *bbolt.Tx) error) {
	t.Helper()
	b, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(b.Update(edit), b.Close()); err != nil {
		t.Fatal(err)
	}
}

func put(bucket, key, value string) func(tx *bbolt.Tx) error {
	return func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists([]byte(bucket))
		if err != nil {
			return err
		}
		return b.Put([]byte(key), []byte(value))
	}
}

type ctr struct {
	Image oci.ImageID `json:"image"`
	Name  string      `json:"name"`
}

func TestEveryBucketKeepsItsRecords(t *testing.T) {
	path := newPath(t)
	db := mustOpen(t, path)
	network := json.RawMessage(`{"version":1,"writer":"x","driver":"bridge"}`)
	update(t, db, func(tx *Tx) error {
		return errors.Join(tx.Names.Put("n", goldenName), tx.Images.Put("i", goldenImage), tx.Layers.Put("l", goldenLayer),
			As[ctr](tx.Containers).Put("c", ctr{goldenName.Image, "one"}), tx.Volumes.Put("v", goldenVolume), tx.Networks.Put("w", network))
	})
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db = mustOpen(t, path)
	view(t, db, func(tx *Tx) {
		holds(t, tx.Names, "n", goldenName)
		holds(t, tx.Images, "i", goldenImage)
		holds(t, tx.Layers, "l", goldenLayer)
		holds(t, As[ctr](tx.Containers), "c", ctr{goldenName.Image, "one"})
		stored := `{"version":1,"writer":"` + version.Version + `","image":"` + string(goldenName.Image) + `","name":"one"`
		holds(t, tx.Containers, "c", json.RawMessage(stored+`,"sum":"`+containers.sum([]byte("c"), []byte(stored+"}"))+`"}`))
		holds(t, tx.Volumes, "v", goldenVolume)
		holds(t, tx.Networks, "w", network)
	})
	update(t, db, func(tx *Tx) error {
		return errors.Join(tx.Names.Delete("n"), tx.Names.Delete("n"), tx.Images.Delete("i"), tx.Layers.Delete("l"),
			tx.Containers.Delete("c"), tx.Volumes.Delete("v"), tx.Networks.Delete("w"))
	})
	view(t, db, func(tx *Tx) {
		for what, n := range map[string]int{
			"names": tx.Names.Len(), "images": tx.Images.Len(), "layers": tx.Layers.Len(),
			"containers": tx.Containers.Len(), "volumes": tx.Volumes.Len(), "networks": tx.Networks.Len(),
		} {
			if n != 0 {
				t.Errorf("%d %s are left", n, what)
			}
		}
	})
}

// holds checks that key is the only record of a bucket.
func holds[K ~string, V any](t *testing.T, b Bucket[K, V], key K, want V) {
	t.Helper()
	got, err := b.Get(key)
	if err != nil || fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
		t.Errorf("%s: Get = %+v, %v; want %+v", b.what, got, err, want)
	}
	if !b.Has(key) || b.Has(key+"x") || b.Len() != 1 {
		t.Errorf("%s: Has or Len is wrong", b.what)
	}
	if _, err := b.Get(key + "x"); !errors.Is(err, errs.NotFound) {
		t.Errorf("%s: Get of no record: %v", b.what, err)
	}
	for k, r := range b.All() {
		if k != key || r.Err != nil || fmt.Sprintf("%+v", r.Value) != fmt.Sprintf("%+v", want) {
			t.Errorf("%s: All visits %s: %+v", b.what, k, r)
		}
	}
}

// What a View returned stays valid after it.
func TestRawRecordsOutliveTheirTransaction(t *testing.T) {
	db := mustOpen(t, newPath(t))
	record := json.RawMessage(`{"version":1,"name":"` + strings.Repeat("x", 2000) + `"}`)
	update(t, db, func(tx *Tx) error { return tx.Containers.Put("c", record) })
	var got []json.RawMessage
	view(t, db, func(tx *Tx) {
		one, _ := tx.Containers.Get("c")
		got = append(got, one)
		for _, one := range tx.Containers.All() {
			got = append(got, one.Value)
		}
	})
	for i := range 50 { // overwrites the page
		update(t, db, func(tx *Tx) error {
			return tx.Containers.Put("c", json.RawMessage(fmt.Sprintf(`{"i":%d,"name":%q}`, i, strings.Repeat("y", 2000))))
		})
	}
	for _, one := range got {
		if !bytes.Equal(one, record) {
			t.Errorf("a record has changed to %.60s", one)
		}
	}
	if len(got) != 2 {
		t.Errorf("%d records", len(got))
	}
}

func TestPrefixWalksInOrder(t *testing.T) {
	db := mustOpen(t, newPath(t))
	update(t, db, func(tx *Tx) error {
		for _, k := range []string{"b", "ab", "a", "abc", "aa", "ac", "\u00ff"} {
			if err := tx.Volumes.Put(k, Volume{Driver: k}); err != nil {
				return err
			}
		}
		return nil
	})
	walk := func(p string, stop int) (keys []string) {
		view(t, db, func(tx *Tx) {
			for k, v := range tx.Volumes.Prefix(p) {
				if keys = append(keys, k); v.Value.Driver != k || len(keys) == stop {
					return
				}
			}
		})
		return keys
	}
	for p, want := range map[string][]string{
		"": {"a", "aa", "ab", "abc", "ac", "b", "\u00ff"}, "a": {"a", "aa", "ab", "abc", "ac"}, "ab": {"ab", "abc"}, "x": nil, "\u00ff": {"\u00ff"},
	} {
		if got := walk(p, 0); !slices.Equal(got, want) {
			t.Errorf("Prefix(%q) visits %q, want %q", p, got, want)
		}
	}
	if got := walk("a", 2); !slices.Equal(got, []string{"a", "aa"}) {
		t.Errorf("a walk that ends early visits %q", got)
	}
}

func TestSecondOpenIsRefused(t *testing.T) {
	path := newPath(t)
	db := mustOpen(t, path)
	update(t, db, func(tx *Tx) error { return tx.Volumes.Put("v", goldenVolume) })
	if second, err := Open(path, Options{}); !errors.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), path) {
		t.Errorf("second Open = %v, %v; want class Unavailable and the path", second, err)
	}
	view(t, db, func(tx *Tx) { holds(t, tx.Volumes, "v", goldenVolume) })
}

func TestViewSeesOneState(t *testing.T) {
	db := mustOpen(t, newPath(t))
	update(t, db, func(tx *Tx) error { return tx.Names.Put("old", goldenName) })
	view(t, db, func(before *Tx) {
		done := make(chan error)
		go func() {
			done <- db.Update(func(tx *Tx) error { return errors.Join(tx.Names.Delete("old"), tx.Names.Put("new", goldenName)) })
		}()
		if err := <-done; err != nil { // a View does not block an Update
			t.Error(err)
		}
		holds(t, before.Names, "old", goldenName)
		view(t, db, func(after *Tx) { holds(t, after.Names, "new", goldenName) })
	})
}

func TestFailedUpdateChangesNothing(t *testing.T) {
	db := mustOpen(t, newPath(t))
	update(t, db, func(tx *Tx) error { return tx.Names.Put("old", goldenName) })
	boom := errors.New("boom")
	change := func(tx *Tx) error { return errors.Join(tx.Names.Delete("old"), tx.Names.Put("new", goldenName)) }
	if err := db.Update(func(tx *Tx) error { return errors.Join(change(tx), boom) }); !errors.Is(err, boom) {
		t.Errorf("Update = %v, want the error of the function", err)
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("Update swallowed a panic")
			}
		}()
		_ = db.Update(func(tx *Tx) error {
			if err := change(tx); err != nil {
				return err
			}
			panic("boom")
		})
	}()
	if err := db.View(func(tx *Tx) error { return tx.Names.Put("new", goldenName) }); err == nil {
		t.Error("Put in a View returned no error")
	}
	view(t, db, func(tx *Tx) { holds(t, tx.Names, "old", goldenName) })
	update(t, db, change) // the database still takes writes
}

// Put of a raw record refuses what no reader could read.
func TestRawRecordsAreChecked(t *testing.T) {
	db := mustOpen(t, newPath(t))
	for text, class := range map[string]error{
		`{"version":2}`: errs.Precondition, `[1]`: errs.DataLoss, `{`: errs.DataLoss, ``: errs.DataLoss, `{"version":"x"}`: errs.DataLoss,
	} {
		if err := db.Update(func(tx *Tx) error { return tx.Networks.Put("n", json.RawMessage(text)) }); !errors.Is(err, class) {
			t.Errorf("Put of %q: %v, want class %v", text, err, class)
		}
	}
	view(t, db, func(tx *Tx) {
		if tx.Networks.Len() != 0 {
			t.Error("a refused record was stored")
		}
	})
}

// A damaged record is an error of its own, and hides no other.
func TestDamagedRecord(t *testing.T) {
	path := newPath(t)
	db := mustOpen(t, path)
	update(t, db, func(tx *Tx) error {
		return errors.Join(tx.Volumes.Put("a", goldenVolume), tx.Volumes.Put("z", goldenVolume), As[ctr](tx.Containers).Put("z", ctr{Name: "z"}))
	})
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	damaged := []string{"{", "", `{"version":1,"driver":7}`, `{"version":0}`, "\x00\x01", `null`}
	raw(t, path, func(tx *bbolt.Tx) error {
		var all error
		for i, text := range damaged {
			all = errors.Join(all, put("volumes", fmt.Sprint("m", i), text)(tx), put("containers", fmt.Sprint("m", i), text)(tx))
		}
		return all
	})
	db = mustOpen(t, path)
	view(t, db, func(tx *Tx) {
		for i, text := range damaged {
			key := fmt.Sprint("m", i)
			_, err := tx.Volumes.Get(key)
			if !errors.Is(err, errs.DataLoss) || !strings.Contains(err.Error(), "volume "+key) {
				t.Errorf("Get of %q: %v; want class DataLoss and the key", text, err)
			}
			if got, err := tx.Containers.Get(oci.ContainerID(key)); err != nil || string(got) != text {
				t.Errorf("Get of the raw record %q = %q, %v", text, got, err)
			}
		}
		var whole, bad []string
		for k, r := range tx.Volumes.All() {
			switch {
			case r.Err == nil:
				whole = append(whole, k)
			case errors.Is(r.Err, errs.DataLoss) && strings.Contains(r.Err.Error(), "volume "+k):
				bad = append(bad, k)
			}
		}
		if !slices.Equal(whole, []string{"a", "z"}) || len(bad) != len(damaged) {
			t.Errorf("All visits %q, and as damaged %q; want a and z, and %d damaged ones", whole, bad, len(damaged))
		}
		// The owner of raw records must see damage: what a damaged container needs is unknown.
		n := 0
		for range tx.Containers.All() {
			n++
		}
		if n != len(damaged)+1 || tx.Containers.Len() != n {
			t.Errorf("All visits %d containers, Len is %d; want %d", n, tx.Containers.Len(), len(damaged)+1)
		}
	})
	update(t, db, func(tx *Tx) error { return errors.Join(tx.Volumes.Put("m0", goldenVolume), tx.Volumes.Delete("m1")) })
	view(t, db, func(tx *Tx) {
		if _, err := tx.Volumes.Get("m0"); err != nil {
			t.Errorf("a damaged record that was written again: %v", err)
		}
	})
}

// A database or record of a newer release is refused, with the release's name, and the file stays as it is.
func TestNewerIsRefusedAndUntouched(t *testing.T) {
	newer := `{"version":2,"writer":"9.8.7","image":{"later":true}}`
	cases := map[string]func(*bbolt.Tx) error{
		"schema": func(tx *bbolt.Tx) error {
			return errors.Join(put("meta", "version", "2")(tx), put("meta", "writer", `"9.8.7"`)(tx))
		},
	}
	for _, tab := range tables {
		cases[tab.what+" x"] = put(tab.bucket, "x", newer)
	}
	for name, edit := range cases {
		path := newPath(t)
		db := mustOpen(t, path)
		update(t, db, func(tx *Tx) error { return tx.Volumes.Put("a", goldenVolume) })
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		raw(t, path, edit)
		before, stat := file(t, path)
		for range 2 {
			_, err := Open(path, Options{})
			if !errors.Is(err, errs.Precondition) {
				t.Errorf("%s: Open = %v, want class Precondition", name, err)
				continue
			}
			for _, part := range []string{path, "version 2", "written by ply 9.8.7", "Run ply 9.8.7"} {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%s: the error %q does not say %q", name, err, part)
				}
			}
			if name != "schema" && !strings.Contains(err.Error(), name) {
				t.Errorf("%s: the error %q does not name the record", name, err)
			}
		}
		if after, again := file(t, path); !bytes.Equal(before, after) || !stat.ModTime().Equal(again.ModTime()) {
			t.Errorf("%s: the refused database was changed", name)
		}
	}
}

func file(t *testing.T, path string) ([]byte, os.FileInfo) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return b, fi
}

// A database of a build that wrote neither versions of records nor its name opens, works, and is signed by the next writer.
func TestUnversionedDatabase(t *testing.T) {
	path := newPath(t)
	raw(t, path, func(tx *bbolt.Tx) error {
		return errors.Join(put("meta", "version", "1")(tx),
			put("names", "n", `{"image":"`+string(digest)+`","updated":"2026-08-01T12:30:00Z"}`)(tx),
			put("containers", "c", `{"image":"`+string(digest)+`","name":"one","later":1}`)(tx),
			put("layers", "l", `{"size":3,"tarSize":5}`)(tx))
	})
	db := mustOpen(t, path)
	view(t, db, func(tx *Tx) {
		holds(t, tx.Names, "n", Name{Image: goldenName.Image, Updated: time.Date(2026, 8, 1, 12, 30, 0, 0, time.UTC)})
		holds(t, As[ctr](tx.Containers), "c", ctr{goldenName.Image, "one"})
		holds(t, tx.Layers, "l", Layer{Size: 3, TarSize: 5})
		if tx.Volumes.Len() != 0 { // a bucket that was missing
			t.Error("volumes where there were none")
		}
	})
	update(t, db, func(tx *Tx) error { return tx.Names.Put("n", goldenName) })
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	raw(t, path, func(tx *bbolt.Tx) error {
		if got := tx.Bucket([]byte("names")).Get([]byte("n")); !bytes.HasPrefix(got, []byte(`{"version":1,"writer":"`+version.Version+`"`)) {
			t.Errorf("the record is stored as %s", got)
		}
		if got := tx.Bucket([]byte("layers")).Get([]byte("l")); string(got) != `{"size":3,"tarSize":5}` {
			t.Errorf("a record that was not written has become %s", got)
		}
		return nil
	})
}

func TestLastWriterIsNamed(t *testing.T) {
	path := newPath(t)
	db := mustOpen(t, path)
	update(t, db, func(tx *Tx) error { return tx.Volumes.Put("a", goldenVolume) })
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	writer := func(want string) {
		t.Helper()
		raw(t, path, func(tx *bbolt.Tx) error {
			if got := tx.Bucket(metaBucket).Get(writerKey); string(got) != want {
				t.Errorf("the writer is %s, want %s", got, want)
			}
			return nil
		})
	}
	writer(`"` + version.Version + `"`)
	raw(t, path, put("meta", "writer", `"0.0.9"`))
	db = mustOpen(t, path)
	view(t, db, func(tx *Tx) {})
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	writer(`"0.0.9"`) // who only reads is no writer
	db = mustOpen(t, path)
	update(t, db, func(tx *Tx) error { return tx.Volumes.Delete("a") })
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	writer(`"` + version.Version + `"`)
}

// Opening a complete database writes nothing.
func TestOpenDoesNotWrite(t *testing.T) {
	path := newPath(t)
	if err := mustOpen(t, path).Close(); err != nil {
		t.Fatal(err)
	}
	before, _ := file(t, path)
	if err := mustOpen(t, path).Close(); err != nil {
		t.Fatal(err)
	}
	if after, _ := file(t, path); !bytes.Equal(before, after) {
		t.Error("Open changed a complete database")
	}
}

func TestDamagedFile(t *testing.T) {
	for name, content := range map[string][]byte{
		"text": []byte("this is no database"), "zeros": make([]byte, 1<<15), "short": []byte{1},
	} {
		path := newPath(t)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := openPlain(path); !errors.Is(err, errs.DataLoss) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want class DataLoss and the path", name, err)
		}
		if after, _ := file(t, path); !bytes.Equal(after, content) {
			t.Errorf("%s: the damaged file was changed", name)
		}
	}
	for _, v := range []string{"x", "-1", "0", `"1"`, ""} {
		path := newPath(t)
		raw(t, path, put("meta", "version", v))
		if _, err := openPlain(path); !errors.Is(err, errs.DataLoss) {
			t.Errorf("version %q: %v, want class DataLoss", v, err)
		}
	}
}

// A process that dies inside an Update leaves the state before it; one that dies after it leaves the state after it.
func TestCrashAroundUpdate(t *testing.T) {
	path := newPath(t)
	db := mustOpen(t, path)
	update(t, db, func(tx *Tx) error { return tx.Names.Put("old", goldenName) })
	snapshot := func() string {
		b, _ := file(t, path)
		copied := newPath(t)
		if err := os.WriteFile(copied, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return copied
	}
	var inside string
	update(t, db, func(tx *Tx) error {
		err := errors.Join(tx.Names.Delete("old"), tx.Names.Put("new", goldenName))
		inside = snapshot()
		return err
	})
	after := snapshot()
	view(t, mustOpen(t, inside), func(tx *Tx) { holds(t, tx.Names, "old", goldenName) })
	view(t, mustOpen(t, after), func(tx *Tx) { holds(t, tx.Names, "new", goldenName) })
}

// What an Update that returned has written survives a power cut.
func TestPowerCut(t *testing.T) {
	for _, kind := range powercut.Kinds {
		t.Run(string(kind), func(t *testing.T) { testPowerCut(t, kind) })
	}
}

func testPowerCut(t *testing.T, kind powercut.Kind) {
	disk := powercut.New(t, kind)
	path := filepath.Join(disk.Dir, "meta.db")
	for i := range 4 {
		db, err := Open(path, Options{})
		if err != nil {
			t.Fatalf("cut %d: %v", i, err)
		}
		view(t, db, func(tx *Tx) {
			if n := tx.Names.Len(); n != i*10 {
				t.Errorf("cut %d: %d records, want the %d that were acknowledged", i, n, i*10)
			}
		})
		for j := range 10 {
			update(t, db, func(tx *Tx) error { return tx.Names.Put(fmt.Sprint(i, "-", j), goldenName) })
		}
		disk.Cut(kind.Cuts()[i%len(kind.Cuts())])
		_ = db.Close() // the disk is gone
		disk.Restart()
	}
}
