// Package meta is the store's database: names, images, layers, containers, volumes, networks.
// One bbolt file, typed buckets, values as JSON.
//
// Invariants: a record is written only after the data that it speaks of is durable; nothing slow
// (bulk fsync, network, callbacks into other services) runs inside Update; bbolt is seen nowhere else.
// The schema is drawn in docs/DB.md, and a test holds the drawing against the code.
package meta

import (
	"encoding/json"
	"errors"
	"iter"
	"os"
	"time"

	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"

	"ply/internal/errs"
	"ply/internal/oci"
)

// Version is the schema's version, stored under meta/version. Open refuses a newer one.
const Version = 1

// DB is the open database. Safe for concurrent use; one process at a time.
type DB struct {
	bolt *bbolt.DB
}

// Name is what a tag or a digest reference points at; its key is the full reference.
type Name struct {
	Image   oci.ImageID `json:"image"`
	Updated time.Time   `json:"updated"`
}

// Image is what is known of an image beside its config bytes; its key is the image's ID.
type Image struct {
	Parent    oci.ImageID      `json:"parent,omitempty"` // the local image it was made from
	Format    oci.Format       `json:"format"`           // family of the manifest it came with or will get
	Chain     oci.Chain        `json:"chain"`
	Manifests []oci.Descriptor `json:"manifests,omitempty"` // exact bytes are in the blob store
	Created   time.Time        `json:"created"`             // when the record was made here
	LastUsed  time.Time        `json:"lastUsed"`
}

// Layer is what is known of a layer; its key is the diffID.
type Layer struct {
	Size    int64       `json:"size"`    // sum of the regular files' sizes
	TarSize int64       `json:"tarSize"` // bytes of the uncompressed tar
	Blobs   []LayerBlob `json:"blobs,omitempty"`
}

// LayerBlob is one stored form of a layer, here or in a registry.
type LayerBlob struct {
	oci.Descriptor
	Codec        string   `json:"codec,omitempty"`        // how to make it again: compress.Params as text; "" if made elsewhere
	Repositories []string `json:"repositories,omitempty"` // full names of repositories known to hold it
}

// Volume is a named directory; its key is its name.
type Volume struct {
	Driver    string            `json:"driver"`
	Labels    map[string]string `json:"labels,omitempty"`
	Options   map[string]string `json:"options,omitempty"`
	Created   time.Time         `json:"created"`
	Anonymous bool              `json:"anonymous,omitempty"`
}

// Tx is a transaction; its buckets are valid until the function it was given to returns.
type Tx struct {
	tx         *bbolt.Tx
	Names      Bucket[string, Name]
	Images     Bucket[oci.ImageID, Image]
	Layers     Bucket[oci.DiffID, Layer]
	Containers Bucket[oci.ContainerID, json.RawMessage] // container.Service owns the shape
	Volumes    Bucket[string, Volume]
	Networks   Bucket[string, json.RawMessage] // network.Service owns the shape
}

var bucketNames = []string{"names", "images", "layers", "containers", "volumes", "networks"}

// Options of Open.
type Options struct {
	// OpenFile opens the file, for tests that inject faults; nil means os.OpenFile.
	OpenFile func(name string, flag int, perm os.FileMode) (*os.File, error)
}

// Open opens or makes the database. The error's class is errs.Unavailable when another process has it.
func Open(path string, opts Options) (*DB, error) {
	bo := bbolt.Options{Timeout: 2 * time.Second, NoStatistics: true, FreelistType: bbolt.FreelistMapType}
	bo.OpenFile = opts.OpenFile
	b, err := bbolt.Open(path, 0o600, &bo)
	if err != nil {
		if errors.Is(err, bbolterrors.ErrTimeout) {
			return nil, errs.New(errs.Unavailable, "database %s is in use by another process", path)
		}
		return nil, errs.New(errs.DataLoss, "database %s: open: %w", path, err)
	}
	db := &DB{bolt: b}
	if err := db.init(path); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return db, nil
}

func (db *DB) init(path string) error {
	return db.bolt.Update(func(tx *bbolt.Tx) error {
		m, err := tx.CreateBucketIfNotExists([]byte("meta"))
		if err != nil {
			return err
		}
		var v int
		if b := m.Get([]byte("version")); b != nil {
			if err := json.Unmarshal(b, &v); err != nil {
				return errs.New(errs.DataLoss, "database %s: version: %w", path, err)
			}
		}
		if v > Version {
			return errs.New(errs.Precondition, "database %s has schema %d, this plyd knows %d", path, v, Version).
				WithHint("Run the newer plyd that wrote it.")
		}
		for _, n := range bucketNames {
			if _, err := tx.CreateBucketIfNotExists([]byte(n)); err != nil {
				return err
			}
		}
		if v == Version {
			return nil
		}
		b, _ := json.Marshal(Version)
		return m.Put([]byte("version"), b)
	})
}

// Close waits for transactions and closes the file.
func (db *DB) Close() error { return db.bolt.Close() }

// View runs f in a read transaction, a consistent picture that blocks nobody.
func (db *DB) View(f func(*Tx) error) error {
	return db.bolt.View(func(tx *bbolt.Tx) error { return f(wrap(tx)) })
}

// Update runs f in a write transaction; durable when it returns nil, undone when f fails.
func (db *DB) Update(f func(*Tx) error) error {
	return db.bolt.Update(func(tx *bbolt.Tx) error { return f(wrap(tx)) })
}

func wrap(tx *bbolt.Tx) *Tx {
	b := func(n string) *bbolt.Bucket { return tx.Bucket([]byte(n)) }
	return &Tx{
		tx:         tx,
		Names:      Bucket[string, Name]{b("names"), "name"},
		Images:     Bucket[oci.ImageID, Image]{b("images"), "image"},
		Layers:     Bucket[oci.DiffID, Layer]{b("layers"), "layer"},
		Containers: Bucket[oci.ContainerID, json.RawMessage]{b("containers"), "container"},
		Volumes:    Bucket[string, Volume]{b("volumes"), "volume"},
		Networks:   Bucket[string, json.RawMessage]{b("networks"), "network"},
	}
}

// Bucket is a typed, ordered table.
type Bucket[K ~string, V any] struct {
	b    *bbolt.Bucket
	what string
}

// Get reads a record; the error's class is errs.NotFound when there is none, errs.DataLoss when it cannot be read.
func (b Bucket[K, V]) Get(key K) (V, error) {
	var v V
	data := b.b.Get([]byte(key))
	if data == nil {
		return v, errs.New(errs.NotFound, "%s %s: no such record", b.what, key)
	}
	if err := json.Unmarshal(data, &v); err != nil {
		return v, errs.New(errs.DataLoss, "%s %s: damaged record: %w", b.what, key, err)
	}
	return v, nil
}

// Has reports whether there is a record.
func (b Bucket[K, V]) Has(key K) bool { return b.b.Get([]byte(key)) != nil }

// Put writes a record.
func (b Bucket[K, V]) Put(key K, v V) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return b.b.Put([]byte(key), data)
}

// Delete removes a record; one that is not there is no error.
func (b Bucket[K, V]) Delete(key K) error { return b.b.Delete([]byte(key)) }

// Len counts records.
func (b Bucket[K, V]) Len() int {
	n := 0
	c := b.b.Cursor()
	for k, _ := c.First(); k != nil; k, _ = c.Next() {
		n++
	}
	return n
}

// All walks the records in the order of their keys. A damaged record is skipped: it must not
// hide the others. Do not write to the bucket while walking.
func (b Bucket[K, V]) All() iter.Seq2[K, V] { return b.Prefix("") }

// Prefix is All for the keys that start with p.
func (b Bucket[K, V]) Prefix(p K) iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		c := b.b.Cursor()
		for k, data := c.Seek([]byte(p)); k != nil && len(k) >= len(p) && string(k[:len(p)]) == string(p); k, data = c.Next() {
			var v V
			if json.Unmarshal(data, &v) != nil {
				continue
			}
			if !yield(K(k), v) {
				return
			}
		}
	}
}
