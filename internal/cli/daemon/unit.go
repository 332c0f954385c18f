package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"ply/internal/errs"
)

// The units that `make install` installs.
const (
	serviceUnit = "ply.service"
	socketUnit  = "ply.socket"
)

// booted exists while systemd is the init of this machine; see sd_booted(3).
const booted = "/run/systemd/system"

// unit is what systemd knows about ply's units.
type unit struct {
	installed bool
	active    bool // the service runs
	listening bool // the socket listens, so that a connection starts the service
	pid       int  // of plyd while the service runs
}

// systemProgram returns the path of a program of systemd, or "" when this machine has no systemd.
func (p Paths) systemProgram(name string) string {
	dirs := systemDirs
	if p.Systemd != "" {
		dirs = []string{p.Systemd}
	} else if _, err := os.Stat(booted); err != nil {
		return ""
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return path
		}
	}
	return ""
}

// systemctl runs systemctl and returns its standard output.
func (p Paths) systemctl(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, p.systemProgram("systemctl"), args...).Output()
	if err != nil {
		text := err.Error()
		var exit *exec.ExitError
		if errors.As(err, &exit) && len(exit.Stderr) > 0 {
			text = strings.TrimSpace(string(exit.Stderr))
		}
		return "", errs.New(errs.Unavailable, "systemctl %s: %s", strings.Join(args, " "), text).WithHint("See: systemctl status %s", serviceUnit)
	}
	return string(out), nil
}

// unit asks systemd about ply's units. Without systemd, no unit is installed.
func (p Paths) unit(ctx context.Context) (u unit, err error) {
	if p.systemProgram("systemctl") == "" {
		return u, nil
	}
	service, err := p.properties(ctx, serviceUnit)
	if err != nil {
		return u, err
	}
	socket, err := p.properties(ctx, socketUnit)
	if err != nil {
		return u, err
	}
	u.installed = service["LoadState"] == "loaded"
	u.listening = socket["ActiveState"] == "active"
	switch service["ActiveState"] {
	case "active", "activating", "reloading", "deactivating":
		u.active = true
		u.pid, _ = strconv.Atoi(service["MainPID"]) // 0 while there is none
	}
	return u, nil
}

// properties returns properties of a unit by their names.
func (p Paths) properties(ctx context.Context, name string) (map[string]string, error) {
	out, err := p.systemctl(ctx, "show", "--property=LoadState,ActiveState,MainPID", name)
	if err != nil {
		return nil, err
	}
	all := map[string]string{}
	for line := range strings.Lines(out) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		all[k] = v
	}
	return all, nil
}

// journal returns the command that prints the journal of the service.
func (p Paths) journal(ctx context.Context, tail int, follow bool) (*exec.Cmd, error) {
	path := p.systemProgram("journalctl")
	if path == "" {
		return nil, errs.New(errs.Unavailable, "plyd writes to the journal, and there is no journalctl")
	}
	lines := "all"
	if tail >= 0 {
		lines = fmt.Sprint(tail)
	}
	args := []string{"--unit=" + serviceUnit, "--no-pager", "--lines=" + lines}
	if follow {
		args = append(args, "--follow")
	}
	return exec.CommandContext(ctx, path, args...), nil
}
