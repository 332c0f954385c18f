package container

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"time"

	"ply/internal/container/session"
	"ply/internal/container/shim"
	"ply/internal/errs"
)

const (
	lostExit     = 255 // exit code of a process whose end nothing recorded
	firstBackoff = 100 * time.Millisecond
	maxBackoff   = time.Minute
	steadyRun    = 10 * time.Second // a run that lasts this long resets the backoff
	cleanupLimit = 30 * time.Second
)

func asProgramError(err error) (*shim.ProgramError, bool) {
	return errors.AsType[*shim.ProgramError](err)
}

// supervisor watches runs: it checks their health, records their end, and restarts or removes the container where its
// options ask for it.
type supervisor struct {
	env     *env
	restart func(context.Context, *ctr) error // starts a container; the caller holds its slot
}

// watch supervises a run until it ends.
func (s *supervisor) watch(c *ctr, l *life) {
	s.env.work.Go(func() { s.await(c, l) })
	s.watchHealth(c, l)
}

// await waits for the end of a run and records it.
func (s *supervisor) await(c *ctr, l *life) {
	e, err := l.Client.Wait(s.env.run, "")
	if s.env.run.Err() != nil {
		return // the engine stops; the container runs on
	}
	exit := Exit{Code: e.Code, OOMKilled: e.OOMKilled, At: e.At}
	if err != nil {
		exit = s.lost(c, l, err)
	}
	if err := c.acquire(s.env.run); err != nil {
		return
	}
	defer c.release()
	s.recordExit(c, l, exit)
}

// lost returns the exit of a run whose shim died without an answer. It ends the processes that the shim left.
func (s *supervisor) lost(c *ctr, l *life, cause error) Exit {
	s.env.log.Warn("shim was lost", "container", c.id, "err", cause)
	if e, err := shim.FindExit(l.Client.Config().Run, c.paths.exit, c.paths.bundle); err == nil {
		return Exit{Code: e.Code, OOMKilled: e.OOMKilled, At: e.At}
	}
	ctx, cancel := context.WithTimeout(s.env.run, cleanupLimit)
	defer cancel()
	if _, err := shim.Cleanup(ctx, s.env.opts.ShimPath, c.paths.bundle); err != nil && !errors.Is(err, errs.NotFound) {
		s.env.log.Error("leftovers of a lost shim were not removed", "container", c.id, "err", err)
	}
	if err := endCgroup(cgroupRoot, cgroupOf(c)); err != nil {
		s.env.log.Error("cgroup of a lost shim was not removed", "container", c.id, "err", err)
	}
	return Exit{Code: lostExit, At: time.Now(), Error: "the process that kept the container was killed"}
}

// recordExit records how a run ended, releases what it used, and restarts or removes the container where its options
// ask for it. The caller holds c.op.
func (s *supervisor) recordExit(c *ctr, l *life, exit Exit) {
	ctx := context.Background() // the clean-up does not depend on a client
	c.mu.Lock()
	if c.life != l {
		c.mu.Unlock()
		l.recorded()
		return
	}
	again, wait := c.decideRestart(l, exit)
	auto, step := c.rec.Spec.AutoRemove && !l.keep, c.rec.Step
	c.mu.Unlock()
	l.end()
	s.releaseRun(ctx, c, l)
	c.publishMounts("unmount")
	c.sessions.End()
	c.exited(exit, again, !auto || again)
	l.recorded()
	if exit.OOMKilled {
		c.publish("oom")
	}
	c.publish("die", "exitCode", strconv.Itoa(exit.Code), "execDuration", strconv.Itoa(int(exit.At.Sub(l.began).Seconds())))
	if again {
		s.scheduleRestart(c, wait)
	}
	if !auto {
		if !step {
			c.saveLogged()
		}
		return
	}
	if err := c.destroyLogged(ctx, true); err != nil {
		s.env.log.Error("container was not removed", "container", c.id, "err", err)
		c.saveLogged()
	}
	c.mu.Lock()
	c.notify(exit, WaitNotRunning, WaitNextExit)
	c.mu.Unlock()
}

// exited sets the state of a container whose run has ended. again: it waits for a restart. answer: those who wait for the
// end are answered.
func (c *ctr) exited(exit Exit, again, answer bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.life = nil
	st := &c.rec.State
	st.Status, st.PID, st.ExitCode, st.OOMKilled, st.Error = StatusExited, 0, exit.Code, exit.OOMKilled, exit.Error
	st.Finished = exit.At.UTC()
	if again {
		st.Status = StatusRestarting
		st.Restarts++
	}
	if answer {
		c.notify(exit, WaitNotRunning, WaitNextExit)
	}
}

// decideRestart applies the restart policy to the end of a run; c.mu is held.
func (c *ctr) decideRestart(l *life, exit Exit) (again bool, wait time.Duration) {
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

// releaseRun releases what a run used: the state of the runtime, network, volumes, mounts. It logs failures: the
// process is gone whatever stays behind, and the next Restore cleans up.
func (s *supervisor) releaseRun(ctx context.Context, c *ctr, l *life) {
	var wg sync.WaitGroup
	part := func(what string, do func() error) {
		wg.Go(func() {
			if err := do(); err != nil {
				s.env.log.Warn("not released", "what", what, "container", c.id, "err", err)
			}
		})
	}
	part("network", func() error { return c.detachNetwork(ctx) })
	part("shim", func() error {
		ctx, cancel := context.WithTimeout(ctx, cleanupLimit)
		defer cancel()
		drain, stop := context.WithTimeout(ctx, session.DrainLimit)
		defer stop()
		err := l.Drain(drain) // the shim's queues end with it
		return errors.Join(err, l.Client.Shutdown(ctx))
	})
	wg.Wait()
	part("root", c.root.Release)
	part("volumes", func() error { s.env.opts.Volumes.Release(c.id); return nil })
	part("shm", func() error { return unmountShm(c.paths.shm) })
	wg.Wait()
}

// scheduleRestart starts the container again after wait, unless it is stopped or removed first.
func (s *supervisor) scheduleRestart(c *ctr, wait time.Duration) {
	ctx, cancel := context.WithCancel(s.env.run)
	c.mu.Lock()
	c.again = cancel
	c.mu.Unlock()
	s.env.work.Go(func() {
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
		if err := s.restart(context.WithoutCancel(ctx), c); err != nil {
			s.env.log.Error("restart failed", "container", c.id, "err", err)
		}
	})
}

// cancelRestart makes a container that waits for its restart an exited one; it reports whether it was waiting.
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
