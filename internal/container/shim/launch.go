package shim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/procid"
	"ply/internal/record"
)

// LogFile is the file in a bundle that holds a shim's standard error: warnings and the trace of a panic.
const LogFile = "shim.log"

// ReadyFD is the descriptor on which a new shim reports, with one Response, that the container is created or could not be.
// The response's body has the content of PidFile.
const ReadyFD = 3

// cancelGrace is how long a shim may take to end after SIGTERM when a launch is cancelled.
const cancelGrace = 10 * time.Second

// SpecFD is the descriptor from which a shim that was started with the flag -hold reads two bytes: one when its spec is there, and one when all is
// there that the container needs. With the flag -wait, which plyd used before, one byte means both. The end of the file means that there is nothing to create.
const SpecFD = 4

// Starting is a shim that has not created its container yet. Its process loads and reads the spec while the caller makes what the container needs.
// Offer comes first; exactly one of Create and Abandon ends it.
type Starting struct {
	cfg   Config
	cmd   *exec.Cmd
	ready *os.File // what the shim answers
	spec  *os.File // what it waits for
	ended chan struct{}
}

// Begin starts a shim that outlives the caller once Create has succeeded. If the caller dies before, the shim ends. The bundle
// directory must exist, and binary must be an absolute path.
func Begin(binary string, cfg Config) (*Starting, error) {
	if err := checkConfig(binary, cfg); err != nil {
		return nil, err
	}
	rawConfig, err := record.Marshal(Version, cfg)
	if err == nil {
		err = os.WriteFile(filepath.Join(cfg.Bundle, ConfigFile), rawConfig, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("container %s: shim config: %w", cfg.ID, err)
	}
	ready, theirReady, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", cfg.ID, err)
	}
	theirSpec, spec, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", cfg.ID, errors.Join(err, ready.Close(), theirReady.Close()))
	}
	cmd, err := startShim(binary, cfg.Bundle, theirReady, theirSpec)
	if err = errors.Join(err, theirReady.Close(), theirSpec.Close()); err != nil {
		return nil, fmt.Errorf("container %s: start %s: %w", cfg.ID, binary, errors.Join(err, ready.Close(), spec.Close()))
	}
	s := &Starting{cfg: cfg, cmd: cmd, ready: ready, spec: spec, ended: make(chan struct{})}
	// The shim is a child of this process, which must wait for it, or it would stay a zombie when it ends.
	go func() { defer close(s.ended); _ = cmd.Wait() }() // the response says more than the exit status
	return s, nil
}

// Abandon ends a shim whose container will not be created, and waits for its end. Only the bundle's files are left, without the spec.
func (s *Starting) Abandon() error {
	err := errors.Join(s.spec.Close(), s.ready.Close())
	s.end()
	if rerr := os.Remove(filepath.Join(s.cfg.Bundle, SpecFile)); !errors.Is(rerr, os.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	return err
}

// end waits for the end of a shim that is about to end.
func (s *Starting) end() {
	select {
	case <-s.ended:
	case <-time.After(cancelGrace):
		_ = s.cmd.Process.Kill() // last resort; Cleanup removes what is left
		<-s.ended
	}
}

// Offer gives the shim its spec. What the spec names need not be there before Create. The spec is not synced: a crash that loses it also ends the container.
func (s *Starting) Offer(spec *specs.Spec) error {
	raw, err := json.Marshal(spec)
	if err == nil {
		err = os.WriteFile(filepath.Join(s.cfg.Bundle, SpecFile), raw, 0o600)
	}
	if err != nil {
		return fmt.Errorf("container %s: runtime spec: %w", s.cfg.ID, err)
	}
	_, _ = s.spec.Write([]byte{1}) // it fails when the shim has ended, and then the response to Create says why
	return nil
}

// Create waits until the shim has created the container of the spec that Offer gave it, or has failed to. A created
// container has its namespaces, mounts and cgroups, and its program was found, but nothing of it has run.
//
// The error is a *ProgramError when the program is missing or cannot be executed. After any error only the bundle's files
// are left of the container. The end of ctx stops the creation.
func (s *Starting) Create(ctx context.Context) (*Client, error) {
	cfg := s.cfg
	if err := clearBundle(cfg); err != nil {
		return nil, fmt.Errorf("container %s: %w", cfg.ID, errors.Join(err, s.Abandon()))
	}
	defer s.ready.Close() // only read from
	stop := context.AfterFunc(ctx, func() {
		_ = s.cmd.Process.Signal(unix.SIGTERM) // a shim whose container was not started ends then
		s.end()
	})
	_, _ = s.spec.Write([]byte{1})
	_ = s.spec.Close()
	answer, err := io.ReadAll(io.LimitReader(s.ready, MaxFrame))
	if !stop() {
		<-s.ended
		return nil, fmt.Errorf("container %s: create: %w", cfg.ID, context.Cause(ctx))
	}
	var resp Response
	if err != nil || json.Unmarshal(answer, &resp) != nil {
		_ = s.cmd.Process.Kill() // it is ending, or it sent something else than a response
		<-s.ended
		return nil, errs.New(errs.Internal, "container %s: shim ended during create: %s", cfg.ID, lastWords(cfg.Bundle))
	}
	if err := responseError(cfg.ID, resp); err != nil {
		<-s.ended
		return nil, err
	}
	id, peer, err := decode[Identity]("response of the shim", resp.Body)
	if err != nil {
		return nil, errs.New(errs.Internal, "container %s: %w", cfg.ID, err)
	}
	return &Client{cfg: cfg, self: id, peer: peer}, nil
}

// Launch is Begin, Offer and Create in one.
func Launch(ctx context.Context, binary string, cfg Config, spec *specs.Spec) (*Client, error) {
	s, err := Begin(binary, cfg)
	if err != nil {
		return nil, err
	}
	if err := s.Offer(spec); err != nil {
		return nil, errors.Join(err, s.Abandon())
	}
	return s.Create(ctx)
}

// Cleanup removes what a killed shim left: it ends the container's processes, deletes its cgroups and runtime state, and
// writes the exit file (code 137) if there is none. Call it after Connect has returned errs.NotFound. It may be called
// again. If the shim is running, Cleanup does nothing and returns errs.Conflict.
func Cleanup(ctx context.Context, binary, bundle string) (Exit, error) {
	cfg, err := ReadConfigCore(bundle)
	if err != nil {
		return Exit{}, err
	}
	id, err := ReadIdentity(filepath.Join(bundle, PidFile))
	if err == nil && procid.Alive(procid.ID(id)) {
		return Exit{}, errs.New(errs.Conflict, "container %s: its shim (process %d) is running", cfg.ID, id.PID)
	}
	cmd := exec.CommandContext(ctx, binary, "-bundle", bundle, "-cleanup")
	cmd.Env = shimEnv()
	cmd.Dir = bundle
	if out, err := cmd.CombinedOutput(); err != nil {
		return Exit{}, errs.New(errs.Internal, "container %s: cleanup: %w: %s", cfg.ID, err, bytes.TrimSpace(out))
	}
	e, err := FindExit(cfg.Run, cfg.ExitPath, bundle)
	return e.Exit, err
}

func checkConfig(binary string, cfg Config) error {
	for name, path := range map[string]string{
		"shim binary": binary, "bundle": cfg.Bundle, "state directory": cfg.StateDir, "exit file": cfg.ExitPath,
	} {
		if !filepath.IsAbs(path) {
			return errs.New(errs.Invalid, "container %s: %s %q is not an absolute path", cfg.ID, name, path)
		}
	}
	if cfg.ID == "" {
		return errs.New(errs.Invalid, "container: empty ID")
	}
	if cfg.Runtime != "" && !filepath.IsAbs(cfg.Runtime) {
		return errs.New(errs.Invalid, "container %s: runtime %q is not an absolute path", cfg.ID, cfg.Runtime)
	}
	return nil
}

// clearBundle removes what the last run has left in the bundle.
func clearBundle(cfg Config) error {
	for _, name := range []string{SocketFile, PidFile, InitFile, ErrorFile, ExitFile} {
		if err := os.Remove(filepath.Join(cfg.Bundle, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := os.Remove(cfg.ExitPath); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// shimEnv returns the whole environment of a shim. It contains nothing of plyd's environment, which may hold secrets. The
// garbage collector is off until the container is created.
func shimEnv() []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "GOMAXPROCS=2", "GOGC=off", "GOTRACEBACK=single"}
}

func startShim(binary, bundle string, ready, spec *os.File) (*exec.Cmd, error) {
	words, err := os.OpenFile(filepath.Join(bundle, LogFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	defer words.Close() // this process writes nothing to it
	cmd := exec.Command(binary, "-bundle", bundle, "-hold")
	cmd.Dir = bundle
	cmd.Env = shimEnv()
	cmd.Stderr = words
	cmd.ExtraFiles = []*os.File{ready, spec} // ReadyFD and SpecFD
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	return cmd, cmd.Start()
}

// lastWords returns the end of what the shim wrote for people.
func lastWords(bundle string) string {
	for _, name := range []string{ErrorFile, LogFile} {
		b, err := durable.ReadFile(durable.OS, filepath.Join(bundle, name), 1<<20)
		if s := strings.TrimSpace(string(b)); err == nil && s != "" {
			return s[max(0, len(s)-2000):]
		}
	}
	return "it wrote no error message"
}
