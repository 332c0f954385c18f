package container

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"ply/internal/container/shim"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/procid"
	"ply/internal/store/meta"
)

// restoreAtOnce bounds how many containers are looked at in parallel.
const restoreAtOnce = 8

// Restore brings the service in line with what lives: shims that run are taken up again, runs whose end nobody
// saw are settled (by their exit file, or as exited with 255), leftovers of mounts, networks and bundles are cleaned
// away, and what the restart policies ask for is started. It fails only when nothing can work; what goes wrong
// with one container is logged and leaves the others alone. No process is signalled that is not proven ours.
func (s *Service) Restore(ctx context.Context) error {
	var g errgroup.Group
	g.SetLimit(restoreAtOnce)
	for _, c := range s.all() {
		g.Go(func() error {
			if err := s.restore(ctx, c); err != nil {
				s.log.Error("container not restored", "container", c.id, "err", err)
			}
			return nil
		})
	}
	_ = g.Wait() // each has told of its own
	s.sweep(ctx)
	s.work.Go(s.startDue)
	return ctx.Err()
}

// startsAtOnce bounds how many containers a new engine starts in parallel.
const startsAtOnce = 4

// startDue starts what the policies ask for: first those that stand alone, then those that join others.
func (s *Service) startDue() {
	var joiners []*ctr
	var g errgroup.Group
	g.SetLimit(startsAtOnce)
	start := func(c *ctr) {
		if c.acquire(s.run) != nil {
			return
		}
		defer c.release()
		if c.status() != StatusRestarting { // stopped or removed by now
			return
		}
		if err := s.start(context.WithoutCancel(s.run), c); err != nil {
			s.log.Error("restart failed", "container", c.id, "err", err)
		}
	}
	for _, c := range s.all() {
		due, joins := c.due()
		if !due {
			continue
		}
		if joins {
			joiners = append(joiners, c)
			continue
		}
		g.Go(func() error { start(c); return nil })
	}
	_ = g.Wait() // each has told of its own
	for _, c := range joiners {
		start(c)
	}
}

func (s *Service) restore(ctx context.Context, c *ctr) error {
	if err := c.acquire(ctx); err != nil {
		return err
	}
	defer c.release()
	client, err := s.reconnect(ctx, c)
	if err != nil {
		return err
	}
	if client != nil {
		done, err := s.adopt(ctx, c, client)
		if done || err != nil {
			return err
		}
	}
	c.mu.Lock()
	st, auto := c.rec.State.Status, c.rec.Spec.AutoRemove
	c.mu.Unlock()
	switch st {
	case StatusRunning, StatusPaused, StatusRestarting:
		s.settleDead(ctx, c, st)
	case StatusRemoving, StatusDead:
		s.cleanRun(ctx, c)
		return s.destroy(ctx, c, true)
	default:
		s.cleanRun(ctx, c)
	}
	if auto {
		return s.destroy(ctx, c, true)
	}
	return nil
}

// connectTries is how often a shim that lives is asked before it counts as broken; each try takes seconds.
const connectTries = 4

// reconnect finds the container's shim; nil when there is none. A shim that lives and answers nobody is ended: its
// container could never be stopped or removed.
func (s *Service) reconnect(ctx context.Context, c *ctr) (*shim.Client, error) {
	for try := 1; ; try++ {
		client, err := shim.Connect(c.exec)
		if err == nil {
			return client, nil
		}
		if !errors.Is(err, errs.NotFound) {
			s.log.Warn("shim not found again", "container", c.id, "err", err)
		}
		who, idErr := shim.ReadIdentity(filepath.Join(c.exec, shim.PidFile))
		if idErr != nil || !procid.Alive(procid.ID(who)) {
			return nil, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if try < connectTries {
			continue
		}
		s.log.Error("shim does not answer and is ended", "container", c.id, "pid", who.PID)
		if err := procid.Kill(procid.ID(who), unix.SIGKILL); err != nil && !errors.Is(err, procid.ErrGone) {
			return nil, err
		}
		for procid.Alive(procid.ID(who)) && ctx.Err() == nil {
			time.Sleep(time.Millisecond) // a killed process is gone in a moment
		}
		return nil, nil
	}
}

// adopt takes up a container whose shim lives. done says that nothing else is to be done for it.
func (s *Service) adopt(ctx context.Context, c *ctr, client *shim.Client) (done bool, err error) {
	st, err := client.State(ctx, "")
	if err != nil {
		return false, err
	}
	if client.Config().ID != string(c.id) {
		return true, errs.New(errs.Internal, "container %s: its bundle belongs to %s", c.id, client.Config().ID)
	}
	if st.Status == "created" { // a start that the engine did not live to finish
		return false, client.Shutdown(ctx)
	}
	began := time.Now()
	c.mu.Lock()
	if !c.rec.State.Started.IsZero() {
		began = c.rec.State.Started
	}
	l := &life{client: client, began: began}
	l.ctx, l.end = context.WithCancel(s.run)
	c.life = l
	c.rec.State.Status, c.rec.State.PID, c.rec.State.Started = StatusRunning, st.PID, began
	if st.Status == "paused" {
		c.rec.State.Status = StatusPaused
	}
	c.rec.Boot, _ = procid.Boot()
	if c.rec.Netns == "" { // the record of a --rm container is older than its start
		if _, err := os.Lstat(c.netnsPath()); err == nil {
			c.rec.Netns = c.netnsPath()
		}
	}
	mounts := c.rec.Mounts
	c.mu.Unlock()
	c.adoptRoot()
	s.opts.Volumes.Adopt(c.id, mounts)
	s.work.Go(func() { s.supervise(c, l) })
	s.startHealth(c, l)
	return true, nil
}

// settleDead records the end of a run that no engine saw.
func (s *Service) settleDead(ctx context.Context, c *ctr, was Status) {
	exit := Exit{Code: lostExit, At: time.Now()}
	c.mu.Lock()
	began := c.rec.State.Started
	c.mu.Unlock()
	// An exit file that is older than the start speaks of the run before.
	if e, err := shim.ReadExit(c.exitPath()); err == nil && !e.At.Before(began.Add(-time.Second)) {
		exit = Exit{Code: e.Code, OOMKilled: e.OOMKilled, At: e.At}
	}
	s.cleanRun(ctx, c)
	defer s.saveLogged(c)
	c.mu.Lock()
	defer c.mu.Unlock()
	state := &c.rec.State
	if was == StatusRestarting {
		return // it was waiting; its last run was settled
	}
	state.Status, state.PID, state.ExitCode, state.OOMKilled, state.Finished = StatusExited, 0, exit.Code, exit.OOMKilled, exit.At.UTC()
	again, _ := c.decide(&life{began: began}, exit)
	if again {
		state.Status = StatusRestarting
		state.Restarts++
	}
}

// due reports whether a policy wants the container started now that the engine is up, and marks it; joins says that
// it uses a namespace of another.
func (c *ctr) due() (due, joins bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.life != nil || c.gone {
		return false, false
	}
	st := &c.rec.State
	if st.Status == StatusExited && !st.Started.IsZero() {
		p := c.rec.Spec.RestartPolicy.Name
		if p == "always" || p == "unless-stopped" && !c.rec.Stopped {
			st.Status = StatusRestarting
		}
	}
	sp := &c.rec.Spec
	return st.Status == StatusRestarting, isContainerMode(sp.NetworkMode) || isContainerMode(sp.PidMode) || isContainerMode(sp.IpcMode)
}

// cleanRun removes what a run that is over left on this host: processes and cgroups of a killed shim, mounts, the
// network. After a reboot there is nothing, and none of it is done twice.
func (s *Service) cleanRun(ctx context.Context, c *ctr) {
	warn := func(what string, err error) {
		if err != nil {
			s.log.Warn("leftover stays", "what", what, "container", c.id, "err", err)
		}
	}
	if _, err := os.Lstat(filepath.Join(c.exec, shim.ConfigFile)); err == nil {
		cctx, cancel := context.WithTimeout(ctx, cleanupLimit)
		_, err := shim.Cleanup(cctx, s.opts.ShimPath, c.exec)
		cancel()
		if !errors.Is(err, errs.NotFound) {
			warn("shim", err)
		}
	}
	c.mu.Lock()
	netns := c.rec.Netns
	if _, err := os.Lstat(c.netnsPath()); netns == "" && err == nil {
		netns, c.rec.Netns = c.netnsPath(), c.netnsPath()
	}
	c.mu.Unlock()
	if netns != "" {
		warn("network", s.detachNetwork(ctx, c))
	}
	warn("root", s.unmountLeft(ctx, c.exec))
	warn("shm", c.unmountShm())
}

// unmountLeft unmounts the root of a bundle, if it is mounted.
func (s *Service) unmountLeft(ctx context.Context, bundle string) error {
	root := filepath.Join(bundle, shim.RootfsDir)
	if ok, err := mountinfo.Mounted(root); err != nil || !ok {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	return s.opts.Store.Layers.Unmount(ctx, root)
}

// sweep deletes directories of containers that have no record: a create or remove that a crash cut off.
func (s *Service) sweep(ctx context.Context) {
	for _, base := range []string{s.opts.ExecRoot, s.opts.DataRoot} {
		dir := filepath.Join(base, "containers")
		entries, err := s.opts.Store.FS.ReadDir(dir)
		if err != nil {
			s.log.Warn("leftovers not looked for", "dir", dir, "err", err)
			continue
		}
		for _, e := range entries {
			id := oci.ContainerID(e.Name())
			s.mu.RLock()
			known := s.byID[id] != nil
			s.mu.RUnlock()
			if known || !oci.IsHex64(e.Name()) || s.damaged(id) {
				continue
			}
			if err := s.sweepOne(ctx, id); err != nil {
				s.log.Warn("leftover stays", "container", id, "err", err)
			}
		}
	}
}

// damaged reports whether there is a record that could not be read: its files are kept for whoever mends it.
func (s *Service) damaged(id oci.ContainerID) bool {
	has := true
	if err := s.opts.Store.Meta.View(func(tx *meta.Tx) error { has = tx.Containers.Has(id); return nil }); err != nil {
		return true
	}
	return has
}

// sweepOne removes what is left of a container without a record. A shim that lives is somebody's: leave it.
func (s *Service) sweepOne(ctx context.Context, id oci.ContainerID) error {
	c := s.newCtr(id)
	if _, err := shim.Connect(c.exec); err == nil {
		return errs.New(errs.Conflict, "its shim lives")
	}
	s.cleanRun(ctx, c)
	if _, err := os.Lstat(c.writableDir()); err == nil {
		if err := s.opts.Store.Layers.RemoveWritable(ctx, c.writableDir()); err != nil {
			return err
		}
	}
	return s.removeDirs(c)
}
