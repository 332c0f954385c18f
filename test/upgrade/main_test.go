package upgrade

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"ply/test/private"
)

// bin is the directory of this tree's ply, plyd and ply-shim; scratch is a directory on disk that is removed at the end.
var bin, scratch string

// The roots are where a plyd without options has them, because records hold absolute paths.
const (
	dataRoot = "/var/lib/ply"
	execRoot = "/run/ply"
	socket   = "/run/ply.sock"
)

func TestMain(m *testing.M) {
	private.Main(m, func(dir string) (err error) {
		scratch = dir
		if bin, err = private.Binaries(); err != nil {
			return err
		}
		// The machine's own directories are hidden in this mount namespace.
		for _, path := range []string{"/var/lib", "/run"} {
			if err := unix.Mount("upgrade", path, "tmpfs", 0, "mode=755"); err != nil {
				return fmt.Errorf("mount %s: %w", path, err)
			}
		}
		return os.Mkdir(dataRoot, 0o700)
	})
}

// makeBusybox writes a root file system with a shell to a tar file and returns its path.
func makeBusybox(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	script := `mkdir -p r/bin r/etc r/tmp && cp /bin/busybox r/bin/ && for a in $(/bin/busybox --list); do [ $a = busybox ] || ln -s busybox r/bin/$a; done && tar -C r -cf busybox.tar .`
	c := exec.Command("sh", "-euc", script)
	c.Dir = dir
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("busybox.tar: %v: %s", err, out)
	}
	return filepath.Join(dir, "busybox.tar")
}

// copyTree copies a directory with all attributes.
func copyTree(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "-a", from+"/.", to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
}
