package upgrade

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// machine has the data root and the exec root of a test, and runs a plyd on them.
type machine struct {
	t       *testing.T
	dir     string // what is mounted at dataRoot
	bin     string // of the running plyd
	storage string
	flags   []string // of plyd, besides the storage driver
	plyd    *exec.Cmd
	log     string
}

// mustMkdirTemp creates a directory on disk.
func mustMkdirTemp(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(scratch, "test.")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// newMachine mounts dir as the data root, and creates it if it does not exist. It is removed with the test.
func newMachine(t *testing.T, dir, storage string) *machine {
	t.Helper()
	if err := os.MkdirAll(dir, 0o710); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(dir, dataRoot, "", unix.MS_BIND, ""); err != nil {
		t.Fatalf("mount %s: %v", dataRoot, err)
	}
	m := &machine{t: t, dir: dir, storage: storage, log: filepath.Join(t.TempDir(), "plyd.log")}
	t.Cleanup(m.close)
	return m
}

// start starts the plyd of a directory and waits until it answers.
func (m *machine) start(bin string) {
	m.t.Helper()
	m.run(bin)
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}}}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		r, err := c.Get("http://ply/_ping")
		if err == nil {
			r.Body.Close()
			return
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("plyd does not answer: %v\n%s", err, m.tail())
		}
	}
}

// run starts the plyd of a directory.
func (m *machine) run(bin string) {
	m.t.Helper()
	f, err := os.OpenFile(m.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		m.t.Fatal(err)
	}
	defer f.Close()
	m.bin = bin
	m.plyd = exec.Command(filepath.Join(bin, "plyd"), append(m.flags, "--storage-driver", m.storage)...)
	m.plyd.Stdout, m.plyd.Stderr = f, f
	if err := m.plyd.Start(); err != nil {
		m.t.Fatal(err)
	}
}

// tail returns the end of plyd's log.
func (m *machine) tail() string {
	b, _ := os.ReadFile(m.log)
	return string(b[max(0, len(b)-8000):])
}

// stop ends plyd with a signal. Its containers keep running.
func (m *machine) stop(sig syscall.Signal) {
	m.t.Helper()
	if m.plyd == nil {
		return
	}
	plyd := m.plyd
	m.plyd = nil
	if err := plyd.Process.Signal(sig); err != nil {
		m.t.Fatalf("plyd had ended: %v\n%s", err, m.tail())
	}
	timer := time.AfterFunc(time.Minute, func() { _ = plyd.Process.Signal(syscall.SIGABRT) })
	defer timer.Stop()
	if err := plyd.Wait(); err != nil && sig == syscall.SIGTERM {
		m.t.Errorf("plyd ended with %v\n%s", err, m.tail())
	}
}

// try runs the ply of this machine's build.
func (m *machine) try(args ...string) (stdout, stderr string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, filepath.Join(m.bin, "ply"), args...)
	c.Env = append(os.Environ(), "DOCKER_HOST=unix://"+socket, "DOCKER_CONFIG="+m.t.TempDir())
	var o, e bytes.Buffer
	c.Stdout, c.Stderr = &o, &e
	err = c.Run()
	return o.String(), e.String(), err
}

// ply runs a command that must succeed, and returns its trimmed output.
func (m *machine) ply(args ...string) string {
	m.t.Helper()
	o, e, err := m.try(args...)
	if err != nil {
		m.t.Fatalf("ply %s: %v\n%s%s\nplyd:\n%s", strings.Join(args, " "), err, o, e, m.tail())
	}
	return strings.TrimSpace(o)
}

// fails runs a command that must end with an exit code, and returns what it printed.
func (m *machine) fails(code int, args ...string) string {
	m.t.Helper()
	o, e, err := m.try(args...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != code {
		m.t.Fatalf("ply %s: %v, want exit code %d\n%s%s\nplyd:\n%s", strings.Join(args, " "), err, code, o, e, m.tail())
	}
	return o + e
}

// want runs a command and compares its output.
func (m *machine) want(output string, args ...string) {
	m.t.Helper()
	if got := m.ply(args...); got != output {
		m.t.Errorf("ply %s: %.500q, want %q", strings.Join(args, " "), got, output)
	}
}

// wantPart runs a command whose output must contain a text.
func (m *machine) wantPart(part string, args ...string) {
	m.t.Helper()
	if got := m.ply(args...); !strings.Contains(got, part) {
		m.t.Errorf("ply %s: %.500q does not contain %q", strings.Join(args, " "), got, part)
	}
}

// eventually waits for a condition.
func (m *machine) eventually(what string, ok func() bool) {
	m.t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			m.t.Fatalf("%s: not within a minute\nplyd:\n%s", what, m.tail())
		}
	}
}

// close removes everything and checks that nothing stays mounted.
func (m *machine) close() {
	m.t.Helper()
	if m.plyd == nil && m.t.Failed() {
		if left, err := os.ReadDir(filepath.Join(execRoot, "containers")); err == nil && len(left) > 0 {
			m.start(bin) // containers may run
		}
	}
	if m.plyd != nil {
		if ids, _, err := m.try("ps", "-aq"); err == nil && ids != "" {
			if _, e, err := m.try(append([]string{"rm", "-f", "-v"}, strings.Fields(ids)...)...); err != nil {
				m.t.Errorf("clean up: %v: %s", err, e)
			}
		}
		m.stop(syscall.SIGTERM)
	}
	if m.t.Failed() {
		m.t.Logf("plyd:\n%s", m.tail())
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		m.t.Error(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if path := strings.Fields(line)[1]; strings.HasPrefix(path, dataRoot+"/") || strings.HasPrefix(path, execRoot+"/") {
			m.t.Errorf("still mounted: %s", path)
			_ = unix.Unmount(path, unix.MNT_DETACH)
		}
	}
	if err := unix.Unmount(dataRoot, 0); err != nil {
		m.t.Errorf("unmount %s: %v", dataRoot, err)
		_ = unix.Unmount(dataRoot, unix.MNT_DETACH)
	}
	if err := errors.Join(os.RemoveAll(m.dir), os.RemoveAll(execRoot)); err != nil {
		m.t.Error(err)
	}
}
