package meta

import (
	"errors"
	"path/filepath"
	"testing"

	"ply/internal/errs"
	"ply/internal/oci"
)

// A transaction that begins after Later has returned sees its change, also one that only reads, and so does the next process.
func TestLater(t *testing.T) {
	path := filepath.Join(t.TempDir(), "meta.db")
	db, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	id := func(n int) oci.ContainerID { return oci.ContainerID(string(rune('a' + n))) }
	const count = 20
	if err := db.Update(func(tx *Tx) (err error) {
		for n := range count {
			err = errors.Join(err, tx.Containers.Put(id(n), []byte(`{}`)))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	has := func(id oci.ContainerID) (has bool) {
		t.Helper()
		if err := db.View(func(tx *Tx) error { has = tx.Containers.Has(id); return nil }); err != nil {
			t.Fatal(err)
		}
		return has
	}
	results := make(chan error, count)
	for n := range count - 1 {
		db.Later(func(tx *Tx) error { return tx.Containers.Delete(id(n)) }, func(err error) { results <- err })
		if n%2 == 0 && has(id(n)) {
			t.Fatalf("a reader sees the record %d", n)
		}
	}
	refused := errs.New(errs.Conflict, "refused")
	db.Later(func(*Tx) error { return refused }, func(err error) { results <- err })
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	failed := 0
	for range count {
		if err := <-results; errors.Is(err, refused) {
			failed++
		} else if err != nil {
			t.Error(err)
		}
	}
	if failed != 1 {
		t.Errorf("%d changes were refused", failed)
	}
	if db, err = Open(path, Options{}); err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for n := range count {
		if has(id(n)) != (n == count-1) {
			t.Errorf("record %d: %t", n, has(id(n)))
		}
	}
}
