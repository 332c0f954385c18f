package container

import (
	"context"
	"errors"

	"ply/internal/errs"
	"ply/internal/store/meta"
)

// Remove deletes a container that does not run; with force also one that runs, or whose record is damaged. volumes says to
// delete its anonymous volumes too. With link, ref is CONTAINER/ALIAS, and only this link is removed. Errors: NotFound, Conflict, DataLoss.
func (s *Service) Remove(ctx context.Context, ref string, force, volumes, link bool) error {
	if link {
		return removeLink(ctx, s, ref)
	}
	c, err := s.find(ref)
	if force && errors.Is(err, errs.DataLoss) {
		return s.destroyLost(ctx, ref)
	}
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
			left, err := c.destroy(context.WithoutCancel(ctx), volumes)
			c.release()
			if left != nil {
				err = errs.New(errs.Internal, "container %s is removed, but not all of its files are: %w", c.id, left).
					WithHint("plyd removes the rest when it starts the next time.")
			}
			return err
		case st == StatusPaused && !force:
			c.release()
			return refuse("container is paused and must be unpaused first")
		case !force:
			c.release()
			return refuse("container is %s: stop the container before removing or force remove", st)
		}
		c.release()
		// Recording the end of the run takes the slot.
		if err := c.killForRemove(ctx); err != nil {
			return refuse("could not kill container: %w", err)
		}
		if c.done.Err() != nil { // --rm has removed it already, or is about to
			if err := c.idle(ctx); err != nil && !errors.Is(err, errs.NotFound) {
				return err
			}
			return nil
		}
	}
}

// killForRemove ends the run of a container, if there is one, and keeps policies from starting another.
func (c *ctr) killForRemove(ctx context.Context) error {
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
	defer w.cancel()
	return l.kill(ctx, w)
}

// destroyLogged is destroy for callers that have nobody to tell what is left.
func (c *ctr) destroyLogged(ctx context.Context, volumes bool) error {
	left, err := c.destroy(ctx, volumes)
	if left != nil {
		c.env.log.Error("files of a removed container are left", "container", c.id, "err", left)
	}
	return err
}

// destroy deletes a container that does not run: first the record, then its files. The caller holds c.op. left says why
// files are left of a container that is removed; the next Restore deletes them.
func (c *ctr) destroy(ctx context.Context, volumes bool) (left, err error) {
	c.mu.Lock()
	if c.gone {
		c.mu.Unlock()
		return nil, errs.New(errs.NotFound, "No such container: %s", c.id)
	}
	c.rec.State.Status, c.gone = StatusRemoving, true
	mounts, name, volatile := c.rec.Mounts, c.rec.Name, c.rec.volatile()
	c.mu.Unlock()
	c.copies.finish(c.env.run)
	c.remove() // ends what still reads its files
	st := c.env.opts.Store
	err = c.root.Close(ctx)
	if err == nil {
		err = removeRecord(c, volatile)
	}
	if err != nil {
		c.root.Reopen()
		c.copies.reopen()
		c.mu.Lock()
		c.rec.State.Status, c.gone = StatusDead, false
		c.mu.Unlock()
		return nil, errs.New(errs.Internal, "remove container %s: %w", c.id.Short(), err)
	}
	if err := c.sessions.HoldLogs(); err != nil {
		c.env.log.Warn("clients that read the log may miss its end", "container", c.id, "err", err)
	}
	left = errors.Join(c.detachNetwork(ctx), st.Layers.RemoveWritable(ctx, c.paths.writable))
	c.publish("destroy")
	c.env.index.remove(c.id, name)
	left = errors.Join(left, c.removeDirs())
	c.env.opts.Volumes.DropReferences(c.id)
	if volumes {
		c.env.opts.Volumes.RemoveAnonymous(ctx, volumeNames(mounts))
	}
	c.mu.Lock()
	c.notify(c.lastExit(), WaitRemoved, WaitNotRunning, WaitNextExit)
	c.mu.Unlock()
	c.sessions.Drop()
	return left, nil
}

// removeRecord deletes the record of a container. later: it may come back after a crash, as that of a volatile container, which is then
// removed again.
func removeRecord(c *ctr, later bool) error {
	c.saveMu.Lock()
	defer c.saveMu.Unlock()
	remove := func(tx *meta.Tx) error { return tx.Containers.Delete(c.id) }
	if !later {
		return c.env.opts.Store.Meta.Update(remove)
	}
	c.env.opts.Store.Meta.Later(remove, func(err error) {
		if err != nil {
			c.env.log.Error("record of a removed container is left", "container", c.id, "err", err)
		}
	})
	return nil
}
