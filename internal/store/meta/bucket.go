package meta

import (
	"bytes"
	"encoding/json"
	"iter"
	"strings"

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
	log *[]Change // nil in a View
}

// Change is one record that an Update wrote or deleted.
type Change struct {
	Bucket string // by its name in docs/DB.md
	Key    string
	Data   []byte // the record as it is stored; nil = deleted
}

func open[K ~string, V any](tx *bbolt.Tx, t table, log *[]Change) (b Bucket[K, V]) {
	onBolt(func() { b = Bucket[K, V]{tx.Bucket([]byte(t.bucket)), t, log} })
	return b
}

// As returns the bucket with records of type V, for the services that own the form of a record:
//
//	networks := meta.As[network](tx.Networks)
func As[V any, K ~string](b Bucket[K, json.RawMessage]) Bucket[K, V] {
	return Bucket[K, V]{b.b, b.table, b.log}
}

// Raw returns a bucket with records as they are stored.
func Raw[K ~string, V any](b Bucket[K, V]) Bucket[K, json.RawMessage] {
	return Bucket[K, json.RawMessage]{b.b, b.table, b.log}
}

// Result is a record of a walk. Err is set when the record cannot be decoded (errs.DataLoss); what the record says is then
// unknown, but it exists.
type Result[V any] struct {
	Value V
	Err   error
}

// Get reads a record. The error's class is errs.NotFound when there is none and errs.DataLoss when it cannot be decoded.
func (b Bucket[K, V]) Get(key K) (v V, err error) {
	onBolt(func() {
		data := b.b.Get([]byte(key))
		if data == nil {
			err = errs.New(errs.NotFound, "%s %s: no such record", b.what, key)
			return
		}
		v, err = b.decode([]byte(key), data)
	})
	return v, err
}

func (b Bucket[K, V]) decode(key, data []byte) (v V, err error) {
	if raw, ok := any(&v).(*json.RawMessage); ok {
		*raw = bytes.Clone(data) // the database's memory is valid during the transaction only
		return v, nil
	}
	if err := b.unmarshal(key, data, &v); err != nil {
		var none V
		return none, err
	}
	return v, nil
}

// Has reports whether there is a record, damaged or not.
func (b Bucket[K, V]) Has(key K) (has bool) {
	onBolt(func() { has = b.b.Get([]byte(key)) != nil })
	return has
}

// Put writes a record.
func (b Bucket[K, V]) Put(key K, v V) error {
	data, err := b.encode(key, v)
	if err != nil {
		return err
	}
	return b.put([]byte(key), data)
}

func (b Bucket[K, V]) encode(key K, v V) ([]byte, error) {
	raw, ok := any(v).(json.RawMessage)
	if !ok {
		return b.marshal([]byte(key), v)
	}
	if _, err := record.ReadHeader(b.name([]byte(key)), raw, b.version); err != nil {
		return nil, err
	}
	return raw, nil
}

func (b Bucket[K, V]) put(key, data []byte) (err error) {
	onBolt(func() { err = b.b.Put(key, data) })
	b.note(err, key, data)
	return err
}

// note keeps a change for Options.Committed.
func (b Bucket[K, V]) note(err error, key, data []byte) {
	if err == nil && b.log != nil {
		*b.log = append(*b.log, Change{b.bucket, string(key), data})
	}
}

// Delete removes a record; removing one that does not exist is no error.
func (b Bucket[K, V]) Delete(key K) (err error) {
	onBolt(func() { err = b.b.Delete([]byte(key)) })
	b.note(err, []byte(key), nil)
	return err
}

// Len counts the records, damaged ones included.
func (b Bucket[K, V]) Len() int {
	n := 0
	for range b.Keys() {
		n++
	}
	return n
}

// All walks the records in the order of their keys. Do not write to the bucket while walking.
func (b Bucket[K, V]) All() iter.Seq2[K, Result[V]] { return b.Prefix("") }

// Keys walks the keys in order, those of damaged records included. Do not write to the bucket while walking.
func (b Bucket[K, V]) Keys() iter.Seq[K] {
	return func(yield func(K) bool) {
		b.walk("", func(k, _ []byte) func() bool {
			key := K(k)
			return func() bool { return yield(key) }
		})
	}
}

// Prefix walks the records whose keys start with p, like All.
func (b Bucket[K, V]) Prefix(p K) iter.Seq2[K, Result[V]] {
	return func(yield func(K, Result[V]) bool) {
		b.walk(string(p), func(k, data []byte) func() bool {
			key := K(k)
			v, err := b.decode(k, data)
			return func() bool { return yield(key, Result[V]{v, err}) }
		})
	}
}

// walk calls read for each record whose key starts with p, and then what read returned, until that returns false. Only read
// may use the memory of the database.
func (b Bucket[K, V]) walk(p string, read func(k, data []byte) func() bool) {
	c := b.b.Cursor()
	var next func() bool
	step := func(move func() ([]byte, []byte)) bool {
		next = nil
		onBolt(func() {
			if k, data := move(); k != nil && strings.HasPrefix(string(k), p) {
				next = read(k, data)
			}
		})
		return next != nil
	}
	for more := step(func() ([]byte, []byte) { return c.Seek([]byte(p)) }); more && next(); {
		more = step(c.Next)
	}
}
