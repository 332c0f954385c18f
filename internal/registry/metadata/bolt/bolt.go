// Package bolt keeps the registry's metadata in one bbolt file.
//
// Invariants: writes that wait for each other share one transaction, so that many clients cost few syncs. A function of a write
// refuses before it changes anything; so a refusal does not disturb the others of its transaction. Read transactions are short and
// no network is used in one, because pages that a reader sees are not reused.
package bolt

import (
	"bytes"
	"context"
	"errors"
	"hash/maphash"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/record"
	"ply/internal/registry/content"
	"ply/internal/registry/metadata"
)

// Versions of the stored records.
const (
	databaseVersion   = 1
	repositoryVersion = 1
	manifestVersion   = 1
	tagVersion        = 1
	linkVersion       = 1
	uploadVersion     = 1
)

// The buckets. Parts of keys are separated by NUL.
var (
	bucketMeta         = []byte("meta")
	bucketRepositories = []byte("repositories") // repository → repositoryRecord
	bucketManifests    = []byte("manifests")    // repository, digest → manifestRecord
	bucketPayloads     = []byte("payloads")     // digest → the bytes of a manifest
	bucketPayloadUses  = []byte("payloaduses")  // digest, repository → nothing
	bucketTags         = []byte("tags")         // repository, tag → tagRecord
	bucketTagged       = []byte("tagged")       // repository, digest, tag → nothing
	bucketReferrers    = []byte("referrers")    // repository, subject, digest → nothing
	bucketReferences   = []byte("references")   // repository, blob or child, digest → nothing
	bucketLinks        = []byte("links")        // repository, digest → linkRecord
	bucketHolders      = []byte("holders")      // digest, repository → nothing
	bucketDocuments    = []byte("documents")    // kind, key → a record of another part of the registry
	bucketUploads      = []byte("uploads")      // id → uploadRecord

	buckets = [][]byte{bucketMeta, bucketRepositories, bucketManifests, bucketPayloads, bucketPayloadUses, bucketTags, bucketTagged,
		bucketReferrers, bucketReferences, bucketLinks, bucketHolders, bucketDocuments, bucketUploads}
	keyVersion = []byte("version")
)

type databaseRecord struct{}

type repositoryRecord struct {
	Created time.Time `json:"created"`
}

type manifestRecord struct {
	MediaType    string            `json:"mediaType"`
	Size         int64             `json:"size"`
	ArtifactType string            `json:"artifactType,omitempty"`
	Subject      content.Digest    `json:"subject,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	Pushed       time.Time         `json:"pushed"`
}

type tagRecord struct {
	Digest  content.Digest `json:"digest"`
	Updated time.Time      `json:"updated"`
}

type linkRecord struct {
	Size   int64     `json:"size"`
	Linked time.Time `json:"linked"`
}

const (
	maxBatch   = 256     // writes of one transaction
	mmapSize   = 1 << 30 // bytes of address space from the start: growing waits for all readers
	touchSlots = 1 << 16
)

// Store is one database file. Safe for concurrent use.
type Store struct {
	db  *bbolt.DB
	now func() time.Time

	jobs    chan *job
	stop    chan struct{}
	stopped chan struct{}
	closing sync.Once

	// touched has the time of the last Touch by the hash of its object. Objects that share a slot are only kept longer.
	touched    [touchSlots]atomic.Int64
	seed       maphash.Seed
	collecting collecting

	locks keyedLocks
	sweep sync.Mutex

	mu   sync.Mutex
	held map[string]*hold // uploads, by their IDs

	uploads  atomic.Int64 // how many there are
	resident resident
}

var _ metadata.Store = (*Store)(nil)

type job struct {
	apply func(*tx) error
	done  chan error
}

// Open opens the database in a file and creates it when it does not exist. The error's class is errs.Unavailable when another
// process has it open, errs.Precondition when a newer release wrote it, and errs.DataLoss when it is damaged.
func Open(path string) (*Store, error) {
	_, err := os.Lstat(path)
	fresh := errors.Is(err, os.ErrNotExist)
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second, FreelistType: bbolt.FreelistMapType, InitialMmapSize: mmapSize, NoStatistics: true})
	if errors.Is(err, bbolterrors.ErrTimeout) {
		return nil, errs.New(errs.Unavailable, "database %s is in use by another process", path)
	}
	if err != nil {
		return nil, errs.New(errs.DataLoss, "database %s: open: %w", path, err)
	}
	s := &Store{db: db, now: time.Now, jobs: make(chan *job, maxBatch), stop: make(chan struct{}), stopped: make(chan struct{}), seed: maphash.MakeSeed(), held: map[string]*hold{}}
	err = db.Update(func(t *bbolt.Tx) error {
		if err := prepare(t, path); err != nil {
			return err
		}
		s.uploads.Store(int64(t.Bucket(bucketUploads).Inspect().KeyN))
		return nil
	})
	if err == nil && fresh {
		err = durable.OS.SyncDir(filepath.Dir(path))
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	go s.commit()
	return s, nil
}

func prepare(t *bbolt.Tx, path string) error {
	if b := t.Bucket(bucketMeta); b != nil {
		if v := b.Get(keyVersion); v != nil {
			if err := record.Unmarshal("database "+path, v, databaseVersion, &databaseRecord{}); err != nil {
				return err
			}
		}
	}
	for _, name := range buckets {
		if _, err := t.CreateBucketIfNotExists(name); err != nil {
			return err
		}
	}
	v, err := record.Marshal(databaseVersion, databaseRecord{})
	if err != nil {
		return err
	}
	if bytes.Equal(t.Bucket(bucketMeta).Get(keyVersion), v) {
		return nil
	}
	return t.Bucket(bucketMeta).Put(keyVersion, v)
}

// Close waits for the writes that were begun and closes the file.
func (s *Store) Close() (err error) {
	s.closing.Do(func() {
		close(s.stop)
		<-s.stopped
		err = s.db.Close()
	})
	return err
}

// Snapshot writes the database of a store as it is at one moment, while it is used. It is a file that Open opens.
func Snapshot(s *Store, w io.Writer) error {
	return s.view(func(t *tx) error {
		_, err := t.t.WriteTo(w)
		return err
	})
}

// Ping reports whether the database is open.
func (s *Store) Ping(context.Context) error { return s.view(func(*tx) error { return nil }) }

func (s *Store) view(fn func(*tx) error) error {
	err := s.db.View(func(t *bbolt.Tx) error {
		x := &tx{t: t}
		defer func() { s.resident.read(s.db, x) }()
		return fn(x)
	})
	if errors.Is(err, bbolterrors.ErrDatabaseNotOpen) {
		return errs.New(errs.Unavailable, "the database is closed")
	}
	return err
}

// update applies a change. It returns when the change is durable, or refused. A change that was begun is not cancelled.
func (s *Store) update(ctx context.Context, apply func(*tx) error) error {
	j := &job{apply, make(chan error, 1)}
	select {
	case s.jobs <- j:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-s.stop:
		return errs.New(errs.Unavailable, "the registry is shutting down")
	}
	select {
	case err := <-j.done:
		return err
	case <-s.stopped:
		select {
		case err := <-j.done:
			return err
		default:
			return errs.New(errs.Unavailable, "the registry is shutting down")
		}
	}
}

// commit applies what waits, in one transaction at a time.
func (s *Store) commit() {
	defer close(s.stopped)
	for {
		var batch []*job
		select {
		case j := <-s.jobs:
			batch = append(batch, j)
		case <-s.stop:
			return
		}
	gather:
		for len(batch) < maxBatch {
			select {
			case j := <-s.jobs:
				batch = append(batch, j)
			default:
				break gather
			}
		}
		apply(s.db, batch)
		_ = s.db.View(func(t *bbolt.Tx) error { // it may be closed
			unmapMany(s.db, t)
			return nil
		})
	}
}

// apply runs a batch in one transaction. When one of it breaks the transaction, each runs in one of its own.
func apply(db *bbolt.DB, batch []*job) {
	refused := make([]error, len(batch))
	err := db.Update(func(t *bbolt.Tx) error {
		for i, j := range batch {
			refused[i] = j.apply(&tx{t: t})
			if refused[i] != nil && !isRefusal(refused[i]) {
				return refused[i]
			}
			if i%residentJobs == residentJobs-1 {
				unmapMany(db, t)
			}
		}
		return nil
	})
	if err != nil && len(batch) > 1 {
		for _, j := range batch {
			apply(db, []*job{j})
		}
		return
	}
	for i, j := range batch {
		if err != nil && (refused[i] == nil || !isRefusal(refused[i])) {
			j.done <- broken(err)
			continue
		}
		j.done <- refused[i]
	}
}

// broken classifies the error of a transaction.
func broken(err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return errs.New(errs.Exhausted, "database: the disk is full: %w", err)
	case errors.Is(err, errs.DataLoss):
		return err
	}
	return errs.New(errs.Internal, "database: %w", err)
}

// isRefusal reports whether a change ended before it changed anything.
func isRefusal(err error) bool {
	var missing *metadata.MissingError
	var classified *errs.Error
	return errors.As(err, &missing) || errors.As(err, &classified) && !errors.Is(err, errs.DataLoss)
}

// Touch protects an object from collections for the grace time.
func (s *Store) Touch(ctx context.Context, repo content.Repository, d content.Digest) error {
	slot := s.slot(repo, d)
	slot.Store(s.now().UnixNano())
	return s.collecting.wait(ctx, slot)
}

func (s *Store) slot(repo content.Repository, d content.Digest) *atomic.Int64 {
	h := maphash.String(s.seed, string(repo)) ^ maphash.String(s.seed, string(d))
	return &s.touched[h%touchSlots]
}

func (s *Store) touchedSince(repo content.Repository, d content.Digest, t time.Time) bool {
	return s.slot(repo, d).Load() >= t.UnixNano()
}

// Lock locks a digest inside this process, which is the only one that has the file open.
func (s *Store) Lock(ctx context.Context, d content.Digest) (context.Context, func(), error) {
	release, err := s.locks.lock(ctx, d)
	return ctx, release, err
}

// Now returns the time.
func (s *Store) Now(context.Context) (time.Time, error) { return s.now(), nil }

// Sweep lets one collection of this process run at a time.
func (s *Store) Sweep(ctx context.Context) (context.Context, func(), error) {
	if !s.sweep.TryLock() {
		return nil, nil, errs.New(errs.Conflict, "another collection is running")
	}
	return ctx, s.sweep.Unlock, nil
}

// keyedLocks is a set of locks, one per digest. A digest that no one holds costs nothing.
type keyedLocks struct {
	mu   sync.Mutex
	held map[content.Digest]chan struct{} // closed when it is released
}

func (k *keyedLocks) lock(ctx context.Context, d content.Digest) (func(), error) {
	for {
		k.mu.Lock()
		wait := k.held[d]
		if wait == nil {
			if k.held == nil {
				k.held = map[content.Digest]chan struct{}{}
			}
			mine := make(chan struct{})
			k.held[d] = mine
			k.mu.Unlock()
			return func() {
				k.mu.Lock()
				delete(k.held, d)
				k.mu.Unlock()
				close(mine)
			}, nil
		}
		k.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
