// Package metatest damages records of a database, for tests of what reads them.
package metatest

import (
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

// Damage replaces a record by bytes that are not JSON. The database at path is closed and has the record.
func Damage(t testing.TB, path, bucket, key string) {
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
		return b.Put([]byte(key), []byte(`{"damaged`))
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}
