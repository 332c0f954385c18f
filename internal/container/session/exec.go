package session

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"ply/internal/container/shim"
	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/oci"
)

// Exec is a process beside the first one of a container. Safe for concurrent use.
type Exec struct {
	id   string
	set  *Set
	run  *Run
	spec spec.ExecSpec
	done chan struct{} // closed when the process has ended, or cannot run any more

	mu      sync.Mutex
	started bool
	running bool
	code    *int // nil until the process has ended
	pid     int
	size    [2]uint // height and width of the terminal
}

// ExecInfo describes an exec for inspect.
type ExecInfo struct {
	ID        string
	Container oci.ContainerID
	Spec      spec.ExecSpec
	Running   bool
	ExitCode  *int // nil until the process has ended
	PID       int
}

func newExecID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// NewExec registers a process to be run beside the first one. Errors: errs.Conflict when the container does not run,
// errs.Invalid.
func (s *Set) NewExec(sp spec.ExecSpec) (*Exec, error) {
	run, err := s.ready()
	if err != nil {
		return nil, err
	}
	if err := sp.Check(); err != nil {
		return nil, err
	}
	if _, err := parseDetachKeys(sp.DetachKeys); err != nil {
		return nil, err
	}
	e := &Exec{id: newExecID(), set: s, run: run, spec: sp, done: make(chan struct{}), size: sp.ConsoleSize}
	s.mu.Lock()
	ended := s.run != run
	if !ended {
		s.execs[e.id] = e
	}
	s.mu.Unlock()
	if ended {
		return nil, errs.New(errs.Conflict, "container %s is not running", s.c.ID())
	}
	s.reg.add(e)
	s.c.Publish("exec_create: "+strings.Join(sp.Cmd, " "), "execID", e.id)
	return e, nil
}

// ID returns the exec's ID: 64 hex digits.
func (e *Exec) ID() string { return e.id }

// Info describes the exec as it is now.
func (e *Exec) Info() *ExecInfo {
	e.mu.Lock()
	defer e.mu.Unlock()
	return &ExecInfo{ID: e.id, Container: e.set.c.ID(), Spec: e.spec, Running: e.running, ExitCode: e.code, PID: e.pid}
}

// Resize sets the size of the exec's terminal. Before the start it sets the size to start with.
func (e *Exec) Resize(ctx context.Context, height, width uint) error {
	if err := checkSize(height, width); err != nil {
		return err
	}
	e.mu.Lock()
	if !e.started {
		e.size = [2]uint{height, width}
		e.mu.Unlock()
		return nil
	}
	running := e.running
	e.mu.Unlock()
	if !running {
		return errs.New(errs.Conflict, "exec %s is not running", e.id)
	}
	if !e.spec.Tty {
		return nil // as docker does
	}
	return e.run.Client.Resize(ctx, e.id, height, width)
}

// Start runs the exec. Detached, it returns at once. Otherwise it returns when the process has ended and its exit code
// can be read, when the client has left, or with ErrDetached. opts.Ready is called before the process runs: an error
// after it is one of the program, whose exit code 126 or 127 can be read already. size is the terminal's height and
// width; zero leaves it as it is. Errors: errs.Conflict.
func (e *Exec) Start(ctx context.Context, opts AttachOptions, detach bool, size [2]uint) error {
	run, err := e.set.ready()
	if err != nil {
		return err
	}
	keys := opts.DetachKeys
	if keys == "" {
		keys = e.spec.DetachKeys
	}
	matcher, err := parseDetachKeys(keys)
	if err != nil {
		return err
	}
	if !e.spec.Tty {
		matcher = nil
	}
	if size, err = e.claim(run, size); err != nil {
		return err
	}
	if !e.spec.AttachStdin {
		opts.Stdin = nil
	}
	if detach {
		opts = AttachOptions{}
	}
	st, err := e.create(ctx, size, opts, detach)
	if err != nil {
		e.run.withdraw(ctx, e.id)
		e.end(exitCode(err))
		return err
	}
	if st != nil {
		defer st.Close()
	}
	if opts.Ready != nil {
		if err := opts.Ready(); err != nil {
			e.run.withdraw(ctx, e.id)
			e.end(126)
			return err
		}
	}
	if err := e.begin(ctx); err != nil {
		return err
	}
	if st == nil {
		return nil
	}
	if _, err := pump(ctx, st, opts, matcher); err != nil {
		return err
	}
	select {
	case <-e.done:
	case <-ctx.Done():
	}
	return nil
}

// claim marks the exec as started, which works once, and returns the size of its terminal.
func (e *Exec) claim(run *Run, size [2]uint) ([2]uint, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.running:
		return size, errs.New(errs.Conflict, "exec command %s is already running", e.id)
	case e.started:
		return size, errs.New(errs.Conflict, "exec command %s has already run", e.id)
	case e.run != run:
		return size, errs.New(errs.Conflict, "container %s was restarted since the exec was made", e.set.c.ID())
	}
	e.started = true
	if size != [2]uint{} {
		e.size = size
	}
	return e.size, nil
}

// create makes the process and attaches to it; the stream is nil when the exec is detached.
func (e *Exec) create(ctx context.Context, size [2]uint, opts AttachOptions, detach bool) (*stream, error) {
	p, err := e.set.c.Process(e.spec, size)
	if err != nil {
		return nil, err
	}
	if err := e.run.createExec(ctx, e.id, p, shim.ExecOptions{Stdin: opts.Stdin != nil, Detach: detach}); err != nil {
		return nil, err
	}
	if detach {
		return nil, nil
	}
	return e.run.attach(ctx, e.id, shim.AttachArgs{
		Stdin: opts.Stdin != nil, Stdout: opts.Stdout != nil, Stderr: opts.Stderr != nil && !e.spec.Tty,
	})
}

// begin starts the process and watches for its end.
func (e *Exec) begin(ctx context.Context) error {
	// A client that leaves now must not leave a process that nothing watches.
	if err := e.set.start(context.WithoutCancel(ctx), e.run, e.id); err != nil {
		e.run.withdraw(ctx, e.id)
		e.end(exitCode(err))
		if pe, ok := errors.AsType[*shim.ProgramError](err); ok {
			return errs.New(errs.Invalid, "OCI runtime exec failed: exec failed: %w", pe)
		}
		return err
	}
	e.mu.Lock()
	e.running = true
	e.mu.Unlock()
	if st, err := e.run.Client.State(ctx, e.id); err == nil {
		e.mu.Lock()
		e.pid = st.PID
		e.mu.Unlock()
	}
	e.set.c.Publish("exec_start: "+strings.Join(e.spec.Cmd, " "), "execID", e.id)
	e.set.reg.work.Go(e.watch)
	return nil
}

// watch waits for the end of the process.
func (e *Exec) watch() {
	ctx := e.set.reg.ctx
	exit, err := e.run.Client.Wait(ctx, e.id)
	if ctx.Err() != nil {
		return // the engine stops; the process runs on
	}
	if err != nil {
		exit.Code = 137 // the container ended and the kernel killed the process
	}
	e.end(exit.Code)
	e.set.c.Publish("exec_die", "execID", e.id, "exitCode", strconv.Itoa(exit.Code))
}

// exitCode returns the exit code of an exec that could not run.
func exitCode(err error) int {
	if pe, ok := errors.AsType[*shim.ProgramError](err); ok {
		return pe.Code
	}
	return 126
}

// end records the exit code.
func (e *Exec) end(code int) {
	e.mu.Lock()
	select {
	case <-e.done:
	default:
		close(e.done)
	}
	e.running, e.code = false, &code
	e.mu.Unlock()
	e.forget()
}

// abandon ends an exec whose container has ended. One that runs gets its exit code from watch. One that was not started can never be
// started any more and is forgotten at once, as docker does.
func (e *Exec) abandon() {
	e.mu.Lock()
	pending := !e.started
	if pending {
		e.started = true
		close(e.done)
	}
	e.mu.Unlock()
	if pending {
		e.set.reg.forget(e)
	}
	e.forget()
}

func (e *Exec) forget() {
	e.set.mu.Lock()
	delete(e.set.execs, e.id)
	e.set.mu.Unlock()
	e.set.reg.forgetLater(e)
}

// createExec makes a process in the shim. It does not end with ctx, because then it would not be known whether there is something to withdraw.
func (r *Run) createExec(ctx context.Context, id string, p *specs.Process, o shim.ExecOptions) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killLimit)
	defer cancel()
	return r.Client.Exec(ctx, id, p, o)
}

// withdraw lets the shim forget a process that was made and will not be started, as when the client has left. Its streams would stay open until the
// end of the container.
func (r *Run) withdraw(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killLimit)
	defer cancel()
	_ = r.Client.Kill(ctx, id, shim.KillArgs{Signal: 9}) // there may be no such process, or no shim any more
}

// killLimit is how long the shim may take to kill a process, or to prepare one.
const killLimit = 10 * time.Second

// RunOnce runs a process in run to its end, without registering it, and returns its exit code. Its output goes to out.
// When ctx ends first the process is killed.
func (s *Set) RunOnce(ctx context.Context, run *Run, sp spec.ExecSpec, out io.Writer) (int, error) {
	p, err := s.c.Process(sp, [2]uint{})
	if err != nil {
		return -1, err
	}
	id := newExecID()
	if err := run.createExec(ctx, id, p, shim.ExecOptions{}); err != nil {
		run.withdraw(ctx, id)
		return exitCode(err), err
	}
	st, err := run.attach(ctx, id, shim.AttachArgs{Stdout: true, Stderr: true})
	if err != nil {
		run.withdraw(ctx, id)
		return -1, err
	}
	defer st.Close()
	if err := s.start(ctx, run, id); err != nil {
		run.withdraw(ctx, id)
		return exitCode(err), err
	}
	_, err = pump(ctx, st, AttachOptions{Stdout: out, Stderr: out}, nil)
	if ctx.Err() != nil {
		kill, cancel := context.WithTimeout(context.WithoutCancel(ctx), killLimit)
		defer cancel()
		_ = run.Client.Kill(kill, id, shim.KillArgs{Signal: 9}) // the process may have ended meanwhile
		return -1, context.Cause(ctx)
	}
	if err != nil {
		return -1, err
	}
	e, err := run.Client.Wait(ctx, id)
	return e.Code, err
}
