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
	"ply/internal/container/shim"
	"ply/internal/errs"
	"ply/internal/wire"
)

// line is a connection that is taken over from HTTP when the service is ready. Until then its reads and writes wait, so that
// an error before the takeover can be answered with a status.
type line struct {
	c   *call
	typ string // media type

	ready  chan struct{}
	once   sync.Once
	conn   *stream.Conn
	mux    *stream.Mux // nil with a terminal
	failed error
	cancel context.CancelFunc
}

// newLine returns a line and the context of its work, which ends when the client is gone.
func newLine(c *call, typ string, tty bool) (*line, context.Context) {
	l := &line{c: c, typ: typ, ready: make(chan struct{})}
	if !tty {
		l.mux = stream.NewMux(l)
	}
	// After the takeover, net/http does not watch the connection any more, and a shutdown does not close it.
	ctx, cancel := context.WithCancel(context.WithoutCancel(c.ctx()))
	l.cancel = cancel
	return l, ctx
}

// open takes the connection over. Further calls return the result of the first.
func (l *line) open() error {
	l.once.Do(func() {
		l.conn, l.failed = stream.Hijack(l.c.w, l.c.r, l.typ)
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

// Read reads what the client sends.
func (l *line) Read(b []byte) (int, error) {
	<-l.ready
	if l.failed != nil {
		return 0, io.EOF
	}
	return l.conn.Read(b)
}

// Write sends to the client. When that fails, the work ends.
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

// watch ends the work when the client has closed its connection. It checks once per interval.
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

// outputs returns the writers for the two outputs of a container or exec.
func (l *line) outputs() (stdout, stderr io.Writer) {
	if l.mux == nil {
		return l, l
	}
	return l.mux.Stdout(), l.mux.Stderr()
}

// fail sends an error to the client after the takeover, when there is no status any more. It waits for a client that reads
// nothing. An error about lost output makes the client's command fail; the raw stream of a terminal can only show it.
func (l *line) fail(err error) {
	if l.mux != nil && errors.Is(err, session.ErrIncomplete) {
		_ = l.mux.Fail(messageOf(err)) // it fails when the client is gone
		return
	}
	_, errOut := l.outputs()
	_, _ = errOut.Write([]byte(messageOf(err) + "\r\n"))
}

// close ends the line. Waiting readers get EOF. The client still receives the bytes that were written before.
func (l *line) close() {
	l.once.Do(func() { // never opened
		l.failed = errs.New(errs.Internal, "connection: closed before it was taken over")
		close(l.ready)
	})
	l.cancel()
	if l.conn != nil {
		l.conn.Finish(closeLimit)
	}
}

// closeLimit is how long to wait, after the end of a stream, for the client to close its side.
const closeLimit = 10 * time.Second

// watchEvery is how often to check for a client that has disappeared.
const watchEvery = 2 * time.Second

// run serves one attach or exec. work gets the streams and the function that takes the connection over.
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
	// Before the takeover, the context of the request reports that the client is gone.
	stop := context.AfterFunc(l.c.ctx(), func() {
		if !l.opened() {
			l.cancel()
		}
	})
	err := work(ctx, opts)
	if l.opened() {
		if l.typ == stream.TypeResumable && (err == nil || errors.Is(err, session.ErrDetached)) && ctx.Err() == nil {
			_ = l.mux.Send(stream.Frame{Stream: wire.FrameEnded}) // it fails when the client is gone
		}
		if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, session.ErrDetached) {
			l.fail(err)
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
	done, err := c.stream()
	if err != nil {
		return err
	}
	defer done()
	resume, err := c.resume()
	if err != nil {
		return err
	}
	l, ctx := newLine(c, c.streamType(ctr.Spec.Tty), ctr.Spec.Tty)
	if resume != nil {
		l, ctx = newLine(c, stream.TypeResumable, false)
	}
	return l.run(ctx, c.bool("stdin"), c.bool("stdout"), c.bool("stderr"), func(ctx context.Context, opts session.AttachOptions) error {
		opts.Logs, opts.Stream, opts.DetachKeys = c.bool("logs"), c.bool("stream"), c.get("detachKeys")
		if resume != nil && opts.Stream {
			opts.Resume = resume
			opts.Ready = func() error {
				if resume.On {
					c.w.Header().Set(wire.PositionHeader, wire.Position(resume.At).String())
				}
				return l.open()
			}
		}
		err := h.sessions.Attach(ctx, c.vars["id"], opts)
		if err == nil && !l.opened() { // there is nothing to send, but the client waits for the takeover
			err = l.open()
		}
		return err
	})
}

// resume returns what a client says that goes on after its connection has broken; nil for one that does not.
func (c *call) resume() (*session.Resume, error) {
	client := c.get("resumable")
	switch {
	case client == "":
		return nil, nil
	case len(client) > 100:
		return nil, errs.New(errs.Invalid, "parameter resumable: longer than 100 bytes")
	}
	r := &session.Resume{Client: client}
	if text := c.get("position"); text != "" {
		p, ok := wire.ParsePosition(text)
		if !ok {
			return nil, errs.New(errs.Invalid, "parameter position: %q is not a position", clip(text))
		}
		r.From = (*shim.Position)(&p)
	}
	var err error
	r.Cut, err = c.time("cut")
	return r, err
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
