package house

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"ply/test/private"
)

// bin is the directory of ply, plyd and ply-shim, root the source tree; scratch is removed at the end.
var bin, root, scratch string

func TestMain(m *testing.M) {
	private.Main(m, func(dir string) (err error) {
		scratch = dir
		if root, err = private.Root(); err != nil {
			return err
		}
		bin, err = private.Binaries()
		return err
	})
}

// command returns a program whose environment names no engine, and holds nothing of the make that runs this test.
func command(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	c := exec.CommandContext(t.Context(), name, args...)
	for _, kv := range os.Environ() {
		key, _, _ := strings.Cut(kv, "=")
		switch key {
		case "DOCKER_HOST", "PLY_HOST", "PLY_NO_START", "DOCKER_CONTEXT", "DOCKER_TLS_VERIFY", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "DESTDIR", "PREFIX", "LISTEN_FDS", "LISTEN_PID", "NOTIFY_SOCKET":
		default:
			c.Env = append(c.Env, kv)
		}
	}
	c.Env = append(c.Env, "DOCKER_CONFIG="+filepath.Join(scratch, "config"))
	return c
}

// must runs a program, which must succeed, and returns what it prints on both streams.
func must(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := command(t, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// fresh mounts an empty directory over a path of this mount namespace until the test ends.
func fresh(t *testing.T, path string) {
	t.Helper()
	dir, err := os.MkdirTemp(scratch, "fresh.")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	over(t, dir, path)
}

// over bind-mounts dir over a path of this mount namespace until the test ends.
func over(t *testing.T, dir, path string) {
	t.Helper()
	if err := syscall.Mount(dir, path, "", syscall.MS_BIND, ""); err != nil {
		t.Fatalf("mount %s over %s: %v", dir, path, err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(path, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", path, err)
		}
	})
}
