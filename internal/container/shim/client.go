package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/network/proxy"
	"ply/internal/procid"
	"ply/internal/record"
)

// ProgramError reports that a container or exec could not be created because of the program to run. Its class is
// errs.Invalid.
type ProgramError struct {
	Code int    // exit code that the user sees: 127 for not found, 126 for not executable
	Msg  string // in docker's words
}

func (e *ProgramError) Error() string { return e.Msg }

// Is reports whether target is the error's class.
func (e *ProgramError) Is(target error) bool { return target == errs.Invalid }

// Client sends requests to the shim of one container. Every call makes its own connection, so a Client is safe for
// concurrent use and need not be closed.
//
// The classes of its errors: errs.Unavailable when the shim is gone (the exit file then says how the container ended, and
// Cleanup removes what a killed shim left), errs.NotFound for an unknown exec, errs.Conflict when the container's state
// forbids the operation, errs.Precondition when the process has ended, errs.Unimplemented when this plyd or the shim is
// too old for the operation.
type Client struct {
	cfg  Config
	self Identity
	peer record.Header // the version that the shim speaks, and its release
}

// Connect finds the running shim of a bundle. It returns errs.NotFound when there is none: it was never started, has
// ended, was killed, or ran before a reboot. A shim of a newer version is no error; see Newer.
func Connect(bundle string) (*Client, error) {
	cfg, err := ReadConfigCore(bundle)
	if err != nil {
		return nil, err
	}
	id, peer, err := readFile[Identity](filepath.Join(bundle, PidFile))
	if err != nil { // the file is damaged; the shim is of the release that wrote its configuration
		var lerr, herr error
		id, lerr = Listener(bundle)
		_, peer, herr = readFile[Config](filepath.Join(bundle, ConfigFile))
		if lerr != nil || herr != nil {
			return nil, err
		}
	}
	if !procid.Alive(procid.ID(id)) {
		return nil, errs.New(errs.NotFound, "shim of %s: process %d has ended", bundle, id.PID)
	}
	cfg.Bundle = bundle
	c := &Client{cfg: cfg, self: id, peer: peer}
	// The shim writes its pid file before it listens. One that does not listen yet has created nothing.
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, errs.New(errs.NotFound, "shim of %s: %w", bundle, err)
	}
	return c, conn.Close()
}

// Listener returns the identity of the process that listens on the socket of a bundle, without the files of the bundle.
func Listener(bundle string) (id Identity, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	conn, err := (&Client{cfg: Config{ID: filepath.Base(bundle), Bundle: bundle}}).dial(ctx)
	if err != nil {
		return id, err
	}
	defer conn.Close() // nothing was written
	raw, err := conn.SyscallConn()
	if err != nil {
		return id, err
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil || err != nil {
		return id, errors.Join(cerr, err)
	}
	who, err := procid.Of(int(cred.Pid))
	return Identity(who), err
}

// Config returns the configuration that the shim was launched with.
func (c *Client) Config() Config { return c.cfg }

// Identity returns the name of the shim's process.
func (c *Client) Identity() Identity { return c.self }

// Newer returns nil unless the shim speaks a newer version of the protocol than this build. Then it returns the error,
// of class errs.Unimplemented, that every operation outside the core returns: it names the shim's version and release.
func (c *Client) Newer() error {
	if c.peer.Version <= Version {
		return nil
	}
	return newer(errs.Unimplemented, "container "+c.cfg.ID+": the protocol of its shim", c.peer,
		"The container can be stopped, killed and removed; a later ply is needed for everything else.")
}

// Start runs a created process: the container's first for "", otherwise the exec with that ID.
func (c *Client) Start(ctx context.Context, process string) error {
	_, err := call[struct{}, struct{}](ctx, c, OpStart, process, nil)
	return err
}

// State returns the state of the container (process "") or of an exec.
func (c *Client) State(ctx context.Context, process string) (StateReply, error) {
	return call[struct{}, StateReply](ctx, c, OpState, process, nil)
}

// Kill sends a signal to a process, or to every process of the container. It returns errs.Precondition when the process
// has ended. SIGKILL also ends an exec that was not started, and frees its streams.
func (c *Client) Kill(ctx context.Context, process string, args KillArgs) error {
	_, err := call[KillArgs, struct{}](ctx, c, OpKill, process, &args)
	return err
}

// Wait waits until a process has ended and its output is in the log. If the shim goes away meanwhile, Wait returns the
// content of the exit file for the first process.
func (c *Client) Wait(ctx context.Context, process string) (Exit, error) {
	e, err := call[struct{}, Exit](ctx, c, OpWait, process, nil)
	if err != nil && process == "" && ctx.Err() == nil {
		if e, rerr := FindExit(c.cfg.Run, c.cfg.ExitPath, c.cfg.Bundle); rerr == nil {
			return e.Exit, nil
		}
	}
	return e, err
}

// Resize sets the size of a process' terminal, also before the process is started. It returns errs.Invalid for a process
// without a terminal.
func (c *Client) Resize(ctx context.Context, process string, height, width uint) error {
	_, err := call[ResizeArgs, struct{}](ctx, c, OpResize, process, &ResizeArgs{Height: height, Width: width})
	return err
}

// Pause freezes every process of the container.
func (c *Client) Pause(ctx context.Context) error {
	_, err := call[struct{}, struct{}](ctx, c, OpPause, "", nil)
	return err
}

// Resume thaws every process of the container.
func (c *Client) Resume(ctx context.Context) error {
	_, err := call[struct{}, struct{}](ctx, c, OpResume, "", nil)
	return err
}

// ExecOptions are the options of Exec.
type ExecOptions struct {
	Stdin  bool // keep stdin open until the first attached client leaves
	Detach bool // discard the output
}

// Exec creates a further process in the container. Start(id) runs it; Attach may be called before. p.Terminal and
// p.ConsoleSize say whether it gets a terminal. Exec returns errs.Exists when the ID is in use.
func (c *Client) Exec(ctx context.Context, id string, p *specs.Process, o ExecOptions) error {
	raw, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("exec %s: %w", id, err)
	}
	_, err = call[ExecArgs, struct{}](ctx, c, OpExec, id, &ExecArgs{ID: id, Process: raw, Stdin: o.Stdin, Detach: o.Detach})
	return err
}

// Update changes limits. Fields of r that are nil keep their limit. It returns errs.Unimplemented, and changes nothing, when
// the shim is too old for one of the limits.
func (c *Client) Update(ctx context.Context, r *specs.LinuxResources) error {
	if c.peer.Version < allLimits && !isFirstLimits(r) {
		return errs.New(errs.Unimplemented, "container %s: update: its shim is of an earlier release, which cannot change all of these limits", c.cfg.ID).
			WithHint("Start the container again, which gives it the shim that is installed now.")
	}
	raw, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("update: %w", err)
	}
	_, err = call[UpdateArgs, struct{}](ctx, c, OpUpdate, "", &UpdateArgs{Resources: raw})
	return err
}

// isFirstLimits reports whether r changes only limits that OpUpdate knew before allLimits.
func isFirstLimits(r *specs.LinuxResources) bool {
	var known specs.LinuxResources
	if m := r.Memory; m != nil {
		known.Memory = &specs.LinuxMemory{Limit: m.Limit, Reservation: m.Reservation, Swap: m.Swap, Swappiness: m.Swappiness}
	}
	if p := r.CPU; p != nil {
		known.CPU = &specs.LinuxCPU{Shares: p.Shares, Quota: p.Quota, Period: p.Period, RealtimeRuntime: p.RealtimeRuntime,
			RealtimePeriod: p.RealtimePeriod, Cpus: p.Cpus, Mems: p.Mems}
	}
	known.Pids = r.Pids
	if b := r.BlockIO; b != nil {
		known.BlockIO = &specs.LinuxBlockIO{Weight: b.Weight}
	}
	return reflect.DeepEqual(*r, known)
}

// Resolve makes the shim answer DNS queries in the container. A second call replaces what the first one said. It returns errs.Unimplemented when the shim is too
// old.
func (c *Client) Resolve(ctx context.Context, a ResolveArgs) error {
	_, err := call[ResolveArgs, struct{}](ctx, c, OpNames, "", &a)
	return err
}

// Publish makes the shim keep the sockets of published ports and carry their connections, in place of what an earlier call said. It closes the sockets, which are those of the
// ports that say Socket, in their order. It returns errs.Unimplemented when the shim is too old.
func (c *Client) Publish(ctx context.Context, list []proxy.Port, sockets []*os.File) error {
	defer func() {
		for _, f := range sockets {
			_ = f.Close() // the shim has its own descriptors
		}
	}()
	raw, err := json.Marshal(PortsArgs{list})
	if err != nil {
		return fmt.Errorf("ports: %w", err)
	}
	conn, _, stop, err := c.open(ctx, Request{Op: OpPorts, Args: raw}, sockets...)
	if err != nil {
		return err
	}
	stop()
	return conn.Close()
}

// Checkpoint saves the container's processes in the directory in. It returns errs.Unimplemented when the shim is too old, or when CRIU is not installed.
func (c *Client) Checkpoint(ctx context.Context, in *os.File, a CheckpointArgs) error {
	return callWithFile(ctx, c, OpCheckpoint, a, in)
}

// Restore makes and runs the processes that the directory of a checkpoint has. It takes the place of Start for a container whose Config.Restore is set.
func (c *Client) Restore(ctx context.Context, checkpoint *os.File, a RestoreArgs) error {
	return callWithFile(ctx, c, OpRestore, a, checkpoint)
}

// callWithFile sends a request that a file belongs to.
func callWithFile[A any](ctx context.Context, c *Client, op Op, args A, f *os.File) error {
	raw, err := json.Marshal(args)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	conn, _, stop, err := c.open(ctx, Request{Op: op, Args: raw}, f)
	if err != nil {
		return err
	}
	stop()
	return conn.Close()
}

// sendFile sends a byte with a file.
func sendFile(conn *net.UnixConn, f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) { _, _, err = conn.WriteMsgUnix([]byte{0}, unix.UnixRights(int(fd)), nil) })
	return errors.Join(cerr, err)
}

// ReceiveFile receives what sendFile sent.
func ReceiveFile(conn *net.UnixConn) (*os.File, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := conn.ReadMsgUnix(make([]byte, 1), oob)
	if err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || n != 1 || len(messages) != 1 {
		return nil, errs.New(errs.Invalid, "a file is missing")
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, errs.New(errs.Invalid, "a file is missing")
	}
	unix.CloseOnExec(fds[0])
	return os.NewFile(uintptr(fds[0]), "received"), nil
}

// Stats returns the counters of the container's cgroups.
func (c *Client) Stats(ctx context.Context) (StatsReply, error) {
	return call[struct{}, StatsReply](ctx, c, OpStats, "", nil)
}

// Pids returns the container's processes by their pids in the host's namespace.
func (c *Client) Pids(ctx context.Context) ([]int, error) {
	return call[struct{}, []int](ctx, c, OpPids, "", nil)
}

// Shutdown deletes the runtime state of a container that has ended or was never started, and ends the shim. It returns
// when the shim's process is gone, and nil when it was gone before. It returns errs.Conflict while the container runs.
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

// open sends a request and reads the response. The caller closes the connection unless there is an error. Until stop is
// called, the end of ctx breaks the connection. The files follow the request.
func (c *Client) open(ctx context.Context, req Request, files ...*os.File) (conn *net.UnixConn, body json.RawMessage, stop func() bool, err error) {
	if err := c.Newer(); err != nil && !req.Op.isCore() {
		return nil, nil, nil, err
	}
	req.Version = max(1, min(c.peer.Version, Version))
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
	err = WriteFrame(conn, req)
	for _, f := range files {
		if err != nil {
			break
		}
		if err = sendFile(conn, f); errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
			err = nil // a shim that refuses the request does not take files; its response says why
			break
		}
	}
	if err == nil {
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
	defer conn.Close() // everything was received, so an error means nothing
	if len(body) == 0 {
		return r, nil
	}
	if err := json.Unmarshal(body, &r); err != nil {
		return r, errs.New(errs.Internal, "container %s: %s: bad response of the shim: %w", c.cfg.ID, op, err)
	}
	return r, nil
}

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
	case ClassMissing:
		return errs.New(errs.Unimplemented, "%s", r.Error)
	case ClassUnsupported:
		return errs.New(errs.Unimplemented, "container %s: %s", id, r.Error).
			WithHint("Start the container again, which gives it the shim that is installed now.")
	}
	return errs.New(errs.Internal, "container %s: %s", id, r.Error)
}
