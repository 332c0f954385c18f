package container

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"ply/internal/container/session"
	"ply/internal/container/shim"
	"ply/internal/errs"
	"ply/internal/events"
	"ply/internal/network"
	"ply/internal/procid"
	"ply/internal/volume"
)

// Start runs a container that does not run. ErrNotModified when it does. A start that fails is undone completely and
// leaves its reason in the state, with docker's exit codes: 127 no such program, 126 not executable, 128 other.
func (s *Service) Start(ctx context.Context, ref string) error {
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	return s.runs.startByUser(ctx, c, nil)
}

// startByUser starts a container that does not run, or if saved is not nil, restores the checkpoint in that directory.
func (s *starter) startByUser(ctx context.Context, c *ctr, saved *os.File) error {
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.release()
	c.mu.Lock()
	st := c.rec.State.Status
	var err error
	switch {
	case st == StatusPaused:
		err = errs.New(errs.Conflict, "cannot start a paused container, try unpause instead")
	case st == StatusRunning, st == StatusRestarting:
		err = ErrNotModified
	case st == StatusDead, st == StatusRemoving:
		err = errs.New(errs.Conflict, "container is marked for removal and cannot be started")
	}
	if err == nil {
		c.rec.Stopped, c.rec.State.Restarts, c.failed = false, 0, 0
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	// A client that leaves does not stop the start: it is completed or undone.
	return s.run(context.WithoutCancel(ctx), c, saved)
}

// starter begins the runs of containers: it prepares what the process needs on the host, launches the shim, and lets
// the supervisor watch the run.
type starter struct {
	env  *env
	runs *supervisor
}

func newStarter(e *env) *starter {
	s := &starter{env: e}
	s.runs = &supervisor{env: e, restart: s.start}
	return s
}

// start runs the program of the container; the caller holds c.op.
func (s *starter) start(ctx context.Context, c *ctr) error { return s.run(ctx, c, nil) }

// run is start, or if saved is not nil, the restoration of the checkpoint in that directory.
func (s *starter) run(ctx context.Context, c *ctr, saved *os.File) (err error) {
	moving, moved := context.WithTimeout(ctx, expectLimit)
	defer moved()
	s.env.work.Go(func() { s.env.moves.expect(moving) })
	undo := &undoer{log: s.env.log}
	defer func() {
		if err != nil {
			undo.all()
			c.startFailed(ctx, err)
		}
	}()
	links, err := resolvedLinks(c)
	if err != nil {
		return err
	}
	p, err := s.prepare(ctx, c, links, saved != nil, undo)
	if err != nil {
		return err
	}
	client, err := p.takeShim().Create(ctx)
	moved() // the shim has moved the first process to its cgroup
	if err != nil {
		return startError(err)
	}
	l := c.newLife(client, p.began)
	undo.add("shim", func() error { l.end(); l.recorded(); return client.Shutdown(ctx) })
	if err := p.saved(); err != nil {
		return err
	}
	if err := resolve(ctx, c, client, p.att); err != nil {
		return err
	}
	if len(p.att.Ports) > 0 {
		if err := publishPorts(ctx, c, client); err != nil {
			return err
		}
	}
	c.setLife(l)
	undo.add("run", func() error { c.setLife(nil); return nil })
	undo.add("attached clients", c.sessions.Begin(l.Run))
	if saved != nil {
		err = restoreFrom(ctx, c, client, saved)
	} else {
		err = startError(client.Start(ctx, ""))
	}
	if err != nil {
		return err
	}
	c.started(l)
	followTarget(c)
	s.runs.watch(c, l)
	return nil
}

// startError puts docker's words around what the runtime says.
func startError(err error) error {
	if pe, ok := asProgramError(err); ok {
		return errs.New(errs.Invalid, "failed to create task for container: failed to create shim task: OCI runtime create failed: %w", pe)
	}
	return err
}

func (c *ctr) setLife(l *life) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.life = l
}

// started records that the process runs.
func (c *ctr) started(l *life) {
	pid := 0
	if id, err := shim.ReadIdentity(c.paths.init); err == nil {
		pid = id.PID
	}
	c.mu.Lock()
	st := &c.rec.State
	st.Status, st.PID, st.ExitCode, st.Error, st.OOMKilled = StatusRunning, pid, 0, "", false
	st.Started = l.began.UTC()
	if st.Health != nil { // of the run before
		st.Health = &Health{Status: "starting"}
	}
	c.mu.Unlock()
	c.publishMounts("mount")
	c.publish("start")
}

// publishMounts sends an event for each volume of the container that is now in use, or no longer.
func (c *ctr) publishMounts(action string) {
	c.mu.Lock()
	mounts := c.rec.Mounts
	c.mu.Unlock()
	for _, m := range mounts {
		if m.Type != "volume" {
			continue
		}
		attrs := map[string]string{"container": string(c.id), "driver": m.Driver}
		if action == "mount" {
			attrs["destination"], attrs["propagation"], attrs["read/write"] = m.Target, m.Propagation, strconv.FormatBool(m.RW)
		}
		c.env.opts.Events.Publish(events.Event{Type: "volume", Action: action, ID: m.Name, Attributes: attrs})
	}
}

// prepared is what a start has made on the host.
type prepared struct {
	att    network.Attachment
	netns  string // path of the network namespace; "" = the host's
	pidns  string // path of the namespace of --pid container:
	ipcns  string // path of the namespace of --ipc container:
	shm    string // host directory to mount at /dev/shm; "" = one of the container's own
	mounts []volume.Mount
	files  *ctr // whose hosts, hostname and resolv.conf are mounted
	links  []linked
	saved  func() error
	shim   *shim.Starting // nil when it was taken

	run     string    // ID of the run
	restore bool      // the processes come from a checkpoint
	began   time.Time // of the run: what the record and the shim keep, so that it is the same after a restart of plyd
}

// takeShim returns the shim to the caller, who ends it.
func (p *prepared) takeShim() *shim.Starting {
	s := p.shim
	p.shim = nil
	return s
}

// prepare mounts the root, readies the volumes, makes the network, writes the record of the start and starts the shim, all at once. The shim has the
// spec before the network is there.
func (s *starter) prepare(ctx context.Context, c *ctr, links []linked, restore bool, undo *undoer) (*prepared, error) {
	if err := os.MkdirAll(c.paths.bundle, 0o711); err != nil {
		return nil, errs.New(errs.Internal, "container %s: %w", c.id.Short(), err)
	}
	p := &prepared{files: c, links: links, run: rand.Text(), restore: restore, began: time.Now().UTC()}
	if err := s.joinNamespaces(c, p); err != nil {
		return nil, err
	}
	saved := make(chan error, 1)
	c.mu.Lock()
	spec, mounts, volatile := c.rec.Spec, c.rec.Mounts, c.rec.volatile()
	c.rec.Boot, _ = procid.Boot()
	c.rec.Run = p.run
	c.mu.Unlock()
	// The record of the start becomes durable while the rest is made. A volatile container needs none: it is removed after
	// a crash whether it ran or not.
	p.saved = sync.OnceValue(func() error { return <-saved })
	undo.add("record", p.saved) // it must not be written after the record of the failure
	if volatile {
		saved <- nil
	} else {
		go func() {
			saved <- c.save(func(r *record) { r.State.Status, r.State.Started = StatusRunning, p.began })
		}()
	}
	cfg, err := s.shimConfig(c, p)
	if err != nil {
		return nil, err
	}
	if !sharesNetwork(spec.NetworkMode) {
		p.netns = c.paths.netns
	}
	volumes := s.env.opts.Volumes
	var rootUp, netUp, volUp, shmUp bool
	var g, inSpec errgroup.Group
	inSpec.Go(func() error {
		err := c.root.Acquire(ctx)
		rootUp = err == nil
		return err
	})
	inSpec.Go(func() (err error) {
		p.mounts, err = volumes.Prepare(ctx, c.id, mounts)
		volUp = err == nil
		return err
	})
	g.Go(func() (err error) {
		netUp, err = s.attachNetwork(ctx, c, p)
		return err
	})
	inSpec.Go(func() (err error) {
		shmUp, err = mountShm(c, p)
		return err
	})
	inSpec.Go(func() (err error) {
		p.shim, err = shim.Begin(s.env.opts.ShimPath, cfg)
		return err
	})
	g.Go(func() error {
		if err := inSpec.Wait(); err != nil {
			return err
		}
		spec, err := buildSpec(c, p)
		if err != nil {
			return err
		}
		return p.shim.Offer(spec)
	})
	err = g.Wait()
	if shmUp {
		undo.add("shm", func() error { return unmountShm(c.paths.shm) })
	}
	if rootUp {
		undo.add("root", c.root.Release)
	}
	if volUp {
		undo.add("volumes", func() error { volumes.Release(c.id); return nil })
	}
	if netUp {
		undo.add("network", func() error { return c.detachNetwork(ctx) })
	}
	if p.shim != nil {
		undo.add("shim without a container", func() error {
			if unused := p.takeShim(); unused != nil {
				return unused.Abandon()
			}
			return nil
		})
	}
	if err != nil {
		return nil, err
	}
	return p, writeHostFiles(c, p)
}

// joinNamespaces finds the namespaces of other containers that this one joins.
func (s *starter) joinNamespaces(c *ctr, p *prepared) error {
	c.mu.Lock()
	net, pid, ipc := c.rec.Spec.NetworkMode, c.rec.Spec.PidMode, c.rec.Spec.IpcMode
	c.mu.Unlock()
	for _, j := range []struct {
		mode, kind string
		path       *string
	}{{net, "net", &p.netns}, {pid, "pid", &p.pidns}, {ipc, "ipc", &p.ipcns}} {
		if !isContainerMode(j.mode) {
			continue
		}
		other, err := s.env.index.find(strings.TrimPrefix(j.mode, containerMode))
		if err != nil {
			return err
		}
		path, err := namespaceOf(other, j.kind)
		if err != nil {
			return err
		}
		*j.path = path
		switch j.kind {
		case "net":
			p.files = other
		case "ipc":
			p.shm = other.paths.shm
		}
	}
	return nil
}

// namespaceOf returns the path of a namespace of a running container. The shim wrote the pid; its start time proves that
// it still is the same process.
func namespaceOf(c *ctr, kind string) (string, error) {
	if _, err := c.running(); err != nil {
		return "", errs.New(errs.Conflict, "cannot join %s namespace of a non running container: %s", kind, c.id)
	}
	c.mu.Lock()
	ipc := c.rec.Spec.IpcMode
	c.mu.Unlock()
	if kind == "ipc" && ipc != "shareable" {
		return "", errs.New(errs.Conflict, "cannot join IPC of container %s: non-shareable IPC (hint: use IpcMode:shareable for the donor container)", c.id)
	}
	id, err := shim.ReadIdentity(c.paths.init)
	if err != nil || !procid.Alive(procid.ID(id)) {
		return "", errs.New(errs.Conflict, "cannot join %s namespace of a non running container: %s", kind, c.id)
	}
	return fmt.Sprintf("/proc/%d/ns/%s", id.PID, kind), nil
}

// startFailed records why there is no process. Otherwise the container is as it was before the start.
func (c *ctr) startFailed(ctx context.Context, err error) {
	code := 128
	if pe, ok := asProgramError(err); ok {
		code = pe.Code
	}
	c.mu.Lock()
	st := &c.rec.State
	if st.Status == StatusRestarting {
		st.Status = StatusExited
	}
	st.PID, st.ExitCode, st.Error = 0, code, err.Error()
	exit := c.lastExit()
	c.notify(exit, WaitNotRunning, WaitNextExit)
	auto := c.rec.Spec.AutoRemove
	c.mu.Unlock()
	if auto {
		if err := c.destroyLogged(ctx, true); err != nil {
			c.env.log.Error("container that did not start was not removed", "container", c.id, "err", err)
		}
		return
	}
	c.saveLogged()
}

// shimConfig tells the shim how to treat the container's streams.
func (s *starter) shimConfig(c *ctr, p *prepared) (shim.Config, error) {
	c.mu.Lock()
	spec, volatile := c.rec.Spec, c.rec.volatile()
	c.mu.Unlock()
	rt, err := s.env.runtimePath(spec.Runtime)
	if err != nil {
		return shim.Config{}, err
	}
	log, err := session.LogConfig(spec.LogDriver, spec.LogOpts)
	if err != nil {
		return shim.Config{}, err
	}
	log.Volatile = volatile
	if err := describeLog(c, &log, s.env.opts.logProgram()); err != nil {
		return shim.Config{}, err
	}
	return shim.Config{
		ID: string(c.id), Bundle: c.paths.bundle, StateDir: s.env.opts.stateDir(), Runtime: rt,
		Tty: spec.Tty, Stdin: spec.OpenStdin, StdinOnce: spec.StdinOnce,
		Height: spec.ConsoleSize[0], Width: spec.ConsoleSize[1], Log: log, ExitPath: c.paths.exit,
		Run: p.run, Started: p.began, Volatile: volatile, Restore: p.restore,
	}, nil
}

// logProgram returns the path of ply-log, which is installed beside ply-shim.
func (o *Options) logProgram() string { return filepath.Join(filepath.Dir(o.ShimPath), "ply-log") }
