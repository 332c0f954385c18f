package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"os"
	"os/signal"
	"strconv"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"ply/internal/cli/client"
	"ply/internal/cli/terminal"
)

// session is one attached stream: a hijacked connection joined to our own streams.
type session struct {
	app                   *App
	conn                  *client.Conn
	tty                   bool
	stdin, stdout, stderr bool
	keys                  []byte // the engine detaches at these
	detached              atomic.Bool
}

// watcher notes whether the last input was the detach keys. The engine acts on them; we only need to know that an end
// of the stream meant that.
type watcher struct {
	r    io.Reader
	keys []byte
	tail []byte
	seen *atomic.Bool
}

func (w *watcher) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if n > 0 && len(w.keys) > 0 {
		w.tail = append(w.tail, p[:n]...)
		if extra := len(w.tail) - len(w.keys); extra > 0 {
			w.tail = append(w.tail[:0], w.tail[extra:]...)
		}
		w.seen.Store(bytes.Equal(w.tail, w.keys))
	}
	return n, err
}

// run copies both ways until the engine ends the stream; the end of our input is passed on as a half-close. When
// ctx ends (the container is gone) what is still to be read is read.
func (s *session) run(ctx context.Context) error {
	a := s.app
	if s.tty && s.stdin && a.InTerm != nil {
		if err := a.InTerm.Raw(); err != nil {
			return err
		}
		defer a.InTerm.Restore()
	}
	out := make(chan error, 1)
	go func() { out <- s.output() }()
	in := make(chan error, 1)
	go func() {
		if s.stdin {
			_, err := io.Copy(s.conn, &watcher{r: a.In, keys: s.keys, seen: &s.detached})
			if err != nil && !closed(err) {
				in <- err
				return
			}
		}
		in <- s.conn.CloseWrite()
	}()
	for {
		select {
		case err := <-out:
			if closed(err) {
				return nil
			}
			return err
		case err := <-in:
			in = nil // never again
			if err != nil && !closed(err) {
				return err
			}
			if !s.stdout && !s.stderr {
				return nil
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (s *session) output() error {
	stdout, stderr := io.Writer(io.Discard), io.Writer(io.Discard)
	if s.stdout {
		stdout = s.app.Out
	}
	if s.stderr {
		stderr = s.app.Err
	}
	if s.tty {
		_, err := io.Copy(stdout, s.conn)
		return err
	}
	return client.Demux(stdout, stderr, s.conn)
}

// closed reports an end of stream that is no failure: the other side went away.
func closed(err error) bool {
	return errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.EOF) || errors.Is(err, os.ErrClosed)
}

// followSize sends the terminal's size now and at every change until stop is called. path is the resize endpoint. redraw
// makes a program that already runs draw itself anew, by a size that differs for a moment.
func (a *App) followSize(ctx context.Context, c *client.Client, path string, redraw bool) (stop func()) {
	send := func(more int) error {
		w, h := a.OutTerm.Size()
		if w == 0 && h == 0 {
			return nil
		}
		w, h = w+more, h+more
		q := url.Values{"w": {strconv.Itoa(w)}, "h": {strconv.Itoa(h)}}
		return c.Do(ctx, client.Request{Method: "POST", Path: path, Query: q}, nil)
	}
	if redraw {
		_ = send(1)
	}
	_ = send(0) // a container that is already gone is told by wait
	ch, off := terminal.Resized()
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-ch:
				_ = send(0)
			case <-done:
				return
			}
		}
	}()
	return func() { off(); close(done) }
}

// proxySignals sends every signal we get to the container until stop is called.
func proxySignals(ctx context.Context, c *client.Client, id string) (stop func()) {
	ch := make(chan os.Signal, 128)
	signal.Notify(ch)
	done := make(chan struct{})
	go func() {
		for {
			select {
			case s := <-ch:
				if name := forwarded(s); name != "" {
					q := url.Values{"signal": {name}}
					_ = c.Do(ctx, client.Request{Method: "POST", Path: "/containers/" + id + "/kill", Query: q}, nil)
				}
			case <-done:
				return
			}
		}
	}()
	return func() { signal.Stop(ch); close(done) }
}

// forwarded gives the name of a signal that concerns the container, "" for those that are ours alone.
func forwarded(s os.Signal) string {
	n, ok := s.(syscall.Signal)
	if !ok {
		return ""
	}
	switch n {
	case unix.SIGCHLD, unix.SIGPIPE, unix.SIGWINCH:
		return ""
	case unix.SIGURG:
		return "" // the Go runtime's own
	}
	name := unix.SignalName(n)
	if len(name) > 3 {
		return name[3:]
	}
	return strconv.Itoa(int(n))
}

// checkTTY refuses -t with an input that is no terminal, as docker does.
func (a *App) checkTTY(attachStdin, tty bool) error {
	if tty && attachStdin && a.InTerm == nil {
		return errors.New("the input device is not a TTY")
	}
	return nil
}
