package container

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/oci"
)

// Stop asks the process to end and kills it after the timeout. signal "" and timeout nil are the container's own;
// timeout is in seconds, -1 waits for ever. ErrNotModified when it does not run.
func (s *Service) Stop(ctx context.Context, ref, signal string, timeout *int) error {
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	return c.stop(ctx, signal, timeout, byUser)
}

// Why a container is stopped.
const (
	byUser     = iota // restart policies do not start it any more
	byShutdown        // the next engine may start it again
	toRestart         // it is started again at once
)

// stop stops the container for one of the reasons above.
func (c *ctr) stop(ctx context.Context, signal string, timeout *int, mode int) error {
	sig := c.ownStopSignal()
	if signal != "" {
		var err error
		if sig, err = oci.ParseSignal(signal); err != nil {
			return err
		}
	}
	if timeout != nil && *timeout < -1 {
		return invalid("invalid timeout %d: -1 waits for ever", *timeout)
	}
	if err := c.idle(ctx); err != nil {
		return err
	}
	if mode == byUser {
		c.mu.Lock()
		c.rec.Stopped = true
		c.mu.Unlock()
	}
	if c.cancelRestart() {
		c.saveLogged()
		c.publish("stop")
		return nil
	}
	l, err := c.running()
	if err != nil {
		return ErrNotModified
	}
	c.mu.Lock()
	l.manual = true
	l.keep = l.keep || mode == toRestart
	c.mu.Unlock()
	w := c.wait(WaitNextExit)
	defer w.cancel()
	ended, err := l.signalEnd(ctx, sig, w)
	if err != nil {
		return err
	}
	if !ended && !w.await(ctx, c.stopWait(timeout)) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := l.kill(ctx, w); err != nil {
			return err
		}
	}
	c.publish("stop")
	return nil
}

// ownTimeout returns the timeout of the container's options, or other.
func (c *ctr) ownTimeout(other int) *int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.rec.Spec.StopTimeout; t != nil {
		other = *t
	}
	return &other
}

// stopWait returns how long a stop waits before it kills; negative is for ever.
func (c *ctr) stopWait(timeout *int) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	sec := c.env.opts.StopTimeout
	if t := c.rec.Spec.StopTimeout; t != nil {
		sec = *t
	}
	if timeout != nil {
		sec = *timeout
	}
	return time.Duration(sec) * time.Second
}

// ownStopSignal returns the signal that ends the container: that of its options, or SIGTERM.
func (c *ctr) ownStopSignal() unix.Signal {
	c.mu.Lock()
	word := c.rec.Spec.StopSignal
	c.mu.Unlock()
	sig, err := oci.ParseSignal(word)
	if err != nil { // none was set
		return unix.SIGTERM
	}
	return sig
}

// Restart stops a container, if it runs, and starts it again.
func (s *Service) Restart(ctx context.Context, ref, signal string, timeout *int) error {
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	if err := c.stop(ctx, signal, timeout, toRestart); err != nil && !errors.Is(err, ErrNotModified) {
		return err
	}
	if err := s.Start(ctx, string(c.id)); err != nil && !errors.Is(err, ErrNotModified) {
		return err
	}
	c.publish("restart")
	return nil
}

// Kill sends a signal, SIGKILL when none is named. Errors: Conflict when the container does not run.
func (s *Service) Kill(ctx context.Context, ref, signal string) error {
	sig := unix.SIGKILL
	if signal != "" {
		var err error
		if sig, err = oci.ParseSignal(signal); err != nil {
			return err
		}
	}
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	if err := c.idle(ctx); err != nil {
		return err
	}
	ends := c.ownStopSignal()
	if sig == unix.SIGKILL && c.cancelRestart() {
		c.mu.Lock()
		c.rec.Stopped = true
		c.mu.Unlock()
		c.saveLogged()
		return nil
	}
	l, err := c.running()
	if err != nil {
		return errs.New(errs.Conflict, "cannot kill container: %s: %w", clip(ref), err)
	}
	var w *waiter
	if sig == unix.SIGKILL || sig == ends {
		c.mu.Lock()
		l.manual, c.rec.Stopped = true, true
		c.mu.Unlock()
	}
	if sig == unix.SIGKILL {
		w = c.wait(WaitNextExit)
		defer w.cancel()
		return l.kill(ctx, w)
	}
	if err := l.signal(ctx, sig); err != nil {
		w = c.wait(WaitNotRunning)
		defer w.cancel()
		if errors.Is(err, errs.Precondition) || w.await(ctx, endWait) {
			return errs.New(errs.Conflict, "cannot kill container: %s: container %s is not running", clip(ref), c.id)
		}
		return err
	}
	return nil
}
