package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"ply/internal/transfer/remote/remotetest"
)

// world is one plyd with its roots, and its registries. It ends with its test and checks that nothing is left.
type world struct {
	t        testing.TB
	dir      string
	sock     string
	bridge   string
	flags    []string
	env      []string // of plyd, besides the tests' own
	wrap     []string // a command that executes plyd; none = plyd itself
	plyd     *exec.Cmd
	log      string
	regs     []*exec.Cmd
	regNames map[string]*exec.Cmd // by their variables in a story
	baseline map[string]bool      // mounts before
}

var worlds atomic.Int32

// cgroupParents are the cgroups that tests name as parents of containers.
var cgroupParents = []string{"/ply-settings", "/flags", "/x"}

// newWorld starts a plyd with further flags.
func newWorld(t testing.TB, flags ...string) *world {
	t.Helper()
	w := prepareWorld(t, flags...)
	w.startPlyd()
	return w
}

// prepareWorld makes the directories only.
func prepareWorld(t testing.TB, flags ...string) *world {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "ply-e2e.")
	if err != nil {
		t.Fatal(err)
	}
	n := worlds.Add(1)
	w := &world{t: t, dir: dir, sock: filepath.Join(dir, "s"), bridge: fmt.Sprintf("plye2e%d", n), log: filepath.Join(dir, "plyd.log"), regNames: map[string]*exec.Cmd{}, baseline: mounts(t)}
	w.flags = append([]string{"--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "run"), "-H", "unix://" + w.sock,
		"--pidfile", filepath.Join(dir, "pid"), "--bridge", w.bridge, "--config-file", filepath.Join(dir, "daemon.json")}, flags...)
	if err := os.WriteFile(filepath.Join(dir, "daemon.json"), []byte("{}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.close)
	return w
}

func mounts(t testing.TB) map[string]bool {
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]bool{}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 {
			m[f[1]] = true
		}
	}
	return m
}

func (w *world) startPlyd() {
	w.t.Helper()
	f, err := os.OpenFile(w.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	line := slices.Concat(w.wrap, []string{filepath.Join(bin, "plyd")}, w.flags)
	w.plyd = exec.Command(line[0], line[1:]...)
	w.plyd.Env = append(os.Environ(), w.env...)
	w.plyd.Stdout, w.plyd.Stderr = f, f
	if err := w.plyd.Start(); err != nil {
		w.t.Fatal(err)
	}
	if err := w.waitUp(time.Minute); err != nil {
		w.t.Fatalf("plyd does not answer: %v\n%s", err, w.tail())
	}
}

func (w *world) waitUp(limit time.Duration) error {
	c := w.client()
	deadline := time.Now().Add(limit)
	for {
		r, err := c.Get("http://ply/_ping")
		if err == nil {
			r.Body.Close()
			return nil
		}
		if time.Now().After(deadline) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (w *world) client() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", w.sock)
		},
	}}
}

func (w *world) tail() string {
	b, _ := os.ReadFile(w.log)
	if len(b) > 6000 {
		b = b[len(b)-6000:]
	}
	return string(b)
}

// kill9 kills plyd; the containers run on.
func (w *world) kill9() {
	w.t.Helper()
	if w.plyd == nil {
		return
	}
	_ = w.plyd.Process.Kill() // it may have ended by itself
	_ = w.plyd.Wait()
	w.plyd = nil
}

// stopPlyd ends plyd as a service manager does.
func (w *world) stopPlyd() {
	w.t.Helper()
	if w.plyd == nil {
		return
	}
	_ = w.plyd.Process.Signal(syscall.SIGTERM)
	done := make(chan error, 1)
	go func(c *exec.Cmd) { done <- c.Wait() }(w.plyd)
	select {
	case err := <-done:
		if err != nil {
			w.t.Errorf("plyd ended with %v\n%s", err, w.tail())
		}
	case <-time.After(time.Minute):
		_ = w.plyd.Process.Signal(syscall.SIGABRT)
		<-done
		w.t.Errorf("plyd does not stop\n%s", w.tail())
	}
	w.plyd = nil
}

// registry starts Debian's docker-registry on loopback; more is appended to its configuration.
func (w *world) registry(more string) (addr string) {
	w.t.Helper()
	addr = remotetest.FreeAddr(w.t)
	n := len(w.regs)
	config := filepath.Join(w.dir, fmt.Sprintf("registry%d.yml", n))
	text := fmt.Sprintf("version: 0.1\nlog: {level: warn}\nstorage:\n  filesystem: {rootdirectory: %q}\n  delete: {enabled: true}\nhttp: {addr: %q}\n%s",
		filepath.Join(w.dir, fmt.Sprintf("registry%d", n)), addr, more)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
	c := exec.Command("docker-registry", "serve", config)
	log := &bytes.Buffer{}
	c.Stdout, c.Stderr = log, log
	if err := c.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.regs = append(w.regs, c)
	deadline := time.Now().Add(time.Minute)
	for {
		r, err := http.Get("http://" + addr + "/v2/")
		if err == nil {
			r.Body.Close()
			return addr
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("registry: %v\n%s", err, log.String())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// env returns the environment in which client programs reach this plyd.
func (w *world) clientEnv() []string {
	return []string{"DOCKER_HOST=unix://" + w.sock, "DOCKER_CONFIG=" + filepath.Join(w.dir, "config"), "DOCKER_CLI_HINTS=false", "TERM=xterm"}
}

// run runs a program against this plyd and returns its standard output and error.
func (w *world) run(name string, args ...string) (stdout, stderr string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, w.program(name), args...)
	c.Env = append(os.Environ(), w.clientEnv()...)
	var o, e bytes.Buffer
	c.Stdout, c.Stderr = &o, &e
	err = c.Run()
	return o.String(), e.String(), err
}

func (w *world) program(name string) string {
	switch name {
	case "ply":
		return filepath.Join(bin, "ply")
	case "docker20":
		return "/usr/bin/docker"
	}
	return name
}

// ply runs ply, which must succeed, and returns the trimmed output.
func (w *world) ply(args ...string) string {
	w.t.Helper()
	o, e, err := w.run("ply", args...)
	if err != nil {
		w.t.Fatalf("ply %s: %v\n%s%s\nplyd:\n%s", strings.Join(args, " "), err, o, e, w.tail())
	}
	return strings.TrimSpace(o)
}

// fail runs a program that must exit with the code, and returns what it printed on both streams.
func (w *world) fail(code int, args ...string) string {
	w.t.Helper()
	o, e, err := w.run("ply", args...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != code {
		w.t.Fatalf("ply %s: %v, want exit code %d\n%s%s", strings.Join(args, " "), err, code, o, e)
	}
	return o + e
}

// busybox imports the test image and returns its ID.
func (w *world) busybox() string {
	w.t.Helper()
	return w.ply("import", "-c", `CMD ["sh"]`, filepath.Join(images, "busybox.tar"), "busybox")
}

// close ends everything and checks that no process, mount or interface is left.
func (w *world) close() {
	w.t.Helper()
	if w.plyd == nil {
		if _, err := os.Stat(filepath.Join(w.dir, "data", "meta.db")); err == nil && !w.t.Failed() {
			w.startPlyd() // it cleans up what its containers left
		}
	}
	if w.plyd != nil {
		if ids, _, err := w.run("ply", "ps", "-aq"); err == nil && strings.TrimSpace(ids) != "" {
			if _, e, err := w.run("ply", append([]string{"rm", "-f", "-v"}, strings.Fields(ids)...)...); err != nil {
				w.t.Errorf("clean up: %v: %s", err, e)
			}
		}
		w.stopPlyd()
	}
	for _, r := range w.regs {
		_ = r.Process.Kill()
		_ = r.Wait()
	}
	for m := range mounts(w.t) {
		if !w.baseline[m] && strings.HasPrefix(m, w.dir) {
			w.t.Errorf("mount left: %s", m)
			_ = syscall.Unmount(m, syscall.MNT_DETACH)
		}
	}
	if out, _ := exec.Command("ip", "-br", "link").Output(); strings.Contains(string(out), w.bridge) {
		w.t.Errorf("interface left: %s", out)
		_ = exec.Command("ip", "link", "del", w.bridge).Run()
	}
	for _, parent := range cgroupParents { // the administrator's, so plyd leaves them
		for _, pattern := range []string{"/sys/fs/cgroup/*", "/sys/fs/cgroup"} {
			dirs, _ := filepath.Glob(pattern + parent) // the pattern is good
			for _, d := range dirs {
				_ = syscall.Rmdir(d) // it fails while another world uses it
			}
		}
	}
	if out, _ := exec.Command("pgrep", "-af", w.dir).Output(); len(out) > 0 {
		w.t.Errorf("processes left:\n%s", out)
		_ = exec.Command("pkill", "-9", "-f", w.dir).Run()
	}
	if w.t.Failed() {
		w.t.Logf("plyd:\n%s", w.tail())
	}
	if err := os.RemoveAll(w.dir); err != nil {
		w.t.Errorf("clean up: %v", err)
	}
}
