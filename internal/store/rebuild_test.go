package store

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/meta"
	"ply/internal/store/meta/metatest"
)

var cid = oci.ContainerID(strings.Repeat("c1", 32))

// filled is a world with a record of each kind, and with the directories of the container and the volume.
func filled(t *testing.T) (w *world, id oci.ImageID, chain oci.Chain) {
	t.Helper()
	w = newWorld(t, time.Nanosecond)
	id, chain = w.image("one", 1)
	for _, dir := range []string{"containers/" + string(cid) + "/rw", "volumes/vol/_data"} {
		if err := os.MkdirAll(filepath.Join(w.s.Root, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	err := w.s.Meta.Update(func(tx *meta.Tx) error {
		return errors.Join(meta.As[containerNeeds](tx.Containers).Put(cid, containerNeeds{Image: id, Chain: chain}),
			tx.Volumes.Put("vol", meta.Volume{Driver: "local", Labels: map[string]string{"k": "v"}}),
			tx.Names.Put("docker.io/library/one:latest", meta.Name{Image: id}))
	})
	if err != nil {
		t.Fatal(err)
	}
	return w, id, chain
}

// dump returns all records as they are stored.
func dump(t *testing.T, s *Store) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := s.Meta.View(func(tx *meta.Tx) error {
		for _, kind := range meta.Kinds() {
			for k, r := range tx.Raw(kind).All() {
				all[kind+" "+k] = string(r.Value)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func equal(a, b map[string]string) bool {
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return len(a) == len(b)
}

// Without its database a store deletes nothing, and rebuilds every record from the files beside the data.
func TestRebuildWithoutADatabase(t *testing.T) {
	w, _, chain := filled(t)
	blob, err := w.s.Blobs.Put([]byte("unknown"))
	if err != nil {
		t.Fatal(err)
	}
	before := dump(t, w.s)
	w.reopen(func(path string) {
		for _, p := range []string{path, path + ".mark"} {
			if err := os.Remove(p); err != nil {
				t.Fatal(err)
			}
		}
	})
	if w.s.Meta.Doubt() == "" || len(dump(t, w.s)) != 0 {
		t.Fatalf("doubt %q, records %v", w.s.Meta.Doubt(), dump(t, w.s))
	}
	if _, err := w.s.Collect(t.Context()); !errors.Is(err, errs.DataLoss) || !strings.Contains(err.Error(), "system check --repair") {
		t.Errorf("Collect = %v, want class DataLoss and the way out", err)
	}
	if _, err := w.s.Reclaim(t.Context(), []oci.Chain{chain}, []oci.Digest{blob}); !errors.Is(err, errs.DataLoss) {
		t.Errorf("Reclaim = %v, want class DataLoss", err)
	}
	if _, err := w.s.Blobs.Stat(blob); err != nil || !w.layers.has(chain[0]) {
		t.Errorf("a blob or a layer was removed: %v, %v", err, w.layers.objects)
	}
	lost, err := w.s.Lost(t.Context())
	if err != nil || len(lost) != len(before) {
		t.Errorf("Lost = %v, %v; want %d records", lost, err, len(before))
	}
	if n, err := w.s.Rebuild(t.Context(), lost); err != nil || n != len(before) {
		t.Errorf("Rebuild = %d, %v", n, err)
	}
	if after := dump(t, w.s); !equal(before, after) {
		t.Errorf("records after the rebuild:\n%v\nbefore:\n%v", after, before)
	}
	if err := w.s.Meta.Trust(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.s.Collect(t.Context()); err != nil {
		t.Errorf("Collect after Trust: %v", err)
	}
	if _, err := w.s.Blobs.Stat(blob); !errors.Is(err, errs.NotFound) || !w.layers.has(chain[0]) {
		t.Errorf("after the collection: the unknown blob %v, layers %v", err, w.layers.objects)
	}
}

// A damaged record of any kind is rebuilt from its file; what was removed does not come back, and a file that is damaged
// itself is not used.
func TestRebuildDamagedRecords(t *testing.T) {
	w, id, chain := filled(t)
	err := w.s.Meta.Update(func(tx *meta.Tx) error { return tx.Names.Put("gone", meta.Name{Image: id}) })
	if err == nil {
		err = w.s.Meta.Update(func(tx *meta.Tx) error { return tx.Names.Delete("gone") })
	}
	if err != nil {
		t.Fatal(err)
	}
	before := dump(t, w.s)
	w.reopen(func(path string) {
		metatest.Damage(t, path, "containers", string(cid))
		metatest.Damage(t, path, "images", string(id))
		metatest.Damage(t, path, "names", "docker.io/library/one:latest")
		metatest.Damage(t, path, "layers", string(chain[0]))
		metatest.Falsify(t, path, "volumes", "vol", `"v"`, `"w"`)
	})
	if d := w.s.Meta.Doubt(); d != "" {
		t.Errorf("doubt %q", d)
	}
	file := filepath.Join(w.s.Root, "volumes", "vol", "record.json")
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, content := range [][]byte{[]byte(strings.Replace(string(whole), `"v"`, `"x"`, 1)), whole} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := w.s.RepeatRecords(t.Context()); err != nil { // which must not repeat what is damaged
			t.Fatal(err)
		}
		lost, err := w.s.Lost(t.Context())
		if err != nil || len(lost) != 5 {
			t.Fatalf("Lost = %v, %v; want 5 records", lost, err)
		}
		bad := 0
		for _, l := range lost {
			if !l.Damaged || (l.Err != nil) != (l.Kind == "volumes" && string(content) != string(whole)) {
				t.Errorf("lost %+v", l)
			}
			if l.Err != nil {
				bad++
			}
		}
		if string(content) == string(whole) {
			if n, err := w.s.Rebuild(t.Context(), lost); err != nil || n != 5 || bad != 0 {
				t.Errorf("Rebuild = %d, %v, %d cannot be rebuilt", n, err, bad)
			}
		}
	}
	if after := dump(t, w.s); !equal(before, after) {
		t.Errorf("records after the rebuild:\n%v\nbefore:\n%v", after, before)
	}
}

// The files follow the records, and a start writes those that are missing and removes those of records that are gone.
func TestRecordsAreRepeated(t *testing.T) {
	w, id, _ := filled(t)
	name := w.s.beside.path("names", "docker.io/library/one:latest")
	for _, path := range []string{name, w.s.beside.path("images", string(id)), w.s.beside.path("containers", string(cid)), w.s.beside.path("volumes", "vol")} {
		if r, err := w.s.beside.read(path); err != nil || r.Key == "" {
			t.Errorf("%s: %v, %v", path, r, err)
		}
	}
	stale := w.s.beside.path("names", "stale")
	if err := w.s.beside.write(stale, meta.Change{Bucket: "names", Key: "stale", Data: []byte(`{"version":1}`)}); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	if err := w.s.RepeatRecords(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.s.beside.read(name); err != nil {
		t.Errorf("the missing file: %v", err)
	}
	if _, err := os.Lstat(stale); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file of a record that is gone: %v", err)
	}
	if err := w.s.Meta.Update(func(tx *meta.Tx) error { return tx.Volumes.Delete("vol") }); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(w.s.beside.path("volumes", "vol")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file of a removed volume: %v", err)
	}
}
