package e2e

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestDockerAtRegistry uses ply-registry with Docker's own engine and its clients: they log in, push, search, pull and log out. Docker's engine sends a login
// with a search by TLS only; it takes any certificate on loopback.
func TestDockerAtRegistry(t *testing.T) {
	sock := startDockerd(t)
	root := t.TempDir()
	for _, user := range [][]string{{"root"}, {"alice", "--role", "writer=team/**"}} {
		cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "ply-registry"), append([]string{"user", "add", "--root", root, "--password-stdin"}, user...)...)
		cmd.Stdin = strings.NewReader("secret\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	reg := exec.CommandContext(t.Context(), filepath.Join(bin, "ply-registry"), "--addr=127.0.0.1:0", "--root="+root, "--tls-self-signed=127.0.0.1")
	out, err := reg.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := reg.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = reg.Process.Kill()
		_ = reg.Wait() // it was killed
	})
	lines := bufio.NewReader(out)
	line, err := lines.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, lines) }()
	addr := strings.TrimSpace(line[strings.LastIndex(line, " ")+1:])

	programs := []string{"/usr/bin/docker"}
	if other, err := exec.LookPath("docker"); err == nil && other != programs[0] {
		programs = append(programs, other)
	}
	for i, program := range programs {
		client := func(name string) *cpClient {
			dir := filepath.Join(t.TempDir(), name)
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			return &cpClient{program: program, sock: sock, dir: dir}
		}
		c, keeper := client("alice"), client("root")
		refused := func(c *cpClient, says string, args ...string) {
			t.Helper()
			began := time.Now()
			o, e, code := c.run(nil, "", args...)
			if took := time.Since(began); took > 30*time.Second {
				t.Errorf("%s %s: was tried again for %s", program, strings.Join(args, " "), took)
			}
			if code == 0 || !strings.Contains(e, says) {
				t.Errorf("%s %s: exit code %d: %s%s; want %q", program, strings.Join(args, " "), code, o, e, says)
			}
		}
		found := func(c *cpClient, term, want string) {
			t.Helper()
			var names []string
			for name := range strings.FieldsSeq(c.must(t, nil, "search", "--format", "{{.Name}}", addr+"/"+term)) {
				names = append(names, strings.TrimPrefix(name, addr+"/"))
			}
			if got := strings.Join(names, " "); got != want {
				t.Errorf("%s search %s: %q, want %q", program, term, got, want)
			}
		}
		app := fmt.Sprintf("%s/team/app:%d", addr, i)
		c.must(t, nil, "import", "-c", fmt.Sprintf("CMD [%q]", program), filepath.Join(images, "busybox.tar"), app)
		refused(c, "denied", "push", app)
		refused(c, "unauthorized", "login", "-u", "alice", "-p", "wrong", addr)
		c.must(t, nil, "login", "-u", "alice", "-p", "secret", addr)
		keeper.must(t, nil, "login", "-u", "root", "-p", "secret", addr)
		if o := c.must(t, nil, "push", app); !strings.Contains(o, fmt.Sprintf("%d: digest: sha256:", i)) {
			t.Errorf("%s push: %s", program, o)
		}
		c.must(t, nil, "tag", app, addr+"/secret/app:1")
		refused(c, "denied", "push", addr+"/secret/app:1")
		keeper.must(t, nil, "push", addr+"/secret/app:1")
		found(c, "app", "team/app")
		found(keeper, "app", "secret/app team/app")
		id := c.must(t, nil, "inspect", "-f", "{{.Id}}", app)
		c.must(t, nil, "rmi", app, addr+"/secret/app:1")
		refused(c, "denied", "pull", addr+"/secret/app:1")
		if o := c.must(t, nil, "pull", app); !strings.Contains(o, "Status: Downloaded newer image for "+app) {
			t.Errorf("%s pull: %s", program, o)
		}
		if again := c.must(t, nil, "inspect", "-f", "{{.Id}}", app); again != id {
			t.Errorf("%s pulled %s, want %s", program, again, id)
		}
		c.must(t, nil, "logout", addr)
		refused(c, "401", "search", addr+"/app")
		refused(c, "denied", "push", app)
	}
}
