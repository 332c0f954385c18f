package supervise

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/console"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"ply/internal/container/logfile"
	"ply/internal/container/shim"
)

// After the end of a process its own output is taken whole. Others may hold its pipe open (a daemon that an exec
// left behind); theirs is taken until it pauses, and no longer than outputGrace.
const (
	outputPause = 100 * time.Millisecond
	outputGrace = 2 * time.Second
)

// process is the container's first process or an exec, with who is attached to it.
type process struct {
	id        string
	spec      *specs.Process
	tty       bool
	stdinOnce bool // close stdin when the first client with stdin leaves
	io        *stdio
	sources   []*source

	stdinMu sync.Mutex // one chunk of input at a time

	mu      sync.Mutex
	started bool // asked to run
	child   *child
	exit    *shim.Exit
	clients map[*client]struct{}
	size    *unix.Winsize // wanted before there is a terminal
	ready   chan struct{} // closed when the process and its terminal exist
	done    chan struct{} // closed when exit is set
}

// source is one output stream on its way to the log and the clients.
type source struct {
	stream  byte
	f       *os.File
	log     *logfile.Stream
	total   atomic.Int64 // bytes read
	reading atomic.Bool  // waiting in read
	discard atomic.Bool  // the process' own output is through
	done    chan struct{}
}

func newProcess(id string, spec *specs.Process, stdin, once, discard bool, log *logfile.Writer) (*process, error) {
	io, err := newStdio(spec.Terminal, stdin, discard)
	if err != nil {
		return nil, fmt.Errorf("streams: %w", err)
	}
	p := &process{id: id, spec: spec, tty: spec.Terminal, stdinOnce: once, io: io,
		clients: map[*client]struct{}{}, ready: make(chan struct{}), done: make(chan struct{})}
	add := func(stream byte, f *os.File) {
		src := &source{stream: stream, f: f, done: make(chan struct{})}
		if log != nil {
			src.log = log.Stream(stream)
		}
		p.sources = append(p.sources, src)
	}
	if p.tty {
		add(shim.Stdout, nil) // the terminal comes later
	} else if !discard {
		add(shim.Stdout, io.stdout)
		add(shim.Stderr, io.stderr)
	}
	return p, nil
}

// receiveConsole takes the terminal that the runtime made, and gives it the wanted size before a byte flows.
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

func (p *process) setSize(ws unix.Winsize) error {
	c, err := console.ConsoleFromFile(p.io.console)
	if err != nil {
		return fmt.Errorf("resize: %w", err)
	}
	return c.Resize(console.WinSize{Height: ws.Row, Width: ws.Col})
}

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

func (p *process) gone() error {
	return &failure{shim.ClassGone, "process has ended"}
}

// run starts to carry output; the process exists from now on.
func (p *process) run(c child) {
	p.mu.Lock()
	p.child = &c
	p.mu.Unlock()
	close(p.ready)
	for _, s := range p.sources {
		go p.carry(s)
	}
}

func (p *process) carry(s *source) {
	defer close(s.done)
	buf := make([]byte, 32<<10)
	for {
		s.reading.Store(true)
		n, err := s.f.Read(buf)
		s.reading.Store(false)
		if n > 0 && !s.discard.Load() {
			if s.log != nil {
				_, _ = s.log.Write(buf[:n]) // counts what it loses
			}
			p.broadcast(s.stream, buf[:n])
		}
		s.total.Add(int64(n))
		if err != nil {
			return // end of file; EIO is a terminal's
		}
	}
}

// drain waits until the output of an ended process is carried.
func (p *process) drain() {
	for _, s := range p.sources {
		s.settle()
		if s.log != nil {
			_ = s.log.Close() // never fails
		}
	}
}

func (s *source) settle() {
	ended := time.Now()
	own := s.total.Load() + int64(s.pending())
	var quiet time.Time
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-s.done:
			return
		case <-tick.C:
		}
		switch {
		case !s.reading.Load() || s.pending() > 0:
			quiet = time.Time{}
		case quiet.IsZero():
			quiet = time.Now()
		case time.Since(quiet) > outputPause:
			s.discard.Store(true)
			return
		}
		if s.total.Load() >= own && time.Since(ended) > outputGrace {
			s.discard.Store(true) // its heirs go on printing to nobody
			return
		}
	}
}

func (s *source) pending() int {
	n := 0
	rc, err := s.f.SyscallConn()
	if err != nil {
		return 0
	}
	_ = rc.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }) // none where it cannot be asked
	return n
}

// finish tells everybody. The streams must be drained.
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
	// A source that heirs hold open still reads, to nobody; the rest is closed now.
	p.stdinMu.Lock()
	_ = closeAll(&p.io.stdin) // the reader is gone
	p.stdinMu.Unlock()
	go func() {
		for _, s := range p.sources {
			<-s.done
		}
		p.stdinMu.Lock()
		defer p.stdinMu.Unlock()
		p.mu.Lock()
		defer p.mu.Unlock()
		_ = p.io.closeOurs() // only read from
	}()
}

func (p *process) begun() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.started
}

func (p *process) running() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.child != nil && p.exit == nil
}
