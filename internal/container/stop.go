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

// killPatience is how long a killed process may take to go before the caller is told that it has not.
const killPatience = 10 * time.Second

// Stop asks the process to end and kills it after a while. signal "" and timeout nil are the container's own;
// timeout in seconds, -1 waits for ever. ErrNotModified when it does not run.
func (s *Service) Stop(ctx context.Context, ref, signal string, timeout *int) error {
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	return s.stopContainer(ctx, c, signal, timeout, byUser)
}

// Why a container is stopped.
const (
	byUser     = iota // policies leave it alone from now on
	byShutdown        // the next engine may start it again
	toRestart         // it is started again at once
)

// idle waits for a start or an end that is under way.
func (c *ctr) idle(ctx context.Context) error {
	if err := c.lock(ctx); err != nil {
		return err
	}
	c.release()
	return nil
}

func (s *Service) stopContainer(ctx context.Context, c *ctr, signal string, timeout *int, mode int) error {
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
		s.saveLogged(c)
		s.publish(c, "stop")
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
	ended, err := s.signalEnding(ctx, c, l, sig, w)
	if err != nil {
		return err
	}
	if !ended && !s.awaitEnd(ctx, c, w, s.patience(c, timeout)) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := s.killHard(ctx, c, l, w); err != nil {
			return err
		}
	}
	s.publish(c, "stop")
	return nil
}

// patience is how long a stop waits before it kills; negative is for ever.
func (s *Service) patience(c *ctr, timeout *int) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	sec := s.opts.StopTimeout
	if t := c.rec.Spec.StopTimeout; t != nil {
		sec = *t
	}
	if timeout != nil {
		sec = *timeout
	}
	return time.Duration(sec) * time.Second
}

// awaitEnd reports whether the run ended, and was settled, in time. It takes the waiter's one answer.
func (s *Service) awaitEnd(ctx context.Context, c *ctr, w *waiter, d time.Duration) bool {
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

// endingPatience is how long a process whose end has begun may take to be seen ended.
const endingPatience = 2 * time.Second

// signalEnding sends a signal that is meant to end the process. A runtime may refuse it because the process is about
// to be gone, so a refusal counts only when it is not gone in a moment. ended says that the waiter was answered.
func (s *Service) signalEnding(ctx context.Context, c *ctr, l *life, sig unix.Signal, w *waiter) (ended bool, err error) {
	err = s.signal(ctx, c, l, sig)
	if err == nil || errors.Is(err, errs.Precondition) {
		return false, nil
	}
	if ctx.Err() == nil && s.awaitEnd(ctx, c, w, endingPatience) {
		return true, nil
	}
	return false, err
}

func (s *Service) killHard(ctx context.Context, c *ctr, l *life, w *waiter) error {
	ended, err := s.signalEnding(ctx, c, l, unix.SIGKILL, w)
	if err != nil || ended {
		return err
	}
	if s.awaitEnd(ctx, c, w, killPatience) {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	// The process cannot end under its shim (one that a runtime lost track of is not reaped). Without the shim the
	// kernel gives it to somebody who does, and supervise settles the run.
	who := procid.ID(l.client.Identity())
	s.log.Error("container does not end when killed; its shim is ended", "container", c.id, "pid", who.PID)
	if err := procid.Kill(who, unix.SIGKILL); err != nil && !errors.Is(err, procid.ErrGone) {
		return errs.New(errs.Internal, "container %s: end its shim: %w", c.id, err)
	}
	if s.awaitEnd(ctx, c, w, killPatience) {
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

// signal sends to the first process; a frozen one is thawed so that it can act on it. errs.Precondition when it has ended.
func (s *Service) signal(ctx context.Context, c *ctr, l *life, sig unix.Signal) error {
	err := l.client.Kill(ctx, "", shim.KillArgs{Signal: int(sig)})
	if errors.Is(err, errs.Unavailable) || errors.Is(err, errs.Conflict) {
		// The process has just ended, or the shim is gone; supervise settles it.
		return errs.New(errs.Precondition, "container %s: %w", c.id, err)
	}
	if err != nil {
		return err
	}
	s.publish(c, "kill", "signal", strconv.Itoa(int(sig)))
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
	if err := s.stopContainer(ctx, c, signal, timeout, toRestart); err != nil && !errors.Is(err, ErrNotModified) {
		return err
	}
	if err := s.Start(ctx, string(c.id)); err != nil && !errors.Is(err, ErrNotModified) {
		return err
	}
	s.publish(c, "restart")
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
		s.saveLogged(c)
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
		return s.killHard(ctx, c, l, w)
	}
	if err := s.signal(ctx, c, l, sig); err != nil {
		w = c.wait(WaitNotRunning)
		defer c.unwait(w)
		if errors.Is(err, errs.Precondition) || s.awaitEnd(ctx, c, w, endingPatience) {
			return errs.New(errs.Conflict, "cannot kill container: %s: container %s is not running", clip(ref), c.id)
		}
		return err
	}
	return nil
}

// Pause freezes a container's processes.
func (s *Service) Pause(ctx context.Context, ref string) error {
	return s.setFrozen(ctx, ref, true)
}

// Unpause thaws them.
func (s *Service) Unpause(ctx context.Context, ref string) error {
	return s.setFrozen(ctx, ref, false)
}

func (s *Service) setFrozen(ctx context.Context, ref string, pause bool) error {
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.release()
	l, err := c.running()
	st := c.status()
	switch {
	case st == StatusRestarting:
		return errs.New(errs.Conflict, "container %s is restarting, wait until the container is running", c.id)
	case !pause && st != StatusPaused && err == nil:
		return errs.New(errs.Conflict, "Container %s is not paused", c.id)
	case err != nil:
		return err
	case pause && st == StatusPaused:
		return errs.New(errs.Conflict, "container %s is already paused", c.id)
	}
	do, action := c.thaw, "unpause"
	if pause {
		do, action = c.freeze, "pause"
	}
	if err := do(ctx, l); err != nil {
		return errs.New(errs.Conflict, "cannot %s container %s: %w", action, c.id, err)
	}
	s.publish(c, action)
	return s.save(c)
}

// freeze stops the processes of a run; no exec starts meanwhile. The caller holds op.
func (c *ctr) freeze(ctx context.Context, l *life) error {
	c.freezing.Lock()
	defer c.freezing.Unlock()
	if err := l.client.Pause(ctx); err != nil {
		return err
	}
	c.mu.Lock()
	c.rec.State.Status = StatusPaused
	c.mu.Unlock()
	return nil
}

// thaw lets them go on.
func (c *ctr) thaw(ctx context.Context, l *life) error {
	c.freezing.Lock()
	defer c.freezing.Unlock()
	// A conflict says that it is not frozen: a kill has thawed it.
	if err := l.client.Resume(ctx); err != nil && !errors.Is(err, errs.Conflict) {
		return err
	}
	c.mu.Lock()
	if c.life == l && c.rec.State.Status == StatusPaused {
		c.rec.State.Status = StatusRunning
	}
	c.mu.Unlock()
	return nil
}
