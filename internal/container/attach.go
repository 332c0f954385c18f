package container

import (
	"context"
	"errors"
	"io"

	"ply/internal/container/shim"
	"ply/internal/errs"
)

// pending is a client that attached before the process was started.
type pending struct {
	args   shim.AttachArgs
	stream chan *shim.Stream // room for one
	ctx    context.Context
	cancel context.CancelFunc
}

// Attach connects a client to the streams of a container's first process, running or still to be started, until the
// process ends, the client leaves, or types the detach keys (ErrDetached). Several clients may be attached.
// Errors: NotFound; Conflict for a paused or restarting container.
func (s *Service) Attach(ctx context.Context, ref string, opts AttachOptions) error {
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	switch c.status() {
	case StatusPaused:
		return errs.New(errs.Conflict, "container %s is paused, unpause the container before attach", c.id)
	case StatusRestarting:
		return errs.New(errs.Conflict, "container %s is restarting, wait until the container is running", c.id)
	}
	keys, err := parseDetachKeys(opts.DetachKeys)
	if err != nil {
		return err
	}
	c.mu.Lock()
	tty, open := c.rec.Spec.Tty, c.rec.Spec.OpenStdin
	c.mu.Unlock()
	if !open {
		opts.Stdin = nil
	}
	if !tty {
		keys = nil // only a terminal has keys
	}
	if !opts.Stream {
		return s.attachLogs(ctx, c, opts)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	args := shim.AttachArgs{Stdin: opts.Stdin != nil, Stdout: opts.Stdout != nil, Stderr: opts.Stderr != nil && !tty}
	if tty && opts.Stdout == nil && opts.Stderr != nil {
		opts.Stdout, args.Stdout = opts.Stderr, true
	}
	next, err := s.connect(ctx, c, args)
	if err != nil {
		return err
	}
	s.publish(c, "attach")
	if opts.Ready != nil {
		if err := opts.Ready(); err != nil {
			return err
		}
	}
	if opts.Logs {
		if err := s.replay(ctx, c, opts); err != nil {
			return err
		}
	}
	st, err := next()
	if err != nil || st == nil {
		return err
	}
	defer st.Close() // the process' end was read, or the client left
	err = pump(ctx, st, opts, keys)
	if errors.Is(err, ErrDetached) {
		s.publish(c, "detach")
	}
	return err
}

func (s *Service) attachLogs(ctx context.Context, c *ctr, opts AttachOptions) error {
	if opts.Ready != nil {
		if err := opts.Ready(); err != nil {
			return err
		}
	}
	if !opts.Logs {
		return nil
	}
	return s.replay(ctx, c, opts)
}

// connect attaches to the running process, or registers for the next start; next waits for the stream then. A nil
// stream means that the client or the container went away first.
func (s *Service) connect(ctx context.Context, c *ctr, args shim.AttachArgs) (next func() (*shim.Stream, error), err error) {
	c.mu.Lock()
	l := c.life
	if l != nil {
		c.mu.Unlock()
		st, err := l.client.Attach(ctx, "", args)
		if err != nil {
			return nil, err
		}
		return func() (*shim.Stream, error) { return st, nil }, nil
	}
	p := &pending{args: args, stream: make(chan *shim.Stream, 1)}
	p.ctx, p.cancel = context.WithCancel(ctx)
	c.waiting[p] = struct{}{}
	c.mu.Unlock()
	return func() (*shim.Stream, error) {
		select {
		case st := <-p.stream:
			return st, nil
		case <-p.ctx.Done():
		case <-c.done.Done():
		}
		p.cancel()
		c.mu.Lock()
		delete(c.waiting, p)
		c.mu.Unlock()
		select { // a start may have come in between
		case st := <-p.stream:
			return nil, st.Close()
		default:
		}
		return nil, context.Cause(ctx)
	}, nil
}

// connectPending gives the clients that attached before the start their streams, before the process runs, so that
// they miss nothing. A failed start closes them.
func (c *ctr) connectPending(l *life, undo *undoer) {
	c.mu.Lock()
	waiting := c.waiting
	c.waiting = map[*pending]struct{}{}
	c.mu.Unlock()
	for p := range waiting {
		// The stream lives as long as the client's request.
		st, err := l.client.Attach(p.ctx, "", p.args)
		if err != nil {
			p.cancel()
			continue
		}
		undo.add("attached client", func() error { return st.Close() })
		p.stream <- st
	}
}

// pump copies between a client and a process until one of them ends.
func pump(ctx context.Context, st *shim.Stream, opts AttachOptions, keys []byte) error {
	left := make(chan error, 1)
	if opts.Stdin != nil {
		// It ends when the client's connection does, which the caller closes after we return.
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
					return nil // the client is gone, the process is not
				}
			}
		}
		if err == nil {
			continue
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		select {
		case why := <-left:
			return why
		default:
		}
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
}

// copyInput gives ErrDetached when the keys were typed; other ends of input only close stdin.
func copyInput(ctx context.Context, st *shim.Stream, in io.Reader, keys []byte) error {
	var err error
	if len(keys) == 0 {
		_, err = io.Copy(struct{ io.Writer }{st}, in)
	} else {
		err = copyKeys(ctx, st, in, keys)
		if errors.Is(err, ErrDetached) {
			return err
		}
	}
	_ = err // a client that broke off and one that finished both have no more to say
	_ = st.CloseWrite()
	return nil
}
