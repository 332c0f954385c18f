package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"ply/internal/container/shim"
	"ply/internal/errs"
	"ply/internal/events"
	"ply/internal/network"
	"ply/internal/procid"
	"ply/internal/volume"
)

// Start runs a container that does not run. ErrNotModified when it does. A start that fails is undone whole and
// leaves its reason in the state, with docker's exit codes: 127 no such program, 126 not executable, 128 other.
func (s *Service) Start(ctx context.Context, ref string) error {
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.release()
	c.mu.Lock()
	st := c.rec.State.Status
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
	// The client may leave; what was begun is finished or undone all the same.
	return s.start(context.WithoutCancel(ctx), c)
}

// start does the work; the caller holds c.op.
func (s *Service) start(ctx context.Context, c *ctr) (err error) {
	undo := &undoer{log: s.log}
	defer func() {
		if err != nil {
			undo.all()
			s.startFailed(ctx, c, err)
		}
	}()
	p, err := s.prepare(ctx, c, undo)
	if err != nil {
		return err
	}
	spec, err := s.buildSpec(c, p)
	if err != nil {
		return err
	}
	cfg, err := s.shimConfig(c)
	if err != nil {
		return err
	}
	client, err := shim.Launch(ctx, s.opts.ShimPath, cfg, spec)
	if err != nil {
		return startError(err)
	}
	l := &life{client: client, began: time.Now()}
	l.ctx, l.end = context.WithCancel(s.run)
	undo.add("shim", func() error { l.end(); return client.Shutdown(ctx) })
	if err := p.saved(); err != nil {
		return err
	}
	c.mu.Lock()
	c.life = l
	c.mu.Unlock()
	undo.add("run", func() error {
		c.mu.Lock()
		c.life = nil
		c.mu.Unlock()
		return nil
	})
	c.connectPending(l, undo)
	if err := client.Start(ctx, ""); err != nil {
		return startError(err)
	}
	s.started(ctx, c, l, p.att)
	return nil
}

// startError puts docker's words around what the runtime says.
func startError(err error) error {
	if pe, ok := errors.AsType[*shim.ProgramError](err); ok {
		return errs.New(errs.Invalid, "failed to create task for container: failed to create shim task: OCI runtime create failed: %w", pe)
	}
	return err
}

// started records that the process runs.
func (s *Service) started(ctx context.Context, c *ctr, l *life, att network.Attachment) {
	pid := 0
	if id, err := shim.ReadIdentity(filepath.Join(c.exec, shim.InitFile)); err == nil {
		pid = id.PID
	}
	c.mu.Lock()
	st := &c.rec.State
	st.Status, st.PID, st.ExitCode, st.Error, st.OOMKilled = StatusRunning, pid, 0, "", false
	st.Started = l.began.UTC()
	c.mu.Unlock()
	s.publishMounts(c, "mount")
	s.publish(c, "start")
	s.work.Go(func() { s.supervise(c, l) })
	s.startHealth(c, l)
}

// publishMounts tells that the container's volumes come into use or go out of it.
func (s *Service) publishMounts(c *ctr, action string) {
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
		s.opts.Events.Publish(events.Event{Type: "volume", Action: action, ID: m.Name, Attributes: attrs})
	}
}

// prepared is what a start has made ready.
type prepared struct {
	att    network.Attachment
	netns  string // path of the network namespace; "" = the host's
	pidns  string // of --pid container:
	ipcns  string
	shm    string // host directory to use as /dev/shm; "" = one of the container's own
	mounts []volume.Mount
	files  *ctr // whose hosts, hostname and resolv.conf are mounted
	saved  func() error
}

// prepare mounts the root, readies the volumes, makes the network and records the start, all at once.
func (s *Service) prepare(ctx context.Context, c *ctr, undo *undoer) (*prepared, error) {
	if err := os.MkdirAll(c.exec, 0o711); err != nil {
		return nil, errs.New(errs.Internal, "container %s: %w", c.id.Short(), err)
	}
	p := &prepared{files: c}
	if err := s.shared(c, p); err != nil {
		return nil, err
	}
	saved := make(chan error, 1)
	c.mu.Lock()
	spec, mounts := c.rec.Spec, c.rec.Mounts
	c.rec.Boot, _ = procid.Boot()
	c.mu.Unlock()
	began := time.Now().UTC()
	// The record of the start becomes durable while the rest is made; --rm needs none, it is removed after a crash
	// whether it ran or not.
	p.saved = sync.OnceValue(func() error { return <-saved })
	undo.add("record", p.saved) // it must not be written after that of the failure
	if spec.AutoRemove {
		saved <- nil
	} else {
		go func() {
			saved <- s.save(c, func(r *record) { r.State.Status, r.State.Started = StatusRunning, began })
		}()
	}
	var rootUp, netUp, volUp, shmUp bool
	var g errgroup.Group
	g.Go(func() error {
		err := s.mountRoot(ctx, c)
		rootUp = err == nil
		return err
	})
	g.Go(func() (err error) {
		p.mounts, err = s.opts.Volumes.Prepare(ctx, c.id, mounts)
		volUp = err == nil
		return err
	})
	g.Go(func() error {
		up, err := s.attachNetwork(ctx, c, p)
		netUp = up
		return err
	})
	g.Go(func() (err error) {
		shmUp, err = s.mountShm(c, p)
		return err
	})
	err := g.Wait()
	if shmUp {
		undo.add("shm", c.unmountShm)
	}
	if rootUp {
		undo.add("root", func() error { return s.unmountRoot(c) })
	}
	if volUp {
		undo.add("volumes", func() error { s.opts.Volumes.Release(c.id); return nil })
	}
	if netUp {
		undo.add("network", func() error { return s.detachNetwork(ctx, c) })
	}
	if err != nil {
		return nil, err
	}
	return p, s.writeFiles(c, p)
}

// shared finds the namespaces of other containers that this one joins.
func (s *Service) shared(c *ctr, p *prepared) error {
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
		other, err := s.find(strings.TrimPrefix(j.mode, "container:"))
		if err != nil {
			return err
		}
		path, err := s.namespaceOf(other, j.kind)
		if err != nil {
			return err
		}
		*j.path = path
		switch j.kind {
		case "net":
			p.files = other
		case "ipc":
			p.shm = other.shmPath()
		}
	}
	return nil
}

// namespaceOf gives the path of a running container's namespace. The pid is the shim's word, checked by start time.
func (s *Service) namespaceOf(other *ctr, kind string) (string, error) {
	if _, err := other.running(); err != nil {
		return "", errs.New(errs.Conflict, "cannot join %s namespace of a non running container: %s", kind, other.id)
	}
	other.mu.Lock()
	ipc := other.rec.Spec.IpcMode
	other.mu.Unlock()
	if kind == "ipc" && ipc != "shareable" {
		return "", errs.New(errs.Conflict, "cannot join IPC of container %s: non-shareable IPC (hint: use IpcMode:shareable for the donor container)", other.id)
	}
	id, err := shim.ReadIdentity(filepath.Join(other.exec, shim.InitFile))
	if err != nil || !procid.Alive(procid.ID(id)) {
		return "", errs.New(errs.Conflict, "cannot join %s namespace of a non running container: %s", kind, other.id)
	}
	return fmt.Sprintf("/proc/%d/ns/%s", id.PID, kind), nil
}

// attachNetwork gives the container its network; up says whether there is something to detach.
func (s *Service) attachNetwork(ctx context.Context, c *ctr, p *prepared) (up bool, err error) {
	c.mu.Lock()
	spec := c.rec.Spec
	name := c.rec.Name
	c.mu.Unlock()
	if spec.NetworkMode == "host" || isContainerMode(spec.NetworkMode) {
		return false, nil
	}
	ports, err := spec.PublishedPorts()
	if err != nil {
		return false, err
	}
	ep := spec.Endpoints[spec.NetworkMode]
	if ep.MAC == "" {
		ep.MAC = spec.MacAddress
	}
	req := network.AttachRequest{
		ID: c.id, Mode: spec.NetworkMode, NetnsPath: c.netnsPath(), Spec: ep, Ports: ports,
		Hostname: spec.Hostname, Aliases: append([]string{c.id.Short(), name}, ep.Aliases...),
	}
	p.att, err = s.opts.Network.Attach(ctx, req)
	if err != nil {
		return false, err
	}
	p.netns = c.netnsPath()
	c.mu.Lock()
	c.rec.Networks, c.rec.Ports, c.rec.Netns = p.att.Endpoints, p.att.Ports, p.netns
	c.mu.Unlock()
	return true, nil
}

// detachNetwork undoes attachNetwork; idempotent.
func (s *Service) detachNetwork(ctx context.Context, c *ctr) error {
	c.mu.Lock()
	netns := c.rec.Netns
	c.mu.Unlock()
	if netns == "" {
		return nil
	}
	err := s.opts.Network.Detach(ctx, c.id, netns)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		c.rec.Netns = ""
	}
	c.rec.Ports = nil
	for n, e := range c.rec.Networks {
		c.rec.Networks[n] = network.Endpoint{Network: e.Network, NetworkID: e.NetworkID, Aliases: e.Aliases}
	}
	return err
}

// startFailed records why there is no process. The container is as it was before, with the reason.
func (s *Service) startFailed(ctx context.Context, c *ctr, err error) {
	code := 128
	if pe, ok := errors.AsType[*shim.ProgramError](err); ok {
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
		if err := s.destroy(ctx, c, true); err != nil {
			s.log.Error("container that did not start stays", "container", c.id, "err", err)
		}
		return
	}
	s.saveLogged(c)
}

// shimConfig says how the shim treats the container's streams.
func (s *Service) shimConfig(c *ctr) (shim.Config, error) {
	c.mu.Lock()
	spec := c.rec.Spec
	c.mu.Unlock()
	rt, err := s.runtimePath(spec.Runtime)
	if err != nil {
		return shim.Config{}, err
	}
	log, err := logConfig(spec.LogDriver, spec.LogOpts)
	if err != nil {
		return shim.Config{}, err
	}
	log.Path = c.logFile()
	return shim.Config{
		ID: string(c.id), Bundle: c.exec, StateDir: filepath.Join(s.opts.ExecRoot, "runtime"), Runtime: rt,
		Tty: spec.Tty, Stdin: spec.OpenStdin, StdinOnce: spec.StdinOnce,
		Height: spec.ConsoleSize[0], Width: spec.ConsoleSize[1], Log: log, ExitPath: c.exitPath(),
	}, nil
}
