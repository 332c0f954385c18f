package container

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"time"

	"ply/internal/container/shim"
	"ply/internal/errs"
)

const (
	lostExit     = 255 // exit code of a process whose end nobody saw
	firstBackoff = 100 * time.Millisecond
	maxBackoff   = time.Minute
	steadyRun    = 10 * time.Second // a run this long starts the backoff over
	cleanupLimit = 30 * time.Second
)

// supervise waits for the end of one run and settles it.
func (s *Service) supervise(c *ctr, l *life) {
	e, err := l.client.Wait(s.run, "")
	if s.run.Err() != nil {
		return // the engine leaves, the container stays
	}
	exit := Exit{Code: e.Code, OOMKilled: e.OOMKilled, At: e.At}
	if err != nil {
		exit = s.lost(c, err)
	}
	if err := c.acquire(s.run); err != nil {
		return
	}
	defer c.release()
	s.settle(c, l, exit)
}

// lost settles with a shim that died without an exit file: what it left running is ended.
func (s *Service) lost(c *ctr, cause error) Exit {
	s.log.Warn("shim was lost", "container", c.id, "err", cause)
	if e, err := shim.ReadExit(c.exitPath()); err == nil {
		return Exit{Code: e.Code, OOMKilled: e.OOMKilled, At: e.At}
	}
	ctx, cancel := context.WithTimeout(s.run, cleanupLimit)
	defer cancel()
	if _, err := shim.Cleanup(ctx, s.opts.ShimPath, c.exec); err != nil && !errors.Is(err, errs.NotFound) {
		s.log.Error("leftovers of a lost shim stay", "container", c.id, "err", err)
	}
	return Exit{Code: lostExit, At: time.Now(), Error: "the process that kept the container was killed"}
}

// settle records how a run ended, gives back what it used, and restarts or removes the container where its
// policy says so. The caller holds c.op.
func (s *Service) settle(c *ctr, l *life, exit Exit) {
	ctx := context.Background() // what was made must be undone whoever has left
	c.mu.Lock()
	if c.life != l {
		c.mu.Unlock()
		return
	}
	again, wait := c.decide(l, exit)
	auto := c.rec.Spec.AutoRemove && !l.keep
	c.mu.Unlock()
	l.end()
	s.releaseRun(ctx, c, l)

	s.publishMounts(c, "unmount")
	c.mu.Lock()
	c.life = nil
	st := &c.rec.State
	st.Status, st.PID, st.ExitCode, st.OOMKilled, st.Error = StatusExited, 0, exit.Code, exit.OOMKilled, exit.Error
	st.Finished = exit.At.UTC()
	if again {
		st.Status = StatusRestarting
		st.Restarts++
	}
	execs := c.execs
	c.execs = map[string]*execution{}
	if !auto || again {
		c.notify(exit, WaitNotRunning, WaitNextExit)
	}
	c.mu.Unlock()
	s.dropExecs(execs)
	if exit.OOMKilled {
		s.publish(c, "oom")
	}
	s.publish(c, "die", "exitCode", strconv.Itoa(exit.Code), "execDuration", strconv.Itoa(int(exit.At.Sub(l.began).Seconds())))
	if again {
		s.scheduleRestart(c, wait)
	}
	if !auto {
		s.saveLogged(c)
		return
	}
	err := s.destroy(ctx, c, true)
	if err != nil {
		s.log.Error("container stays", "container", c.id, "err", err)
		s.saveLogged(c)
	}
	c.mu.Lock()
	c.notify(exit, WaitNotRunning, WaitNextExit)
	c.mu.Unlock()
}

// decide applies the restart policy; mu is held.
func (c *ctr) decide(l *life, exit Exit) (again bool, wait time.Duration) {
	if l.manual || c.rec.Stopped {
		return false, 0
	}
	p := c.rec.Spec.RestartPolicy
	switch p.Name {
	case "always", "unless-stopped":
	case "on-failure":
		if exit.Code == 0 || (p.MaxRetries > 0 && c.rec.State.Restarts >= p.MaxRetries) {
			return false, 0
		}
	default:
		return false, 0
	}
	if exit.At.Sub(l.began) > steadyRun {
		c.failed = 0
	}
	wait = min(firstBackoff<<min(c.failed, 16), maxBackoff)
	c.failed++
	return true, wait
}

// releaseRun gives back what a run used: runtime state, network, volumes, mounts. Failures are logged: the process
// is gone whatever stays behind, and Restore sweeps.
func (s *Service) releaseRun(ctx context.Context, c *ctr, l *life) {
	var wg sync.WaitGroup
	part := func(what string, do func() error) {
		wg.Go(func() {
			if err := do(); err != nil {
				s.log.Warn("not released", "what", what, "container", c.id, "err", err)
			}
		})
	}
	part("network", func() error { return s.detachNetwork(ctx, c) })
	part("shim", func() error {
		ctx, cancel := context.WithTimeout(ctx, cleanupLimit)
		defer cancel()
		return l.client.Shutdown(ctx)
	})
	wg.Wait()
	part("root", func() error { return s.unmountRoot(c) })
	part("volumes", func() error { s.opts.Volumes.Release(c.id); return nil })
	part("shm", c.unmountShm)
	wg.Wait()
}

// scheduleRestart starts the container again after a while, unless somebody stops or removes it first.
func (s *Service) scheduleRestart(c *ctr, wait time.Duration) {
	ctx, cancel := context.WithCancel(s.run)
	c.mu.Lock()
	c.again = cancel
	c.mu.Unlock()
	s.work.Go(func() {
		defer cancel()
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		if err := c.acquire(ctx); err != nil {
			return
		}
		defer c.release()
		c.mu.Lock()
		due := ctx.Err() == nil && c.rec.State.Status == StatusRestarting && !c.gone
		if due {
			c.again = nil
		}
		c.mu.Unlock()
		if !due {
			return
		}
		if err := s.start(context.WithoutCancel(ctx), c); err != nil {
			s.log.Error("restart failed", "container", c.id, "err", err)
		}
	})
}

// cancelRestart makes a container that waits for its restart an exited one; it reports whether it was.
func (c *ctr) cancelRestart() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rec.State.Status != StatusRestarting || c.life != nil {
		return false
	}
	if c.again != nil {
		c.again()
		c.again = nil
	}
	c.rec.State.Status = StatusExited
	c.notify(c.lastExit(), WaitNotRunning, WaitNextExit)
	return true
}
