package container

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"ply/internal/container/logfile"
	"ply/internal/container/logremote"
	"ply/internal/container/runspec"
	"ply/internal/container/session"
	"ply/internal/container/shim"
	"ply/internal/container/spec"
	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/oci"
)

// Sessions connects clients with the processes of containers. Safe for concurrent use.
type Sessions struct {
	find  func(ref string) (*ctr, error)
	execs *session.Registry
}

// Sessions returns the access to the containers' processes.
func (s *Service) Sessions() *Sessions { return &Sessions{find: s.find, execs: s.env.execs} }

// Attach connects a client to the streams of the first process, running or still to be started, until the process
// ends, the client leaves, or the client types the detach keys (session.ErrDetached).
// Errors: NotFound; Conflict for a paused or restarting container.
func (s *Sessions) Attach(ctx context.Context, ref string, opts session.AttachOptions) error {
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	return c.sessions.Attach(ctx, opts)
}

// Logs writes the log; with Follow until the container stops, is removed, or ctx ends. All output of a terminal is
// stdout. Errors: NotFound; Unimplemented for the log driver none.
func (s *Sessions) Logs(ctx context.Context, ref string, opts session.LogOptions, stdout, stderr io.Writer) error {
	if !opts.Stdout && !opts.Stderr {
		return invalid("Bad parameters: you must choose at least one stream")
	}
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	return c.sessions.Logs(ctx, opts, stdout, stderr)
}

// Resize sets the size of the first process' terminal. Errors: Conflict when the container does not run.
func (s *Sessions) Resize(ctx context.Context, ref string, height, width uint) error {
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	return c.sessions.Resize(ctx, height, width)
}

// ExecCreate registers a process to be run beside the first one and returns its ID. Errors: NotFound, Invalid;
// Conflict when the container does not run.
func (s *Sessions) ExecCreate(ctx context.Context, ref string, sp spec.ExecSpec) (string, error) {
	c, err := s.find(ref)
	if err != nil {
		return "", err
	}
	e, err := c.sessions.NewExec(sp)
	if err != nil {
		return "", err
	}
	return e.ID(), nil
}

// ExecStart runs an exec; see session.Exec.Start. Errors: NotFound, Conflict.
func (s *Sessions) ExecStart(ctx context.Context, id string, opts session.AttachOptions, detach bool, consoleSize [2]uint) error {
	e, err := s.execs.Find(id)
	if err != nil {
		return err
	}
	return e.Start(ctx, opts, detach, consoleSize)
}

// ExecResize sets the size of an exec's terminal. Errors: NotFound, Conflict.
func (s *Sessions) ExecResize(ctx context.Context, id string, height, width uint) error {
	e, err := s.execs.Find(id)
	if err != nil {
		return err
	}
	return e.Resize(ctx, height, width)
}

// ExecGet describes an exec, also for some minutes after its end. Errors: NotFound.
func (s *Sessions) ExecGet(ctx context.Context, id string) (*session.ExecInfo, error) {
	e, err := s.execs.Find(id)
	if err != nil {
		return nil, err
	}
	return e.Info(), nil
}

// sessionHost shows a container to its sessions.
type sessionHost struct{ c *ctr }

var _ session.Container = sessionHost{}

func (h sessionHost) ID() oci.ContainerID { return h.c.id }

func (h sessionHost) Running() (*session.Run, error) {
	l, err := h.c.running()
	if err != nil {
		return nil, err
	}
	return l.Run, nil
}

func (h sessionHost) CheckState(action string) error {
	switch h.c.status() {
	case StatusPaused:
		return errs.New(errs.Conflict, "container %s is paused, unpause the container before %s", h.c.id, action)
	case StatusRestarting:
		return errs.New(errs.Conflict, "container %s is restarting, wait until the container is running", h.c.id)
	}
	return nil
}

func (h sessionHost) Streams() (tty, stdin bool) {
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	return h.c.rec.Spec.Tty, h.c.rec.Spec.OpenStdin
}

func (h sessionHost) Log() (shim.Log, error) {
	h.c.mu.Lock()
	driver, opts := h.c.rec.Spec.LogDriver, h.c.rec.Spec.LogOpts
	h.c.mu.Unlock()
	l, err := session.LogConfig(driver, opts)
	logremote.SetPath(&l, h.c.paths.log)
	return l, err
}

func (h sessionHost) Publish(action string, attrs ...string) { h.c.publish(action, attrs...) }

func (h sessionHost) Removed() <-chan struct{} { return h.c.done.Done() }

// Process makes the process from the runtime spec that the container runs with.
func (h sessionHost) Process(sp spec.ExecSpec, size [2]uint) (*specs.Process, error) {
	in, err := specInput(h.c, &prepared{files: h.c})
	if err != nil {
		return nil, err
	}
	raw, err := durable.ReadFile(durable.OS, filepath.Join(h.c.paths.bundle, shim.SpecFile), shim.MaxFrame)
	if err != nil {
		return nil, errs.New(errs.Internal, "container %s: runtime spec: %w", h.c.id.Short(), err)
	}
	var running specs.Spec
	if err := json.Unmarshal(raw, &running); err != nil {
		return nil, fmt.Errorf("container %s: runtime spec: %w", h.c.id.Short(), err)
	}
	h.c.env.work.Go(func() {
		ctx, cancel := context.WithTimeout(h.c.env.run, execLimit)
		defer cancel()
		h.c.env.moves.expect(ctx) // the shim will move the process to the container's cgroup
	})
	p, warnings, err := runspec.Exec(in, &running, runspec.ExecInput{
		Args: sp.Cmd, Env: sp.Env, Cwd: sp.WorkingDir, User: sp.User, Tty: sp.Tty,
		Height: size[0], Width: size[1], Privileged: sp.Privileged,
	})
	for _, w := range warnings {
		h.c.env.log.Warn("exec runs with less than was asked for", "container", h.c.id, "warning", w)
	}
	return p, err
}

// describeLog fills in what a log needs to know of its container: the path of its files, what is added to each record, and, for a driver
// that sends the output away, the program that does so.
func describeLog(c *ctr, l *shim.Log, program string) (err error) {
	c.mu.Lock()
	r := &c.rec
	s := &logfile.Subject{
		ContainerID: string(c.id), ContainerName: "/" + r.Name, ContainerEntrypoint: r.Path, ContainerArgs: r.Args,
		ContainerImageID: string(r.Image), ContainerImageName: r.ImageName, ContainerCreated: r.Created,
		ContainerEnv: r.Spec.Env, ContainerLabels: r.Spec.Labels, Config: r.Spec.LogOpts, LogPath: r.LogPath, DaemonName: "docker",
	}
	c.mu.Unlock()
	logremote.SetPath(l, c.paths.log)
	if len(s.Config) > 0 {
		s.Host, _ = os.Hostname() // a tag may name it
	}
	if l.Forward != nil {
		return logremote.Complete(l.Forward, program, s)
	}
	l.Attributes, err = logfile.Attributes(s.Config, s)
	return err
}
