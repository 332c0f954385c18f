package upgrade

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestContainersOfALaterShim runs plyd on containers whose shims speak a later version of the protocol, as after a
// downgrade. They keep running and can be stopped and removed; what plyd cannot do names the version and the release.
func TestContainersOfALaterShim(t *testing.T) {
	m := newMachine(t, filepath.Join(mustMkdirTemp(t), "data"), "erofs")
	m.start(bin)
	m.ply("import", "-c", `CMD ["sh"]`, makeBusybox(t), "busybox")
	m.ply("run", "-d", "--name", "checked", "--health-cmd", "true", "--health-interval", "50ms", "busybox", "sh", "-c", `trap 'echo bye; exit 4' TERM; echo up; while :; do sleep 0.05; done`)
	m.ply("run", "-d", "--name", "removed", "busybox", "sleep", "1000")
	m.ply("run", "-d", "--name", "ends", "busybox", "sh", "-c", "while [ ! -e /end ]; do sleep 0.05; done; exit 8")
	m.eventually("health", func() bool { return m.ply("inspect", "-f", "{{.State.Health.Status}}", "checked") == "healthy" })
	pid := m.ply("inspect", "-f", "{{.State.Pid}}", "checked")
	end := "/proc/" + m.ply("inspect", "-f", "{{.State.Pid}}", "ends") + "/root/end"
	m.stop(syscall.SIGTERM)
	for _, name := range []string{"shim.json", "shim.pid", "init.pid"} {
		files, err := filepath.Glob(filepath.Join(execRoot, "containers", "*", name))
		if err != nil || len(files) != 3 {
			t.Fatalf("%s: %q, %v", name, files, err)
		}
		for _, file := range files {
			makeNewer(t, file)
		}
	}
	m.start(bin)
	m.want("ends Up\nremoved Up\nchecked Up", "ps", "--format", `{{.Names}} {{with $s := split .Status " "}}{{index $s 0}}{{end}}`)
	m.want("running "+pid, "inspect", "-f", "{{.State.Status}} {{.State.Pid}}", "checked")
	m.want("up", "logs", "checked")
	for _, args := range [][]string{{"exec", "checked", "true"}, {"pause", "checked"}, {"attach", "--no-stdin", "checked"}, {"top", "checked"}, {"update", "--memory", "64m", "checked"}} {
		out, stderr, err := m.try(args...)
		if err == nil || !strings.Contains(stderr, "version 99, written by ply 9.8.7") || !strings.Contains(stderr, "can be stopped, killed and removed") {
			t.Errorf("%s: %v: %s%s", args[0], err, out, stderr)
		}
	}
	if n := strings.Count(m.tail(), "container of a later release"); n != 3 {
		t.Errorf("the log names %d containers of a later release, want 3:\n%s", n, m.tail())
	}
	if state := m.ply("inspect", "-f", "{{json .State}}", "checked"); !strings.Contains(state, `"running"`) || strings.Contains(state, "unhealthy") {
		t.Errorf("a container whose health cannot be checked: %s", state)
	}
	m.ply("stop", "-t", "10", "checked")
	m.want("exited 4", "inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "checked")
	m.want("up\nbye", "logs", "checked")
	m.ply("rm", "-f", "removed")
	code := m.wait("ends")
	if err := os.WriteFile(end, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if got := <-code; got != "8" {
		t.Errorf("exit code of ends: %s, want 8", got)
	}
	// Started again, it has a shim of this release.
	m.ply("start", "checked")
	m.want("ok", "exec", "checked", "echo", "ok")
}

// makeNewer changes a file to one that a later release wrote.
func makeNewer(t *testing.T, name string) {
	t.Helper()
	record := map[string]any{}
	data, err := os.ReadFile(name)
	if err == nil {
		err = json.Unmarshal(data, &record)
	}
	if err != nil {
		t.Fatal(err)
	}
	record["version"], record["writer"] = 99, "9.8.7"
	if data, err = json.Marshal(record); err == nil {
		err = os.WriteFile(name, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}
