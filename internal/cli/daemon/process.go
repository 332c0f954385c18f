package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
)

// Process is a plyd that runs on this machine.
type Process struct {
	PID     int
	Unit    string    // systemd's unit that it runs in; "" = none
	Started time.Time // zero = unknown
	Log     string    // file to which it writes its log; "" = Journal, or nowhere that can be read later
	Journal bool      // it writes to systemd's journal

	socket string
}

// State says whether a plyd serves a socket.
type State struct {
	*Process      // nil = none runs
	Waiting  bool // systemd listens, and starts plyd at the first connection
}

// State finds the plyd that serves a unix socket of this machine, and starts none. With a socket of systemd it asks systemd, because a connection would
// start plyd.
func (p Paths) State(ctx context.Context, host string) (State, error) {
	socket, ok := strings.CutPrefix(host, "unix://")
	if !ok {
		return State{}, errs.New(errs.Invalid, "%s is not a unix socket: only an engine of this machine can be started, stopped and examined", host)
	}
	if host == p.Host {
		u, err := p.unit(ctx)
		if err != nil {
			return State{}, err
		}
		if u.active && u.pid > 0 {
			return State{Process: describe(socket, u.pid, serviceUnit)}, nil
		}
		if u.listening {
			return State{Waiting: true}, nil
		}
	}
	pid, err := listener(ctx, socket)
	if err != nil || pid == 0 {
		return State{}, err
	}
	return State{Process: describe(socket, pid, "")}, nil
}

// listener returns the process that listens at a unix socket, and 0 when none does.
func listener(ctx context.Context, socket string) (pid int, err error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return 0, nil
	}
	if err != nil {
		return 0, errs.New(errs.Unavailable, "%w", err)
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(cerr, err); err != nil {
		return 0, errs.New(errs.Unavailable, "who listens at %s: %w", socket, err)
	}
	if cred.Pid <= 0 {
		return 0, errs.New(errs.Unavailable, "the process that listens at %s belongs to another PID namespace", socket)
	}
	return int(cred.Pid), nil
}

// describe returns what /proc says about a plyd.
func describe(socket string, pid int, unit string) *Process {
	d := &Process{PID: pid, Unit: unit, Started: started(pid), socket: socket}
	link := fmt.Sprintf("/proc/%d/fd/2", pid)
	name, err := os.Readlink(link)
	if err != nil {
		return d // another user's process
	}
	open, err := os.Stat(link)
	switch {
	case err == nil && open.Mode().IsRegular():
		d.Log = link // the file was renamed or removed since it was opened
		if now, err := os.Stat(name); err == nil && os.SameFile(now, open) {
			d.Log = name
		}
	case unit != "" && strings.HasPrefix(name, "socket:"):
		d.Journal = true
	}
	return d
}

// ticks are the units of times in /proc/PID/stat per second, on every architecture of Linux that Go knows.
const ticks = 100

// started returns when a process began, and the zero time when /proc does not tell.
func started(pid int) time.Time {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return time.Time{}
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 20 {
		return time.Time{}
	}
	begun, err := strconv.ParseInt(fields[19], 10, 64) // since the boot
	if err != nil {
		return time.Time{}
	}
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) != nil {
		return time.Time{}
	}
	return time.Now().Add(time.Duration(begun)*time.Second/ticks - time.Duration(now.Nano()))
}

// Up starts plyd where none runs, and returns when its socket answers, as ping reports. Where ply's units are installed, systemd starts it.
func (p Paths) Up(ctx context.Context, ping func(context.Context) error) (how string, err error) {
	unlock, err := lock(p.Lock)
	if err != nil {
		return "", err
	}
	defer unlock()
	if s, err := p.State(ctx, p.Host); err != nil || s.Process != nil {
		return "", err // another process started it while this one waited for the lock
	}
	return p.start(ctx, ping)
}

// start starts plyd, by systemd or as a child. The caller has the lock.
func (p Paths) start(ctx context.Context, ping func(context.Context) error) (how string, err error) {
	u, err := p.unit(ctx)
	if err != nil {
		return "", err
	}
	if u.installed {
		if _, err := p.systemctl(ctx, "start", socketUnit, serviceUnit); err != nil {
			return "", err
		}
		return "systemd (" + serviceUnit + ")", p.wait(ctx, ping, nil, 0)
	}
	path, err := p.find()
	if err != nil {
		return "", errs.New(errs.Unavailable, "plyd was not found beside ply nor in the system's directories").WithHint("Install it, or name another engine with -H or PLY_HOST.")
	}
	exited, offset, err := spawn(path, p.Log, hierarchies())
	if err != nil {
		return "", err
	}
	return path, p.wait(ctx, ping, exited, offset)
}

// Stop ends a plyd as a service manager does, and returns when it has ended. With a unit, systemd ends it and no longer listens for it.
func (p Paths) Stop(ctx context.Context, s State, limit time.Duration) error {
	if s.Waiting || s.Process != nil && s.Unit != "" {
		_, err := p.systemctl(ctx, "stop", socketUnit, serviceUnit)
		return err
	}
	fd, err := unix.PidfdOpen(s.PID, 0)
	if err != nil {
		if errors.Is(err, unix.ESRCH) {
			return nil // it has ended
		}
		return errs.New(errs.Unavailable, "plyd, process %d: %w", s.PID, err)
	}
	defer unix.Close(fd)
	// The descriptor refers to one process. That it is the one that listens is checked now, because its number could have been reused before.
	if pid, err := listener(ctx, s.socket); err != nil || pid != s.PID {
		return err
	}
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", s.PID))
	if err != nil {
		return errs.New(errs.Forbidden, "plyd, process %d: %w", s.PID, err).WithHint("Only root may stop it.")
	}
	if name := filepath.Base(strings.TrimSuffix(exe, " (deleted)")); name != "plyd" {
		return errs.New(errs.Precondition, "%s listens at %s, process %d, and is not plyd", exe, s.socket, s.PID)
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return errs.New(errs.Forbidden, "stop plyd, process %d: %w", s.PID, err)
	}
	return ended(ctx, fd, s.PID, limit)
}

// ended waits until the process of a descriptor has ended.
func ended(ctx context.Context, fd, pid int, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 50)
		switch {
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("wait for plyd, process %d: %w", pid, err)
		case n > 0:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case time.Now().After(deadline):
			return errs.New(errs.Unavailable, "plyd, process %d, was told to stop and still runs after %v", pid, limit).WithHint("With \"live-restore\": false it stops its containers first. See: ply system logs")
		}
	}
}
