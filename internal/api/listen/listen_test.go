package listen

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"ply/internal/errs"
)

// shortDir returns a directory whose path is short enough for the address of a socket.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "l")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// serve answers every request with OK until the test ends.
func serve(t *testing.T, l net.Listener) {
	t.Helper()
	srv := NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "OK") }), nil)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
}

func TestUnixSocket(t *testing.T) {
	path := filepath.Join(shortDir(t), "new", "dir", "s")
	ls, err := Open("unix://"+path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode().Perm() != 0o660 || st.Mode().Type() != fs.ModeSocket || st.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("socket = %v", st.Mode())
	}
	if err := ls[0].Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Close: %v, want no file", err)
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	if err := old.Close(); err != nil { // as a killed engine leaves it
		t.Fatal(err)
	}
	ls, err := Open("unix://"+path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	// Closing the first engine must not remove the socket of the one that replaced it.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	next, err := Open("unix://"+path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := ls[0].Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the first engine removed the second one's socket: %v", err)
	}
	if err := next[0].Close(); err != nil {
		t.Fatal(err)
	}
}

func TestRefusals(t *testing.T) {
	dir := shortDir(t)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[string]string{
		"unix://" + file:               "not a socket",
		"unix://" + link:               "not a socket",
		"unix://relative":              "absolute path",
		"unix:///a/../b":               "clean absolute path",
		"unix://" + dir + "/s/../../x": "clean absolute path",
		"tcp://127.0.0.1:0":            "needs TLS that verifies its clients",
		"tcp://127.0.0.1":              "missing port",
		"npipe:////./pipe/x":           "unknown scheme",
		"/run/x.sock":                  "want unix://",
		"fd://":                        "no sockets found via socket activation",
	} {
		if _, err := Open(addr, Options{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Open(%s) = %v, want %q", addr, err, want)
		}
	}
	if _, err := Open("unix://"+filepath.Join(dir, "s"), Options{Group: "no-such-group"}); !errors.Is(err, errs.Invalid) {
		t.Errorf("Open with an unknown group = %v", err)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Errorf("the file = %q, %v", b, err)
	}
}

// systemd passes sockets as descriptors 3 and up. The child process answers one request on each and ends.
func TestSocketActivation(t *testing.T) {
	if os.Getenv("ACTIVATED") != "" {
		activatedChild(t)
		return
	}
	path := filepath.Join(shortDir(t), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	file, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tcp.Close() }()
	tcpFile, err := tcp.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	for name, files := range map[string][]*os.File{"unix": {file}, "tcp": {tcpFile}} {
		cmd := exec.CommandContext(t.Context(), "sh", "-c", `LISTEN_PID=$$ exec "$0" -test.run='^TestSocketActivation$'`, os.Args[0])
		cmd.Env = append(os.Environ(), "ACTIVATED="+name, "LISTEN_FDS=1")
		cmd.ExtraFiles = files
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		for _, f := range files {
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

func activatedChild(t *testing.T) {
	ls, err := Open("fd://", Options{})
	if os.Getenv("ACTIVATED") == "tcp" {
		if err == nil || !strings.Contains(err.Error(), "needs TLS") {
			t.Errorf("Open on a TCP socket from systemd without TLS = %v", err)
		}
		return
	}
	if err != nil || len(ls) != 1 {
		t.Fatalf("Open = %v, %v", ls, err)
	}
	serve(t, ls[0])
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", ls[0].Addr().String())
	}}}
	resp, err := client.Get("http://ply/_ping")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "OK" {
		t.Errorf("answer %q, %v", b, err)
	}
	_ = resp.Body.Close()
}
