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
)

// LogFile in a bundle takes what a shim says on its stderr: warnings, and the trace of a panic.
const LogFile = "shim.log"

// ReadyFD is the descriptor on which a new shim tells, with one Response, that the container is created.
const ReadyFD = 3

const cancelGrace = 10 * time.Second

// Launch writes the bundle's files, starts a shim that outlives the caller, and waits until the container is
// created or could not be: its namespaces, mounts and cgroups are then made and its program found, nothing of it
// has run. The bundle directory must exist. binary is an absolute path.
//
// Errors: *ProgramError for a program that is missing or not executable; after any error nothing of the container
// is left but the bundle's files. A done ctx stops the creation.
func Launch(ctx context.Context, binary string, cfg Config, spec *specs.Spec) (*Client, error) {
	if err := checkConfig(binary, cfg); err != nil {
		return nil, err
	}
	if err := writeBundle(cfg, spec); err != nil {
		return nil, fmt.Errorf("container %s: %w", cfg.ID, err)
	}
	ready, theirs, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", cfg.ID, err)
	}
	defer ready.Close() // only read from
	cmd, err := startShim(binary, cfg.Bundle, theirs)
	if err = errors.Join(err, theirs.Close()); err != nil {
		return nil, fmt.Errorf("container %s: start %s: %w", cfg.ID, binary, err)
	}
	// The shim is a child as long as we live; somebody must take its status when it ends.
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }() // its status says nothing that the ready pipe did not

	stop := context.AfterFunc(ctx, func() {
		_ = cmd.Process.Signal(unix.SIGTERM) // a shim with nothing running gives up on it
		select {
		case <-ended:
		case <-time.After(cancelGrace):
			_ = cmd.Process.Kill() // last resort; Cleanup removes what is left
		}
	})
	answer, err := io.ReadAll(io.LimitReader(ready, MaxFrame))
	if !stop() {
		<-ended
		return nil, fmt.Errorf("container %s: create: %w", cfg.ID, context.Cause(ctx))
	}
	var resp Response
	if err != nil || json.Unmarshal(answer, &resp) != nil {
		_ = cmd.Process.Kill() // it is ending or mad
		<-ended
		return nil, errs.New(errs.Internal, "container %s: shim ended during create: %s", cfg.ID, lastWords(cfg.Bundle))
	}
	if err := responseError(cfg.ID, resp); err != nil {
		<-ended
		return nil, err
	}
	var id Identity
	if err := json.Unmarshal(resp.Body, &id); err != nil {
		return nil, errs.New(errs.Internal, "container %s: shim's answer: %w", cfg.ID, err)
	}
	return &Client{cfg: cfg, self: id}, nil
}

// Cleanup removes what a shim that was killed left: it ends the container's processes, deletes its cgroups and
// runtime state, and writes the exit file (code 137) when there is none. Call it after Connect said errs.NotFound;
// it is safe to repeat, and it does nothing to a container whose shim lives (errs.Conflict).
func Cleanup(ctx context.Context, binary, bundle string) (Exit, error) {
	cfg, err := readJSON[Config](filepath.Join(bundle, ConfigFile))
	if err != nil {
		return Exit{}, err
	}
	id, err := readJSON[Identity](filepath.Join(bundle, PidFile))
	if err == nil && procid.Alive(procid.ID(id)) {
		return Exit{}, errs.New(errs.Conflict, "container %s: its shim (process %d) lives", cfg.ID, id.PID)
	}
	cmd := exec.CommandContext(ctx, binary, "-bundle", bundle, "-cleanup")
	cmd.Env = shimEnv()
	cmd.Dir = bundle
	if out, err := cmd.CombinedOutput(); err != nil {
		return Exit{}, errs.New(errs.Internal, "container %s: cleanup: %w: %s", cfg.ID, err, bytes.TrimSpace(out))
	}
	return ReadExit(cfg.ExitPath)
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

// writeBundle writes without fsync: a bundle's processes do not survive what its files would not.
func writeBundle(cfg Config, spec *specs.Spec) error {
	for _, name := range []string{SocketFile, PidFile, InitFile, ErrorFile, ExitFile} {
		if err := os.Remove(filepath.Join(cfg.Bundle, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := os.Remove(cfg.ExitPath); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	rawSpec, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("runtime spec: %w", err)
	}
	rawConfig, err := json.Marshal(cfg)
	if err != nil {
		return fmt.Errorf("shim config: %w", err)
	}
	return errors.Join(
		os.WriteFile(filepath.Join(cfg.Bundle, SpecFile), rawSpec, 0o600),
		os.WriteFile(filepath.Join(cfg.Bundle, ConfigFile), rawConfig, 0o600))
}

// shimEnv is the whole environment of a shim: nothing of the daemon's, which may hold secrets. The collector is
// off until the container is created; one processor is enough for copying bytes.
func shimEnv() []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "GOMAXPROCS=2", "GOGC=off", "GOTRACEBACK=single"}
}

func startShim(binary, bundle string, ready *os.File) (*exec.Cmd, error) {
	words, err := os.OpenFile(filepath.Join(bundle, LogFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	defer words.Close() // nothing is written through it here
	cmd := exec.Command(binary, "-bundle", bundle)
	cmd.Dir = bundle
	cmd.Env = shimEnv()
	cmd.Stderr = words
	cmd.ExtraFiles = []*os.File{ready}
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	return cmd, cmd.Start()
}

// lastWords gives the end of what the shim said.
func lastWords(bundle string) string {
	for _, name := range []string{ErrorFile, LogFile} {
		b, err := durable.ReadFile(durable.OS, filepath.Join(bundle, name), 1<<20)
		if s := strings.TrimSpace(string(b)); err == nil && s != "" {
			return s[max(0, len(s)-2000):]
		}
	}
	return "it said nothing"
}
