package container

import (
	"context"
	"errors"

	"ply/internal/errs"
)

// Pause freezes a container's processes.
func (s *Service) Pause(ctx context.Context, ref string) error {
	return s.setFrozen(ctx, ref, true)
}

// Unpause lets the processes of a paused container run on.
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
	c.publish(action)
	return c.save()
}

// freeze stops the processes of a run; no exec starts meanwhile. The caller holds c.op.
func (c *ctr) freeze(ctx context.Context, l *life) error {
	return c.sessions.WithoutStarts(func() error {
		if err := l.Client.Pause(ctx); err != nil {
			return err
		}
		c.mu.Lock()
		c.rec.State.Status = StatusPaused
		c.mu.Unlock()
		return nil
	})
}

// thaw lets the processes of a run go on. The caller holds c.op, or has killed the process.
func (c *ctr) thaw(ctx context.Context, l *life) error {
	return c.sessions.WithoutStarts(func() error {
		// A conflict says that the processes are not frozen: a kill has thawed them.
		if err := l.Client.Resume(ctx); err != nil && !errors.Is(err, errs.Conflict) {
			return err
		}
		c.mu.Lock()
		if c.life == l && c.rec.State.Status == StatusPaused {
			c.rec.State.Status = StatusRunning
		}
		c.mu.Unlock()
		return nil
	})
}
