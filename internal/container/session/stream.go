package session

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"ply/internal/container/shim"
)

// ErrIncomplete reports that a client did not get all the output of a process: its connection to the shim was cut.
var ErrIncomplete = errors.New("the output is incomplete")

const (
	// maxRest bounds the output of an ended run that waits in memory for one client, in bytes. It is larger than what
	// a shim queues.
	maxRest = 8 << 20
	// DrainLimit is how long Drain waits for the shim to hand over the output of an ended run.
	DrainLimit = 5 * time.Second
)

// stream is a client's connection to a process. While the run goes on, a slow client slows the process down. When the
// run has ended, the rest of the output is read into memory at once, so that the shim can end and the container can be
// removed before a slow client has read it. One goroutine may call Read; Close may be called from any goroutine.
type stream struct {
	*shim.Stream
	run *Run

	live  sync.Mutex // held during a read for the client
	taken bool       // takeRest reads the shim's stream from now on; live guards it

	mu     sync.Mutex
	more   sync.Cond // on mu: rest, err or closed has changed
	rest   []piece
	size   int // of rest, in bytes
	err    error
	closed bool

	once sync.Once
	read chan struct{} // closed when nothing more is read from the shim
}

// piece is output that was read after the end of the run.
type piece struct {
	stream byte
	data   []byte
}

// attach connects to the streams of a process of the run. Drain waits for streams that are being attached too: the process may have
// ended when the shim answers.
func (r *Run) attach(ctx context.Context, process string, args shim.AttachArgs) (*stream, error) {
	s := &stream{run: r, read: make(chan struct{})}
	s.more.L = &s.mu
	r.mu.Lock()
	if r.streams == nil {
		r.streams = map[*stream]struct{}{}
	}
	r.streams[s] = struct{}{}
	r.mu.Unlock()
	var err error
	if s.Stream, err = r.Client.Attach(ctx, process, args); err != nil {
		s.finish()
		return nil, err
	}
	go s.takeRest()
	return s, nil
}

// Drain waits until the shim has handed over all output of the ended run to the streams that are attached, at most until
// ctx ends. It does not wait for the clients. A shim that ends earlier takes its queue with it.
func (r *Run) Drain(ctx context.Context) error {
	r.mu.Lock()
	var open []*stream
	for s := range r.streams {
		open = append(open, s)
	}
	r.mu.Unlock()
	for _, s := range open {
		select {
		case <-s.read:
		case <-ctx.Done():
			return fmt.Errorf("output of an attached client: %w", context.Cause(ctx))
		}
	}
	return nil
}

// finish records that nothing more is read from the shim.
func (s *stream) finish() {
	s.once.Do(func() {
		s.run.mu.Lock()
		delete(s.run.streams, s)
		s.run.mu.Unlock()
		close(s.read)
	})
}

// Read reads as shim.Stream.Read does.
func (s *stream) Read(p []byte) (name byte, n int, err error) {
	s.live.Lock()
	if !s.taken {
		defer s.live.Unlock()
		if name, n, err = s.Stream.Read(p); err != nil {
			s.finish()
		}
		return name, n, err
	}
	s.live.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.rest) == 0 && s.err == nil {
		s.more.Wait()
	}
	if len(s.rest) == 0 {
		return 0, 0, s.err
	}
	first := &s.rest[0]
	n = copy(p, first.data)
	name, first.data = first.stream, first.data[n:]
	if len(first.data) == 0 {
		s.rest = s.rest[1:]
	}
	s.size -= n
	s.more.Broadcast()
	return name, n, nil
}

// takeRest reads what is left when the run has ended.
func (s *stream) takeRest() {
	select {
	case <-s.run.Ended:
	case <-s.read:
		return
	}
	s.live.Lock()
	s.taken = true
	s.live.Unlock()
	buf := make([]byte, 32<<10)
	for {
		name, n, err := s.Stream.Read(buf)
		s.mu.Lock()
		if n > 0 {
			s.rest = append(s.rest, piece{name, append([]byte(nil), buf[:n]...)})
			s.size += n
		}
		for s.size >= maxRest && !s.closed {
			s.more.Wait()
		}
		if s.closed && err == nil {
			err = net.ErrClosed
		}
		s.err = err
		s.more.Broadcast()
		s.mu.Unlock()
		if err != nil {
			s.finish()
			return
		}
	}
}

// Close detaches from the process.
func (s *stream) Close() error {
	s.mu.Lock()
	s.closed = true
	s.more.Broadcast()
	s.mu.Unlock()
	_ = s.Stream.Leave() // it fails when the shim has closed the connection
	err := s.Stream.Close()
	s.finish()
	return err
}
