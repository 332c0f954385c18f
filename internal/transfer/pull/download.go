package pull

import (
	"context"
	"errors"
	"io"
	"sync"
	"syscall"
	"time"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/blob"
	"ply/internal/transfer/remote"
)

const (
	splitSize   = 16 << 20 // larger blobs are fetched with several ranges at a time
	rangeCount  = 4        // ranges that are fetched at a time
	minPiece    = 1 << 20  // bytes of a range, at least
	maxPiece    = 8 << 20  // and at most
	recordEvery = 4 << 20  // bytes after which the progress is recorded again
)

// download fetches the bytes of one blob into a partial file and reports how far the file has no gap. It fetches the blob in
// pieces, in order. The pieces are small compared with the blob, so that an interrupted download has few bytes after a gap:
// those are lost.
type download struct {
	p    *Puller
	src  *remote.Session
	desc oci.Descriptor
	part *blob.Partial
	file durable.File
	tell func(current int64) // called with front after every change
	wait func(seconds int)   // called while the next try of the first piece is awaited

	mu       sync.Mutex
	cond     *sync.Cond
	pieces   []*piece  // those that a worker has and that do not end below front, in order
	next     int64     // where the next piece starts
	front    int64     // the file has every byte before this offset
	recorded int64     // the last value of front that the partial recorded
	moved    time.Time // when the last bytes arrived
	ended    bool
	err      error  // valid when ended
	source   string // endpoint of the last answer; read it after run
}

// piece is a part of the blob: the bytes from pos to end are still to be fetched.
type piece struct{ pos, end int64 }

func newDownload(p *Puller, src *remote.Session, desc oci.Descriptor, part *blob.Partial, tell func(int64), wait func(int)) *download {
	d := &download{p: p, src: src, desc: desc, part: part, file: part.File(), tell: tell, wait: wait, moved: time.Now()}
	d.cond = sync.NewCond(&d.mu)
	d.front = min(part.Prefix(), desc.Size)
	d.next, d.recorded = d.front, d.front
	return d
}

// errNoRanges means that the registry answered a request for a range with the whole blob.
var errNoRanges = errors.New("registry ignores ranges")

// run fetches what is missing. When it returns, with an error or without, the partial has recorded the front.
func (d *download) run(ctx context.Context) error {
	err := d.fetch(ctx)
	if errors.Is(err, errNoRanges) {
		err = d.fetchPlain(ctx)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.front != d.recorded {
		err = errors.Join(err, d.part.SetPrefix(d.front))
	}
	d.ended, d.err = true, err
	d.cond.Broadcast()
	return err
}

// fetch fetches pieces. After the first answer has shown that the registry serves ranges, it fetches rangeCount at a time.
func (d *download) fetch(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var workers sync.WaitGroup
	var mu sync.Mutex
	var failed error
	var more sync.Once
	var work func()
	start := func() {
		workers.Go(work)
	}
	work = func() {
		for {
			p := d.take(ctx)
			if p == nil {
				return
			}
			err := d.fetchPiece(ctx, p, func() {
				more.Do(func() {
					for range rangeCount - 1 {
						start()
					}
				})
			})
			if err != nil {
				mu.Lock()
				if failed == nil || errors.Is(err, errNoRanges) {
					failed = err
				}
				mu.Unlock()
				cancel(err)
				d.wake()
				return
			}
		}
	}
	stop := context.AfterFunc(ctx, d.wake)
	defer stop()
	start()
	workers.Wait()
	if failed == nil && d.frontier() < d.desc.Size {
		failed = context.Cause(ctx)
	}
	return failed
}

func (d *download) wake() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cond.Broadcast()
}

func (d *download) frontier() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.front
}

// take returns the next piece, or nil when there is none or ctx is done. It waits while the next piece is too far ahead of the
// front, because bytes after a gap are lost when the download is interrupted.
func (d *download) take(ctx context.Context) *piece {
	d.mu.Lock()
	defer d.mu.Unlock()
	size := d.pieceSize()
	for d.next < d.desc.Size && d.next-d.front > 2*rangeCount*size && ctx.Err() == nil {
		d.cond.Wait()
	}
	if d.next >= d.desc.Size || ctx.Err() != nil {
		return nil
	}
	p := &piece{d.next, min(d.next+size, d.desc.Size)}
	d.next = p.end
	d.pieces = append(d.pieces, p)
	return p
}

func (d *download) pieceSize() int64 {
	if d.desc.Size <= splitSize {
		return d.desc.Size
	}
	return min(max(d.desc.Size/64, minPiece), maxPiece)
}

// fetchPiece fetches one piece. After a broken connection it continues where the last answer ended. It calls ranged when an
// answer shows that the registry serves ranges.
func (d *download) fetchPiece(ctx context.Context, p *piece, ranged func()) error {
	for try := 0; ; {
		before := d.position(p)
		end := p.end
		if before == 0 && end == d.desc.Size {
			end = -1 // the piece is the whole blob, so no range is needed
		}
		b, err := d.src.Blob(ctx, d.desc.Digest, before, end)
		if err == nil {
			err = d.receive(b, p, ranged)
		}
		if err == nil && d.position(p) == p.end {
			return nil
		}
		if err == nil {
			err = errs.New(errs.Unavailable, "blob %s: %s ended the answer after %d of %d bytes", d.desc.Digest.Short(), b.Source, d.position(p), d.desc.Size)
		}
		if d.position(p) > before {
			try = 0
		}
		try++
		if err := d.pause(ctx, p, err, try); err != nil {
			return err
		}
	}
}

func (d *download) position(p *piece) int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return p.pos
}

// receive copies one answer into the file and closes the answer.
func (d *download) receive(b *remote.Body, p *piece, ranged func()) error {
	defer b.Close()
	d.mu.Lock()
	d.source = b.Source
	d.mu.Unlock()
	if err := d.checkAnswer(b); err != nil {
		return err
	}
	if !b.Ranged && (p.end != d.desc.Size || d.position(p) > 0) {
		return errNoRanges
	}
	if b.Ranged {
		ranged()
	}
	return d.copy(b, p, 0)
}

func (d *download) checkAnswer(b *remote.Body) error {
	if b.Total >= 0 && b.Total != d.desc.Size {
		return errs.New(errs.Invalid, "blob %s: %s has %d bytes, the manifest says %d", d.desc.Digest.Short(), b.Source, b.Total, d.desc.Size)
	}
	return nil
}

// copy skips the first bytes of an answer and writes the rest into the file, at the position of the piece.
func (d *download) copy(b *remote.Body, p *piece, skip int64) error {
	if _, err := io.CopyN(io.Discard, b, skip); err != nil {
		return errs.New(errs.Unavailable, "blob %s: %w", d.desc.Digest.Short(), err)
	}
	buf := make([]byte, 256<<10)
	for {
		pos := d.position(p)
		room := min(int64(len(buf)), p.end-pos)
		if room == 0 {
			return nil
		}
		n, err := b.Read(buf[:room])
		if n > 0 {
			if _, err := d.file.WriteAt(buf[:n], pos); err != nil {
				return errs.New(writeClass(err), "blob %s: write: %w", d.desc.Digest.Short(), err)
			}
			if err := d.advance(p, int64(n)); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			if e, ok := errors.AsType[*errs.Error](err); ok {
				return e
			}
			return errs.New(errs.Unavailable, "blob %s: %s: %w", d.desc.Digest.Short(), b.Source, err)
		}
	}
}

// writeClass returns the class of a write error: errs.Exhausted when the disk is full.
func writeClass(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return errs.Exhausted
	}
	return errs.Internal
}

// advance records that n more bytes of a piece were written, and moves the front.
func (d *download) advance(p *piece, n int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	p.pos += n
	d.moved = time.Now()
	for len(d.pieces) > 0 {
		first := d.pieces[0]
		d.front = first.pos
		if first.pos < first.end {
			break
		}
		d.pieces = d.pieces[1:]
	}
	d.tell(d.front)
	d.cond.Broadcast()
	if d.front-d.recorded < recordEvery {
		return nil
	}
	d.recorded = d.front
	return d.part.SetPrefix(d.front)
}

// pause waits before the next try of a piece. It returns an error when there is no next try.
func (d *download) pause(ctx context.Context, p *piece, err error, try int) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, errNoRanges) || !remote.Temporary(err) {
		return err
	}
	d.mu.Lock()
	still := time.Since(d.moved)
	d.mu.Unlock()
	if still > d.p.remote.GiveUp() {
		return err
	}
	return d.p.remote.Outlast(ctx, err, try, func(seconds int) {
		d.mu.Lock()
		first := len(d.pieces) > 0 && d.pieces[0] == p
		d.mu.Unlock()
		if first { // the others wait as well
			d.wait(seconds)
		}
	})
}

// fetchPlain fetches the blob from a registry that ignores ranges. Every answer starts at the first byte, so it skips the bytes
// that the file has. The number of answers is bounded even when there is progress: a connection that breaks often would
// otherwise transfer the first bytes again and again.
func (d *download) fetchPlain(ctx context.Context) error {
	d.mu.Lock()
	d.pieces = []*piece{{d.front, d.desc.Size}}
	p := d.pieces[0]
	d.next = d.desc.Size
	d.mu.Unlock()
	for try := 1; ; try++ {
		b, err := d.src.Blob(ctx, d.desc.Digest, 0, -1)
		if err == nil {
			if err = d.checkAnswer(b); err == nil {
				err = d.copy(b, p, d.position(p))
			}
			b.Close()
		}
		if err == nil && d.position(p) == p.end {
			return nil
		}
		if err == nil {
			err = errs.New(errs.Unavailable, "blob %s: %s ended the answer after %d of %d bytes", d.desc.Digest.Short(), b.Source, d.position(p), d.desc.Size)
		}
		if err := d.pause(ctx, p, err, try); err != nil {
			return err
		}
	}
}

// follower reads the file from its start while the download goes on. It waits when it has reached the front.
type follower struct {
	d   *download
	off int64
}

func (f *follower) Read(p []byte) (int, error) {
	d := f.d
	d.mu.Lock()
	for f.off >= d.front && f.off < d.desc.Size && !d.ended {
		d.cond.Wait()
	}
	front, err := d.front, d.err
	d.mu.Unlock()
	if f.off >= d.desc.Size {
		return 0, io.EOF
	}
	if f.off >= front {
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		return 0, err
	}
	n, err := d.file.ReadAt(p[:min(int64(len(p)), front-f.off)], f.off)
	f.off += int64(n)
	if n > 0 {
		return n, nil
	}
	return 0, errs.New(errs.Internal, "blob %s: read: %w", d.desc.Digest.Short(), err)
}
