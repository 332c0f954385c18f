// Package daemon starts plyd when the command line needs an engine and nothing listens at the default socket.
package daemon

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

// Paths are the places that a started plyd uses.
type Paths struct {
	Host string // where plyd listens when its configuration does not say otherwise
	Log  string // file that receives the output of a plyd that Start starts
	Lock string // file that is locked during Start, so that two processes do not start plyd at the same time
}

// Default are the paths of the engine of this machine.
var Default = Paths{Host: "unix:///run/ply.sock", Log: "/var/log/plyd.log", Lock: "/run/plyd-start.lock"}

// Start starts plyd and returns when its socket answers. It returns cause, the error of the first attempt to connect, when
// the socket exists and is in use, or when PLY_NO_START is set. Only root may start plyd. A line on stderr tells the user.
func (p Paths) Start(ctx context.Context, c *client.Client, cause error, stderr io.Writer) error {
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
	path, err := find()
	if err != nil {
		return errs.New(errs.Unavailable, "%s", unreachable(c)).WithHint("It could not be started either: plyd was not found beside ply nor in PATH: install it, or name another engine with -H or PLY_HOST")
	}
	unlock, err := lock(p.Lock)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := c.Ping(ctx); err == nil {
		return nil // another process started it while this one waited for the lock
	}
	fmt.Fprintf(stderr, "ply: no engine at %s, starting %s (log: %s)\n", c.Host(), path, p.Log)
	exited, offset, err := spawn(path, p.Log)
	if err != nil {
		return err
	}
	return wait(ctx, c, p.Log, exited, offset)
}

func unreachable(c *client.Client) string {
	return "Cannot connect to the ply daemon at " + c.Host() + ": it does not run"
}

// find looks for plyd beside this executable, then in PATH.
func find() (string, error) {
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

// lock waits for the lock of the file at path.
func lock(path string) (unlock func(), err error) {
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

// spawn starts plyd in a session of its own. exited receives the result when plyd ends; offset is the length of the log before.
func spawn(path, logFile string) (exited <-chan error, offset int64, err error) {
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

// wait returns when the socket of c answers, or with an error when plyd ended or startLimit passed.
func wait(ctx context.Context, c *client.Client, logFile string, exited <-chan error, offset int64) error {
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

// logTail returns the last three lines of the log after offset, joined by bars.
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
