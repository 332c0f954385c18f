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
	"ply/internal/errs"
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

func (h sessionHandlers) resize(c *call) error {
	height, width, err := c.size()
	if err != nil {
		return err
	}
	if err := h.sessions.Resize(c.ctx(), c.vars["id"], height, width); err != nil {
		return err
	}
	return c.none(http.StatusOK)
}
