package meta

import (
	"bytes"
	"encoding/json"
	"iter"

	"go.etcd.io/bbolt"

	"ply/internal/errs"
	"ply/internal/record"
)

// Bucket is a typed, ordered table. Records are written with the version of their table and this release as the writer.
//
// A bucket of json.RawMessage returns records as they are stored, header included and damaged ones too, and takes them in the
// same form.
type Bucket[K ~string, V any] struct {
	b *bbolt.Bucket
	table
}

func open[K ~string, V any](tx *bbolt.Tx, t table) Bucket[K, V] {
	return Bucket[K, V]{tx.Bucket([]byte(t.bucket)), t}
}

// As returns the bucket with records of type V, for the services that own the form of a record:
//
//	networks := meta.As[network](tx.Networks)
func As[V any, K ~string](b Bucket[K, json.RawMessage]) Bucket[K, V] {
	return Bucket[K, V]{b.b, b.table}
}

// Get reads a record. The error's class is errs.NotFound when there is none and errs.DataLoss when it cannot be decoded.
func (b Bucket[K, V]) Get(key K) (V, error) {
	data := b.b.Get([]byte(key))
	if data == nil {
		var none V
		return none, errs.New(errs.NotFound, "%s %s: no such record", b.what, key)
	}
	return b.decode([]byte(key), data)
}

func (b Bucket[K, V]) decode(key, data []byte) (v V, err error) {
	if raw, ok := any(&v).(*json.RawMessage); ok {
		*raw = bytes.Clone(data) // the database's memory is valid during the transaction only
		return v, nil
	}
	return v, record.Unmarshal(b.name(key), data, b.version, &v)
}

// Has reports whether there is a record, damaged or not.
func (b Bucket[K, V]) Has(key K) bool { return b.b.Get([]byte(key)) != nil }

// Put writes a record.
func (b Bucket[K, V]) Put(key K, v V) error {
	data, err := b.encode(key, v)
	if err != nil {
		return err
	}
	return b.b.Put([]byte(key), data)
}

func (b Bucket[K, V]) encode(key K, v V) ([]byte, error) {
	raw, ok := any(v).(json.RawMessage)
	if !ok {
		return record.Marshal(b.version, v)
	}
	if _, err := record.ReadHeader(b.name([]byte(key)), raw, b.version); err != nil {
		return nil, err
	}
	return raw, nil
}

// Delete removes a record; removing one that does not exist is no error.
func (b Bucket[K, V]) Delete(key K) error { return b.b.Delete([]byte(key)) }

// Len counts the records, damaged ones included.
func (b Bucket[K, V]) Len() int {
	n := 0
	c := b.b.Cursor()
	for k, _ := c.First(); k != nil; k, _ = c.Next() {
		n++
	}
	return n
}

// All walks the records in the order of their keys. A damaged record is skipped: it must not hide the others. Do not write
// to the bucket while walking.
func (b Bucket[K, V]) All() iter.Seq2[K, V] { return b.Prefix("") }

// Keys walks the keys in order, those of damaged records included. Do not write to the bucket while walking.
func (b Bucket[K, V]) Keys() iter.Seq[K] {
	return func(yield func(K) bool) {
		c := b.b.Cursor()
		for k, _ := c.First(); k != nil; k, _ = c.Next() {
			if !yield(K(k)) {
				return
			}
		}
	}
}

// Prefix walks the records whose keys start with p, like All.
func (b Bucket[K, V]) Prefix(p K) iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		c := b.b.Cursor()
		for k, data := c.Seek([]byte(p)); k != nil && len(k) >= len(p) && string(k[:len(p)]) == string(p); k, data = c.Next() {
			if v, err := b.decode(k, data); err == nil && !yield(K(k), v) {
				return
			}
		}
	}
}
