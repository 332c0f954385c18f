package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"ply/internal/registry/content"
)

// asRegistry, in the environment, makes this test binary the registry.
const asRegistry = "PLY_REGISTRY_TEST_PROCESS"

func TestMain(m *testing.M) {
	if os.Getenv(asRegistry) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// process is a running registry.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	url  string
	side string // the second listener

	mu  sync.Mutex
	log bytes.Buffer
}

// Write keeps the log.
func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.Write(b)
}

func (p *process) logged() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// startProcess starts a registry, which prints its addresses.
func startProcess(t *testing.T, env []string, args ...string) *process {
	t.Helper()
	p := &process{t: t}
	p.cmd = exec.CommandContext(context.Background(), os.Args[0], append([]string{"--addr=127.0.0.1:0", "--metrics-addr=127.0.0.1:0", "--root=" + t.TempDir()}, args...)...)
	p.cmd.Env = append(append(os.Environ(), asRegistry+"=1"), env...)
	p.cmd.Stderr = p
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // it may have ended
		_ = p.cmd.Wait()
	})
	lines := bufio.NewScanner(out)
	for p.side == "" && lines.Scan() {
		if _, after, ok := strings.Cut(lines.Text(), " serves "); ok {
			p.url = "http://" + after[strings.LastIndex(after, " ")+1:]
		}
		if _, after, ok := strings.Cut(lines.Text(), "Metrics are at "); ok {
			p.side = strings.TrimSuffix(after, "/metrics")
		}
	}
	if p.url == "" || p.side == "" {
		_ = p.cmd.Wait()
		t.Fatalf("the registry does not start: %v\n%s", lines.Err(), p.logged())
	}
	return p
}

func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// waits waits until the log says a text so often.
func (p *process) waits(text string, times int) {
	p.t.Helper()
	for deadline := time.Now().Add(time.Minute); strings.Count(p.logged(), text) < times; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.t.Fatalf("the log does not say %q:\n%s", text, p.logged())
		}
	}
}

// status makes a request and returns the status of its answer; 0 when there is none.
func status(t *testing.T, method, url string, body io.Reader) int {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

// SIGHUP makes the process read its file again: good settings are in force, wrong ones change nothing, and those that need a restart are named.
func TestHangup(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.yml")
	settings := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	settings("log: {level: info}\n")
	p := startProcess(t, nil, "--config", file)
	want := func(code int) {
		t.Helper()
		if got := status(t, http.MethodPost, p.url+"/v2/a/blobs/uploads/", nil); got != code {
			t.Errorf("an upload begins with %d, want %d\n%s", got, code, p.logged())
		}
	}
	want(http.StatusAccepted)
	settings("storage: {maintenance: {readonly: {enabled: true}}}\nhttp: {draintimeout: 7s}\n")
	p.signal(syscall.SIGHUP)
	p.waits("settings reloaded", 1)
	want(http.StatusMethodNotAllowed)
	p.waits("need a restart", 1)
	if !strings.Contains(p.logged(), "settings=[drain]") {
		t.Errorf("the log names other settings:\n%s", p.logged())
	}
	settings("storage: {maintenance: {readonly: {enabled: perhaps}}}\n")
	p.signal(syscall.SIGHUP)
	p.waits("the new settings are not used", 1)
	want(http.StatusMethodNotAllowed)
	settings("{}\n")
	p.signal(syscall.SIGHUP)
	p.waits("settings reloaded", 2)
	want(http.StatusAccepted)
}

// SIGTERM lets the upload end that was begun. Meanwhile the process says that it lives and is not ready, and then it ends without an error.
func TestTerm(t *testing.T) {
	p := startProcess(t, nil)
	side := p.side
	for _, path := range []string{"/healthz", "/readyz"} {
		if got := status(t, http.MethodGet, side+path, nil); got != http.StatusOK {
			t.Errorf("%s: %d", path, got)
		}
	}
	data := []byte("begun and ended")
	r, w := io.Pipe()
	uploaded := make(chan int, 1)
	go func() {
		uploaded <- status(t, http.MethodPost, p.url+"/v2/a/blobs/uploads/?digest="+string(content.SHA256.Of(data)), r)
	}()
	if _, err := w.Write(data[:5]); err != nil {
		t.Fatal(err)
	}
	// The registry has the request when it counts it: this one and that for the metrics.
	for deadline := time.Now().Add(time.Minute); !strings.Contains(get(t, side+"/metrics"), "ply_registry_requests_active 1\n"); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the upload does not arrive")
		}
	}
	p.signal(syscall.SIGTERM)
	p.waits("draining", 1)
	for deadline := time.Now().Add(time.Minute); status(t, http.MethodGet, side+"/readyz", nil) != http.StatusServiceUnavailable; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the registry says that it is ready")
		}
	}
	if got := status(t, http.MethodGet, side+"/healthz", nil); got != http.StatusOK {
		t.Errorf("it does not say that it lives: %d", got)
	}
	if _, err := w.Write(data[5:]); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if got := <-uploaded; got != http.StatusCreated {
		t.Errorf("the upload ends with %d", got)
	}
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("the registry ends with %v\n%s", err, p.logged())
	}
}

func get(t *testing.T, url string) string {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return fmt.Sprint(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return string(b)
}

// What root does to the users of a registry that belongs to another user can be read by that user.
func TestUserOfOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become another user")
	}
	const owner = 65532
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	if err := errors.Join(os.Mkdir(root, 0o700), os.Chown(root, owner, owner), os.Chmod(dir, 0o711), os.Chmod(filepath.Dir(dir), 0o711)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "user", "add", "alice", "--password-stdin", "--root", root)
	cmd.Env = append(os.Environ(), asRegistry+"=1")
	cmd.Stdin = strings.NewReader("secret\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	files, err := os.ReadDir(root)
	if err != nil || len(files) == 0 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, f := range files {
		fi, err := f.Info()
		if err != nil {
			t.Fatal(err)
		}
		if st, ok := fi.Sys().(*syscall.Stat_t); !ok || st.Uid != owner || st.Gid != owner {
			t.Errorf("%s belongs to another user", f.Name())
		}
	}
}
