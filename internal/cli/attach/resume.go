package attach

import (
	"context"
	"io"
	"sync"
	"time"

	"ply/internal/cli/client"
	"ply/internal/errs"
	"ply/internal/wire"
)

// maxReturns bounds how often in a row a connection is made anew without a byte of output.
const maxReturns = 100

// resumed is the connection of a session that goes on, with another engine, when its connection breaks.
type resumed struct {
	s   *Session
	ctx context.Context //nolint:containedctx // Write must end with the session

	mu       sync.Mutex
	conn     *client.Conn
	changed  chan struct{} // closed when conn has changed or no other comes
	over     bool          // no other connection comes
	inputEnd bool
}

// Write sends input. When the connection breaks, it waits for the next one; what was on the way then is lost.
func (r *resumed) Write(p []byte) (n int, err error) {
	for {
		r.mu.Lock()
		conn, changed := r.conn, r.changed
		over := r.over
		r.mu.Unlock()
		if over {
			return n, io.ErrClosedPipe
		}
		k, err := conn.Write(p[n:])
		n += k
		if err == nil {
			return n, nil
		}
		select {
		case <-changed:
		case <-r.ctx.Done():
			return n, context.Cause(r.ctx)
		}
	}
}

// CloseWrite ends the input, also of connections that come later.
func (r *resumed) CloseWrite() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.inputEnd = true
	return r.conn.CloseWrite()
}

// next replaces the connection; nil means that no other comes.
func (r *resumed) next(conn *client.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_ = r.conn.Close() // it broke, or has ended
	if r.over = conn == nil; conn != nil {
		r.conn = conn
		if r.inputEnd {
			_ = conn.CloseWrite() // a broken connection shows on the output side
		}
	}
	close(r.changed)
	r.changed = make(chan struct{})
}

// output copies frames to the attached streams, from one connection after the other, until one says that the stream has ended.
func (r *resumed) output(at wire.Position, stdout, stderr io.Writer) error {
	defer r.next(nil)
	for returns := 0; ; {
		err := r.copyFrames(&at, stdout, stderr, &returns)
		if err == nil || r.ctx.Err() != nil || !client.Cut(err) {
			return err
		}
		cut := time.Now()
		if returns++; returns > maxReturns {
			return err
		}
		conn, err := r.s.Reopen(r.ctx, at, cut)
		if err != nil {
			return err
		}
		r.next(conn)
	}
}

// copyFrames copies the frames of the current connection and counts them in at. A frame counts when all of it was received.
func (r *resumed) copyFrames(at *wire.Position, stdout, stderr io.Writer, returns *int) error {
	r.mu.Lock()
	frames := client.NewFrames(r.conn)
	r.mu.Unlock()
	for {
		stream, data, err := frames.Next()
		if err != nil {
			return err
		}
		w, count := stdout, &at.Stdout
		switch stream {
		case 1:
		case 2:
			w, count = stderr, &at.Stderr
		case 3:
			return errs.New(errs.Internal, "error from daemon in stream: %s", data)
		case wire.FrameEnded:
			return nil
		default:
			return errs.New(errs.Invalid, "stream: unrecognized frame %d", stream)
		}
		*count += int64(len(data))
		*returns = 0
		if _, err := w.Write(data); err != nil {
			return outputError{err}
		}
	}
}

// outputError is an error of the local output, which is not one of the connection.
type outputError struct{ err error }

func (e outputError) Error() string { return e.err.Error() }
