package supervise

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/containerd/console"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"ply/internal/container/logfile"
	"ply/internal/container/shim"
)

// When a process has ended, all of its own output is read. Child processes may still hold the pipe open, such as a daemon
// that an exec started. Their output is read until none comes for outputPause, and for outputGrace at most; what they write
// later is discarded.
const (
	outputPause = 100 * time.Millisecond
	outputGrace = 2 * time.Second
)

// process is the container's first process or an exec, with the clients that are attached to it.
type process struct {
	id        string
	spec      *specs.Process
	tty       bool
	stdinOnce bool // close stdin when the first client with stdin leaves
	io        *stdio
	sources   []*source

	stdinMu sync.Mutex // guards io.stdin; held while a chunk is written to it

	mu      sync.Mutex
	started bool       // OpStart was received
	ending  bool       // the process has ended; its output may not be drained yet
	child   *child     // nil until the process exists
	exit    *shim.Exit // nil until it has ended
	clients map[*client]struct{}
	out     backlog
	size    *unix.Winsize // of the terminal, as last requested; nil if it was not
	ready   chan struct{} // closed when the process and its terminal exist
	done    chan struct{} // closed when exit is set
}

// source is one output stream of a process. Its data goes to the log and to the clients.
type source struct {
	stream  byte
	f       *os.File        // a terminal's is nil until it exists
	log     *logfile.Stream // nil for an exec
	drained chan struct{}   // closed when the output of an ended process was passed on, and later output is discarded
	done    chan struct{}   // closed when nothing is read any more
}

// newProcess creates the streams of a process that is not started yet.
func newProcess(id string, spec *specs.Process, stdin, once, discard bool, log *logfile.Writer) (*process, error) {
	io, err := newStdio(spec.Terminal, stdin, discard)
	if err != nil {
		return nil, fmt.Errorf("streams: %w", err)
	}
	p := &process{id: id, spec: spec, tty: spec.Terminal, stdinOnce: once, io: io,
		clients: map[*client]struct{}{}, ready: make(chan struct{}), done: make(chan struct{})}
	add := func(stream byte, f *os.File) {
		src := &source{stream: stream, f: f, drained: make(chan struct{}), done: make(chan struct{})}
		if log != nil {
			src.log = log.Stream(stream)
		}
		p.sources = append(p.sources, src)
	}
	if p.tty {
		add(shim.Stdout, nil) // receiveConsole sets the file
	} else if !discard {
		add(shim.Stdout, io.stdout)
		add(shim.Stderr, io.stderr)
	}
	return p, nil
}

// receiveConsole receives the terminal from the runtime and sets its size before anything is read or written.
func (p *process) receiveConsole() error {
	master, err := receiveFD(int(p.io.consoleSock.Fd()))
	if err = errors.Join(err, closeAll(&p.io.consoleSock)); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.io.console = master
	p.sources[0].f = master
	if b := p.spec.ConsoleSize; p.size == nil && b != nil {
		p.size = &unix.Winsize{Row: uint16(b.Height), Col: uint16(b.Width)}
	}
	if p.size != nil {
		return p.setSize(*p.size)
	}
	return nil
}

// setSize sets the size of the terminal; mu is held.
func (p *process) setSize(ws unix.Winsize) error {
	c, err := console.ConsoleFromFile(p.io.console)
	if err != nil {
		return fmt.Errorf("resize: %w", err)
	}
	return c.Resize(console.WinSize{Height: ws.Row, Width: ws.Col})
}

// resize sets the size of the terminal, or the size that it will get.
func (p *process) resize(height, width uint) error {
	if !p.tty {
		return &failure{shim.ClassInvalid, "cannot resize: the process has no terminal"}
	}
	if height > 65535 || width > 65535 {
		return &failure{shim.ClassInvalid, fmt.Sprintf("cannot resize to %d x %d", height, width)}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.exit != nil {
		return p.gone()
	}
	p.size = &unix.Winsize{Row: uint16(height), Col: uint16(width)}
	if p.io.console == nil {
		return nil
	}
	return p.setSize(*p.size)
}

// gone returns the error for requests that come after the end.
func (p *process) gone() error {
	return &failure{shim.ClassGone, "process has ended"}
}

// run records that the process exists, and starts to read its output.
func (p *process) run(c child) {
	p.mu.Lock()
	p.child = &c
	p.mu.Unlock()
	close(p.ready)
	for _, s := range p.sources {
		go p.carry(s)
	}
}

// carry passes the output of one source to the log and the clients until its end.
func (p *process) carry(s *source) {
	defer close(s.done)
	buf := make([]byte, 32<<10)
	pass := func() (int, error) {
		n, err := s.f.Read(buf)
		if n > 0 {
			if s.log != nil {
				_, _ = s.log.Write(buf[:n]) // never fails: the log counts what it could not store
			}
			p.broadcast(s.stream, buf[:n])
		}
		return n, err
	}
	var err error
	for err == nil {
		_, err = pass()
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return // end of file, or EIO for a terminal
	}
	// drain has set the deadline: the process has ended. All bytes that were read so far were passed on.
	own := s.pending()
	for grace := time.Now().Add(outputGrace); ; {
		until := time.Now().Add(outputPause)
		if own <= 0 && until.After(grace) {
			until = grace
		}
		_ = s.f.SetReadDeadline(until) // never fails for pipes and terminals
		n, err := pass()
		own -= n
		switch {
		case err == nil:
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return
		case s.pending() > 0 && (own > 0 || time.Now().Before(grace)):
			// The machine is so busy that the deadline passed before the read.
		default:
			close(s.drained)
			_ = s.f.SetReadDeadline(time.Time{})
			for err = nil; err == nil; {
				_, err = s.f.Read(buf) // from child processes that still hold the pipe
			}
			return
		}
	}
}

// drain waits until the output of an ended process is in the log and was queued for the clients. It does not wait for them.
func (p *process) drain() {
	p.mu.Lock()
	p.ending = true
	for c := range p.clients {
		c.lift()
	}
	p.mu.Unlock()
	for _, s := range p.sources {
		_ = s.f.SetReadDeadline(time.Unix(1, 0)) // carry sees it; it never fails for pipes and terminals
	}
	for _, s := range p.sources {
		select {
		case <-s.drained:
		case <-s.done:
		}
		if s.log != nil {
			_ = s.log.Close() // never fails
		}
	}
}

// pending returns the number of bytes that can be read at once.
func (s *source) pending() int {
	n := 0
	rc, err := s.f.SyscallConn()
	if err != nil {
		return 0
	}
	_ = rc.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }) // 0 where the kernel does not say
	return n
}

// finish records the end and tells the clients. The streams must be drained.
func (p *process) finish(e shim.Exit) {
	p.mu.Lock()
	p.exit = &e
	clients := p.clients
	p.clients = nil
	p.mu.Unlock()
	for c := range clients {
		c.end()
	}
	close(p.done)
	// Stdin is closed now. An output that child processes hold open is read until they close it, so that they do not
	// block or get SIGPIPE.
	p.stdinMu.Lock()
	_ = closeAll(&p.io.stdin) // closing a pipe loses nothing
	p.stdinMu.Unlock()
	go func() {
		for _, s := range p.sources {
			<-s.done
		}
		p.stdinMu.Lock()
		defer p.stdinMu.Unlock()
		p.mu.Lock()
		defer p.mu.Unlock()
		_ = p.io.closeOurs() // nothing is written to them any more
	}()
}

// begun reports whether the process was asked to run.
func (p *process) begun() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.started
}

// withdraw reports whether the process was not asked to run, and never will be.
func (p *process) withdraw() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.started || p.exit != nil {
		return false
	}
	p.started = true
	return true
}

// running reports whether the process exists; it may not have been asked to run yet.
func (p *process) running() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.child != nil && p.exit == nil
}

// over reports whether the process has ended. Its clients may not have been told yet.
func (p *process) over() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.child == nil || p.ending
}
