package docker

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"ply/internal/api/docker/stream"
	"ply/internal/container/session"
	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/wire"
)

// line is a connection that will be taken over from HTTP once the service is ready; until then its reads wait. It
// lets an error that comes before have a status.
type line struct {
	c   *call
	typ string // media type
	tty bool

	ready  chan struct{}
	once   sync.Once
	conn   *stream.Conn
	failed error
	cancel context.CancelFunc
}

// newLine gives a line and the context of its work: it ends when the client is gone.
func newLine(c *call, typ string, tty bool) (*line, context.Context) {
	l := &line{c: c, typ: typ, tty: tty, ready: make(chan struct{})}
	// After a take-over HTTP no longer watches the connection, and a server that shuts down no longer knows it.
	ctx, cancel := context.WithCancel(context.WithoutCancel(c.ctx()))
	l.cancel = cancel
	return l, ctx
}

// open takes the connection over.
func (l *line) open() error {
	l.once.Do(func() {
		l.conn, l.failed = stream.Hijack(l.c.w, l.c.r, l.typ)
		if l.failed == nil {
			l.c.w.hijacked, l.c.w.wrote, l.c.w.status = true, true, http.StatusSwitchingProtocols
		}
		close(l.ready)
	})
	return l.failed
}

// opened reports whether the connection was taken over.
func (l *line) opened() bool {
	select {
	case <-l.ready:
		return l.failed == nil
	default:
		return false
	}
}

// Read gives what the client sends.
func (l *line) Read(b []byte) (int, error) {
	<-l.ready
	if l.failed != nil {
		return 0, io.EOF
	}
	return l.conn.Read(b)
}

// Write sends to the client; without a client its work ends.
func (l *line) Write(b []byte) (int, error) {
	<-l.ready
	if l.failed != nil {
		return 0, l.failed
	}
	n, err := l.conn.Write(b)
	if err != nil {
		l.cancel()
	}
	return n, err
}

// watch ends the work of a client that closed its connection without a word. interval is how often to look.
func (l *line) watch(ctx context.Context, interval time.Duration) {
	select {
	case <-l.ready:
	case <-ctx.Done():
		return
	}
	if l.failed != nil {
		return
	}
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if l.conn.Gone() {
				l.cancel()
				return
			}
		}
	}
}

// outputs gives the writers for the two outputs of a container or exec.
func (l *line) outputs() (stdout, stderr io.Writer) {
	if l.tty {
		return l, l
	}
	mux := stream.NewMux(l)
	return mux.Stdout(), mux.Stderr()
}

// close ends a line: readers waiting for it get EOF. Bytes that the client did not read yet still reach it.
func (l *line) close() {
	l.once.Do(func() { // never opened
		l.failed = errs.New(errs.Internal, "connection: closed before it was taken over")
		close(l.ready)
	})
	l.cancel()
	if l.conn != nil {
		_ = l.conn.CloseWrite() // the client sees the end before the close
		_ = l.conn.Close()
	}
}

// watchEvery is how long a client that vanished silently is served.
const watchEvery = 2 * time.Second

// run serves one attach or exec: work gets the streams and the function that takes the connection over.
func (l *line) run(ctx context.Context, stdin, stdout, stderr bool, work func(context.Context, session.AttachOptions) error) error {
	opts := session.AttachOptions{Stream: true, Ready: l.open}
	out, errOut := l.outputs()
	if stdin {
		opts.Stdin = l
	}
	if stdout {
		opts.Stdout = out
	}
	if stderr {
		opts.Stderr = errOut
	}
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		l.watch(ctx, watchEvery)
	}()
	// The request's own context tells of a client that leaves before the take-over.
	stop := context.AfterFunc(l.c.ctx(), func() {
		if !l.opened() {
			l.cancel()
		}
	})
	err := work(ctx, opts)
	if l.opened() {
		if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, session.ErrDetached) {
			_, _ = errOut.Write([]byte(messageOf(err) + "\r\n")) // the only place left to say it
			l.c.w.status = statusOf(err)
		}
		err = nil
	}
	stop()
	if l.opened() || err == nil {
		l.close()
	} else {
		l.once.Do(func() { l.failed = err; close(l.ready) })
		l.cancel()
	}
	<-watched
	return err
}

// sessionHandlers answers attach, logs and exec.
type sessionHandlers struct {
	sessions   Sessions
	containers containerGetter
}

func (h sessionHandlers) routes(add adder) {
	add(get, "/containers/{id}/logs", h.logs)
	add(post, "/containers/{id}/resize", h.resize)
	add(post, "/containers/{id}/attach", h.attach)
	add(get, "/containers/{id}/attach/ws", h.attachWebSocket)
	add(post, "/containers/{id}/exec", h.execCreate)
	add(post, "/exec/{id}/start", h.execStart)
	add(post, "/exec/{id}/resize", h.execResize)
	add(get, "/exec/{id}/json", h.execInspect)
}

func (h sessionHandlers) attach(c *call) error {
	ctr, err := h.containers.Get(c.ctx(), c.vars["id"], false)
	if err != nil {
		return err
	}
	l, ctx := newLine(c, c.streamType(ctr.Spec.Tty), ctr.Spec.Tty)
	return l.run(ctx, c.bool("stdin"), c.bool("stdout"), c.bool("stderr"), func(ctx context.Context, opts session.AttachOptions) error {
		opts.Logs, opts.Stream, opts.DetachKeys = c.bool("logs"), c.bool("stream"), c.get("detachKeys")
		err := h.sessions.Attach(ctx, c.vars["id"], opts)
		if err == nil && !l.opened() { // nothing to send, but the client waits for the take-over
			err = l.open()
		}
		return err
	})
}

func (h sessionHandlers) execCreate(c *call) error {
	var body struct {
		User                                    string
		Privileged, Tty                         bool
		ConsoleSize                             *[2]uint
		AttachStdin, AttachStdout, AttachStderr bool
		DetachKeys                              string
		Env                                     []string
		WorkingDir                              string
		Cmd                                     wire.Words
	}
	if err := c.body(&body, false); err != nil {
		return err
	}
	if len(body.Cmd) == 0 {
		return errs.New(errs.Invalid, "No exec command specified")
	}
	spec := spec.ExecSpec{Cmd: body.Cmd, Env: body.Env, User: body.User, WorkingDir: body.WorkingDir, Tty: body.Tty, Privileged: body.Privileged,
		AttachStdin: body.AttachStdin, AttachStdout: body.AttachStdout, AttachStderr: body.AttachStderr, DetachKeys: body.DetachKeys}
	if body.ConsoleSize != nil {
		spec.ConsoleSize = *body.ConsoleSize
	}
	id, err := h.sessions.ExecCreate(c.ctx(), c.vars["id"], spec)
	if err != nil {
		return err
	}
	return c.json(http.StatusCreated, struct {
		ID string `json:"Id"`
	}{id})
}

func (h sessionHandlers) execStart(c *call) error {
	var body struct {
		Detach, Tty bool
		ConsoleSize *[2]uint
	}
	if err := c.body(&body, true); err != nil {
		return err
	}
	id := c.vars["id"]
	exec, err := h.sessions.ExecGet(c.ctx(), id)
	if err != nil {
		return err
	}
	var size [2]uint
	if body.ConsoleSize != nil {
		if !body.Tty && !exec.Spec.Tty {
			return errs.New(errs.Invalid, "ConsoleSize: the exec has no terminal")
		}
		size = *body.ConsoleSize
	}
	if body.Detach {
		if err := h.sessions.ExecStart(c.lasting(), id, session.AttachOptions{}, true, size); err != nil {
			return err
		}
		return c.none(http.StatusOK)
	}
	l, ctx := newLine(c, c.streamType(body.Tty), body.Tty)
	spec := exec.Spec
	return l.run(ctx, spec.AttachStdin, spec.AttachStdout, spec.AttachStderr, func(ctx context.Context, opts session.AttachOptions) error {
		opts.DetachKeys = spec.DetachKeys
		err := h.sessions.ExecStart(ctx, id, opts, false, size)
		if l.opened() {
			return err
		}
		// A command that could not run has its exit code: clients want the message in the stream and ask for the code after.
		if err != nil {
			if now, getErr := h.sessions.ExecGet(c.ctx(), id); getErr != nil || now.ExitCode == nil {
				return err
			}
		}
		return errors.Join(err, l.open())
	})
}

func (h sessionHandlers) execResize(c *call) error {
	height, width, err := c.size()
	if err != nil {
		return err
	}
	if err := h.sessions.ExecResize(c.ctx(), c.vars["id"], height, width); err != nil {
		return err
	}
	return c.none(http.StatusCreated)
}

func (h sessionHandlers) execInspect(c *call) error {
	e, err := h.sessions.ExecGet(c.ctx(), c.vars["id"])
	if err != nil {
		return err
	}
	type process struct {
		Tty        bool     `json:"tty"`
		Entrypoint string   `json:"entrypoint"`
		Arguments  []string `json:"arguments"`
		Privileged bool     `json:"privileged"`
		User       string   `json:"user,omitempty"`
	}
	var args []string
	entrypoint := ""
	if len(e.Spec.Cmd) > 0 {
		entrypoint, args = e.Spec.Cmd[0], e.Spec.Cmd[1:]
	}
	return c.json(http.StatusOK, struct {
		ID            string
		Running       bool
		ExitCode      *int
		ProcessConfig process
		OpenStdin     bool
		OpenStderr    bool
		OpenStdout    bool
		CanRemove     bool
		ContainerID   string
		DetachKeys    string
		Pid           int
	}{e.ID, e.Running, e.ExitCode, process{e.Spec.Tty, entrypoint, notNil(args), e.Spec.Privileged, e.Spec.User},
		e.Spec.AttachStdin, e.Spec.AttachStderr, e.Spec.AttachStdout, false, string(e.Container), e.Spec.DetachKeys, e.PID})
}
