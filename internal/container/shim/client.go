package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/procid"
)

// ProgramError says that a container or exec could not be made because of the program it names: docker's
// words in Msg, the exit code that a user sees in Code (127 not found, 126 not executable).
// It is of class errs.Invalid.
type ProgramError struct {
	Code int
	Msg  string
}

func (e *ProgramError) Error() string { return e.Msg }

// Is reports whether target is the error's class.
func (e *ProgramError) Is(target error) bool { return target == errs.Invalid }

// Client speaks with the shim of one container. Every call makes a connection of its own, so a Client is safe
// for concurrent use and holds nothing that must be closed.
//
// Errors: errs.Unavailable when the shim has gone (then the exit file tells how the container ended, and Cleanup
// removes what a killed shim left), errs.NotFound for an unknown exec, errs.Conflict when the state forbids it,
// errs.Precondition when the process has ended.
type Client struct {
	cfg  Config
	self Identity
}

// Connect finds the shim of a bundle again. errs.NotFound when none lives: never started, ended, killed, or from
// before a reboot.
func Connect(bundle string) (*Client, error) {
	cfg, err := readJSON[Config](filepath.Join(bundle, ConfigFile))
	if err != nil {
		return nil, err
	}
	id, err := readJSON[Identity](filepath.Join(bundle, PidFile))
	if err != nil {
		return nil, err
	}
	if !procid.Alive(procid.ID(id)) {
		return nil, errs.New(errs.NotFound, "shim of %s: process %d has ended", bundle, id.PID)
	}
	cfg.Bundle = bundle
	c := &Client{cfg: cfg, self: id}
	// The pid file is written before the socket listens; a shim that never got that far is not there.
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, errs.New(errs.NotFound, "shim of %s: %w", bundle, err)
	}
	return c, conn.Close()
}

// ReadExit reads an exit file. errs.NotFound when the container has not ended under a shim's eyes.
func ReadExit(path string) (Exit, error) { return readJSON[Exit](path) }

// ReadIdentity reads PidFile or InitFile of a bundle.
func ReadIdentity(path string) (Identity, error) { return readJSON[Identity](path) }

func readJSON[T any](path string) (v T, err error) {
	data, err := durable.ReadFile(durable.OS, path, MaxFrame)
	if errors.Is(err, fs.ErrNotExist) {
		return v, errs.New(errs.NotFound, "shim: %w", err)
	}
	if err != nil {
		return v, fmt.Errorf("shim: %w", err)
	}
	if err := json.Unmarshal(data, &v); err != nil {
		return v, errs.New(errs.DataLoss, "shim: %s: %w", path, err)
	}
	return v, nil
}

// Config gives the configuration that the shim was launched with.
func (c *Client) Config() Config { return c.cfg }

// Identity names the shim's process.
func (c *Client) Identity() Identity { return c.self }

// Start runs a created process: "" is the container's first, otherwise an exec's ID.
func (c *Client) Start(ctx context.Context, process string) error {
	_, err := call[struct{}, struct{}](ctx, c, OpStart, process, nil)
	return err
}

// State tells what the container (process "") or an exec does.
func (c *Client) State(ctx context.Context, process string) (StateReply, error) {
	return call[struct{}, StateReply](ctx, c, OpState, process, nil)
}

// Kill sends a signal to a process, or to every process of the container. errs.Precondition when it has ended.
func (c *Client) Kill(ctx context.Context, process string, args KillArgs) error {
	_, err := call[KillArgs, struct{}](ctx, c, OpKill, process, &args)
	return err
}

// Wait waits until a process has ended and its output is in the log. For the first process it also answers from
// the exit file when the shim goes away meanwhile.
func (c *Client) Wait(ctx context.Context, process string) (Exit, error) {
	e, err := call[struct{}, Exit](ctx, c, OpWait, process, nil)
	if err != nil && process == "" && ctx.Err() == nil {
		if e, rerr := ReadExit(c.cfg.ExitPath); rerr == nil {
			return e, nil
		}
	}
	return e, err
}

// Resize sets the size of a process' terminal, also before it is started. errs.Invalid without a terminal.
func (c *Client) Resize(ctx context.Context, process string, height, width uint) error {
	_, err := call[ResizeArgs, struct{}](ctx, c, OpResize, process, &ResizeArgs{Height: height, Width: width})
	return err
}

// Pause freezes every process of the container.
func (c *Client) Pause(ctx context.Context) error {
	_, err := call[struct{}, struct{}](ctx, c, OpPause, "", nil)
	return err
}

// Resume thaws it.
func (c *Client) Resume(ctx context.Context) error {
	_, err := call[struct{}, struct{}](ctx, c, OpResume, "", nil)
	return err
}

// ExecOptions of Exec.
type ExecOptions struct {
	Stdin  bool // keep stdin open for attachers until the first leaves
	Detach bool // output goes nowhere
}

// Exec creates a process beside the container's first; Start(id) runs it, Attach may come before. p.Terminal and
// p.ConsoleSize say whether it gets a terminal of its own. The ID must be new: errs.Exists.
func (c *Client) Exec(ctx context.Context, id string, p *specs.Process, o ExecOptions) error {
	raw, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("exec %s: %w", id, err)
	}
	_, err = call[ExecArgs, struct{}](ctx, c, OpExec, id, &ExecArgs{ID: id, Process: raw, Stdin: o.Stdin, Detach: o.Detach})
	return err
}

// Update changes limits; nil fields stay as they are.
func (c *Client) Update(ctx context.Context, r *specs.LinuxResources) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("update: %w", err)
	}
	_, err = call[UpdateArgs, struct{}](ctx, c, OpUpdate, "", &UpdateArgs{Resources: raw})
	return err
}

// Stats reads the container's cgroups.
func (c *Client) Stats(ctx context.Context) (StatsReply, error) {
	return call[struct{}, StatsReply](ctx, c, OpStats, "", nil)
}

// Pids lists the container's processes in the host's pid namespace.
func (c *Client) Pids(ctx context.Context) ([]int, error) {
	return call[struct{}, []int](ctx, c, OpPids, "", nil)
}

// Shutdown deletes the runtime state of a container that has ended, or that was created and never started, and
// ends the shim; it returns when the shim's process is gone. A shim that is gone already is no error.
// errs.Conflict while the container runs.
func (c *Client) Shutdown(ctx context.Context) error {
	_, err := call[struct{}, struct{}](ctx, c, OpStop, "", nil)
	if err != nil && !errors.Is(err, errs.Unavailable) {
		return err
	}
	return waitGone(ctx, c.self)
}

// waitGone waits until a process has ended.
func waitGone(ctx context.Context, id Identity) error {
	pidfd, err := procid.Open(procid.ID(id))
	if errors.Is(err, procid.ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer pidfd.Close()
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}, 100)
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("shim %d: %w", id.PID, err)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("shim %d: %w", id.PID, context.Cause(ctx))
		}
	}
}

func (c *Client) dial(ctx context.Context) (*net.UnixConn, error) {
	var conn net.Conn
	err := viaDir(c.cfg.Bundle, func(path string) (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, "unix", path)
		return err
	})
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, errs.New(errs.Unavailable, "container %s: shim does not answer: %w", c.cfg.ID, err)
	}
	return conn.(*net.UnixConn), nil
}

// open sends a request and reads the response; the connection is the caller's when there is no error. A done
// context breaks the connection until stop is called.
func (c *Client) open(ctx context.Context, req Request) (conn *net.UnixConn, body json.RawMessage, stop func() bool, err error) {
	conn, err = c.dial(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	stop = context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) }) // wakes the read below
	defer func() {
		if err != nil {
			stop()
			err = errors.Join(err, conn.Close())
		}
	}()
	if err = WriteFrame(conn, req); err == nil {
		var resp Response
		if resp, err = ReadFrame[Response](conn); err == nil {
			return conn, resp.Body, stop, responseError(c.cfg.ID, resp)
		}
	}
	if ctx.Err() != nil {
		return conn, nil, stop, context.Cause(ctx)
	}
	return conn, nil, stop, errs.New(errs.Unavailable, "container %s: shim went away during %s: %w", c.cfg.ID, req.Op, err)
}

func call[A, R any](ctx context.Context, c *Client, op Op, process string, args *A) (r R, err error) {
	req := Request{Op: op, Process: process}
	if args != nil {
		if req.Args, err = json.Marshal(args); err != nil {
			return r, fmt.Errorf("%s: %w", op, err)
		}
	}
	conn, body, stop, err := c.open(ctx, req)
	if err != nil {
		return r, err
	}
	stop()
	defer conn.Close() // everything was received
	if len(body) == 0 {
		return r, nil
	}
	if err := json.Unmarshal(body, &r); err != nil {
		return r, errs.New(errs.Internal, "container %s: %s: bad answer of the shim: %w", c.cfg.ID, op, err)
	}
	return r, nil
}

// Classes of a Response.
const (
	ClassProgramNotFound = "notfound" // the program to run
	ClassNotExecutable   = "notexec"  // the program to run
	ClassConflict        = "conflict"
	ClassGone            = "gone"    // the process has ended
	ClassInvalid         = "invalid" // the request
	ClassUnknown         = "unknown" // no such exec
	ClassExists          = "exists"  // exec ID in use
)

func responseError(id string, r Response) error {
	if r.Error == "" {
		return nil
	}
	switch r.Class {
	case ClassProgramNotFound:
		return &ProgramError{Code: 127, Msg: r.Error}
	case ClassNotExecutable:
		return &ProgramError{Code: 126, Msg: r.Error}
	case ClassConflict:
		return errs.New(errs.Conflict, "%s", r.Error)
	case ClassGone:
		return errs.New(errs.Precondition, "%s", r.Error)
	case ClassInvalid:
		return errs.New(errs.Invalid, "%s", r.Error)
	case ClassUnknown:
		return errs.New(errs.NotFound, "%s", r.Error)
	case ClassExists:
		return errs.New(errs.Exists, "%s", r.Error)
	}
	return errs.New(errs.Internal, "container %s: %s", id, r.Error)
}
