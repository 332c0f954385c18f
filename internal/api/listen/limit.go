package listen

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/host"
)

const (
	maxRequests = 1000
	maxStreams  = 10_000
	// What a connection may cost: a stream has a connection with a shim and often a file besides its own descriptor, and takes
	// memory for its buffers and goroutines. Most descriptors are left for the work itself.
	filesPerRequest = 8
	filesPerStream  = 6
	bytesPerStream  = 128 << 10

	// patience is how long a new connection waits for its turn before it is answered that there are too many.
	patience = 10 * time.Second

	refusalTimeout = 2 * time.Second
)

// Limiter bounds the connections of all listeners that share it. Connections on which a request is answered, and those on which a
// stream waits for something to happen, such as attach, wait and events, have limits of their own, so that many attached clients
// do not lock out others. Safe for concurrent use.
type Limiter struct {
	requests, streams int

	mu     sync.Mutex
	active int           // connections that are no streams
	idle   []*slot       // those of active that wait for a request, longest first
	flows  int           // streams
	full   bool          // a connection has waited in vain, and no other has been closed since
	freed  chan struct{} // has a value when a place may be free
	after  func(d time.Duration) <-chan time.Time
}

// NewLimiter returns a limiter. A number that is 0 means what this process has descriptors and memory for: at most 1,000 connections
// with requests and 10,000 with streams.
func NewLimiter(requests, streams int) *Limiter {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil || files.Cur > 1<<30 {
		files.Cur = 1 << 30
	}
	if requests == 0 {
		requests = min(maxRequests, int(files.Cur/filesPerRequest))
	}
	if streams == 0 {
		streams = min(maxStreams, int(files.Cur/filesPerStream), int(host.MemoryLimit()/bytesPerStream))
	}
	return &Limiter{requests: requests, streams: streams, freed: make(chan struct{}, 1), after: time.After}
}

// slot is the place of one connection.
type slot struct {
	l      *Limiter
	close  func() error
	closed bool
	flow   bool // it counts as a stream
	idle   bool // it is in l.idle
}

// enter waits for a place and takes it. It returns nil when there was none for too long, or when done is closed.
func (l *Limiter) enter(done <-chan struct{}) *slot {
	var late <-chan time.Time
	for {
		if s, final := l.try(); final {
			return s
		}
		if late == nil {
			late = l.after(patience)
		}
		select {
		case <-l.freed:
		case <-late:
			l.mu.Lock()
			l.full = true
			l.mu.Unlock()
		case <-done:
			return nil
		}
	}
}

// try takes a place if there is one. When all are taken it closes the connection that has waited for a request longest, and takes its
// place. final is false when the caller should wait.
func (l *Limiter) try() (s *slot, final bool) {
	l.mu.Lock()
	if l.active < l.requests {
		l.active++
		l.mu.Unlock()
		return &slot{l: l}, true
	}
	full := l.full
	var victim *slot
	if len(l.idle) > 0 {
		victim = l.idle[0]
		l.busy(victim)
		victim.closed = true // active stays
	}
	l.mu.Unlock()
	if victim != nil {
		_ = victim.close() // it sends nothing
		return &slot{l: l}, true
	}
	return nil, full
}

// busy removes s from idle. The caller holds mu.
func (l *Limiter) busy(s *slot) {
	if !s.idle {
		return
	}
	s.idle = false
	for i, o := range l.idle {
		if o == s {
			l.idle = append(l.idle[:i], l.idle[i+1:]...)
			return
		}
	}
}

// free tells a waiting listener that a place is free. The caller holds mu.
func (l *Limiter) free() {
	l.full = false
	select {
	case l.freed <- struct{}{}:
	default:
	}
}

// leave gives the place back. A second call does nothing.
func (s *slot) leave() {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	s.l.busy(s)
	if s.flow {
		s.l.flows--
		return
	}
	s.l.active--
	s.l.free()
}

// setIdle notes whether the connection waits for a request.
func (s *slot) setIdle(idle bool) {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	s.l.busy(s)
	if idle && !s.closed && !s.flow {
		s.idle = true
		s.l.idle = append(s.l.idle, s)
		if s.l.active >= s.l.requests {
			s.l.free()
		}
	}
}

// stream makes the connection count as a stream until done is called.
func (s *slot) stream() (done func(), err error) {
	l := s.l
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.flows >= l.streams {
		return nil, errs.New(errs.Unavailable, "too many streams: %d clients are attached, wait or listen, and no more are served", l.flows).
			WithHint("End some of them, or give the engine more open files and memory.")
	}
	if s.closed || s.flow {
		return func() {}, nil
	}
	s.flow = true
	l.flows++
	l.active--
	l.free()
	return sync.OnceFunc(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if s.closed {
			return
		}
		s.flow = false
		l.flows--
		l.active++ // perhaps one too many; the next connection waits then
	}), nil
}

type slotKey struct{}

// Stream says that the request of a context may take long because it waits for something to happen: its connection does not count
// as one with a request any more until done is called. The error's class is errs.Unavailable when there are too many already.
func Stream(ctx context.Context) (done func(), err error) {
	if s, ok := ctx.Value(slotKey{}).(*slot); ok {
		return s.stream()
	}
	return func() {}, nil
}

// slotOf returns the slot of a connection that a listener of this package has accepted, or nil.
func slotOf(conn net.Conn) *slot {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	if c, ok := conn.(interface{ place() *slot }); ok {
		return c.place()
	}
	return nil
}

// watchState notes which connections wait for a request. One that has sent nothing yet counts too.
func watchState(conn net.Conn, state http.ConnState) {
	if s := slotOf(conn); s != nil {
		s.setIdle(state == http.StateIdle || state == http.StateNew)
	}
}

// limit returns a listener that keeps to the limits of a limiter. Further connections wait, and are refused after some time.
func limit(l net.Listener, by *Limiter) net.Listener {
	return &limited{Listener: l, by: by, refusing: make(chan struct{}, maxRefusals), done: make(chan struct{})}
}

type limited struct {
	net.Listener
	by       *Limiter
	refusing chan struct{}
	done     chan struct{}
	once     sync.Once
}

func (l *limited) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		s := l.by.enter(l.done)
		if s == nil {
			l.refuse(conn)
			continue
		}
		s.close = conn.Close
		switch conn := conn.(type) {
		case *net.UnixConn:
			return &limitedUnix{conn, s}, nil
		case *net.TCPConn:
			return &limitedTCP{conn, s}, nil
		}
		return &limitedConn{conn, s}, nil
	}
}

const refusal = `{"message":"too many requests at the same time: try again later"}` + "\n"

// maxRefusals is how many connections are told at the same time that there is no place. Further ones are only closed.
const maxRefusals = 32

// refuse tells the client of a connection that there is no place, and closes it. Over TCP it is only closed, because a handshake
// comes first.
func (l *limited) refuse(conn net.Conn) {
	select {
	case l.refusing <- struct{}{}:
	default:
		_ = conn.Close() // the client does not get more in any case
		return
	}
	go func() {
		defer func() { <-l.refusing }()
		defer conn.Close()
		unix, ok := conn.(*net.UnixConn)
		if !ok {
			return
		}
		// A client that has not sent its request yet would not read the answer, and one whose request was not read loses it.
		_ = unix.SetDeadline(time.Now().Add(refusalTimeout))
		r := bufio.NewReader(io.LimitReader(unix, maxHeader))
		if _, err := http.ReadRequest(r); err != nil {
			return
		}
		_, _ = io.WriteString(unix, "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"+refusal)
		_ = unix.CloseWrite()
		_, _ = io.Copy(io.Discard, r)
	}()
}

func (l *limited) Close() error {
	l.once.Do(func() { close(l.done) })
	return l.Listener.Close()
}

// There is one type per kind of connection, so that the methods for half-closing and for the raw socket stay available.
type (
	limitedUnix struct {
		*net.UnixConn
		slot *slot
	}
	limitedTCP struct {
		*net.TCPConn
		slot *slot
	}
	limitedConn struct {
		net.Conn
		slot *slot
	}
)

func (c *limitedUnix) place() *slot { return c.slot }
func (c *limitedTCP) place() *slot  { return c.slot }
func (c *limitedConn) place() *slot { return c.slot }

// Close closes the connection and frees its place.
func (c *limitedUnix) Close() error { defer c.slot.leave(); return c.UnixConn.Close() }

// Close closes the connection and frees its place.
func (c *limitedTCP) Close() error { defer c.slot.leave(); return c.TCPConn.Close() }

// Close closes the connection and frees its place.
func (c *limitedConn) Close() error { defer c.slot.leave(); return c.Conn.Close() }
