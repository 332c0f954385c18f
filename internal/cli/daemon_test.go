package cli

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"ply/internal/cli/daemon"

	"golang.org/x/sys/unix"
)

// TestMain lets this binary take the part of plyd. PLY_TEST_DAEMON names the socket to serve, until the file beside it is removed.
func TestMain(m *testing.M) {
	sock := os.Getenv("PLY_TEST_DAEMON")
	if sock == "" {
		os.Exit(m.Run())
	}
	if strings.HasSuffix(sock, "broken") {
		fmt.Println("level=ERROR msg=\"data root: no space left on device\"")
		os.Exit(1)
	}
	l, err := net.Listen("unix", sock)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.51")
		if strings.HasSuffix(r.URL.Path, "/containers/json") {
			w.Write([]byte("[]"))
		}
	}))
	fmt.Println("started", unix.Getpid(), "session", must(unix.Getsid(0)))
	for range 3000 { // 30 seconds, in case the test ends without removing the file
		if _, err := os.Stat(sock + ".run"); err != nil {
			os.Exit(0)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func must(n int, err error) int {
	if err != nil {
		panic(err)
	}
	return n
}

// daemonWorld puts a plyd into PATH, which is this test binary, and returns its paths.
func daemonWorld(t *testing.T, sock string) daemon.Paths {
	t.Helper()
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	d := daemon.Paths{Host: "unix://" + filepath.Join(dir, sock), Log: filepath.Join(dir, "log"), Lock: filepath.Join(dir, "lock"), Dir: dir}
	script := fmt.Sprintf("#!/bin/sh\nPLY_TEST_DAEMON=%s exec %s\n", filepath.Join(dir, sock), self)
	if err := os.WriteFile(filepath.Join(dir, "plyd"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	run := filepath.Join(dir, sock+".run")
	if err := os.WriteFile(run, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		os.Remove(run)
		eventually(t, "the daemon ends", func() bool {
			c, err := net.Dial("unix", filepath.Join(dir, sock))
			if err == nil {
				c.Close()
			}
			return err != nil
		})
	})
	t.Setenv("DOCKER_HOST", "")
	t.Setenv("PLY_HOST", "")
	t.Setenv("DOCKER_CONFIG", dir)
	return d
}

// runWith runs a command line with the given default engine.
func runWith(d daemon.Paths, args ...string) result {
	var out, errw bytes.Buffer
	inv := invocation(strings.NewReader(""), &out, &errw)
	inv.Daemon = d
	code := Run(context.Background(), inv, args)
	return result{out.String(), errw.String(), code}
}

// Several processes at the same time start one daemon, in a session of its own, and each gets its answer.
func TestDaemonIsStarted(t *testing.T) {
	d := daemonWorld(t, "s")
	var wg sync.WaitGroup
	results := make([]result, 4)
	for i := range results {
		wg.Go(func() { results[i] = runWith(d, "ps", "-q") })
	}
	wg.Wait()
	said := 0
	for _, r := range results {
		if r.code != 0 {
			t.Errorf("ps: %+v", r)
		}
		said += strings.Count(r.err, "starting")
	}
	log, err := os.ReadFile(d.Log)
	if err != nil || strings.Count(string(log), "started") != 1 || said != 1 {
		t.Errorf("%d commands announced the start; log %q %v", said, log, err)
	}
	var pid, sid int
	if _, err := fmt.Sscanf(string(log), "started %d session %d", &pid, &sid); err != nil || pid != sid {
		t.Errorf("pid %d session %d %v: it would end with the terminal", pid, sid, err)
	}
	if r := runWith(d, "ps", "-q"); r.err != "" || r.code != 0 {
		t.Errorf("with a daemon: %+v", r)
	}
}

// When plyd ends at its start, the error shows the end of its log.
func TestDaemonThatEnds(t *testing.T) {
	d := daemonWorld(t, "broken")
	r := runWith(d, "ps")
	if r.code != 1 || !strings.Contains(r.err, "plyd ended at start (exit status 1): level=ERROR msg=\"data root: no space left on device\"") || !strings.Contains(r.err, d.Log) {
		t.Errorf("%+v", r)
	}
}

// An engine that the user named is not started, and the error says so when there is no plyd to start.
func TestDaemonIsNotStarted(t *testing.T) {
	d := daemonWorld(t, "s")
	if r := runWith(d, "-H", "unix:///nonexistent/s", "ps"); r.code != 1 || r.err != "Cannot connect to the ply daemon at unix:///nonexistent/s. Is the ply daemon running?\n" {
		t.Errorf("named: %+v", r)
	}
	if r := runWith(d, "-H", d.Host, "ps"); r.code != 1 || !strings.HasPrefix(r.err, "Cannot connect to the ply daemon at "+d.Host) {
		t.Errorf("named by its own name: %+v", r)
	}
	for _, command := range []string{"version", "info"} { // they only look
		if r := runWith(d, command); r.code != 1 || !strings.HasPrefix(r.out, "Client:") || !strings.Contains(r.err, "Cannot connect to the ply daemon at "+d.Host) {
			t.Errorf("%s: %+v", command, r)
		}
	}
	d.Dir = "/nonexistent"
	if r := runWith(d, "ps"); r.code != 1 || !strings.Contains(r.err, "plyd was not found beside ply nor in the system's directories") {
		t.Errorf("no plyd: %+v", r)
	}
	if _, err := os.Stat(d.Log); err == nil {
		t.Error("a plyd was started")
	}
}

// The engine can be started and looked at; nothing that listens and is not plyd is ended.
func TestSystemStartAndStatus(t *testing.T) {
	d := daemonWorld(t, "s")
	d.Systemd = d.Dir // without its programs
	if r := runWith(d, "system", "status"); r.code != 3 || r.out != "plyd does not run\n" || r.err != "" {
		t.Errorf("before the start: %+v", r)
	}
	if r := runWith(d, "system", "stop"); r.code != 0 || r.out != "plyd does not run\n" {
		t.Errorf("stop: %+v", r)
	}
	r := runWith(d, "system", "start")
	var pid int
	if _, err := fmt.Sscanf(r.out, "plyd runs, process %d, started by "+filepath.Join(d.Dir, "plyd"), &pid); err != nil || r.code != 0 {
		t.Fatalf("%v: %+v", err, r)
	}
	if r := runWith(d, "system", "start"); r.code != 0 || r.out != fmt.Sprintf("plyd runs already, process %d\n", pid) {
		t.Errorf("again: %+v", r)
	}
	if r := runWith(d, "system", "status", "--format", "{{.State}} {{.PID}} {{.Log}}"); r.out != fmt.Sprintf("running %d %s\n", pid, d.Log) {
		t.Errorf("status: %+v", r)
	}
	if r := runWith(d, "system", "logs", "-n", "1"); r.code != 0 || !strings.HasPrefix(r.out, fmt.Sprintf("started %d session", pid)) {
		t.Errorf("logs: %+v", r)
	}
	if r := runWith(d, "system", "stop"); r.code != 1 || !strings.Contains(r.err, "and is not plyd") {
		t.Errorf("stop: %+v", r)
	}
	if r := runWith(d, "-H", "tcp://127.0.0.1:1", "system", "stop"); r.code != 1 || !strings.Contains(r.err, "tcp://127.0.0.1:1 is not a unix socket") {
		t.Errorf("stop of another machine's: %+v", r)
	}
}
