package container

import (
	"context"
	"errors"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/container/shim"
	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/procid"
)

// killWait is how long a killed process may take to end before the caller gets an error.
const killWait = 10 * time.Second

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
	sig, err := c.stopSignal(signal)
	if err != nil {
		return err
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
	defer c.unwait(w)
	ended, err := c.signalEnd(ctx, l, sig, w)
	if err != nil {
		return err
	}
	if !ended && !c.awaitEnd(ctx, w, c.stopWait(timeout)) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := c.killHard(ctx, l, w); err != nil {
			return err
		}
	}
	c.publish("stop")
	return nil
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

// awaitEnd reports whether the run ended, and its end was recorded, within d. It takes the waiter's only answer.
func (c *ctr) awaitEnd(ctx context.Context, w *waiter, d time.Duration) bool {
	var late <-chan time.Time
	if d >= 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		late = t.C
	}
	select {
	case <-w.ch:
		return true
	case <-c.done.Done(): // --rm
		return true
	case <-late:
	case <-ctx.Done():
	}
	return false
}

// endWait is how long the end of a process may take to be recorded after it has begun.
const endWait = 2 * time.Second

// signalEnd sends a signal that is meant to end the process. A runtime may refuse it because the process is just
// ending, so a refusal is an error only if the process does not end within endWait. ended reports that the waiter was
// answered.
func (c *ctr) signalEnd(ctx context.Context, l *life, sig unix.Signal, w *waiter) (ended bool, err error) {
	err = c.signal(ctx, l, sig)
	if err == nil || errors.Is(err, errs.Precondition) {
		return false, nil
	}
	if ctx.Err() == nil && c.awaitEnd(ctx, w, endWait) {
		return true, nil
	}
	return false, err
}

// killHard kills the process and waits for its end.
func (c *ctr) killHard(ctx context.Context, l *life, w *waiter) error {
	ended, err := c.signalEnd(ctx, l, unix.SIGKILL, w)
	if err != nil || ended {
		return err
	}
	if c.awaitEnd(ctx, w, killWait) {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	// The process cannot end under its shim: one that a runtime lost track of is not reaped. Without the shim the kernel
	// hands it to a process that reaps it, and the supervisor records the end of the run.
	who := procid.ID(l.Client.Identity())
	c.env.log.Error("container does not end when killed; its shim is ended", "container", c.id, "pid", who.PID)
	if err := procid.Kill(who, unix.SIGKILL); err != nil && !errors.Is(err, procid.ErrGone) {
		return errs.New(errs.Internal, "container %s: end its shim: %w", c.id, err)
	}
	if c.awaitEnd(ctx, w, killWait) {
		return nil
	}
	return errs.New(errs.Unavailable, "container %s: tried to kill container, but did not receive an exit event", c.id)
}

func (c *ctr) stopSignal(signal string) (unix.Signal, error) {
	if signal == "" {
		c.mu.Lock()
		signal = c.rec.Spec.StopSignal
		c.mu.Unlock()
	}
	if signal == "" {
		return unix.SIGTERM, nil
	}
	return spec.ParseSignal(signal)
}

// signal sends a signal to the first process. A frozen process is thawed so that it can act on the signal.
// errs.Precondition when the process has ended.
func (c *ctr) signal(ctx context.Context, l *life, sig unix.Signal) error {
	err := l.Client.Kill(ctx, "", shim.KillArgs{Signal: int(sig)})
	if errors.Is(err, errs.Unavailable) || errors.Is(err, errs.Conflict) {
		// The process has just ended, or the shim is gone; the supervisor records the end.
		return errs.New(errs.Precondition, "container %s: %w", c.id, err)
	}
	if err != nil {
		return err
	}
	c.publish("kill", "signal", strconv.Itoa(int(sig)))
	if c.status() == StatusPaused {
		// A kill may have thawed it already, or ended it.
		err := c.thaw(ctx, l)
		if err != nil && !errors.Is(err, errs.Precondition) && !errors.Is(err, errs.Unavailable) {
			return err
		}
	}
	return nil
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
	if signal != "" && signal != "0" {
		var err error
		if sig, err = spec.ParseSignal(signal); err != nil {
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
	ends, _ := c.stopSignal("")
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
		defer c.unwait(w)
		return c.killHard(ctx, l, w)
	}
	if err := c.signal(ctx, l, sig); err != nil {
		w = c.wait(WaitNotRunning)
		defer c.unwait(w)
		if errors.Is(err, errs.Precondition) || c.awaitEnd(ctx, w, endWait) {
			return errs.New(errs.Conflict, "cannot kill container: %s: container %s is not running", clip(ref), c.id)
		}
		return err
	}
	return nil
}
