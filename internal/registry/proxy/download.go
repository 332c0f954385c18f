package proxy

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/registry/blobs"
	"ply/internal/registry/content"
)

const (
	linger   = 10 * time.Second       // how long a download goes on without anyone who reads it
	maxBlob  = 64 << 30               // bytes, when no manifest says how many
	step     = 1 << 20                // bytes that readers are told of at a time
	stepTime = 100 * time.Millisecond // or the time
	retries  = 4                      // of a download that breaks off
)

// download is a blob that is being fetched, once for all who read it.
type download struct {
	p      *Proxy
	key    blobKey
	cancel context.CancelFunc

	mu      sync.Mutex
	changed chan struct{} // closed and replaced when one of these changes
	size    int64         // -1 = not known
	begun   bool          // the upstream sends the blob, and size is what it says
	written int64         // bytes that source has
	source  blobs.Source  // nil before the first bytes
	ended   bool
	err     error
	readers int
	idle    *time.Timer // set while there are no readers
}

// errGivenUp is the error of a download that no one read any more.
var errGivenUp = errs.New(errs.Unavailable, "the download was given up")

// fetch joins the download of a blob, or starts it, and returns a reader when the upstream has said how large the blob is. The reader
// of a blob whose size the upstream does not say is returned when the blob is here.
func (p *Proxy) fetch(ctx context.Context, repo content.Repository, d content.Digest) (io.ReadSeekCloser, int64, error) {
	f := p.join(blobKey{repo, d})
	size, err := f.wait(ctx)
	if errors.Is(err, errGivenUp) && ctx.Err() == nil { // just before this client joined
		f.leave()
		f = p.join(blobKey{repo, d})
		size, err = f.wait(ctx)
	}
	if err != nil {
		f.leave()
		return nil, 0, err
	}
	f.mu.Lock()
	whole := f.ended || f.size < 0
	f.mu.Unlock()
	if whole {
		defer f.leave()
		r, size, err := p.o.Repositories.OpenBlob(ctx, repo, d)
		if err != nil {
			return nil, 0, err
		}
		return p.keep.read(repo, d, r), size, nil
	}
	return &reader{f: f, ctx: ctx.Done(), size: size}, size, nil
}

// join returns a download, of which the caller is a reader.
func (p *Proxy) join(key blobKey) *download {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.downloads[key]
	if f == nil {
		ctx, cancel := context.WithCancel(p.ctx)
		f = &download{p: p, key: key, cancel: cancel, changed: make(chan struct{}), size: -1}
		p.downloads[key] = f
		p.work.Go(func() {
			defer cancel()
			f.end(f.run(ctx))
		})
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.readers++
	if f.idle != nil {
		f.idle.Stop()
		f.idle = nil
	}
	return f
}

// leave is called by each reader once.
func (f *download) leave() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.readers--
	if f.readers > 0 {
		return
	}
	if f.ended {
		f.closeSource()
		return
	}
	f.idle = time.AfterFunc(linger, f.cancel)
}

func (f *download) closeSource() {
	if f.source != nil {
		_ = f.source.Close() // it was only read
		f.source = nil
	}
}

// update changes the state and wakes those who wait for it.
func (f *download) update(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	close(f.changed)
	f.changed = make(chan struct{})
}

// end tells the readers how the download ended.
func (f *download) end(err error) {
	f.p.mu.Lock()
	delete(f.p.downloads, f.key)
	f.p.mu.Unlock()
	f.update(func() {
		f.ended, f.err = true, err
		if f.idle != nil {
			f.idle.Stop()
		}
		if f.readers == 0 {
			f.closeSource()
		}
	})
	if errors.Is(err, errs.DataLoss) {
		f.p.failed("blob "+string(f.key.digest)+" of "+string(f.key.repo), err)
	}
}

// wait returns the size of the blob as soon as it is known and bytes arrive, or else when the download has ended.
func (f *download) wait(ctx context.Context) (int64, error) {
	for {
		f.mu.Lock()
		size, begun, ended, err, changed := f.size, f.begun, f.ended, f.err, f.changed
		f.mu.Unlock()
		if ended || begun && size >= 0 {
			return size, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

// run fetches the blob.
func (f *download) run(ctx context.Context) error {
	select {
	case f.p.slots <- struct{}{}:
		defer func() { <-f.p.slots }()
	case <-ctx.Done():
		return errGivenUp
	}
	defer f.p.keep.pin(f.key.repo, f.key.digest)()
	if _, err := f.p.o.Repositories.Metadata.Link(ctx, f.key.repo, f.key.digest); err == nil {
		if _, err := f.p.o.Repositories.Blobs.Stat(ctx, f.key.digest); err == nil {
			return nil // a download that ended just now
		}
	}
	want := f.p.expected(ctx, f.key.repo, f.key.digest)
	if done, err := f.adopt(ctx); done || err != nil {
		return err
	}
	u := f.p.upstream(f.key.repo)
	body, size, err := u.Registry.Blob(ctx, u.name(f.key.repo), f.key.digest, 0)
	if err != nil {
		return f.p.refused(err)
	}
	in := &incoming{f: f, ctx: ctx, body: body}
	defer in.close()
	if size >= 0 && want >= 0 && size != want {
		return errs.New(errs.DataLoss, "upstream: blob %s has %d bytes, its manifest says %d", f.key.digest, size, want)
	}
	if size < 0 {
		size = want
	}
	in.limit = size
	if size < 0 {
		in.limit = maxBlob
	}
	if size > maxBlob {
		return errs.New(errs.Exhausted, "upstream: blob %s has %d bytes, the limit is %d", f.key.digest, size, int64(maxBlob))
	}
	if err := f.p.keep.room(ctx, max(size, 0)); err != nil {
		return err
	}
	defer f.p.keep.release(max(size, 0))
	return f.store(ctx, in, size)
}

// adopt takes bytes that are here because of another copy of the same upstream, if the upstream says that this repository has them as
// well, or said so by a manifest and cannot be asked now.
func (f *download) adopt(ctx context.Context) (bool, error) {
	s := f.p.o.Repositories
	size, err := s.Blobs.Stat(ctx, f.key.digest)
	if errors.Is(err, errs.NotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	u := f.p.upstream(f.key.repo)
	if same, err := f.p.shares(ctx, u, f.key.digest); err != nil || !same {
		return false, err
	}
	theirs, err := u.Registry.StatBlob(ctx, u.name(f.key.repo), f.key.digest)
	switch {
	case errors.Is(err, errs.Unimplemented):
		return false, nil
	case errors.Is(err, errs.Unavailable) && f.p.refers(ctx, f.key.repo, f.key.digest):
		theirs = -1
	case err != nil:
		return false, f.p.refused(err)
	}
	if theirs >= 0 && theirs != size {
		return false, nil // what is here is damaged, or they lie
	}
	if err := f.p.keep.room(ctx, size); err != nil {
		return false, err
	}
	defer f.p.keep.release(size)
	if err := f.p.keep.add(ctx, f.key.repo, f.key.digest, size, false); err != nil {
		return false, err
	}
	err = s.Adopt(ctx, f.key.repo, f.key.digest)
	if errors.Is(err, errs.NotFound) { // removed meanwhile
		return false, nil
	}
	return err == nil, err
}

// shares reports whether a copy of the same registry has a blob. Bytes that were pushed here, or come from elsewhere, are not given to those
// who know only their digest.
func (p *Proxy) shares(ctx context.Context, u *Upstream, d content.Digest) (bool, error) {
	for after := content.Repository(""); ; {
		holders, err := p.o.Repositories.Metadata.Holders(ctx, d, after, holdersPage)
		if err != nil {
			return false, err
		}
		for _, h := range holders {
			if other := p.upstream(h); other != nil && other.Registry.Host() == u.Registry.Host() {
				return true, nil
			}
			after = h
		}
		if len(holders) < holdersPage {
			return false, nil
		}
	}
}

const holdersPage = 100

// store receives the blob, verifies and records it.
func (f *download) store(ctx context.Context, in *incoming, size int64) (err error) {
	s := f.p.o.Repositories
	up, err := s.Begin(ctx, f.key.repo, "", f.key.digest.Algorithm())
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			// Also after the end of ctx. What cannot be removed now expires.
			err = errors.Join(err, up.Cancel(context.WithoutCancel(ctx)), up.Close())
		}
	}()
	if err := f.receive(ctx, in, up, size); err != nil {
		if e, ok := errors.AsType[*blobs.SourceError](err); ok {
			err = e.Err
		}
		return err
	}
	n := up.Offset()
	if err := f.p.keep.add(ctx, f.key.repo, f.key.digest, n, false); err != nil {
		return err
	}
	if err := s.Finish(ctx, up, f.key.digest); err != nil {
		err = errors.Join(err, f.p.keep.forget(context.WithoutCancel(ctx), f.key.repo, f.key.digest, n))
		if errors.Is(err, errs.Invalid) {
			return errs.New(errs.DataLoss, "upstream %s lies: %w", f.p.upstream(f.key.repo).Registry.Host(), err)
		}
		return err
	}
	if f.p.o.Events.Fetched != nil {
		f.p.o.Events.Fetched(n)
	}
	return nil
}

// receive appends the blob to an upload, while readers follow.
func (f *download) receive(ctx context.Context, in *incoming, up blobs.Upload, size int64) error {
	begin := func(s blobs.Source) {
		f.update(func() { f.source, f.size, f.begun = s, size, true })
	}
	follower, ok := up.(blobs.Follower)
	if !ok {
		spool, err := newSpool(f.p.o.Spool)
		if err != nil {
			return err
		}
		begin(spool)
		in.spool = spool
		return up.Append(ctx, in, size)
	}
	s, err := follower.Follow()
	if err != nil {
		return err
	}
	begin(s)
	for !in.ended {
		in.since, in.taken = time.Now(), 0
		if err := up.Append(ctx, (*portion)(in), -1); err != nil {
			return err
		}
		f.update(func() { f.written = up.Offset() })
	}
	return nil
}

// incoming reads a blob from the upstream, once more from where it broke off.
type incoming struct {
	f     *download
	ctx   context.Context //nolint:containedctx // of the download, for the requests of Read
	body  io.ReadCloser
	limit int64 // bytes
	n     int64 // bytes so far
	tries int
	ended bool
	spool *spool // gets a copy; may be nil

	since time.Time // when the portion began
	taken int64     // bytes of the portion
}

func (in *incoming) close() {
	if in.body != nil {
		_ = in.body.Close()
		in.body = nil
	}
}

// Read reads from the upstream.
func (in *incoming) Read(b []byte) (int, error) {
	if in.ended {
		return 0, io.EOF
	}
	for {
		n, err := in.body.Read(b)
		if n > 0 {
			if in.n += int64(n); in.n > in.limit {
				return 0, errs.New(errs.DataLoss, "upstream: blob %s is longer than %d bytes", in.f.key.digest, in.limit)
			}
			if in.spool != nil {
				if _, err := in.spool.Write(b[:n]); err != nil {
					return 0, err
				}
				in.f.update(func() { in.f.written = in.n })
			}
			in.tries = 0
		}
		if errors.Is(err, io.EOF) {
			in.ended = true
			return n, io.EOF
		}
		if err != nil {
			if rerr := in.reopen(err); rerr != nil {
				return n, rerr
			}
		}
		if n > 0 {
			return n, nil
		}
	}
}

// reopen goes on with a body that broke off.
func (in *incoming) reopen(cause error) error {
	if in.ctx.Err() != nil {
		return errGivenUp
	}
	in.close()
	u := in.f.p.upstream(in.f.key.repo)
	for {
		if in.tries++; in.tries > retries {
			in.body = io.NopCloser(blobs.Empty)
			return errs.New(errs.Unavailable, "upstream: blob %s breaks off: %w", in.f.key.digest, cause)
		}
		select {
		case <-time.After(time.Duration(in.tries) * 200 * time.Millisecond):
		case <-in.ctx.Done():
			in.body = io.NopCloser(blobs.Empty)
			return errGivenUp
		}
		body, _, err := u.Registry.Blob(in.ctx, u.name(in.f.key.repo), in.f.key.digest, in.n)
		if err == nil {
			in.body = body
			return nil
		}
		cause = err
	}
}

// portion reads an incoming blob until readers should be told.
type portion incoming

func (p *portion) Read(b []byte) (int, error) {
	in := (*incoming)(p)
	if in.taken >= step || in.taken > 0 && time.Since(in.since) > stepTime {
		return 0, io.EOF
	}
	n, err := in.Read(b)
	in.taken += int64(n)
	return n, err
}

// spool is a file without a name.
type spool struct{ *os.File }

func newSpool(dir string) (*spool, error) {
	f, err := durable.Nameless(dir)
	if err != nil {
		return nil, errs.New(errs.Internal, "spool: %w", err)
	}
	return &spool{f}, nil
}

// reader follows a download.
type reader struct {
	f    *download
	ctx  <-chan struct{} // closed when the client is gone
	size int64
	off  int64
	once sync.Once
}

// Read waits for bytes. The last one comes when the blob was verified and recorded.
func (r *reader) Read(b []byte) (int, error) {
	for {
		r.f.mu.Lock()
		ready, ended, err, changed, s := r.f.written, r.f.ended, r.f.err, r.f.changed, r.f.source
		r.f.mu.Unlock()
		if ended && err != nil {
			return 0, err
		}
		if r.off >= r.size {
			return 0, io.EOF
		}
		if !ended {
			ready = min(ready, r.size-1)
		}
		if n := ready - r.off; n > 0 {
			got, err := s.ReadAt(b[:min(int64(len(b)), n)], r.off)
			r.off += int64(got)
			if got > 0 {
				err = nil
			}
			return got, err
		}
		if ended {
			return 0, io.ErrUnexpectedEOF
		}
		select {
		case <-changed:
		case <-r.ctx:
			return 0, errs.New(errs.Unavailable, "the client is gone")
		}
	}
}

// Seek sets where the next Read begins.
func (r *reader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.off
	case io.SeekEnd:
		offset += r.size
	}
	if offset < 0 {
		return 0, errs.New(errs.Invalid, "seek before the beginning")
	}
	r.off = offset
	return offset, nil
}

// Close lets the download end when no one else reads it.
func (r *reader) Close() error {
	r.once.Do(r.f.leave)
	return nil
}
