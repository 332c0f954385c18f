// Package metatest damages records of a database, for tests of what reads them.
package metatest

import (
	"bytes"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

// Damage replaces a record by bytes that are not JSON. The database at path is closed and has the record.
func Damage(t testing.TB, path, bucket, key string) {
	t.Helper()
	change(t, path, bucket, key, func([]byte) []byte { return []byte(`{"damaged`) })
}

// Falsify replaces the first old by text in a record, as a bit that flips on a disk does: the record is still JSON.
func Falsify(t testing.TB, path, bucket, key, old, text string) {
	t.Helper()
	change(t, path, bucket, key, func(data []byte) []byte {
		if !bytes.Contains(data, []byte(old)) {
			t.Fatalf("record %s has no %q: %s", key, old, data)
		}
		return bytes.Replace(data, []byte(old), []byte(text), 1)
	})
}

func change(t testing.TB, path, bucket, key string, edit func([]byte) []byte) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte(bucket))
		if b == nil || b.Get([]byte(key)) == nil {
			t.Fatalf("%s: bucket %s has no record %s", path, bucket, key)
		}
		return b.Put([]byte(key), edit(bytes.Clone(b.Get([]byte(key)))))
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}
