package erofs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/memory"
	"ply/internal/oci"
	"ply/internal/spill"
	"ply/internal/store/layer"
	"ply/internal/store/layer/erofs/image"
	"ply/internal/store/layer/tarscan"
)

const (
	pieceSize  = 256 << 10 // it stays in the processor's cache between decompression, write, hash and scan
	pieceCount = 16
	fewPieces  = 4        // when memory is short
	flushEvery = 8 << 20  // bytes after which write-back is started
	checkEvery = 64 << 20 // bytes after which the free space is checked again
	keepCached = 16 << 20 // smaller tars stay in the page cache: what was just built is often pushed next
)

// Create implements layer.Driver. The caller's goroutine writes the tar to its file, while two more goroutines hash and
// index it.
func (d *Driver) Create(ctx context.Context) (layer.Writer, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := d.checkRoom(); err != nil {
		return nil, err
	}
	dir := durable.TempName(d.layers)
	if err := d.fs.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := d.fs.OpenFile(filepath.Join(dir, tarName), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, errors.Join(err, d.fs.RemoveAll(dir))
	}
	w := &writer{d: d, dir: dir, tar: f, pieces: d.opts.Memory.Share(), hash: newHasher(), scan: newScanner(d, dir)}
	n := pieceCount
	if !w.pieces.Fit(pieceCount * pieceSize) {
		n = fewPieces
	}
	w.free = make(chan *piece, n)
	for range n {
		w.free <- &piece{home: w.free}
	}
	w.work.Go(w.hash.run)
	w.work.Go(w.scan.run)
	return w, nil
}

// checkRoom returns an error of class errs.Exhausted when the file system has less free space than the reserve.
func (d *Driver) checkRoom() error {
	var st unix.Statfs_t
	if err := unix.Statfs(d.layers, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: d.layers, Err: err}
	}
	reserve := d.opts.Reserve
	if reserve == 0 {
		reserve = min(int64(st.Blocks/20)*st.Bsize, 1<<30)
	}
	if free := int64(st.Bavail) * st.Bsize; free < reserve {
		return errs.New(errs.Exhausted, "layer store: %d MiB are free and %d MiB are kept in reserve", free>>20, reserve>>20).
			WithHint("Free space or remove images.")
	}
	return nil
}

// piece is a part of the tar that is written, hashed and scanned at the same time.
type piece struct {
	b    []byte
	refs atomic.Int32  // users; the last one returns the piece
	home chan<- *piece // the free pieces
}

func (p *piece) done() {
	if p.refs.Add(-1) == 0 {
		p.b = p.b[:0]
		p.home <- p
	}
}

// buffers holds the memory of pieces for the next layer.
var buffers = sync.Pool{New: func() any { return new([pieceSize]byte) }}

type writer struct {
	d    *Driver
	dir  string // staging
	tar  durable.File
	size int64

	free    chan *piece
	pieces  *memory.Share
	cur     *piece // being filled by Write
	flushed int64  // bytes whose write-back was started
	checked int64  // size at the last check of the free space
	hash    *hasher
	scan    *scanner
	work    sync.WaitGroup // hash and scan
	syncs   syncing

	missing []image.Missing // what the layer takes from those below; valid when joined and there is no error

	joined bool  // the stream has ended, hash and scan too
	ended  bool  // committed or aborted
	err    error // of writing the tar; final
}

var errEnded = errors.New("layer writer: already committed or aborted")

// Write implements io.Writer. It returns the error of the scan as soon as there is one.
func (w *writer) Write(p []byte) (int, error) {
	if w.ended || w.joined {
		return 0, errEnded
	}
	n := 0
	for len(p) > 0 {
		if err := w.next(); err != nil {
			return n, err
		}
		k := min(len(p), pieceSize-len(w.cur.b))
		w.cur.b = append(w.cur.b, p[:k]...)
		p, n = p[k:], n+k
		if len(w.cur.b) == pieceSize {
			w.err = w.pass()
		}
	}
	return n, w.err
}

// ReadFrom implements io.ReaderFrom: r writes into the pieces.
func (w *writer) ReadFrom(r io.Reader) (n int64, err error) {
	if w.ended || w.joined {
		return 0, errEnded
	}
	for {
		if err := w.next(); err != nil {
			return n, err
		}
		k, err := r.Read(w.cur.b[len(w.cur.b):pieceSize])
		w.cur.b = w.cur.b[:len(w.cur.b)+k]
		n += int64(k)
		if len(w.cur.b) == pieceSize {
			w.err = w.pass()
		}
		if errors.Is(err, io.EOF) {
			err = nil
		} else if err == nil {
			continue
		}
		return n, errors.Join(err, w.err)
	}
}

// next makes cur a piece with room. It returns the error that ends the stream, if there is one.
func (w *writer) next() error {
	if w.err != nil {
		return w.err
	}
	if err := w.scan.failure(); err != nil {
		return err
	}
	if w.cur == nil {
		w.cur = <-w.free
		if w.cur.b == nil {
			w.cur.b = buffers.Get().(*[pieceSize]byte)[:0]
		}
	}
	return nil
}

// pass sends the current piece to hash and scan, and writes it while they read it.
func (w *writer) pass() error {
	p := w.cur
	w.cur = nil
	p.refs.Store(3)
	defer p.done()
	w.hash.in <- p
	w.scan.in <- p
	limit := w.d.opts.Limits.Bytes
	if limit == 0 {
		limit = tarscan.MaxBytes
	}
	if w.size+int64(len(p.b)) > limit {
		return errs.New(errs.Invalid, "layer tar: longer than %d bytes", limit)
	}
	if _, err := w.tar.Write(p.b); err != nil {
		return fmt.Errorf("layer tar: %w", exhausted(err))
	}
	w.size += int64(len(p.b))
	if w.size-w.flushed >= flushEvery {
		// This starts write-back and does not wait for it. It is only a hint, so its error does not matter.
		_ = unix.SyncFileRange(int(w.tar.Fd()), w.flushed, w.size-w.flushed, unix.SYNC_FILE_RANGE_WRITE)
		w.flushed = w.size
	}
	if w.size-w.checked >= checkEvery {
		w.checked = w.size
		return w.d.checkRoom()
	}
	return nil
}

// exhausted wraps the error of a full disk in the class errs.Exhausted, and returns other errors as they are.
func exhausted(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return errs.New(errs.Exhausted, "%w", err).WithHint("Free space or remove images.")
	}
	return err
}

// join ends the stream, waits for hash and scan, and drops the pieces: megabytes, for a layer that may wait for those below.
func (w *writer) join() {
	if w.joined {
		return
	}
	w.joined = true
	if w.cur != nil && w.err == nil {
		w.err = w.pass()
	}
	close(w.hash.in)
	close(w.scan.in)
	w.work.Wait()
	if w.cur != nil {
		w.cur.home <- w.cur
	}
	for range cap(w.free) {
		if p := <-w.free; p.b != nil {
			buffers.Put((*[pieceSize]byte)(p.b[:pieceSize]))
		}
	}
	w.free, w.cur = nil, nil
	w.pieces.Close()
	w.scan.release()
}

// End implements layer.Writer. It also starts to make the tar durable, while the writer may wait.
func (w *writer) End() (alone bool) {
	if w.ended {
		return true
	}
	if !w.joined {
		w.join()
		if w.err == nil && w.scan.failure() == nil && w.scan.tree != nil {
			w.missing, w.err = w.scan.missing()
		}
		if w.err == nil && w.scan.failure() == nil {
			w.syncs.start(w.tar.Sync)
		}
	}
	return w.scan.tree != nil && len(w.missing) == 0
}

// index indexes a layer whose index found no memory while it was written.
func (w *writer) index(ctx context.Context) error {
	if w.scan.tree != nil {
		return nil
	}
	if err := w.scan.again(ctx, w.tar, w.size); err != nil {
		return err
	}
	var err error
	w.missing, err = w.scan.missing()
	return err
}

// DiffID implements layer.Writer.
func (w *writer) DiffID() oci.DiffID { return oci.DiffID(oci.DigestOfHash(w.hash.h)) }

// Abort implements layer.Writer.
func (w *writer) Abort() error {
	if w.ended {
		return nil
	}
	w.ended = true
	w.err = errEnded // so that join writes nothing more
	w.join()
	_ = w.syncs.wait() // the files are removed
	return errors.Join(w.scan.close(), w.tar.Close(), w.d.fs.RemoveAll(w.dir))
}

// Commit implements layer.Writer.
func (w *writer) Commit(ctx context.Context, parents oci.Chain, want oci.DiffID) (info layer.Info, err error) {
	if w.ended {
		return info, errEnded
	}
	w.End()
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Abort())
		}
	}()
	if err := errors.Join(w.err, w.scan.failure()); err != nil {
		return info, err
	}
	if err := ctx.Err(); err != nil {
		return info, context.Cause(ctx)
	}
	id := w.DiffID()
	if want != "" && id != want {
		return info, errs.New(errs.Invalid, "layer tar: its digest is %s, want %s", id, want)
	}
	if err := w.index(ctx); err != nil {
		return info, err
	}
	r, index, err := w.seal(ctx, id, parents)
	if err = errors.Join(err, w.scan.close(), w.syncs.wait()); err != nil {
		return info, exhausted(err)
	}
	if err := w.d.fs.SyncDir(w.dir); err != nil {
		return info, exhausted(err)
	}
	if err := w.d.install(ctx, w.dir, r, parents, index); err != nil {
		return info, exhausted(err)
	}
	w.ended = true
	return r.info(), w.d.forgetPages(w.tar, w.size)
}

// forgetPages closes a finished tar. It also drops a large one from the page cache, in the background, when mounts read the
// file directly: its pages would only displace others and make removal slow.
func (d *Driver) forgetPages(tar durable.File, size int64) error {
	if d.opts.Buffered || size < keepCached {
		return tar.Close()
	}
	d.background.Go(func() {
		_ = unix.Fadvise(int(tar.Fd()), 0, 0, unix.FADV_DONTNEED)
		_ = tar.Close() // it was synced, so the error does not matter
	})
	return nil
}

// seal writes everything except the tar into the staging directory. It returns the record and the name of the index.
func (w *writer) seal(ctx context.Context, id oci.DiffID, parents oci.Chain) (_ *layerRecord, _ string, err error) {
	defer spill.Guard(&err)()
	side, err := w.scan.finish(&w.syncs)
	if err != nil {
		return nil, "", err
	}
	r := &layerRecord{
		DiffID: id, Size: w.scan.size, TarSize: w.size, Entries: w.scan.entries,
		Dependent: len(w.missing) > 0, OpaqueRoot: w.scan.tree.OpaqueRoot(), Root: !w.scan.tree.ImpliedRoot(), Side: side,
	}
	b := builder{d: w.d, dir: w.dir, syncs: &w.syncs, tree: w.scan.tree, rec: r, parents: parents, name: r.indexName(parents)}
	if err := b.build(ctx, w.missing); err != nil {
		return nil, "", err
	}
	return r, b.name, w.d.writeJSON(&w.syncs, filepath.Join(w.dir, recordName), layerVersion, r)
}

// syncing syncs files in parallel: together they take little longer than one.
type syncing struct {
	work sync.WaitGroup
	mu   sync.Mutex
	err  error
}

func (s *syncing) start(sync func() error) {
	s.work.Go(func() {
		if err := sync(); err != nil {
			s.mu.Lock()
			s.err = errors.Join(s.err, err)
			s.mu.Unlock()
		}
	})
}

// file syncs and closes f in the background. When err is not nil, it only closes f and returns err.
func (s *syncing) file(f durable.File, err error) error {
	if err != nil {
		return errors.Join(err, f.Close())
	}
	s.start(func() error { return errors.Join(f.Sync(), f.Close()) })
	return nil
}

func (s *syncing) wait() error {
	s.work.Wait()
	return s.err
}
