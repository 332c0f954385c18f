package supervise_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"ply/internal/container/logfile"
	"ply/internal/container/runspec"
	"ply/internal/container/shim"
	"ply/internal/container/spec"
	"ply/internal/procid"
	"ply/test/private"
)

func TestMain(m *testing.M) {
	code := m.Run()
	private.RemoveShim()
	if parents, err := filepath.Glob("/sys/fs/cgroup/*/ply-test"); err == nil {
		for _, p := range append(parents, "/sys/fs/cgroup/ply-test") {
			_ = unix.Rmdir(p) // it fails while another run uses it
		}
	}
	os.Exit(code)
}

// box is one container of a test.
type box struct {
	t      testing.TB
	in     runspec.Input
	cfg    shim.Config
	edit   func(*specs.Spec) // changes the spec before the launch; may be nil
	spec   *specs.Spec
	c      *shim.Client
	warned []string
}

// newRoot creates a root file system with busybox and returns its path.
func newRoot(t testing.TB) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "rootfs")
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "tmp", "root", "sbin"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(root, "tmp"), 0o1777); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("these tests run Debian's busybox-static: %v", err)
	}
	if err := os.WriteFile(filepath.Join(root, "bin/busybox"), data, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields("sh ls cat echo sleep true false id stty kill mount ps dd env head wc touch sleep grep stat chmod cp ping nc yes readlink tail df hostname mknod su pwd test usleep od find seq tr") {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil && !errors.Is(err, os.ErrExist) {
			t.Fatal(err)
		}
	}
	files := map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n",
		"etc/group":  "root:x:0:\nuser:x:1000:\nextra:x:2000:user\n",
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// runtimeOfBoxes is the OCI runtime that runs the containers of newBox; "" = the one in ply-shim.
var runtimeOfBoxes string

// newBox prepares a container that runs a program.
func newBox(t testing.TB, args ...string) *box {
	t.Helper()
	var id [32]byte
	if _, err := rand.Read(id[:]); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	b := &box{t: t}
	name := hex.EncodeToString(id[:])
	b.in = runspec.Input{ID: name, Rootfs: newRoot(t), Spec: spec.Spec{Cmd: args, Hostname: name[:12], CgroupParent: "/ply-test"}}
	// A real exec root is in memory too.
	run, err := os.MkdirTemp("/dev/shm", "ply-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(run) })
	b.cfg = shim.Config{
		ID: name, Bundle: filepath.Join(run, "bundle"), StateDir: filepath.Join(run, "state"),
		ExitPath: filepath.Join(dir, "exit.json"), Runtime: runtimeOfBoxes,
		Log: shim.Log{Driver: logfile.JSONFile, Path: filepath.Join(dir, "log.json"), MaxFiles: 1},
	}
	if err := os.Mkdir(b.cfg.Bundle, 0o700); err != nil {
		t.Fatal(err)
	}
	return b
}

// sh prepares a container that runs a line of shell.
func sh(t testing.TB, line string) *box { return newBox(t, "/bin/sh", "-c", line) }

func (b *box) launchErr() error {
	b.t.Helper()
	bin, err := private.Shim()
	if err != nil {
		b.t.Fatal(err)
	}
	b.in.Spec.Tty = b.cfg.Tty
	b.spec, b.warned, err = runspec.Build(b.in)
	if err != nil {
		b.t.Fatal(err)
	}
	if b.edit != nil {
		b.edit(b.spec)
	}
	b.c, err = shim.Launch(b.t.Context(), bin, b.cfg, b.spec)
	if err == nil {
		b.t.Cleanup(b.clean)
	}
	return err
}

func (b *box) launch() *box {
	b.t.Helper()
	if err := b.launchErr(); err != nil {
		b.t.Fatal(err)
	}
	return b
}

func (b *box) clean() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_ = b.c.Kill(ctx, "", shim.KillArgs{Signal: int(unix.SIGKILL)})
	if st, err := b.c.State(ctx, ""); err == nil && st.Status != "created" {
		_, _ = b.c.Wait(ctx, "")
	}
	if err := b.c.Shutdown(ctx); err != nil {
		b.t.Errorf("shutdown: %v", err)
	}
	if words, err := os.ReadFile(filepath.Join(b.cfg.Bundle, shim.LogFile)); err == nil && len(words) > 0 {
		b.t.Logf("the shim's log: %s", words)
	}
	b.noCgroups()
	if _, err := os.Stat(filepath.Join(b.cfg.StateDir, b.cfg.ID)); err == nil {
		b.t.Errorf("runtime state of %s is left", b.cfg.ID[:12])
	}
}

func (b *box) start() *box {
	b.t.Helper()
	if err := b.c.Start(b.t.Context(), ""); err != nil {
		b.t.Fatal(err)
	}
	return b
}

func (b *box) wait() shim.Exit {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), time.Minute)
	defer cancel()
	e, err := b.c.Wait(ctx, "")
	if err != nil {
		b.t.Fatalf("wait: %v", err)
	}
	return e
}

// output returns what is in the log.
func (b *box) output() string {
	b.t.Helper()
	var out strings.Builder
	err := logfile.Read(b.t.Context(), b.cfg.Log, logfile.ReadOptions{Stdout: true, Stderr: true, Tail: -1}, func(list []logfile.Message) error {
		for _, m := range list {
			out.Write(m.Line)
		}
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return out.String()
}

// killShim kills the shim and waits until it is gone.
func (b *box) killShim() {
	b.t.Helper()
	self := procid.ID(b.c.Identity())
	if err := procid.Kill(self, unix.SIGKILL); err != nil {
		b.t.Fatal(err)
	}
	eventually(b.t, "end of the shim", func() bool { return !procid.Alive(self) })
}

// cleanup runs Cleanup and returns its result.
func (b *box) cleanup() shim.Exit {
	b.t.Helper()
	bin, err := private.Shim()
	if err != nil {
		b.t.Fatal(err)
	}
	e, err := shim.Cleanup(b.t.Context(), bin, b.cfg.Bundle)
	if err != nil {
		b.t.Fatal(err)
	}
	return e
}

// run launches and starts the container, waits for its end, and returns its output.
func (b *box) run() (string, shim.Exit) {
	b.t.Helper()
	b.launch().start()
	e := b.wait()
	return b.output(), e
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within a minute", what)
		}
	}
}

// logged waits until a text is in the log.
func (b *box) logged(what string) {
	b.t.Helper()
	eventually(b.t, "output "+what, func() bool { return strings.Contains(b.output(), what) })
}

// collect reads a stream to its end, for a minute at most.
func collect(s *shim.Stream) (stdout, stderr string, err error) {
	limit := time.AfterFunc(time.Minute, func() { _ = s.Close() })
	defer limit.Stop()
	var out [3]bytes.Buffer
	buf := make([]byte, 4096)
	for {
		stream, n, err := s.Read(buf)
		out[stream%3].Write(buf[:n])
		if errors.Is(err, io.EOF) {
			return out[1].String(), out[2].String(), nil
		}
		if err != nil {
			return out[1].String(), out[2].String(), err
		}
	}
}

func (b *box) attach(process string, a shim.AttachArgs) *shim.Stream {
	b.t.Helper()
	s, err := b.c.Attach(b.t.Context(), process, a)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = s.Close() })
	return s
}

func (b *box) launchIn(ctx context.Context, bin string) (err error) {
	b.t.Helper()
	if b.spec, _, err = runspec.Build(b.in); err != nil {
		b.t.Fatal(err)
	}
	b.c, err = shim.Launch(ctx, bin, b.cfg, b.spec)
	if err == nil {
		b.t.Cleanup(b.clean)
	}
	return err
}

func execProcess(b *box, args ...string) *specs.Process {
	b.t.Helper()
	p, _, err := runspec.Exec(b.in, b.spec, runspec.ExecInput{Args: args})
	if err != nil {
		b.t.Fatal(err)
	}
	return p
}

func writeJSON(t testing.TB, name string, v any) {
	t.Helper()
	data, err := json.Marshal(v)
	if err == nil {
		err = os.WriteFile(name, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// noCgroups checks that no hierarchy has a cgroup of the container.
func (b *box) noCgroups() {
	b.t.Helper()
	left, err := filepath.Glob("/sys/fs/cgroup/*/ply-test/" + b.cfg.ID)
	if err != nil || len(left) > 0 {
		b.t.Errorf("cgroups are left: %v, %v", left, err)
	}
}
