// Package blob stores content by its digest: manifests, configs and compressed layers.
//
// Invariants: a file in blobs/sha256/ is complete, has the digest that is its name, and is never changed; a download is in
// partial/ until it is complete and verified. Only two things remove a blob: Remove, for owners that know that nothing needs it,
// and Repair, when its own bytes do not have its digest. What some document says about a blob is no reason to remove it.
package blob

import (
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/oci"
)

// Store is the blob store of one data root. Safe for concurrent use.
type Store struct {
	fs      durable.FS
	dir     string // blobs/sha256
	partial string

	// Damaged is called after a blob was removed because its bytes had another digest. It is set before the store is used.
	Damaged func(d, got oci.Digest)

	mu   sync.Mutex
	open map[oci.Digest]bool // open downloads

	names sync.Mutex // held while a blob gets its name, and while Repair decides to remove one
}

// Open opens the store in dir, which it creates when it does not exist, and removes the temporaries of a crash. The error's
// class is errs.Precondition when a newer release left a download; in that case nothing is changed.
func Open(fsys durable.FS, dir string) (*Store, error) {
	s := &Store{
		fs:      fsys,
		dir:     filepath.Join(dir, "blobs", "sha256"),
		partial: filepath.Join(dir, "partial"),
		open:    map[oci.Digest]bool{},
	}
	if err := s.checkPartials(); err != nil {
		return nil, err
	}
	for _, d := range []string{s.dir, s.partial} {
		if err := fsys.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
	}
	return s, durable.RemoveTemps(fsys, s.dir)
}

func (s *Store) path(d oci.Digest) string { return filepath.Join(s.dir, d.Hex()) }

// Stat returns the size of a blob in bytes. The error's class is errs.NotFound when it is not in the store.
func (s *Store) Stat(d oci.Digest) (int64, error) {
	fi, err := s.fs.Lstat(s.path(d))
	if err != nil {
		return 0, classify(d, err)
	}
	return fi.Size(), nil
}

// Identity tells whether the file of a blob is the same as before: it has another one when the file was replaced or written to.
type Identity struct {
	device, inode uint64
	size          int64
	changed       unix.Timespec
}

// Identity returns the identity of a blob's file; ok is false when there is no file, or when its file system does not tell.
func (s *Store) Identity(d oci.Digest) (i Identity, ok bool) {
	fi, err := s.fs.Lstat(s.path(d))
	if err != nil {
		return i, false
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return i, false
	}
	return Identity{device: st.Dev, inode: st.Ino, size: st.Size, changed: unix.Timespec(st.Ctim)}, true
}

func classify(d oci.Digest, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return errs.New(errs.NotFound, "blob %s: not in the store", d)
	}
	return errs.New(errs.Internal, "blob %s: %w", d, err)
}

// Reader reads one blob. It does not verify the content: the caller hashes what it reads, or uses Bytes.
type Reader struct {
	durable.File
	size int64
}

// Size returns the blob's size in bytes.
func (r *Reader) Size() int64 { return r.size }

// Open opens a blob for reading. The error's class is errs.NotFound when it is not in the store. The caller closes it.
func (s *Store) Open(d oci.Digest) (*Reader, error) {
	f, err := s.fs.OpenFile(s.path(d), os.O_RDONLY, 0)
	if err != nil {
		return nil, classify(d, err)
	}
	fi, err := f.Stat()
	if err != nil {
		return nil, errors.Join(classify(d, err), f.Close())
	}
	return &Reader{f, fi.Size()}, nil
}

// Bytes reads a whole blob of at most limit bytes and verifies it. The error's class is errs.DataLoss when the blob is
// damaged. Bytes then removes it, so that the next pull or load stores it again.
func (s *Store) Bytes(d oci.Digest, limit int64) ([]byte, error) {
	b, err := durable.ReadFile(s.fs, s.path(d), limit)
	if err != nil {
		return nil, classify(d, err)
	}
	if got := oci.DigestOf(b); got != d {
		_, _ = s.Repair(d) // a damaged blob that stays is refused again
		return nil, errs.New(errs.DataLoss, "blob %s: damaged on disk, content has digest %s", d, got).
			WithHint("Pull or load the image again.")
	}
	return b, nil
}

// Repair reads a blob again and removes it if its bytes have another digest. It leaves a blob that another writer replaced
// meanwhile. An error other than errs.NotFound means that the blob could not be read or removed; it stays then.
func (s *Store) Repair(d oci.Digest) (removed bool, err error) {
	r, err := s.Open(d)
	if err != nil {
		return false, err
	}
	defer errs.Close(&err, r)
	h := sha256.New()
	if _, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{r}, make([]byte, 256<<10)); err != nil {
		return false, errs.New(errs.Internal, "blob %s: read: %w", d, err)
	}
	got := oci.DigestOfHash(h)
	if got == d {
		return false, nil
	}
	read, err := r.Stat()
	if err != nil {
		return false, classify(d, err)
	}
	s.names.Lock()
	defer s.names.Unlock()
	if now, err := s.fs.Lstat(s.path(d)); err != nil || !os.SameFile(read, now) {
		return false, nil //nolint:nilerr // another one has removed or replaced it
	}
	if err := s.Remove(d); err != nil {
		return false, err
	}
	if s.Damaged != nil {
		s.Damaged(d, got)
	}
	return true, nil
}

// Put stores b, durable when it returns. Storing a blob that exists is no error.
func (s *Store) Put(b []byte) (oci.Digest, error) {
	d := oci.DigestOf(b)
	if _, err := s.Bytes(d, int64(len(b))); err == nil {
		return d, nil
	}
	w, err := s.Create()
	if err != nil {
		return "", err
	}
	if _, err := w.Write(b); err != nil {
		return "", errors.Join(err, w.Abort())
	}
	_, _, err = w.Commit(d)
	return d, err
}

// Remove removes a blob that nothing needs. Removing one that does not exist is no error.
func (s *Store) Remove(d oci.Digest) error {
	if err := s.fs.Remove(s.path(d)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errs.New(errs.Internal, "blob %s: remove: %w", d, err)
	}
	return nil
}

// Walk calls visit for every blob. Made is when the blob was stored.
func (s *Store) Walk(visit func(d oci.Digest, size int64, made time.Time) error) error {
	entries, err := s.fs.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil || !oci.IsHex64(e.Name()) || !fi.Mode().IsRegular() {
			continue
		}
		if err := visit(oci.Digest("sha256:"+e.Name()), fi.Size(), fi.ModTime()); err != nil {
			return err
		}
	}
	return nil
}

// Writer stores a blob whose digest may be unknown until its end. It is not safe for concurrent use. Exactly one of Commit
// and Abort ends it; Abort after Commit does nothing.
type Writer struct {
	s    *Store
	f    durable.File
	hash hash.Hash
	size int64
	done bool
}

// Create starts a new blob.
func (s *Store) Create() (*Writer, error) {
	f, err := s.fs.OpenFile(durable.TempName(s.dir), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, errs.New(writeClass(err), "blob: create: %w", err)
	}
	return &Writer{s: s, f: f, hash: sha256.New()}, nil
}

// Write appends to the blob.
func (w *Writer) Write(p []byte) (int, error) {
	n, err := w.f.Write(p)
	w.hash.Write(p[:n])
	w.size += int64(n)
	if err != nil {
		err = errs.New(writeClass(err), "blob: write: %w", err)
	}
	return n, err
}

// Digest returns that of what was written so far.
func (w *Writer) Digest() oci.Digest { return oci.DigestOfHash(w.hash) }

// Commit makes the blob durable and visible, and returns its digest and size. When want is not "" and is not the digest,
// the error's class is errs.Invalid and nothing is stored.
func (w *Writer) Commit(want oci.Digest) (oci.Digest, int64, error) {
	d := oci.DigestOfHash(w.hash)
	if want != "" && want != d {
		return "", 0, errors.Join(errs.New(errs.Invalid, "blob %s: content has digest %s", want, d), w.Abort())
	}
	if err := w.f.Sync(); err != nil {
		return "", 0, errors.Join(errs.New(writeClass(err), "blob %s: sync: %w", d, err), w.Abort())
	}
	w.done = true
	if err := w.f.Close(); err != nil {
		return "", 0, errs.New(writeClass(err), "blob %s: close: %w", d, err)
	}
	if err := w.s.rename(w.f.Name(), d); err != nil {
		return "", 0, errors.Join(errs.New(writeClass(err), "blob %s: rename: %w", d, err), w.s.fs.Remove(w.f.Name()))
	}
	return d, w.size, nil
}

// rename gives a synced file the name of a blob.
func (s *Store) rename(name string, d oci.Digest) error {
	s.names.Lock()
	err := s.fs.Rename(name, s.path(d))
	s.names.Unlock()
	if err != nil {
		return err
	}
	return s.fs.SyncDir(s.dir)
}

// Abort discards the blob.
func (w *Writer) Abort() error {
	if w.done {
		return nil
	}
	w.done = true
	return errors.Join(w.f.Close(), w.s.fs.Remove(w.f.Name()))
}
