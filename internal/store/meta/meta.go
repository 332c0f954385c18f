// Package meta is the store's database: names, images, layers, containers, volumes, networks.
// It is one bbolt file with a bucket per kind of record; records are JSON with a version (see package record).
//
// Invariants: a record is written only after the data that it refers to is durable; nothing slow (fsync of bulk data,
// network, calls of other services) runs inside Update; no other package uses bbolt; a database that a newer release
// wrote is refused by Open and its file is not changed.
// The schema is drawn in docs/DB.md, and a test holds the drawing against the code.
package meta

import (
	"encoding/json"
	"errors"
	"os"
	"time"

	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"

	"ply/internal/errs"
	"ply/internal/record"
	"ply/internal/version"
)

// Version is the version of the schema: of the set of buckets and the form of their keys. Each kind of record has a
// version of its own.
const Version = 1

// DB is the open database. Safe for concurrent use. One process at a time can have it open.
type DB struct {
	bolt *bbolt.DB
	path string
}

// Options of Open.
type Options struct {
	// OpenFile opens the file, for tests that inject faults; nil means os.OpenFile.
	OpenFile func(name string, flag int, perm os.FileMode) (*os.File, error)
}

// Open opens the database, or creates it. The error's class is errs.Unavailable when another process has it open,
// errs.DataLoss when the file is not a database, and errs.Precondition when a newer release wrote the database or one of
// its records. A database that Open refuses is not changed.
func Open(path string, opts Options) (*DB, error) {
	bo := bbolt.Options{Timeout: 2 * time.Second, NoStatistics: true, FreelistType: bbolt.FreelistMapType, InitialMmapSize: mapSize}
	bo.OpenFile = opts.OpenFile
	b, err := bbolt.Open(path, 0o600, &bo)
	if err != nil {
		if errors.Is(err, bbolterrors.ErrTimeout) {
			return nil, errs.New(errs.Unavailable, "database %s is in use by another process", path)
		}
		return nil, errs.New(errs.DataLoss, "database %s: open: %w", path, err)
	}
	db := &DB{bolt: b, path: path}
	if err := b.View(db.checkVersions); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	if err := db.create(); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return db, nil
}

// mapSize is how many bytes of address space the file is mapped into at least. While the file is smaller, an Update that
// makes it grow need not map it again, for which it would have to wait until every View has ended.
const mapSize = 256 << 20

// Keys of the bucket meta.
var (
	metaBucket = []byte("meta")
	versionKey = []byte("version")
	writerKey  = []byte("writer")
)

// checkVersions refuses a database of which any part is newer than this release. It only reads.
func (db *DB) checkVersions(tx *bbolt.Tx) error {
	h, err := db.header(tx)
	if err != nil {
		return err
	}
	if h.Version > Version {
		return record.Newer("database "+db.path, h, Version)
	}
	for _, t := range tables {
		b := tx.Bucket([]byte(t.bucket))
		if b == nil {
			continue // a new database, or one from before this bucket existed
		}
		c := b.Cursor()
		for k, data := c.First(); k != nil; k, data = c.Next() {
			_, err := record.ReadHeader("database "+db.path+": "+t.name(k), data, t.version)
			if errors.Is(err, errs.Precondition) {
				return err
			}
			// A damaged record is reported when it is read.
		}
	}
	return nil
}

// header reads the version of the schema and the release that wrote last; the version of a new database is 0.
func (db *DB) header(tx *bbolt.Tx) (h record.Header, err error) {
	m := tx.Bucket(metaBucket)
	if m == nil {
		return h, nil
	}
	if b := m.Get(versionKey); b != nil {
		if err := json.Unmarshal(b, &h.Version); err != nil || h.Version < 1 {
			return h, errs.New(errs.DataLoss, "database %s: its version is %.40q", db.path, b)
		}
	}
	if b := m.Get(writerKey); b != nil {
		_ = json.Unmarshal(b, &h.Writer) // only shown; "" where it cannot be read
	}
	return h, nil
}

// create creates the buckets that are missing. It does not write to a database that has all of them.
func (db *DB) create() error {
	var complete bool
	err := db.bolt.View(func(tx *bbolt.Tx) error {
		h, err := db.header(tx)
		complete = h.Version == Version
		for _, t := range tables {
			complete = complete && tx.Bucket([]byte(t.bucket)) != nil
		}
		return err
	})
	if err != nil || complete {
		return err
	}
	return db.bolt.Update(func(tx *bbolt.Tx) error {
		m, err := tx.CreateBucketIfNotExists(metaBucket)
		if err != nil {
			return err
		}
		for _, t := range tables {
			if _, err := tx.CreateBucketIfNotExists([]byte(t.bucket)); err != nil {
				return err
			}
		}
		v, err := json.Marshal(Version)
		if err != nil {
			return err
		}
		return errors.Join(m.Put(versionKey, v), sign(tx))
	})
}

// Close waits for the transactions and closes the file.
func (db *DB) Close() error { return db.bolt.Close() }

// View calls f in a read transaction. F sees one state of the database, whatever is written meanwhile, and blocks no one.
func (db *DB) View(f func(*Tx) error) error {
	return db.bolt.View(func(tx *bbolt.Tx) error { return f(wrap(tx)) })
}

// Update calls f in a write transaction. What f writes is durable when Update returns nil; nothing of it is kept when f
// fails. One Update runs at a time.
func (db *DB) Update(f func(*Tx) error) error {
	return db.bolt.Update(func(tx *bbolt.Tx) error {
		if err := sign(tx); err != nil {
			return err
		}
		return f(wrap(tx))
	})
}

// sign names this release as the last writer.
func sign(tx *bbolt.Tx) error {
	m := tx.Bucket(metaBucket)
	writer, err := json.Marshal(version.Version)
	if err != nil || string(m.Get(writerKey)) == string(writer) {
		return err
	}
	return m.Put(writerKey, writer)
}
