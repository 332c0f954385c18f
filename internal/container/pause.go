package container

import (
	"context"

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
	do, action := l.thaw, "unpause"
	if pause {
		do, action = l.freeze, "pause"
	}
	if err := do(ctx); err != nil {
		return errs.New(errs.Conflict, "cannot %s container %s: %w", action, c.id, err)
	}
	c.publish(action)
	return c.save()
}
