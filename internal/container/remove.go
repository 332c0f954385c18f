package container

import (
	"context"
	"errors"

	"ply/internal/errs"
	"ply/internal/store/meta"
)

// Remove deletes a container that does not run, or, with force, any; volumes says to delete its anonymous
// volumes too. Errors: NotFound, Conflict.
func (s *Service) Remove(ctx context.Context, ref string, force, volumes, link bool) error {
	if link {
		return errs.New(errs.Unimplemented, "rm --link: legacy links are not supported")
	}
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	refuse := func(format string, args ...any) error {
		e := errs.New(errs.Conflict, format, args...)
		return errs.New(errs.Conflict, "cannot remove container %q: %w", "/"+c.name(), e)
	}
	for {
		if err := c.lock(ctx); err != nil {
			return err
		}
		c.mu.Lock()
		st, alive := c.rec.State.Status, c.life != nil || c.rec.State.Status == StatusRestarting
		c.mu.Unlock()
		switch {
		case !alive:
			err := s.destroy(context.WithoutCancel(ctx), c, volumes)
			c.release()
			return err
		case st == StatusPaused && !force:
			c.release()
			return refuse("container is paused and must be unpaused first")
		case !force:
			c.release()
			return refuse("container is %s: stop the container before removing or force remove", st)
		}
		c.release()
		// The end of the run needs the slot itself.
		if err := s.killForRemove(ctx, c); err != nil {
			return refuse("could not kill container: %w", err)
		}
		if c.done.Err() != nil { // --rm is faster: wait until it is done
			if err := c.idle(ctx); err != nil && !errors.Is(err, errs.NotFound) {
				return err
			}
			return nil
		}
	}
}

func (s *Service) killForRemove(ctx context.Context, c *ctr) error {
	c.mu.Lock()
	c.rec.Stopped = true
	if c.life != nil {
		c.life.manual = true
	}
	c.mu.Unlock()
	if c.cancelRestart() {
		return nil
	}
	l, err := c.running()
	if err != nil {
		return nil
	}
	w := c.wait(WaitNextExit)
	defer c.unwait(w)
	return s.killHard(ctx, c, l, w)
}

// destroy deletes a container that does not run: first the record, then what it spoke of. The caller holds c.op.
func (s *Service) destroy(ctx context.Context, c *ctr, volumes bool) error {
	c.mu.Lock()
	if c.gone {
		c.mu.Unlock()
		return errs.New(errs.NotFound, "No such container: %s", c.id)
	}
	c.rec.State.Status, c.gone = StatusRemoving, true
	mounts := c.rec.Mounts
	c.mu.Unlock()
	c.remove() // readers of its files stop
	err := c.drainRoot(ctx)
	if err == nil {
		c.saveMu.Lock()
		err = s.opts.Store.Meta.Update(func(tx *meta.Tx) error { return tx.Containers.Delete(c.id) })
		c.saveMu.Unlock()
	}
	if err != nil {
		c.mu.Lock()
		c.rec.State.Status, c.gone = StatusDead, false
		c.mu.Unlock()
		return errs.New(errs.Internal, "remove container %s: %w", c.id.Short(), err)
	}
	err = errors.Join(s.detachNetwork(ctx, c), s.opts.Store.Layers.RemoveWritable(ctx, c.writableDir()))
	s.publish(c, "destroy")
	err = errors.Join(err, s.forget(c))
	s.opts.Volumes.Drop(c.id)
	if volumes {
		s.opts.Volumes.RemoveAnonymous(ctx, volumeNames(mounts))
	}
	c.mu.Lock()
	exit := c.lastExit()
	c.notify(exit, WaitRemoved, WaitNotRunning, WaitNextExit)
	for p := range c.waiting {
		p.cancel()
	}
	c.mu.Unlock()
	if err != nil {
		// The container is gone for everybody; what stays on disk is swept by the next Restore.
		s.log.Error("leftovers of a removed container", "container", c.id, "err", err)
	}
	return nil
}
