package daemon

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The engine has nothing of its caller: no descriptors, no variables but the proxies and the language, no session, no cgroups.
func TestSpawnPassesNothingOn(t *testing.T) {
	dir := t.TempDir()
	program, log, secret := filepath.Join(dir, "plyd"), filepath.Join(dir, "log"), filepath.Join(dir, "secret")
	script := "#!/bin/sh\nexec 2>&1\npwd\necho $$\nls -l /proc/$$/fd\nps -o sid= -p $$\necho env\ntr '\\0' '\\n' </proc/$$/environ\n"
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	var roots []string
	for _, name := range []string{"memory", "pids"} {
		root := filepath.Join(dir, name)
		if err := os.Mkdir(root, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, "cgroup.procs"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		roots = append(roots, root)
	}
	fd, err := unix.Open(secret, unix.O_CREAT|unix.O_RDWR, 0o600) // inherited: without O_CLOEXEC
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy", "LANG", "LC_ALL", "TZ"} {
		t.Setenv(name, "")
		if err := os.Unsetenv(name); err != nil {
			t.Fatal(err)
		}
	}
	for name, value := range map[string]string{"SECRET": "x", "LD_LIBRARY_PATH": "/x", "GODEBUG": "", "NOTIFY_SOCKET": "/x", "LISTEN_FDS": "1", "PATH": dir + ":" + os.Getenv("PATH"),
		"HTTPS_PROXY": "http://user:pass@proxy:1", "no_proxy": "host", "LANG": "C.UTF-8"} {
		t.Setenv(name, value)
	}
	exited, _, err := spawn(program, log, append(roots, filepath.Join(dir, "missing")))
	if err != nil {
		t.Fatal(err)
	}
	if err := <-exited; err != nil {
		t.Error(err)
	}
	b, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	head, env, _ := strings.Cut(string(b), "env\n")
	lines := strings.Split(strings.TrimSpace(head), "\n")
	if len(lines) < 3 || lines[0] != "/" || strings.TrimSpace(lines[len(lines)-1]) != lines[1] {
		t.Fatalf("want the directory / and a session of its own:\n%s", b)
	}
	if strings.Contains(head, secret) {
		t.Errorf("a descriptor of the caller is open:\n%s", head)
	}
	got := strings.Fields(env)
	slices.Sort(got)
	if want := []string{"HTTPS_PROXY=http://user:pass@proxy:1", "LANG=C.UTF-8", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "no_proxy=host"}; !slices.Equal(got, want) {
		t.Errorf("environment %q, want %q", got, want)
	}
	for _, root := range roots {
		b, err := os.ReadFile(filepath.Join(root, "cgroup.procs"))
		if pid, cerr := strconv.Atoi(string(b)); err != nil || cerr != nil || strconv.Itoa(pid) != lines[1] {
			t.Errorf("%s: process %q, want %s", root, b, lines[1])
		}
	}
}

// The engine is looked for beside ply and in the directories of the system, not in PATH.
func TestFindIgnoresPath(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "plyd"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	system := systemDirs
	defer func() { systemDirs = system }()
	systemDirs = nil
	if path, err := (Paths{}).find(); err == nil {
		t.Errorf("found %s", path)
	}
	systemDirs = []string{"/nonexistent", dir}
	if path, err := (Paths{}).find(); err != nil || path != filepath.Join(dir, "plyd") {
		t.Errorf("found %s, %v", path, err)
	}
}
