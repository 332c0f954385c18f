// Package meta is the store's database: names, images, layers, containers, volumes, networks.
// It is one bbolt file with a bucket per kind of record; records are JSON with a version (see package record).
//
// A damaged file or record is an error, never a panic and never silence: Open checks the structure of the whole file, each
// record has a checksum, faults on the mapped file and panics of bbolt are caught. A walk yields damaged records too.
//
// Loss is noticed and survived: the mark in the data root says which generation of the database belongs to it, Copy keeps
// verified copies, and Open takes the newest good one where the database cannot be used (see Open, Doubt and docs/DB.md).
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
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"

	"ply/internal/boltfile"
	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/procid"
	"ply/internal/record"
	"ply/internal/version"
)

// Version is the version of the schema: of the set of buckets and the form of their keys. Each kind of record has a
// version of its own.
const Version = 1

// DB is the open database. Safe for concurrent use. One process at a time can have it open.
type DB struct {
	bolt *bbolt.DB
	file *os.File // which bolt has open
	path string

	committed func([]Change)
	mark      marker
	writing   sync.Mutex // one Update with its mark and its Committed at a time
	gen       Generation // what the file has, but for the doubt; guarded by writing
	epoch     uint64     // of the updates
	closed    bool       // guarded by writing
	notices   []string

	doubt atomic.Pointer[string] // nil = none

	copying         sync.Mutex // one Copy at a time; comes before writing
	commits, copied atomic.Uint64
	keeps           atomic.Bool   // KeepCopies was called
	many            chan struct{} // has an element when many updates were made since the last copy

	later  later
	stamps stamps
	broken atomic.Pointer[error] // damage that was found since Open; Update refuses
	stuck  atomic.Pointer[error] // bbolt panicked outside of a function of a caller: nothing may call it any more
}

// Options of Open.
type Options struct {
	// OpenFile opens the file, for tests that inject faults; nil means os.OpenFile.
	OpenFile func(name string, flag int, perm os.FileMode) (*os.File, error)
	FS       durable.FS // of the mark and the copies; nil = the real one
	// Occupied reports whether the data root has anything to which records refer. nil = it has nothing.
	Occupied func() (bool, error)
	// Before is called when the database is open and was checked, before Open writes to it or to the mark. Its error ends Open: what else
	// lies in the data root may be of a newer release, and then nothing may be changed. nil = not called
	Before func() error
	// Committed is called with the changes of each Update, in the order of the commits, before Update returns. nil = not called
	Committed func([]Change)
}

// openFile opens a file as a database and checks its structure and its versions. It changes nothing.
func openFile(path string, opts Options, readOnly bool) (_ *DB, err error) {
	db := &DB{path: path}
	bo := bbolt.Options{
		Timeout: lockWait, NoStatistics: true, FreelistType: bbolt.FreelistMapType, InitialMmapSize: mapSize, ReadOnly: readOnly,
	}
	bo.OpenFile = func(name string, flag int, perm os.FileMode) (*os.File, error) {
		f, err := openChecked(opts.OpenFile, name, flag, perm)
		db.file = f
		return f, err
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = damageError(path, p)
		}
		if err != nil && db.file != nil {
			_ = db.file.Close() // already closed unless bbolt panicked
		}
	}()
	db.bolt, err = bbolt.Open(path, 0o600, &bo)
	if held := new(procid.LockedError); errors.As(err, &held) {
		return nil, errs.New(errs.Unavailable, "database %s is in use by %s", path, held.Holder)
	}
	if err != nil {
		return nil, errs.New(errs.DataLoss, "database %s: open: %w", path, err)
	}
	if err := db.bolt.View(db.checkVersions); err != nil {
		return nil, errors.Join(err, db.bolt.Close())
	}
	return db, nil
}

// lockWait is how long Open waits for another process that has the database open.
const lockWait = 2 * time.Second

// openChecked opens and locks the file, and reads it whole to find damage, before bbolt maps it.
func openChecked(open func(string, int, os.FileMode) (*os.File, error), name string, flag int, perm os.FileMode) (_ *os.File, err error) {
	if open == nil {
		open = os.OpenFile
	}
	f, err := open(name, flag, perm)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if err := procid.LockFile(f, lockWait); err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil || fi.Size() == 0 {
		return f, err
	}
	return f, boltfile.Check(f, fi.Size())
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

// create creates the buckets and the generation where they are missing. It does not write to a database that has them.
func (db *DB) create() error {
	var complete bool
	err := db.bolt.View(func(tx *bbolt.Tx) error {
		h, err := db.header(tx)
		complete = h.Version == Version
		for _, t := range tables {
			complete = complete && tx.Bucket([]byte(t.bucket)) != nil
		}
		if err != nil {
			return err
		}
		g, err := generation(tx)
		complete = complete && g.Database != ""
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
		g, err := generation(tx)
		if err == nil && g.Database == "" {
			err = putGeneration(tx, Generation{Database: newDatabaseID(), Epoch: 1})
		}
		return errors.Join(err, m.Put(versionKey, v), db.sign(tx))
	})
}

// Close waits for the transactions, makes a copy if there was an update since the last, and closes the file. An error of the
// copy is none of Close.
func (db *DB) Close() error {
	db.later.wait()
	if db.stuck.Load() != nil {
		return errors.Join(db.mark.close(), db.file.Close()) // bbolt's Close would wait for its own locks
	}
	if db.keeps.Load() && db.commits.Load() != db.copied.Load() && db.broken.Load() == nil {
		_ = db.Copy() // KeepCopies reports what keeps copies from being made; the next start makes one
	}
	db.writing.Lock()
	defer db.writing.Unlock()
	if db.closed {
		return nil
	}
	db.closed = true
	if db.broken.Load() == nil {
		_ = db.mark.set(mark{db.gen.Database, db.gen.Epoch, db.gen.Commits, true}) // without it, the next start trusts copies less
	}
	return errors.Join(db.mark.close(), db.bolt.Close())
}

// View calls f in a read transaction. F sees one state of the database, whatever is written meanwhile, and blocks no one.
// It waits for the changes of Later. The error's class is errs.DataLoss when a part of the file is found to be damaged.
func (db *DB) View(f func(*Tx) error) error {
	db.later.wait()
	return db.view(f)
}

func (db *DB) view(f func(*Tx) error) error {
	return db.run(db.bolt.View, func(tx *bbolt.Tx) error { return f(wrap(db, tx, nil)) })
}

// Exclusive calls f like View, while no Update is under way.
func (db *DB) Exclusive(f func(*Tx) error) error {
	db.later.wait()
	db.writing.Lock()
	defer db.writing.Unlock()
	return db.view(f)
}

// Later calls f like Update does, but returns at once. It is for a change that need not survive a crash. The transactions that
// begin after Later has returned see the change. done is called with the result.
func (db *DB) Later(f func(*Tx) error, done func(error)) {
	db.later.begin()
	go func() {
		defer db.later.end()
		done(db.updateNow(f))
	}()
}

// later counts the changes of DB.Later that are not made yet.
type later struct {
	mu   sync.Mutex
	n    int
	none chan struct{} // closed when n becomes 0; not nil while n is more
}

func (l *later) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.n == 0 {
		l.none = make(chan struct{})
	}
	l.n++
}

func (l *later) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.n--; l.n == 0 {
		close(l.none)
		l.none = nil
	}
}

func (l *later) wait() {
	l.mu.Lock()
	none := l.none
	l.mu.Unlock()
	if none != nil {
		<-none
	}
}

// Update calls f in a write transaction. What f writes is durable when Update returns nil; nothing of it is kept when f
// fails. One Update runs at a time. The error's class is errs.DataLoss from the moment at which a part of the file was
// found to be damaged.
func (db *DB) Update(f func(*Tx) error) error {
	db.later.wait()
	return db.updateNow(f)
}

func (db *DB) updateNow(f func(*Tx) error) error {
	return db.update(func(tx *bbolt.Tx, log *[]Change) error { return f(wrap(db, tx, log)) })
}

func (db *DB) update(f func(*bbolt.Tx, *[]Change) error) error {
	db.writing.Lock()
	defer db.writing.Unlock()
	if err := db.broken.Load(); err != nil {
		return *err
	}
	var log []Change
	next := db.gen
	next.Epoch = db.epoch
	next.Commits++
	err := db.run(db.bolt.Update, func(tx *bbolt.Tx) error {
		if err := errors.Join(db.sign(tx), putGeneration(tx, next)); err != nil {
			return err
		}
		if err := f(tx, &log); err != nil {
			return err
		}
		db.stamps.change(log, next.Commits)
		return nil
	})
	if err != nil {
		return err
	}
	db.gen = next
	db.commits.Store(next.Commits)
	db.mark.follow(next.Commits)
	if next.Commits-db.copied.Load() >= copyCommits {
		select {
		case db.many <- struct{}{}:
		default:
		}
	}
	if db.committed != nil && len(log) > 0 {
		db.committed(log)
	}
	return nil
}

// sign names this release as the last writer.
func (db *DB) sign(tx *bbolt.Tx) (err error) {
	onBolt(func() {
		m := tx.Bucket(metaBucket)
		var writer []byte
		writer, err = json.Marshal(version.Version)
		if err == nil && string(m.Get(writerKey)) != string(writer) {
			err = m.Put(writerKey, writer)
		}
	})
	return err
}
