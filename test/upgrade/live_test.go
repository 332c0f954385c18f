package upgrade

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// count is a shell program that prints numbered lines for as long as it runs.
const count = `i=0; while :; do echo line $i; i=$((i+1)); sleep 0.01; done`

// TestReplacePlydUnderRunningContainers starts containers with the previous build, replaces its plyd by this one, and uses
// the containers as if nothing had happened.
func TestReplacePlydUnderRunningContainers(t *testing.T) {
	old := previousBinaries(t)
	busybox := makeBusybox(t)
	for name, sig := range map[string]syscall.Signal{"which is stopped": syscall.SIGTERM, "which is killed": syscall.SIGKILL} {
		t.Run(name, func(t *testing.T) { replacePlyd(t, old, busybox, sig) })
	}
}

func replacePlyd(t *testing.T, old, busybox string, sig syscall.Signal) {
	m := newMachine(t, filepath.Join(mustMkdirTemp(t), "data"), "erofs")
	m.start(old)
	m.ply("import", "-c", `CMD ["sh"]`, busybox, "busybox")
	m.ply("run", "-dit", "--name", "terminal", "busybox", "sh", "-c", `echo ready; exec sh`)
	m.ply("run", "-d", "--name", "paused", "busybox", "sh", "-c", count)
	m.ply("run", "-d", "--name", "busy", "-p", "127.0.0.1:18080:80", "-v", "kept:/data", "busybox", "sh", "-c", `trap 'echo bye; exit 3' TERM; echo hello >/data/index.html; httpd -p 80 -h /data; `+count)
	m.ply("run", "-d", "--name", "short", "busybox", "sh", "-c", "i=0; while [ $i -lt 200 ]; do echo line $i; i=$((i+1)); sleep 0.01; done; exit 9")
	m.ply("run", "-d", "--name", "again", "--restart", "always", "busybox", "sh", "-c", "echo run; sleep 0.8")
	m.ply("exec", "-d", "busy", "sh", "-c", "while :; do date +%s >/data/beat; sleep 0.05; done")
	terminal := m.attach("terminal")
	terminal.says("echo $((6*7))\n", "42\r\n")
	m.eventually("lines of paused", func() bool { return strings.Contains(m.ply("logs", "paused"), "line 9\n") })
	m.ply("pause", "paused")
	paused := m.ply("logs", "paused")
	shortExit := filepath.Join(dataRoot, "containers", m.ply("inspect", "-f", "{{.Id}}", "short"), "exit.json")
	beat := filepath.Join(dataRoot, "volumes", "kept", "_data", "beat")
	pids := map[string]string{}
	for _, name := range []string{"terminal", "paused", "busy"} {
		pids[name] = m.ply("inspect", "-f", "{{.State.Pid}}", name)
	}
	t.Logf("running under the previous build %.12s:\n%s", previous, m.ply("ps", "-a", "--format", "{{.Names}}\t{{.Status}}\t{{.Ports}}"))
	if v := m.shimVersion("busy"); v != "" {
		t.Fatalf("the previous build's shim states version %s; this test wants one without", v)
	}

	m.stop(sig)
	terminal.closed()
	m.eventually("end of short without a plyd", func() bool { _, err := os.Stat(shortExit); return err == nil })
	m.start(bin)
	m.want("127.0.0.1:18080", "port", "busy", "80/tcp")
	t.Logf("under this build, after the previous plyd was %s:\n%s", sig, m.ply("ps", "-a", "--format", "{{.Names}}\t{{.Status}}\t{{.Ports}}"))
	for name, want := range pids {
		m.want(want, "inspect", "-f", "{{.State.Pid}}", name)
	}

	// The container with a terminal: attach, resize, exec, detach by closing, exit code.
	terminal = m.attach("terminal")
	terminal.says("echo $((6*8))\n", "48\r\n")
	m.resize("terminal", 33, 99)
	terminal.says("stty size\n", "33 99\r\n")
	m.want("in the same container", "exec", "terminal", "echo", "in the same container")
	log := m.ply("logs", "terminal")
	for _, part := range []string{"ready", "42", "48", "33 99"} {
		if !strings.Contains(log, part) {
			t.Errorf("log of terminal lacks %q:\n%s", part, log)
		}
	}
	waited := m.wait("terminal")
	terminal.says("exit 5\n", "")
	terminal.closed()
	if code := <-waited; code != "5" {
		t.Errorf("exit code of terminal: %s, want 5", code)
	}
	m.want("exited 5", "inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "terminal")

	// The paused container: still frozen, then it goes on where it was.
	m.want("paused", "inspect", "-f", "{{.State.Status}}", "paused")
	m.want(paused, "logs", "paused")
	if out := m.fails(1, "exec", "paused", "true"); !strings.Contains(out, "paused") {
		t.Errorf("exec in a paused container: %s", out)
	}
	m.ply("unpause", "paused")
	lines := strings.Count(paused, "\n") + 1
	m.eventually("further lines of paused", func() bool { return strings.Count(m.ply("logs", "paused"), "\n") > lines+5 })
	m.ply("kill", "paused")
	m.want("137", "wait", "paused")
	t.Logf("paused: %d lines without a gap, %d of them before the upgrade", m.contiguous("paused", lines+5), lines)

	// The container with an exec: the exec runs on, the port is published, a new exec works, stop and exit code.
	first := m.beatAfter(beat, "")
	m.beatAfter(beat, first)
	if r, err := http.Get("http://127.0.0.1:18080/"); err != nil {
		t.Errorf("published port: %v", err)
	} else {
		body, err := io.ReadAll(r.Body)
		r.Body.Close()
		if err != nil || string(body) != "hello\n" {
			t.Errorf("published port: %q, %v", body, err)
		}
	}
	m.wantPart("while :; do date", "top", "busy")
	m.fails(6, "exec", "busy", "sh", "-c", "exit 6")
	m.wantPart("busy", "stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}", "busy")
	m.ply("update", "--memory", "128m", "--memory-swap", "-1", "busy")
	follow := m.follow("busy")
	m.ply("stop", "-t", "10", "busy")
	m.want("exited 3", "inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "busy")
	if out := <-follow; !strings.HasSuffix(out, "bye\n") {
		t.Errorf("followed log ends with %q", out[max(0, len(out)-100):])
	}
	t.Logf("busy: %d lines without a gap", m.contiguous("busy", 250))

	// The container that ended while there was no plyd, and the one that is always restarted.
	m.want("exited 9", "inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "short")
	t.Logf("short: ended without a plyd, %d lines without a gap", m.contiguous("short", 200))
	runs := strings.Count(m.ply("logs", "again"), "run")
	m.eventually("a further run of again", func() bool { return strings.Count(m.ply("logs", "again"), "run") > runs })

	// All of them start again, now under a shim of this build.
	m.ply("stop", "-t", "0", "again")
	m.ply("start", "busy", "paused", "terminal")
	if v := m.shimVersion("busy"); v == "" {
		t.Error("the shim of this build states no version")
	}
	m.want("hello", "exec", "busy", "cat", "/data/index.html")
	if strings.Contains(m.tail(), "level=ERROR") {
		t.Errorf("plyd logged an error:\n%s", m.tail())
	}
}

// shimVersion returns what the shim of a container states as the version of its protocol.
func (m *machine) shimVersion(name string) string {
	m.t.Helper()
	var id struct{ Version json.Number }
	b, err := os.ReadFile(filepath.Join(execRoot, "containers", m.ply("inspect", "-f", "{{.Id}}", name), "shim.pid"))
	if err == nil {
		err = json.Unmarshal(b, &id)
	}
	if err != nil {
		m.t.Fatal(err)
	}
	return id.Version.String()
}

// contiguous checks that the log of a container holds line 0, line 1 and so on without a gap, and returns their number.
func (m *machine) contiguous(name string, least int) int {
	m.t.Helper()
	n := 0
	for line := range strings.Lines(m.ply("logs", name) + "\n") {
		line = strings.TrimSpace(line)
		if line == "line "+strconv.Itoa(n) {
			n++
		} else if line != "bye" {
			m.t.Fatalf("log of %s: %q where line %d should be", name, line, n)
		}
	}
	if n < least {
		m.t.Errorf("log of %s: %d lines, want at least %d", name, n, least)
	}
	return n
}

// wait waits for the end of a container and sends its exit code.
func (m *machine) wait(name string) <-chan string {
	code := make(chan string, 1)
	go func() {
		out, e, err := m.try("wait", name)
		if err != nil {
			out = fmt.Sprintf("%v: %s", err, e)
		}
		code <- strings.TrimSpace(out)
	}()
	return code
}

// follow sends what "logs -f" printed when it ends.
func (m *machine) follow(name string) <-chan string {
	out := make(chan string, 1)
	go func() {
		o, _, err := m.try("logs", "-f", "--tail", "3", name)
		if err != nil {
			o += err.Error()
		}
		out <- o
	}()
	return out
}

// beatAfter waits until a file has another content than before, and returns it.
func (m *machine) beatAfter(name, before string) (now string) {
	m.t.Helper()
	m.eventually("a sign of the exec that was started before", func() bool {
		b, err := os.ReadFile(name)
		now = string(b)
		return err == nil && now != "" && now != before
	})
	return now
}

func (m *machine) resize(name string, height, width int) {
	m.t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		m.t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST /containers/%s/resize?h=%d&w=%d HTTP/1.1\r\nHost: ply\r\nConnection: close\r\n\r\n", name, height, width)
	if r, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || r.StatusCode != http.StatusOK {
		m.t.Errorf("resize: %v, %v", r, err)
	}
}

// session is a client attached to a container's terminal.
type session struct {
	t    *testing.T
	conn net.Conn
	done chan struct{}

	mu   sync.Mutex
	text strings.Builder
}

// attach attaches to a terminal with input and output.
func (m *machine) attach(name string) *session {
	m.t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { conn.Close() })
	fmt.Fprintf(conn, "POST /containers/%s/attach?stream=1&stdin=1&stdout=1&stderr=1 HTTP/1.1\r\nHost: ply\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n", name)
	in := bufio.NewReader(conn)
	r, err := http.ReadResponse(in, nil)
	if err != nil || r.StatusCode != http.StatusSwitchingProtocols {
		m.t.Fatalf("attach: %v, %v", r, err)
	}
	s := &session{t: m.t, conn: conn, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		buf := make([]byte, 4096)
		for {
			n, err := in.Read(buf)
			s.mu.Lock()
			s.text.Write(buf[:n])
			s.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return s
}

// says types a text and waits for another one.
func (s *session) says(typed, answer string) {
	s.t.Helper()
	s.mu.Lock()
	from := s.text.Len()
	s.mu.Unlock()
	if _, err := io.WriteString(s.conn, typed); err != nil {
		s.t.Fatalf("terminal: %v", err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		s.mu.Lock()
		text := s.text.String()[from:]
		s.mu.Unlock()
		if strings.Contains(text, answer) {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("terminal: typed %q, saw %q, want %q", typed, text, answer)
		}
	}
}

// closed waits until the server has closed the connection.
func (s *session) closed() {
	s.t.Helper()
	select {
	case <-s.done:
		s.conn.Close()
	case <-time.After(time.Minute):
		s.t.Fatal("terminal: the connection stays open")
	}
}
