package container

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"ply/internal/container/shim"
	"ply/internal/errs"
	"ply/internal/procid"
)

// restoreAtOnce bounds how many containers are restored in parallel.
const restoreAtOnce = 8

// Restore brings the service in line with the processes of this host. It takes up containers whose shims live, records
// the end of runs that ended without an engine (from the exit file, or as exit code 255), removes leftover mounts,
// networks and bundles, and starts what the restart policies ask for. It fails only when nothing can work: an error
// with one container is logged and does not affect the others. It signals no process that is not proven to be ours.
func (s *Service) Restore(ctx context.Context) error {
	r := &restorer{env: s.env, runs: s.runs}
	var g errgroup.Group
	g.SetLimit(restoreAtOnce)
	for _, c := range s.env.index.all() {
		g.Go(func() error {
			if err := r.restore(ctx, c); err != nil {
				s.env.log.Error("container not restored", "container", c.id, "err", err)
			}
			return nil
		})
	}
	_ = g.Wait() // the functions log their errors
	r.sweep(ctx)
	s.env.work.Go(r.startDue)
	return ctx.Err()
}

// restorer takes up the containers that an earlier engine left.
type restorer struct {
	env  *env
	runs *starter
}

// startsAtOnce bounds how many containers a new engine starts in parallel.
const startsAtOnce = 4

// startDue starts what the policies ask for: the containers that join namespaces of others come last.
func (r *restorer) startDue() {
	var joining []*ctr
	var g errgroup.Group
	g.SetLimit(startsAtOnce)
	start := func(c *ctr) {
		if c.acquire(r.env.run) != nil {
			return
		}
		defer c.release()
		if c.status() != StatusRestarting { // stopped or removed by now
			return
		}
		if err := r.runs.start(context.WithoutCancel(r.env.run), c); err != nil {
			r.env.log.Error("restart failed", "container", c.id, "err", err)
		}
	}
	for _, c := range r.env.index.all() {
		due, joins := isDue(c)
		if !due {
			continue
		}
		if joins {
			joining = append(joining, c)
			continue
		}
		g.Go(func() error { start(c); return nil })
	}
	_ = g.Wait() // the functions log their errors
	for _, c := range joining {
		start(c)
	}
}

// restore brings one container in line with its shim and exit file.
func (r *restorer) restore(ctx context.Context, c *ctr) error {
	if err := c.acquire(ctx); err != nil {
		return err
	}
	defer c.release()
	client, err := r.reconnect(ctx, c)
	if err != nil {
		return err
	}
	if client != nil {
		done, err := r.adopt(ctx, c, client)
		if done || err != nil {
			return err
		}
	}
	c.mu.Lock()
	st, auto := c.rec.State.Status, c.rec.Spec.AutoRemove
	c.mu.Unlock()
	switch st {
	case StatusRunning, StatusPaused, StatusRestarting:
		r.recordMissedExit(ctx, c, st)
	case StatusRemoving, StatusDead:
		r.cleanRun(ctx, c)
		return c.destroyLogged(ctx, true)
	default:
		r.cleanRun(ctx, c)
	}
	if auto {
		return c.destroyLogged(ctx, true)
	}
	return nil
}

// connectTries is how often the engine connects to a shim that lives before it counts as broken; a try takes seconds.
const connectTries = 4

// reconnect connects to the container's shim; nil when there is none. A shim that lives but does not answer is killed,
// because its container could never be stopped or removed.
func (r *restorer) reconnect(ctx context.Context, c *ctr) (*shim.Client, error) {
	for try := 1; ; try++ {
		client, err := shim.Connect(c.paths.bundle)
		if err == nil {
			return client, nil
		}
		if !errors.Is(err, errs.NotFound) {
			r.env.log.Warn("shim not found again", "container", c.id, "err", err)
		}
		who, idErr := shim.ReadIdentity(filepath.Join(c.paths.bundle, shim.PidFile))
		if idErr != nil {
			who, idErr = shim.Listener(c.paths.bundle)
		}
		if idErr != nil || !procid.Alive(procid.ID(who)) {
			return nil, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if try < connectTries {
			continue
		}
		r.env.log.Error("shim does not answer and is ended", "container", c.id, "pid", who.PID)
		if err := procid.Kill(procid.ID(who), unix.SIGKILL); err != nil && !errors.Is(err, procid.ErrGone) {
			return nil, err
		}
		for procid.Alive(procid.ID(who)) && ctx.Err() == nil {
			time.Sleep(time.Millisecond) // a killed process is gone in a moment
		}
		return nil, nil
	}
}

// adopt takes up a container whose shim lives. done reports that nothing else is to be done for it.
func (r *restorer) adopt(ctx context.Context, c *ctr, client *shim.Client) (done bool, err error) {
	st, err := client.State(ctx, "")
	if err != nil {
		return false, err
	}
	if client.Config().ID != string(c.id) {
		return true, errs.New(errs.Internal, "container %s: its bundle belongs to %s", c.id, client.Config().ID)
	}
	if st.Status == "created" { // the engine died during the start
		return false, client.Shutdown(ctx)
	}
	if err := client.Newer(); err != nil {
		r.env.log.Warn("container of a later release", "container", c.id, "err", err)
	}
	att, attached := r.env.opts.Network.Attached(c.id)
	began := client.Config().Started
	c.mu.Lock()
	if _, err := os.Lstat(c.paths.netns); attached || err == nil && !sharesNetwork(c.rec.Spec.NetworkMode) {
		// The record is older: it is written while the start makes the network, and after the last network is gone.
		c.rec.Networks, c.rec.Ports = att.Endpoints, att.Ports
	}
	if began.IsZero() { // the shim is of an earlier release
		began = c.rec.State.Started
	}
	if began.IsZero() {
		began = time.Now().UTC()
	}
	l := c.newLife(client, began)
	c.life = l
	c.rec.State.Status, c.rec.State.PID, c.rec.State.Started = StatusRunning, st.PID, began
	if st.Status == "paused" {
		c.rec.State.Status = StatusPaused
	}
	c.rec.Boot, _ = procid.Boot()
	if c.rec.Netns == "" { // the record of a --rm container is older than its start
		if _, err := os.Lstat(c.paths.netns); err == nil {
			c.rec.Netns = c.paths.netns
		}
	}
	mounts, publishes := c.rec.Mounts, len(c.rec.Spec.Ports) > 0 || c.rec.Spec.PublishAll
	c.mu.Unlock()
	c.root.Adopt()
	c.sessions.Begin(l.Run)
	if publishes && !sharesNetwork(c.rec.Spec.NetworkMode) {
		if err := takePorts(ctx, c, client); err != nil {
			r.env.log.Warn("published ports are served by the kernel's rules only", "container", c.id, "err", err)
		}
	}
	r.env.opts.Volumes.Adopt(c.id, mounts)
	r.runs.runs.watch(c, l)
	return true, nil
}

// takePorts lets the shim carry the ports that the container publishes now, and no others: an engine may have been killed before the shim knew of a change.
func takePorts(ctx context.Context, c *ctr, client *shim.Client) error {
	if err := publishPorts(ctx, c, client); err != nil {
		return err
	}
	changed, err := c.env.opts.Network.Settle(ctx, c.id)
	if err != nil || !changed {
		return err
	}
	att, _ := c.env.opts.Network.Attached(c.id)
	setAttachment(c, att)
	return publishPorts(ctx, c, client)
}

// recordMissedExit records the end of a run that ended while no engine ran.
func (r *restorer) recordMissedExit(ctx context.Context, c *ctr, was Status) {
	exit := Exit{Code: lostExit, At: time.Now()}
	c.mu.Lock()
	run, began, boot := c.rec.Run, c.rec.State.Started, c.rec.Boot
	c.mu.Unlock()
	if e, err := shim.FindExit(run, c.paths.exit, c.paths.bundle); err == nil && isEndOf(e, run, began, boot) {
		exit = Exit{Code: e.Code, OOMKilled: e.OOMKilled, At: e.At}
	} else if !errors.Is(err, errs.NotFound) {
		r.env.log.Warn("exit file not used", "container", c.id, "err", err)
	}
	r.cleanRun(ctx, c)
	defer c.saveLogged()
	c.mu.Lock()
	defer c.mu.Unlock()
	state := &c.rec.State
	if was == StatusRestarting {
		return // it was waiting; the end of its last run is recorded
	}
	state.Status, state.PID, state.ExitCode, state.OOMKilled, state.Finished = StatusExited, 0, exit.Code, exit.OOMKilled, exit.At.UTC()
	again, _ := c.decideRestart(&life{began: began}, exit)
	if again {
		state.Status = StatusRestarting
		state.Restarts++
	}
}

// isEndOf reports whether an exit file is of the run that the record names. A file or record of an earlier release names no
// run. Such a file is of this run if no boot came between: the start removed the file of the run before. Else the time decides.
func isEndOf(e shim.ExitRecord, run string, began time.Time, boot string) bool {
	if run != "" && e.Run == run {
		return true
	}
	now, err := procid.Boot()
	return err == nil && now == boot || !e.At.Before(began.Add(-time.Second))
}

// isDue reports whether a policy asks to start the container now that the engine runs, and marks it as restarting. joins
// reports that it uses a namespace of another container.
func isDue(c *ctr) (due, joins bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.life != nil || c.gone {
		return false, false
	}
	st := &c.rec.State
	if st.Status == StatusExited && !st.Started.IsZero() {
		p := c.rec.Spec.RestartPolicy
		// After a failure the container is starting again or out of retries, unless an engine stopped it when it ended.
		failed := st.ExitCode != 0 && (p.MaxRetries == 0 || st.Restarts < p.MaxRetries)
		if p.Name == "always" || !c.rec.Stopped && (p.Name == "unless-stopped" || p.Name == "on-failure" && failed) {
			st.Status = StatusRestarting
		}
	}
	sp := &c.rec.Spec
	return st.Status == StatusRestarting, isContainerMode(sp.NetworkMode) || isContainerMode(sp.PidMode) || isContainerMode(sp.IpcMode)
}
