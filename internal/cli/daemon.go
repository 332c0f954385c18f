package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"ply/internal/cli/client"
	"ply/internal/errs"
)

// startLimit is how long plyd may take until its socket answers.
const startLimit = 20 * time.Second

// daemonPaths say where plyd listens when nobody says otherwise, where its output goes when this program starts it, and
// the lock that keeps two from starting it at once.
type daemonPaths struct{ host, log, lock string }

var defaultDaemon = daemonPaths{DefaultHost, "/var/log/plyd.log", "/run/plyd-start.lock"}

// startDaemon starts plyd when nothing listens at the default socket and this user may; cause is why the first try
// failed. It returns when the socket answers.
func (a *App) startDaemon(ctx context.Context, c *client.Client, cause error) error {
	var ce *client.ConnectError
	if !errors.As(cause, &ce) || !ce.Absent() {
		return cause
	}
	if os.Getenv("PLY_NO_START") != "" {
		return cause
	}
	if os.Geteuid() != 0 {
		return errs.New(errs.Unavailable, "%s", unreachable(c)).WithHint("Only root may start it: run `sudo plyd &`, or name another engine with -H or PLY_HOST")
	}
	path, err := findDaemon()
	if err != nil {
		return errs.New(errs.Unavailable, "%s", unreachable(c)).WithHint("It could not be started either: plyd was not found beside ply nor in PATH: install it, or name another engine with -H or PLY_HOST")
	}
	unlock, err := lockStart(a.daemon.lock)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := c.Ping(ctx); err == nil {
		return nil // somebody else started it while we waited for the lock
	}
	fmt.Fprintf(a.Err, "ply: no engine at %s, starting %s (log: %s)\n", c.Host(), path, a.daemon.log)
	exited, offset, err := spawnDaemon(path, a.daemon.log)
	if err != nil {
		return err
	}
	return waitDaemon(ctx, c, a.daemon.log, exited, offset)
}

func unreachable(c *client.Client) string {
	return "Cannot connect to the ply daemon at " + c.Host() + ": it does not run"
}

// findDaemon looks beside this executable, then in PATH.
func findDaemon() (string, error) {
	if self, err := os.Executable(); err == nil {
		if real, err := filepath.EvalSymlinks(self); err == nil {
			self = real
		}
		p := filepath.Join(filepath.Dir(self), "plyd")
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	return exec.LookPath("plyd")
}

func lockStart(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, errs.New(errs.Unavailable, "start of plyd: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, errs.New(errs.Unavailable, "start of plyd: lock %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}

// spawnDaemon starts plyd in a session of its own; exited gets its end, offset is where its log begins.
func spawnDaemon(path, logFile string) (exited <-chan error, offset int64, err error) {
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return nil, 0, errs.New(errs.Unavailable, "log of plyd: %w", err)
	}
	defer log.Close()
	if st, err := log.Stat(); err == nil {
		offset = st.Size()
	}
	cmd := exec.Command(path) // no context: it must outlive this process
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, 0, errs.New(errs.Unavailable, "start %s: %w", path, err)
	}
	ch := make(chan error, 1)
	go func() { ch <- cmd.Wait() }()
	return ch, offset, nil
}

func waitDaemon(ctx context.Context, c *client.Client, logFile string, exited <-chan error, offset int64) error {
	deadline := time.NewTimer(startLimit)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := c.Ping(ctx); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case err := <-exited:
			if _, perr := c.Ping(ctx); perr == nil {
				return nil
			}
			return errs.New(errs.Unavailable, "plyd ended at start (%v): %s", err, logTail(logFile, offset)).WithHint("The whole log is in %s", logFile)
		case <-deadline.C:
			return errs.New(errs.Unavailable, "plyd does not answer at %s after %s", c.Host(), startLimit).WithHint("See %s", logFile)
		case <-tick.C:
		}
	}
}

// logTail gives the last lines that plyd wrote since offset.
func logTail(path string, offset int64) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return err.Error()
	}
	b, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	if len(lines) > 3 {
		lines = lines[len(lines)-3:]
	}
	return strings.Join(lines, " | ")
}
