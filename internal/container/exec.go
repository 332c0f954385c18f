package container

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"ply/internal/container/runspec"
	"ply/internal/container/shim"
	"ply/internal/container/spec"
	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/volume"
)

// execMemory is how long an exec that has ended can still be inspected.
const execMemory = 5 * time.Minute

// execution is one exec.
type execution struct {
	id   string
	c    *ctr
	spec spec.ExecSpec

	mu      sync.Mutex // a leaf
	started bool
	running bool
	code    *int
	pid     int
	life    *life
	done    chan struct{} // closed when it has ended
	size    [2]uint
}

func newExecID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// ready gives the run of a container in which an exec may run.
func (s *Service) ready(c *ctr) (*life, error) {
	switch c.status() {
	case StatusPaused:
		return nil, errs.New(errs.Conflict, "container %s is paused, unpause the container before exec", c.id)
	case StatusRestarting:
		return nil, errs.New(errs.Conflict, "container %s is restarting, wait until the container is running", c.id)
	}
	return c.running()
}

// ExecCreate registers a process to be run beside a container's first. Errors: NotFound, Conflict when the
// container does not run, Invalid.
func (s *Service) ExecCreate(ctx context.Context, ref string, spec spec.ExecSpec) (string, error) {
	c, err := s.find(ref)
	if err != nil {
		return "", err
	}
	l, err := s.ready(c)
	if err != nil {
		return "", err
	}
	if err := spec.Check(); err != nil {
		return "", err
	}
	if _, err := parseDetachKeys(spec.DetachKeys); err != nil {
		return "", err
	}
	e := s.register(c, l, spec)
	s.publish(c, "exec_create: "+strings.Join(spec.Cmd, " "), "execID", e.id)
	return e.id, nil
}

func (s *Service) register(c *ctr, l *life, spec spec.ExecSpec) *execution {
	e := &execution{id: newExecID(), c: c, spec: spec, life: l, done: make(chan struct{}), size: spec.ConsoleSize}
	c.mu.Lock()
	c.execs[e.id] = e
	c.mu.Unlock()
	s.mu.Lock()
	s.execs[e.id] = e
	s.mu.Unlock()
	return e
}

// forgetLater drops an exec when nobody will ask for it any more.
func (s *Service) forgetLater(e *execution) {
	e.c.mu.Lock()
	delete(e.c.execs, e.id)
	e.c.mu.Unlock()
	time.AfterFunc(execMemory, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.execs, e.id)
	})
}

// dropExecs settles the execs of a container that has ended.
func (s *Service) dropExecs(execs map[string]*execution) {
	for _, e := range execs {
		e.mu.Lock()
		if !e.started {
			e.started = true
			close(e.done)
		}
		e.mu.Unlock()
		s.forgetLater(e)
	}
}

func (s *Service) findExec(id string) (*execution, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if e := s.execs[id]; e != nil {
		return e, nil
	}
	return nil, errs.New(errs.NotFound, "No such exec instance: %s", clip(id))
}

// ExecGet tells of an exec, also for some minutes after its end.
func (s *Service) ExecGet(ctx context.Context, id string) (*Exec, error) {
	e, err := s.findExec(id)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return &Exec{ID: e.id, Container: e.c.id, Spec: e.spec, Running: e.running, ExitCode: e.code, PID: e.pid}, nil
}

// ExecResize sets the size of an exec's terminal; before the start it is remembered.
func (s *Service) ExecResize(ctx context.Context, id string, height, width uint) error {
	e, err := s.findExec(id)
	if err != nil {
		return err
	}
	if height > 65535 || width > 65535 {
		return invalid("terminal size %dx%d is larger than 65535", height, width)
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
		return errs.New(errs.Conflict, "exec %s is not running", id)
	}
	return e.life.client.Resize(ctx, id, height, width)
}

// ExecStart runs an exec. Detached it returns at once; otherwise when the process has ended and its exit code can be
// read, when the client has left, or with ErrDetached. opts.Ready is called before the process runs, so an error
// after it is one of the program, with the exit code 126 or 127 already readable. Errors: NotFound, Conflict.
func (s *Service) ExecStart(ctx context.Context, id string, opts AttachOptions, detach bool, consoleSize [2]uint) error {
	e, err := s.findExec(id)
	if err != nil {
		return err
	}
	l, err := s.ready(e.c)
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
	e.mu.Lock()
	switch {
	case e.running:
		err = errs.New(errs.Conflict, "exec command %s is already running", id)
	case e.started:
		err = errs.New(errs.Conflict, "exec command %s has already run", id)
	case e.life != l:
		err = errs.New(errs.Conflict, "container %s was restarted since the exec was made", e.c.id)
	default:
		e.started = true
		if consoleSize != [2]uint{} {
			e.size = consoleSize
		}
	}
	size := e.size
	e.mu.Unlock()
	if err != nil {
		return err
	}
	if !e.spec.AttachStdin {
		opts.Stdin = nil
	}
	if detach {
		opts = AttachOptions{}
	}
	st, err := s.execOpen(ctx, e, l, size, opts, detach)
	if err != nil {
		s.execEnded(e, execCode(err))
		return err
	}
	if st != nil {
		defer st.Close()
	}
	if opts.Ready != nil {
		if err := opts.Ready(); err != nil {
			s.execEnded(e, 126)
			return err
		}
	}
	if err := s.execRun(ctx, e, l); err != nil {
		return err
	}
	if st == nil {
		return nil
	}
	if err := pump(ctx, st, opts, matcher); err != nil {
		return err
	}
	select {
	case <-e.done:
	case <-ctx.Done():
	}
	return nil
}

// execOpen makes the process and attaches to it.
func (s *Service) execOpen(ctx context.Context, e *execution, l *life, size [2]uint, opts AttachOptions, detach bool) (*shim.Stream, error) {
	p, err := s.execProcess(e.c, e.spec, size)
	if err != nil {
		return nil, err
	}
	if err := l.client.Exec(ctx, e.id, p, shim.ExecOptions{Stdin: opts.Stdin != nil, Detach: detach}); err != nil {
		return nil, err
	}
	if detach {
		return nil, nil
	}
	return l.client.Attach(ctx, e.id, shim.AttachArgs{
		Stdin: opts.Stdin != nil, Stdout: opts.Stdout != nil, Stderr: opts.Stderr != nil && !e.spec.Tty,
	})
}

// execBegin starts the process of an exec unless the container is frozen.
func (s *Service) execBegin(ctx context.Context, c *ctr, l *life, id string) error {
	c.freezing.RLock()
	defer c.freezing.RUnlock()
	if now, err := s.ready(c); err != nil || now != l {
		return join(err, errs.New(errs.Conflict, "container %s is not running", c.id))
	}
	return l.client.Start(ctx, id)
}

// execRun starts the process and watches for its end.
func (s *Service) execRun(ctx context.Context, e *execution, l *life) error {
	if err := s.execBegin(context.WithoutCancel(ctx), e.c, l, e.id); err != nil {
		s.execEnded(e, execCode(err))
		if pe, ok := errors.AsType[*shim.ProgramError](err); ok {
			return errs.New(errs.Invalid, "OCI runtime exec failed: exec failed: %w", pe)
		}
		return err
	}
	e.mu.Lock()
	e.running = true
	e.mu.Unlock()
	if st, err := l.client.State(ctx, e.id); err == nil {
		e.mu.Lock()
		e.pid = st.PID
		e.mu.Unlock()
	}
	s.publish(e.c, "exec_start: "+strings.Join(e.spec.Cmd, " "), "execID", e.id)
	s.work.Go(func() {
		exit, err := l.client.Wait(s.run, e.id)
		if s.run.Err() != nil {
			return
		}
		if err != nil {
			exit.Code = 137 // the container ended, and took it along
		}
		s.execEnded(e, exit.Code)
		s.publish(e.c, "exec_die", "execID", e.id, "exitCode", strconv.Itoa(exit.Code))
	})
	return nil
}

func execCode(err error) int {
	if pe, ok := errors.AsType[*shim.ProgramError](err); ok {
		return pe.Code
	}
	return 126
}

func (s *Service) execEnded(e *execution, code int) {
	e.mu.Lock()
	select {
	case <-e.done:
	default:
		close(e.done)
	}
	e.running, e.code = false, &code
	e.mu.Unlock()
	s.forgetLater(e)
}

// execProcess makes the process of an exec from the spec that the container runs with.
func (s *Service) execProcess(c *ctr, spec spec.ExecSpec, size [2]uint) (*specs.Process, error) {
	in, err := s.specInput(c, &prepared{files: c, mounts: []volume.Mount{}})
	if err != nil {
		return nil, err
	}
	raw, err := durable.ReadFile(durable.OS, filepath.Join(c.exec, shim.SpecFile), shim.MaxFrame)
	if err != nil {
		return nil, errs.New(errs.Internal, "container %s: runtime spec: %w", c.id.Short(), err)
	}
	var running specs.Spec
	if err := json.Unmarshal(raw, &running); err != nil {
		return nil, fmt.Errorf("container %s: runtime spec: %w", c.id.Short(), err)
	}
	p, warnings, err := runspec.Exec(in, &running, runspec.ExecInput{
		Args: spec.Cmd, Env: spec.Env, Cwd: spec.WorkingDir, User: spec.User, Tty: spec.Tty,
		Height: size[0], Width: size[1], Privileged: spec.Privileged,
	})
	for _, w := range warnings {
		s.log.Warn("exec runs with less than was asked for", "container", c.id, "warning", w)
	}
	return p, err
}
