package attach

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"ply/internal/cli/client"
	"ply/internal/cli/terminal"
	"ply/internal/wire"
)

// Session is one attached stream: a connection that was taken over from HTTP, joined to the local streams.
type Session struct {
	Local                 *terminal.Streams
	Conn                  *client.Conn
	TTY                   bool   // the container or exec has a terminal
	Stdin, Stdout, Stderr bool   // which streams are attached
	Keys                  []byte // the input at which the engine detaches; empty means none

	// Reopen makes a connection that goes on behind a position, after one that broke at the given time. nil means that the session ends with its
	// connection. It is used when the engine says that it can.
	Reopen func(ctx context.Context, behind wire.Position, cut time.Time) (*client.Conn, error)

	link interface {
		io.Writer
		CloseWrite() error
	}
	detached atomic.Bool
}

// Detached reports whether the last input was the detach keys. When the stream has ended, and the container still runs, that
// was the reason.
func (s *Session) Detached() bool { return s.detached.Load() }

// Run copies both ways until the engine ends the stream, or until ctx ends, which is an error. It is an error as well when the
// connection breaks or the output cannot be written. The end of the input is passed on as a half-close. While Run runs, a local
// terminal with an attached input is in raw mode.
func (s *Session) Run(ctx context.Context) error {
	if s.TTY && s.Stdin && s.Local.InTerm != nil {
		if err := s.Local.InTerm.Raw(); err != nil {
			return err
		}
		defer s.Local.InTerm.Restore()
	}
	out := make(chan error, 1)
	s.link = s.Conn
	if s.Conn.MediaType == wire.TypeResumable {
		link := &resumed{s: s, ctx: ctx, conn: s.Conn, changed: make(chan struct{})}
		s.link = link
		at, ok := wire.ParsePosition(s.Conn.Position)
		if !ok || s.Reopen == nil { // the output comes in frames, but not again
			s.Reopen = func(context.Context, wire.Position, time.Time) (*client.Conn, error) { return nil, io.ErrUnexpectedEOF }
		}
		stdout, stderr := s.writers()
		go func() { out <- link.output(at, stdout, stderr) }()
	} else {
		go func() { out <- s.output() }()
	}
	in := make(chan error, 1)
	go func() {
		if s.Stdin {
			_, err := io.Copy(s.link, &watcher{r: s.Local.In, keys: s.Keys, seen: &s.detached})
			if err != nil && !closed(err) {
				in <- err
				return
			}
		}
		_ = s.link.CloseWrite() // a broken connection shows on the output side
		in <- nil
	}()
	for {
		select {
		case err := <-out:
			if ctx.Err() != nil { // which has closed the connection
				return context.Cause(ctx)
			}
			return err
		case err := <-in:
			in = nil // the input ends once
			if err != nil && !closed(err) {
				return err
			}
			if !s.Stdout && !s.Stderr {
				return nil
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// writers returns the local streams of the two outputs.
func (s *Session) writers() (stdout, stderr io.Writer) {
	stdout, stderr = io.Discard, io.Discard
	if s.Stdout {
		stdout = s.Local.Out
	}
	if s.Stderr {
		stderr = s.Local.Err
	}
	return stdout, stderr
}

// output copies what the engine sends to the attached streams.
func (s *Session) output() error {
	stdout, stderr := s.writers()
	if s.TTY {
		_, err := io.Copy(stdout, s.Conn)
		return err
	}
	return client.Demux(stdout, stderr, s.Conn)
}

// watcher reads the input and notes in seen whether its last bytes are the detach keys. The engine acts on the keys; this side
// only has to know why the stream ended.
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

// closed reports whether err means that the engine has closed the stream, so that it wants no more input, which is not a failure.
func closed(err error) bool {
	return errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.EOF) || errors.Is(err, os.ErrClosed) || errors.Is(err, io.ErrClosedPipe)
}
