// Package session connects clients with the processes of a container: attaching to the first process with its detach
// keys, further processes (execs), and reading the log.
//
// A session works on one run of the container through the client of its shim. What else it needs of the container it
// asks through the interface Container, so nothing here knows the life cycle, the database or other containers.
package session

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"ply/internal/container/logfile"
	"ply/internal/container/shim"
	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/oci"
)

// ErrDetached reports that an attached client typed the detach keys. The process runs on.
var ErrDetached = errors.New("read escape sequence")

// Container is what sessions need of their container. The methods are safe for concurrent use and are called without
// a lock of this package.
type Container interface {
	ID() oci.ContainerID
	// Running returns the current run. Errors: errs.Conflict when the container does not run.
	Running() (*Run, error)
	// CheckState returns errs.Conflict while the container is paused or restarting; the error names the action.
	CheckState(action string) error
	// Streams reports whether the first process has a terminal, and whether its stdin stays open.
	Streams() (tty, stdin bool)
	// Log describes the log file. Errors: errs.Invalid for bad options.
	Log() (shim.Log, error)
	// Process makes the runtime's description of a further process with a terminal of the given height and width.
	Process(s spec.ExecSpec, size [2]uint) (*specs.Process, error)
	// Publish sends an event of the container; attrs are keys and values in turn.
	Publish(action string, attrs ...string)
	// Removed is closed when the container is removed.
	Removed() <-chan struct{}
}

// Run is one run of a container's first process.
type Run struct {
	Client   *shim.Client
	Ended    <-chan struct{} // closed when the end of the run is being recorded
	Recorded <-chan struct{} // closed when it was recorded, so that inspect shows it

	mu      sync.Mutex
	streams map[*stream]struct{} // the attached ones whose output was not read to the end
}

// AttachOptions of Set.Attach and Exec.Start. Streams are nil when they are not wanted.
type AttachOptions struct {
	Stdin          io.Reader // its end closes the stdin of the process
	Stdout, Stderr io.Writer // a terminal has no stderr: all its output goes to Stdout
	Logs           bool      // write the log so far first
	Stream         bool      // attach to the process; without it only the log is written
	DetachKeys     string    // "" = ctrl-p,ctrl-q
	Resume         *Resume   // nil = the client does not come back when its connection breaks
	// Ready is called once, after the streams are connected and before a byte is copied.
	Ready func() error
}

// Resume is about a client that comes back, to another engine, when its connection has broken, and gets what follows the output that it has.
type Resume struct {
	Client string // identifies it

	From *shim.Position // where it goes on; nil = a client that comes for the first time
	Cut  time.Time      // when its connection broke; a run that began later is not its own

	At shim.Position // where the output begins; set before Ready is called
	On bool          // it can come back; set before Ready is called
}

// LogOptions of Set.Logs.
type LogOptions struct {
	Stdout, Stderr     bool
	Follow, Timestamps bool
	Since, Until       time.Time // zero = no bound
	Tail               int       // lines from the end; -1 = all
	Details            bool

	// After is the place behind which to begin, for a client that has what is before it; nil = the beginning that the other options name.
	After *LogPlace
	// Record gets the records in place of the writers, if it is not nil: what is written for some that follow each other, and the place behind them.
	Record func(stream byte, text []byte, behind LogPlace) error
	// Idle is called while the log is followed, when everything that it has was written; nil = not called.
	Idle func() error
}

// LogPlace is a place in a log: behind the record of that time. Inside says per stream whether a line is unfinished there.
type LogPlace struct {
	Time   time.Time
	Inside [3]bool
}

// Set is the sessions of one container: the clients attached to it and its execs. Safe for concurrent use.
type Set struct {
	c   Container
	reg *Registry

	// freezing is locked for writing while the processes are frozen or thawed, and for reading while an exec starts:
	// a process that is created in a frozen cgroup blocks its runtime.
	freezing sync.RWMutex

	mu      sync.Mutex
	run     *Run // nil when no process runs
	waiting map[*pending]struct{}
	execs   map[string]*Exec           // those of the current run that have not ended
	logs    map[*logfile.Held]struct{} // one per client that reads the log

	followers logfile.Followers // the clients that follow it
}

// NewSet returns the sessions of a container. Its execs can be found in reg.
func NewSet(c Container, reg *Registry) *Set {
	return &Set{c: c, reg: reg, waiting: map[*pending]struct{}{}, execs: map[string]*Exec{}, logs: map[*logfile.Held]struct{}{}}
}

// Begin makes run the current run and connects the clients that attached before it. It is called before the process
// starts, so they miss no output. abort undoes it when the start fails.
func (s *Set) Begin(run *Run) (abort func() error) {
	s.mu.Lock()
	s.run = run
	waiting := s.waiting
	s.waiting = map[*pending]struct{}{}
	s.mu.Unlock()
	var streams []*stream
	for p := range waiting {
		// The stream lives as long as the client's request.
		st, err := run.attach(p.ctx, "", p.args)
		p.answer <- answer{st, err}
		switch {
		case err != nil:
		case p.ctx.Err() != nil:
			_ = st.Close() // the client is gone
		default:
			streams = append(streams, st)
		}
	}
	return func() error {
		s.mu.Lock()
		if s.run == run {
			s.run = nil
		}
		s.mu.Unlock()
		var err error
		for _, st := range streams {
			err = errors.Join(err, st.Close())
		}
		return err
	}
}

// End forgets the current run and ends its execs. New clients that attach wait for the next run.
func (s *Set) End() {
	s.mu.Lock()
	s.run = nil
	execs := s.execs
	s.execs = map[string]*Exec{}
	s.mu.Unlock()
	for _, e := range execs {
		e.abandon()
	}
}

// Drop disconnects the clients that wait for a run, and forgets the execs: the container is removed.
func (s *Set) Drop() {
	s.reg.forgetContainer(s)
	s.mu.Lock()
	defer s.mu.Unlock()
	for p := range s.waiting {
		p.cancel()
	}
}

// WithoutStarts calls f while no exec is being started.
func (s *Set) WithoutStarts(f func() error) error {
	s.freezing.Lock()
	defer s.freezing.Unlock()
	return f()
}

// Execs returns the IDs of the execs that have not ended.
func (s *Set) Execs() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []string
	for id := range s.execs {
		ids = append(ids, id)
	}
	return ids
}

// ready returns the run in which an exec may start.
func (s *Set) ready() (*Run, error) {
	if err := s.c.CheckState("exec"); err != nil {
		return nil, err
	}
	return s.c.Running()
}

// start starts a process that was created in run.
func (s *Set) start(ctx context.Context, run *Run, id string) error {
	s.freezing.RLock()
	defer s.freezing.RUnlock()
	now, err := s.ready()
	if err != nil {
		return err
	}
	if now != run {
		return errs.New(errs.Conflict, "container %s is not running", s.c.ID())
	}
	return run.Client.Start(ctx, id)
}

func invalid(format string, args ...any) error { return errs.New(errs.Invalid, format, args...) }

func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}
