// Package daemon starts, stops and finds the plyd of this machine, and reads its log. The command line starts plyd when it needs an engine and nothing listens
// at the default socket. Where systemd has ply's units, it does the starting and stopping.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

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
	Dir  string // directory of plyd; "" looks beside ply and then in the system's directories

	Systemd string // directory of the programs of systemd; "" = those of the system, where systemd is the init
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
	path, err := p.find()
	if err != nil {
		return errs.New(errs.Unavailable, "%s", unreachable(c)).WithHint("It could not be started either: plyd was not found beside ply nor in the system's directories: install it, or name another engine with -H or PLY_HOST")
	}
	ping := func(ctx context.Context) error { _, err := c.Ping(ctx); return err }
	unlock, err := lock(p.Lock)
	if err != nil {
		return err
	}
	defer unlock()
	if ping(ctx) == nil {
		return nil // another process started it while this one waited for the lock
	}
	if u, err := p.unit(ctx); err == nil && u.installed {
		fmt.Fprintf(stderr, "ply: no engine at %s, systemd starts it (log: ply system logs)\n", c.Host())
	} else {
		fmt.Fprintf(stderr, "ply: no engine at %s, starting %s (log: %s)\n", c.Host(), path, p.Log)
	}
	_, err = p.start(ctx, ping)
	return err
}

// Check runs plyd to examine the data root without serving, and returns its messages: those of POST /system/check. mode is the
// value of its flag --check. Close waits for plyd, which ends when ctx does.
func (p Paths) Check(ctx context.Context, mode string, stderr io.Writer) (io.ReadCloser, error) {
	path, err := p.find()
	if err != nil {
		return nil, errs.New(errs.Unavailable, "no engine runs, and plyd was not found beside ply nor in the system's directories").WithHint("Install it, or name another engine with -H or PLY_HOST.")
	}
	cmd := exec.CommandContext(ctx, path, "--check="+mode)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.Dir, cmd.Env, cmd.Stderr = "/", environment(os.Environ()), stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, errs.New(errs.Unavailable, "check with %s: %w", path, err)
	}
	return &examination{ReadCloser: out, cmd: cmd}, nil
}

// examination is the output of a plyd that examines the data root.
type examination struct {
	io.ReadCloser
	cmd *exec.Cmd
}

// Close waits for plyd. Its exit code is not needed: the last message says how the examination ended.
func (x *examination) Close() error {
	_, err := io.Copy(io.Discard, x.ReadCloser)
	var exit *exec.ExitError
	if werr := x.cmd.Wait(); werr != nil && !errors.As(werr, &exit) {
		err = errors.Join(err, werr)
	}
	return err
}

func unreachable(c *client.Client) string {
	return "Cannot connect to the ply daemon at " + c.Host() + ": it does not run"
}

// systemDirs are the directories in which plyd is looked for besides ply's own, and plyd's PATH.
var systemDirs = []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}

// find looks for plyd beside this executable, then in systemDirs. It does not search PATH, because plyd runs as root and the
// PATH may be another user's.
func (p Paths) find() (string, error) {
	dirs := systemDirs
	if p.Dir != "" {
		dirs = []string{p.Dir}
	} else if self, err := os.Executable(); err == nil {
		if real, err := filepath.EvalSymlinks(self); err == nil {
			self = real
		}
		dirs = append([]string{filepath.Dir(self)}, dirs...)
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, "plyd")
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", exec.ErrNotFound
}

// environment returns the environment of plyd: a fixed PATH, and of the variables env only the proxies, the language and the time
// zone. Everything else belongs to the caller, and plyd outlives it.
func environment(env []string) []string {
	out := []string{"PATH=" + strings.Join(systemDirs, ":")}
	for _, kv := range env {
		name, _, _ := strings.Cut(kv, "=")
		switch name {
		case "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy", "LANG", "LC_ALL", "TZ":
			out = append(out, kv)
		}
	}
	return out
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

// spawn starts plyd in a session of its own, with nothing of the caller's environment, open files or cgroups. exited receives the result when plyd ends; offset is the length of the log before.
func spawn(path, logFile string, hierarchies []string) (exited <-chan error, offset int64, err error) {
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return nil, 0, errs.New(errs.Unavailable, "log of plyd: %w", err)
	}
	defer log.Close()
	if st, err := log.Stat(); err == nil {
		offset = st.Size()
	}
	cmd := exec.Command(path) // no context: it must outlive this process
	cmd.Dir, cmd.Env = "/", environment(os.Environ())
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := closeOnExec(); err != nil {
		return nil, 0, errs.New(errs.Unavailable, "start %s: %w", path, err)
	}
	if err := cmd.Start(); err != nil {
		return nil, 0, errs.New(errs.Unavailable, "start %s: %w", path, err)
	}
	leaveCgroups(cmd.Process.Pid, hierarchies)
	ch := make(chan error, 1)
	go func() { ch <- cmd.Wait() }()
	return ch, offset, nil
}

// closeOnExec marks every descriptor above 2, so that plyd does not inherit those that this process inherited: it would keep
// locks and pipes of the caller in use.
func closeOnExec() error {
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err == nil {
		return nil
	}
	open, err := os.ReadDir("/proc/self/fd") // before Linux 5.11
	if err != nil {
		return err
	}
	for _, e := range open {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}

// hierarchies returns the mount points of the cgroup hierarchies.
func hierarchies() (dirs []string) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil // plyd works in any cgroup
	}
	for _, m := range mounts {
		dirs = append(dirs, m.Mountpoint)
	}
	return dirs
}

// leaveCgroups moves a process that has no children yet to the root of every hierarchy, so that it does not end with the caller's
// login session or job, and does not count against their limits. Where that is not allowed, the process stays in its cgroup.
func leaveCgroups(pid int, hierarchies []string) {
	for _, dir := range hierarchies {
		f, err := os.OpenFile(filepath.Join(dir, "cgroup.procs"), os.O_WRONLY, 0)
		if err != nil {
			continue
		}
		_, _ = f.WriteString(strconv.Itoa(pid))
		_ = f.Close() // the write has moved the process or failed
	}
}

// wait returns when ping succeeds, or with an error when plyd ended or startLimit passed. A nil exited is a plyd that systemd started.
func (p Paths) wait(ctx context.Context, ping func(context.Context) error, exited <-chan error, offset int64) error {
	deadline := time.NewTimer(startLimit)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if ping(ctx) == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case err := <-exited:
			if ping(ctx) == nil {
				return nil
			}
			return errs.New(errs.Unavailable, "plyd ended at start (%v): %s", err, logTail(p.Log, offset)).WithHint("The whole log is in %s", p.Log)
		case <-deadline.C:
			return errs.New(errs.Unavailable, "plyd does not answer at %s after %s", p.Host, startLimit).WithHint("See: ply system logs")
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
