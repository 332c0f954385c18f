// Package directory keeps blobs in a directory.
//
//	blobs/<algorithm>/<first two digits>/<digits>   a blob
//	uploads/<id>                                    the bytes of an upload
//	uploads/<id>.json                               its session, written when the upload is closed the first time
//
// Invariants: a file in blobs is complete, has the digest that is its name, and is never changed. It was synced before it got its
// name, and its name is synced when Store returns. Uploads survive the death of the process, but are not synced: after a loss of
// power their bytes may be wrong, which Store finds out.
package directory

import (
	"context"
	"errors"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/record"
	"ply/internal/registry/blobs"
	"ply/internal/registry/content"
)

const (
	maxUploads     = 100_000 // open at the same time
	maxSession     = 64 << 10
	sessionVersion = 1
	reserve        = 16 << 20 // bytes of free space that an upload leaves for the metadata
	writeBehind    = 8 << 20  // bytes after which the kernel is told to write, so that the sync at the end is short
)

// Store is a directory with blobs. Safe for concurrent use.
type Store struct {
	fs      durable.FS
	root    string
	uploads string
	served  bool     // by another process
	syncs   sync.Map // directory → *groupSync
	made    sync.Map // directories whose names were synced

	mu   sync.Mutex
	open map[string]*upload
}

var (
	_ blobs.Store    = (*Store)(nil)
	_ blobs.Follower = (*upload)(nil)
)

type sessionRecord struct {
	Repository content.Repository `json:"repository"`
	Owner      string             `json:"owner,omitempty"`
	Algorithm  content.Algorithm  `json:"algorithm"`
	Started    time.Time          `json:"started"`
}

// Open opens the store in a directory, which it creates when it does not exist, and takes up the uploads of an earlier process.
func Open(fsys durable.FS, root string) (*Store, error) {
	s := &Store{fs: fsys, root: filepath.Join(root, "blobs"), uploads: filepath.Join(root, "uploads"), open: map[string]*upload{}}
	if err := fsys.MkdirAll(s.uploads, 0o700); err != nil {
		return nil, classify("uploads", err)
	}
	for _, a := range content.Algorithms {
		if err := s.makeDirectory(filepath.Join(s.root, string(a))); err != nil {
			return nil, classify("blobs", err)
		}
	}
	if err := fsys.SyncDir(root); err != nil {
		return nil, classify("blobs", err)
	}
	return s, s.loadUploads()
}

// OpenServed returns a store for reading blobs of a directory that another process serves. It touches no upload, and nothing can be
// stored.
func OpenServed(fsys durable.FS, root string) *Store {
	return &Store{fs: fsys, root: filepath.Join(root, "blobs"), uploads: filepath.Join(root, "uploads"), open: map[string]*upload{}, served: true}
}

// makeDirectory makes a directory and those above it, durable when it returns. That a directory exists does not show that another
// request has synced its name; so each is synced once by this process.
func (s *Store) makeDirectory(dir string) error {
	if _, ok := s.made.Load(dir); ok {
		return nil
	}
	if err := s.fs.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := s.syncDir(filepath.Dir(dir)); err != nil {
		return err
	}
	s.made.Store(dir, true)
	return nil
}

// loadUploads takes up the uploads of an earlier process. It removes those that cannot be resumed.
func (s *Store) loadUploads() error {
	entries, err := s.fs.ReadDir(s.uploads)
	if err != nil {
		return classify("uploads", err)
	}
	for _, e := range entries {
		id, isRecord := strings.CutSuffix(e.Name(), ".json")
		if isRecord || !blobs.IsID(id) {
			continue
		}
		var r sessionRecord
		err := record.ReadFile(s.fs, s.uploadPath(id)+".json", maxSession, sessionVersion, &r)
		fi, ierr := e.Info()
		if err == nil && ierr == nil && fi.Mode().IsRegular() {
			s.open[id] = &upload{s: s, offset: fi.Size(), used: fi.ModTime(), recorded: true,
				session: blobs.Session{ID: id, Repository: r.Repository, Owner: r.Owner, Algorithm: r.Algorithm, Started: r.Started}}
		}
	}
	for _, e := range entries {
		if id := strings.TrimSuffix(e.Name(), ".json"); s.open[id] == nil && (blobs.IsID(id) || durable.IsTemp(id)) {
			if err := s.fs.Remove(filepath.Join(s.uploads, e.Name())); err != nil {
				return classify("uploads", err)
			}
		}
	}
	return nil
}

// Close closes the store.
func (s *Store) Close() error { return nil }

// Ping reports whether a file can be made.
func (s *Store) Ping(context.Context) error {
	name := durable.TempName(s.uploads)
	f, err := s.fs.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return classify("uploads", err)
	}
	return errors.Join(f.Close(), s.fs.Remove(name))
}

func (s *Store) path(d content.Digest) string {
	hex := d.Hex()
	return filepath.Join(s.root, string(d.Algorithm()), hex[:2], hex)
}

func (s *Store) uploadPath(id string) string { return filepath.Join(s.uploads, id) }

func classify(what string, err error) error {
	var class error = errs.Internal
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errs.New(errs.NotFound, "%s: not in the store", what)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return errs.New(errs.Exhausted, "%s: the disk of the registry is full: %w", what, err)
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		class = errs.Unavailable
	}
	return errs.New(class, "%s: %w", what, err)
}

// Stat returns the size of a blob.
func (s *Store) Stat(_ context.Context, d content.Digest) (int64, error) {
	fi, err := s.fs.Lstat(s.path(d))
	if err != nil {
		return 0, classify("blob "+string(d), err)
	}
	return fi.Size(), nil
}

// Open opens a blob.
func (s *Store) Open(_ context.Context, d content.Digest) (io.ReadSeekCloser, int64, error) {
	f, err := s.fs.OpenFile(s.path(d), os.O_RDONLY, 0)
	if err != nil {
		return nil, 0, classify("blob "+string(d), err)
	}
	fi, err := f.Stat()
	if err != nil {
		return nil, 0, errors.Join(classify("blob "+string(d), err), f.Close())
	}
	return f, fi.Size(), nil
}

// Remove removes a blob.
func (s *Store) Remove(_ context.Context, d content.Digest) error {
	if s.served {
		return errs.New(errs.Unavailable, "another process serves the directory")
	}
	if err := s.fs.Remove(s.path(d)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return classify("blob "+string(d), err)
	}
	return nil
}

// Walk visits every blob.
func (s *Store) Walk(ctx context.Context, visit func(d content.Digest, size int64, stored time.Time) error) error {
	for _, a := range content.Algorithms {
		dir := filepath.Join(s.root, string(a))
		shards, err := s.fs.ReadDir(dir)
		if err != nil {
			return classify("blobs", err)
		}
		for _, shard := range shards {
			if err := ctx.Err(); err != nil {
				return err
			}
			entries, err := s.fs.ReadDir(filepath.Join(dir, shard.Name()))
			if err != nil {
				return classify("blobs", err)
			}
			for _, e := range entries {
				d, err := content.ParseDigest(string(a) + ":" + e.Name())
				if err != nil {
					continue
				}
				fi, err := e.Info()
				if err != nil || !fi.Mode().IsRegular() {
					continue // removed meanwhile
				}
				if err := visit(d, fi.Size(), fi.ModTime()); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// Begin starts an upload. It writes nothing.
func (s *Store) Begin(_ context.Context, session blobs.Session) (blobs.Upload, error) {
	if s.served {
		return nil, errs.New(errs.Unavailable, "another process serves the directory")
	}
	if !blobs.IsID(session.ID) {
		return nil, errs.New(errs.Internal, "upload %q: not an ID", session.ID)
	}
	u := &upload{s: s, session: session, hash: session.Algorithm.New(), held: true, used: time.Now()}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.open) >= maxUploads {
		return nil, errs.New(errs.Exhausted, "%d uploads are open", len(s.open)).WithHint("Try again later.")
	}
	if s.open[session.ID] != nil {
		return nil, errs.New(errs.Exists, "upload %s exists", session.ID)
	}
	s.open[session.ID] = u
	return u, nil
}

// Resume returns an upload.
func (s *Store) Resume(_ context.Context, id string) (blobs.Upload, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.open[id]
	if u == nil {
		return nil, errs.New(errs.NotFound, "upload %q does not exist", id)
	}
	if u.held {
		return nil, errs.New(errs.Conflict, "upload %s: another request writes to it", id)
	}
	u.held = true
	return u, nil
}

// Expire cancels old uploads.
func (s *Store) Expire(ctx context.Context, before time.Time) (n int, err error) {
	s.mu.Lock()
	var old []*upload
	for _, u := range s.open {
		if !u.held && u.used.Before(before) {
			u.held = true
			old = append(old, u)
		}
	}
	s.mu.Unlock()
	for _, u := range old {
		if cerr := u.Cancel(ctx); cerr != nil {
			err = errors.Join(err, cerr, u.Close())
			continue
		}
		n++
	}
	return n, err
}

// upload is an open upload. Whoever set held, under the mutex of the store, may use the other fields.
type upload struct {
	s        *Store
	session  blobs.Session
	held     bool
	used     time.Time
	offset   int64
	hash     hash.Hash // of the bytes so far; nil when they must be read again
	recorded bool      // the session is on disk
	ended    bool
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

func (u *upload) path() string           { return u.s.uploadPath(u.session.ID) }
func (u *upload) what() string           { return "upload " + u.session.ID }
func (u *upload) Session() blobs.Session { return u.session }
func (u *upload) Offset() int64          { return u.offset }

// openFile opens the file of the upload, which is created for the first bytes only: when it is gone later, a new one would lack the
// bytes that the hash has already.
func (u *upload) openFile() (durable.File, error) {
	flags := os.O_WRONLY
	if u.offset == 0 {
		flags |= os.O_CREATE
	}
	return u.s.fs.OpenFile(u.path(), flags, 0o600)
}

// Follow returns a reader of the bytes, which are in a file from the start.
func (u *upload) Follow() (blobs.Source, error) {
	f, err := u.s.fs.OpenFile(u.path(), os.O_RDONLY|os.O_CREATE, 0o600)
	if err != nil {
		return nil, classify(u.what(), err)
	}
	return f, nil
}

// Append receives bytes.
func (u *upload) Append(ctx context.Context, r io.Reader, size int64) (err error) {
	if err := u.s.room(size); err != nil {
		return err
	}
	if err := u.rehash(ctx); err != nil {
		return err
	}
	f, err := u.openFile()
	if err != nil {
		return classify(u.what(), err)
	}
	defer errs.Close(&err, f)
	if _, err := f.Seek(u.offset, io.SeekStart); err != nil {
		return classify(u.what(), err)
	}
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	flushed := u.offset
	for {
		n, rerr := r.Read(*buf)
		if n > 0 {
			w, err := f.Write((*buf)[:n])
			u.hash.Write((*buf)[:w])
			u.offset += int64(w)
			if err != nil {
				return classify(u.what(), err)
			}
			if u.offset-flushed >= writeBehind {
				_ = unix.SyncFileRange(int(f.Fd()), flushed, u.offset-flushed, unix.SYNC_FILE_RANGE_WRITE)
				flushed = u.offset
				if err := u.s.room(writeBehind); err != nil { // a body of unknown length
					return err
				}
			}
		}
		if errors.Is(rerr, io.EOF) {
			return nil
		}
		if rerr != nil {
			return &blobs.SourceError{Err: rerr}
		}
		if err := ctx.Err(); err != nil {
			return &blobs.SourceError{Err: err}
		}
	}
}

// room refuses an upload that does not fit on the disk.
func (s *Store) room(size int64) error {
	if size <= 0 {
		return nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(s.uploads, &st); err != nil {
		return nil //nolint:nilerr // the write will tell
	}
	if free := int64(st.Bavail) * st.Bsize; size > free-reserve {
		return errs.New(errs.Exhausted, "no room for %d bytes: the disk of the registry has %d bytes left", size, free)
	}
	return nil
}

// rehash reads the bytes of an upload that an earlier process received.
func (u *upload) rehash(ctx context.Context) (err error) {
	if u.hash != nil {
		return nil
	}
	h, err := u.sum(ctx, u.session.Algorithm)
	if err != nil {
		return err
	}
	u.hash = h
	return nil
}

func (u *upload) sum(ctx context.Context, a content.Algorithm) (h hash.Hash, err error) {
	h = a.New()
	if u.offset == 0 {
		return h, nil
	}
	f, err := u.s.fs.OpenFile(u.path(), os.O_RDONLY, 0)
	if err != nil {
		return nil, classify(u.what(), err)
	}
	defer errs.Close(&err, f)
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	for left := u.offset; left > 0; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n, err := f.Read((*buf)[:min(left, int64(len(*buf)))])
		h.Write((*buf)[:n])
		left -= int64(n)
		if err != nil && left > 0 {
			return nil, classify(u.what(), err)
		}
	}
	return h, nil
}

// Store makes the upload a blob.
func (u *upload) Store(ctx context.Context, d content.Digest) (int64, error) {
	var h hash.Hash
	var err error
	if d.Algorithm() == u.session.Algorithm {
		err = u.rehash(ctx)
		h = u.hash
	} else {
		h, err = u.sum(ctx, d.Algorithm())
	}
	if err != nil {
		return 0, err
	}
	if got := d.Algorithm().Sum(h); got != d {
		return 0, errors.Join(errs.New(errs.Invalid, "blob %s: the %d bytes of the upload have digest %s", d, u.offset, got), u.Cancel(ctx))
	}
	if err := u.publish(ctx, d); err != nil {
		return 0, err
	}
	u.end()
	if u.recorded {
		// A record without bytes is removed at the next start as well.
		_ = u.s.fs.Remove(u.path() + ".json")
	}
	return u.offset, nil
}

func (u *upload) publish(ctx context.Context, d content.Digest) (err error) {
	f, err := u.openFile()
	if err != nil {
		return classify(u.what(), err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		// Some of the bytes may be lost, and a second sync would not report it.
		return errors.Join(classify(u.what(), err), u.Cancel(ctx))
	}
	if err := u.s.makeDirectory(filepath.Dir(u.s.path(d))); err != nil {
		return classify(u.what(), err)
	}
	if err := u.s.fs.Rename(u.path(), u.s.path(d)); err != nil {
		return classify(u.what(), err)
	}
	if err := u.s.syncDir(filepath.Dir(u.s.path(d))); err != nil {
		return classify(u.what(), err)
	}
	return nil
}

// Cancel ends the upload.
func (u *upload) Cancel(context.Context) error {
	for _, name := range []string{u.path() + ".json", u.path()} {
		if err := u.s.fs.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return classify(u.what(), err)
		}
	}
	u.end()
	return nil
}

func (u *upload) end() {
	u.s.mu.Lock()
	defer u.s.mu.Unlock()
	u.ended = true
	delete(u.s.open, u.session.ID)
}

// Close lets others resume the upload, in a later process as well.
func (u *upload) Close() error {
	if u.ended {
		return nil
	}
	var err error
	if !u.recorded && u.offset > 0 {
		err = u.writeRecord()
		u.recorded = err == nil
	}
	u.s.mu.Lock()
	defer u.s.mu.Unlock()
	u.used, u.held = time.Now(), false
	return err
}

// writeRecord writes the session without syncing it.
func (u *upload) writeRecord() (err error) {
	b, err := record.Marshal(sessionVersion, sessionRecord{Repository: u.session.Repository, Owner: u.session.Owner, Algorithm: u.session.Algorithm, Started: u.session.Started})
	if err != nil {
		return err
	}
	f, err := u.s.fs.OpenFile(u.path()+".json", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return classify(u.what(), err)
	}
	defer errs.Close(&err, f)
	if _, err := f.Write(b); err != nil {
		return classify(u.what(), err)
	}
	return nil
}

// groupSync lets those who sync one directory at the same time share a sync.
type groupSync struct {
	running sync.Mutex // held during a sync

	mu   sync.Mutex
	next *flight // the sync that has not begun
}

type flight struct {
	done chan struct{}
	err  error
}

func (s *Store) syncDir(dir string) error {
	v, _ := s.syncs.LoadOrStore(dir, &groupSync{})
	g := v.(*groupSync)
	g.mu.Lock()
	f, leader := g.next, false
	if f == nil {
		f, leader = &flight{done: make(chan struct{})}, true
		g.next = f
	}
	g.mu.Unlock()
	if !leader {
		<-f.done
		return f.err
	}
	g.running.Lock()
	defer g.running.Unlock()
	g.mu.Lock()
	g.next = nil
	g.mu.Unlock()
	f.err = s.fs.SyncDir(dir)
	close(f.done)
	return f.err
}
