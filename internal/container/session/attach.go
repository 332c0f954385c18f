package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"ply/internal/container/shim"
	"ply/internal/errs"
)

// pending is a client that attached before the process was started.
type pending struct {
	args   shim.AttachArgs
	answer chan answer // capacity 1
	ctx    context.Context
	cancel context.CancelFunc
}

// answer is the stream of a pending client, or why there is none.
type answer struct {
	stream *stream
	err    error
}

// Attach connects a client to the streams of the first process, running or still to be started. It returns when the
// process ends, the client leaves, or the client types the detach keys (ErrDetached). Several clients may be attached.
// Errors: errs.Conflict for a paused or restarting container.
func (s *Set) Attach(ctx context.Context, opts AttachOptions) error {
	if err := s.c.CheckState("attach"); err != nil {
		return err
	}
	keys, err := parseDetachKeys(opts.DetachKeys)
	if err != nil {
		return err
	}
	tty, open := s.c.Streams()
	if !open {
		opts.Stdin = nil
	}
	if !tty {
		keys = nil // only a terminal has detach keys
	}
	if !opts.Stream {
		return s.begin(ctx, opts)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	args := shim.AttachArgs{Stdin: opts.Stdin != nil, Stdout: opts.Stdout != nil, Stderr: opts.Stderr != nil && !tty}
	if r := opts.Resume; r != nil {
		args.Resume, args.From = r.Client, r.From
		if run, err := s.c.Running(); r.From != nil {
			if err != nil {
				return err
			}
			if !r.Cut.IsZero() && run.Client.Config().Started.After(r.Cut) {
				return errs.New(errs.Conflict, "container %s was started anew since the connection broke", s.c.ID())
			}
		}
	}
	next, err := s.connect(ctx, args, opts.Resume)
	if err != nil {
		return err
	}
	s.c.Publish("attach")
	if err := s.begin(ctx, opts); err != nil { // the client has left; a stream that nobody reads would hold the process up
		cancel()
		if st, nerr := next(); nerr == nil && st != nil {
			_ = st.Close() // as below
		}
		return err
	}
	st, err := next()
	if err != nil || st == nil {
		return err
	}
	defer st.Close() // by now all output was sent or the client has left
	ended, err := pump(ctx, st, opts, keys)
	switch {
	case errors.Is(err, ErrDetached):
		s.c.Publish("detach")
	case ended:
		st.run.awaitRecord(ctx)
	}
	return err
}

// begin tells the client that it is attached, and sends the log if it asked for it. A client that wants no stream gets no more.
func (s *Set) begin(ctx context.Context, opts AttachOptions) error {
	if opts.Ready != nil {
		if err := opts.Ready(); err != nil {
			return err
		}
	}
	if !opts.Logs {
		return nil
	}
	return s.writeLog(ctx, opts)
}

// recordLimit bounds how long the end of the output is kept back until the end of the run is recorded.
const recordLimit = 10 * time.Second

// awaitRecord waits until the end of the run was recorded. A client that has read all output asks for the exit code next, or removes the network.
func (r *Run) awaitRecord(ctx context.Context) {
	late := time.NewTimer(recordLimit)
	defer late.Stop()
	select {
	case <-r.Recorded:
	case <-ctx.Done():
	case <-late.C:
	}
}

// connect attaches to the running process, or registers the client for the next start; next then waits for the
// stream. A nil stream means that the client left or the container was removed first.
func (s *Set) connect(ctx context.Context, args shim.AttachArgs, resume *Resume) (next func() (*stream, error), err error) {
	s.mu.Lock()
	if run := s.run; run != nil {
		s.mu.Unlock()
		st, err := run.attach(ctx, "", args)
		if err != nil {
			return nil, err
		}
		if resume != nil {
			resume.At, resume.On = st.Position()
		}
		return func() (*stream, error) { return st, nil }, nil
	}
	if resume != nil {
		resume.On = true // the shim is of this release, and the output begins at its start
	}
	p := &pending{args: args, answer: make(chan answer, 1)}
	p.ctx, p.cancel = context.WithCancel(ctx)
	s.waiting[p] = struct{}{}
	s.mu.Unlock()
	return func() (*stream, error) {
		select {
		case a := <-p.answer:
			return a.stream, a.err
		case <-p.ctx.Done():
		case <-s.c.Removed():
		}
		s.mu.Lock()
		delete(s.waiting, p)
		s.mu.Unlock()
		select { // a start may have connected the client meanwhile; the container may have ended and been removed since
		case a := <-p.answer:
			return a.stream, a.err
		default:
		}
		p.cancel()
		select { // or connected it just now; Begin closes a stream that comes later
		case a := <-p.answer:
			if a.err == nil {
				_ = a.stream.Close() // the client is gone
			}
		default:
		}
		return nil, context.Cause(ctx)
	}, nil
}

// pump copies between a client and a process until one of them ends; ended says that it was the process. It returns ErrIncomplete when the client is
// there but the output ended too early.
func pump(ctx context.Context, st *stream, opts AttachOptions, keys []byte) (ended bool, err error) {
	left := make(chan error, 1)
	if opts.Stdin != nil {
		// The goroutine ends with the client's connection, which the caller closes after pump has returned.
		go func() {
			err := copyInput(ctx, st, opts.Stdin, keys)
			if err != nil {
				left <- err
				_ = st.Close() // wakes the reader below
			}
		}()
	}
	buf := make([]byte, 32<<10)
	for {
		stream, n, err := st.Read(buf)
		if n > 0 {
			w := opts.Stdout
			if stream == shim.Stderr {
				w = opts.Stderr
			}
			if w != nil {
				if _, werr := w.Write(buf[:n]); werr != nil {
					return false, nil // the client is gone; the process runs on
				}
			}
		}
		if err == nil {
			continue
		}
		if errors.Is(err, io.EOF) {
			return true, nil
		}
		select {
		case why := <-left:
			return false, why
		default:
		}
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) { // the client left, or the process was not started
			return false, nil
		}
		return false, fmt.Errorf("%w: %w", ErrIncomplete, err)
	}
}

// copyInput copies the client's input. It returns ErrDetached when the keys were typed; any other end of the input
// closes stdin.
func copyInput(ctx context.Context, st *stream, in io.Reader, keys []byte) error {
	var err error
	if len(keys) == 0 {
		_, err = io.Copy(struct{ io.Writer }{st}, in)
	} else {
		err = copyKeys(ctx, st, in, keys)
		if errors.Is(err, ErrDetached) {
			return err
		}
	}
	_ = err // a client that broke off and one that finished have both no more input
	_ = st.CloseWrite()
	return nil
}

// maxSize bounds the height and width of a terminal.
const maxSize = 65535

func checkSize(height, width uint) error {
	if height > maxSize || width > maxSize {
		return invalid("terminal size %dx%d is larger than %d", height, width, maxSize)
	}
	return nil
}

// Resize sets the size of the first process' terminal. Without a terminal it does nothing, as docker does. Errors: errs.Conflict
// when the container does not run.
func (s *Set) Resize(ctx context.Context, height, width uint) error {
	if err := checkSize(height, width); err != nil {
		return err
	}
	run, err := s.c.Running()
	if err != nil {
		return err
	}
	if tty, _ := s.c.Streams(); tty {
		if err := run.Client.Resize(ctx, "", height, width); err != nil {
			return err
		}
	}
	s.c.Publish("resize", "height", strconv.Itoa(int(height)), "width", strconv.Itoa(int(width)))
	return nil
}
