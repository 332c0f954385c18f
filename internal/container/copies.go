package container

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"ply/internal/errs"
)

const (
	// stallLimit is how long a client may take over one read or write of a copy while the container's removal waits.
	stallLimit = 10 * time.Second
	// removalWait is how long a removal waits for copies altogether.
	removalWait = time.Minute
	// pieceSize is the size of the writes of a copy that a removal waits for, so that a slow client is not taken for one
	// that does not read.
	pieceSize = 16 << 10
)

// copies are the copies into and out of one container that are under way. The removal of the container lets them finish,
// so that a client gets every byte, but it does not wait for a client that neither reads nor writes.
type copies struct {
	mu      sync.Mutex
	active  map[*copying]struct{}
	closing bool
	idle    chan struct{} // closed when active is empty; nil while finish does not wait
}

// copying is one copy.
type copying struct {
	set     *copies
	cancel  context.CancelCauseFunc
	unblock func(time.Time) error // sets the deadline of the client; nil = it has none
	slow    atomic.Bool           // a removal waits
	waits   atomic.Int64          // when the read or write that is under way began, in nanoseconds since epoch; 0 = none is
}

var epoch = time.Now() // has a monotonic reading

// begin registers a copy. client is what the copy reads from or writes to; a copy that waits for it in vain can only be
// ended if client has deadlines, as a connection has. The returned context ends when a removal does not wait for the copy
// any longer. The caller calls end. Errors: errs.NotFound when the container is being removed.
func (s *copies) begin(ctx context.Context, c *ctr, client any) (*copying, context.Context, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return nil, nil, errs.New(errs.NotFound, "No such container: %s", c.id)
	}
	x := &copying{set: s}
	switch d := client.(type) {
	case interface{ SetReadDeadline(time.Time) error }:
		x.unblock = d.SetReadDeadline
	case interface{ SetWriteDeadline(time.Time) error }:
		x.unblock = d.SetWriteDeadline
	}
	ctx, x.cancel = context.WithCancelCause(ctx)
	if s.active == nil {
		s.active = map[*copying]struct{}{}
	}
	s.active[x] = struct{}{}
	return x, ctx, nil
}

func (x *copying) end() {
	x.cancel(nil)
	x.set.mu.Lock()
	defer x.set.mu.Unlock()
	delete(x.set.active, x)
	if x.set.idle != nil && len(x.set.active) == 0 {
		close(x.set.idle)
		x.set.idle = nil
	}
}

// finish refuses new copies and waits for those under way. It ends a copy whose client has stalled, and all when the wait
// was long enough or ctx ends. It does not wait for the end of a copy that it has ended. reopen allows copies again.
func (s *copies) finish(ctx context.Context) {
	s.mu.Lock()
	s.closing = true
	if len(s.active) == 0 {
		s.mu.Unlock()
		return
	}
	s.idle = make(chan struct{})
	idle := s.idle
	for x := range s.active {
		x.slow.Store(true)
	}
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, removalWait)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		s.mu.Lock()
		left := 0
		for x := range s.active {
			if began := x.waits.Load(); ctx.Err() != nil || began != 0 && time.Since(epoch)-time.Duration(began) > stallLimit {
				x.stop()
			} else {
				left++
			}
		}
		s.mu.Unlock()
		if left == 0 {
			return
		}
		select {
		case <-idle:
			return
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

func (s *copies) reopen() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closing, s.idle = false, nil
}

// stop ends a copy and the read or write of its client that is under way.
func (x *copying) stop() {
	x.cancel(errs.New(errs.Conflict, "the container was removed during the copy"))
	if x.unblock != nil {
		_ = x.unblock(time.Unix(1, 0)) // a connection that is closed needs no deadline
	}
}

// reason returns the error of a copy: when a removal has ended the copy, that is the reason and not what it looked like to
// the copy. ctx is the context that begin returned.
func (x *copying) reason(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, errs.Conflict) {
		return cause
	}
	return err
}

// reader returns r, which was given to begin, as the client's end of the copy.
func (x *copying) reader(r io.Reader) io.Reader { return copyReader{x, r} }

// writer returns w, which was given to begin, as the client's end of the copy.
func (x *copying) writer(w io.Writer) io.Writer { return copyWriter{x, w} }

// wait does one read or write of the client.
func (x *copying) wait(do func([]byte) (int, error), p []byte) (int, error) {
	x.waits.Store(max(1, int64(time.Since(epoch))))
	n, err := do(p)
	x.waits.Store(0)
	return n, err
}

type copyReader struct {
	x *copying
	r io.Reader
}

func (r copyReader) Read(p []byte) (int, error) { return r.x.wait(r.r.Read, p) }

type copyWriter struct {
	x *copying
	w io.Writer
}

func (w copyWriter) Write(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		part := p[n:]
		if w.x.slow.Load() {
			part = part[:min(len(part), pieceSize)]
		}
		var m int
		m, err = w.x.wait(w.w.Write, part)
		n += m
	}
	return n, err
}
