package crash

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"ply/test/private"
)

// bin is where ply, plyd and ply-shim are; rootfs is a root file system with a shell.
var bin, rootfs string

func TestMain(m *testing.M) {
	if os.Getenv(recordName) != "" {
		if err := recordOperation(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	private.Main(m, func(dir string) (err error) {
		if bin, err = private.Binaries(); err != nil {
			return err
		}
		return makeRootfs(dir)
	})
}

func makeRootfs(dir string) error {
	rootfs = filepath.Join(dir, "busybox.tar")
	script := `mkdir -p "$1/r/bin" "$1/r/etc" "$1/r/tmp" "$1/r/vol" && echo content >"$1/r/vol/from-image" && cp /bin/busybox "$1/r/bin/" && for a in sh cat echo sleep dd rm; do ln -s busybox "$1/r/bin/$a"; done && tar -C "$1/r" -cf "$1/busybox.tar" .`
	if out, err := exec.Command("sh", "-euc", script, "sh", dir).CombinedOutput(); err != nil {
		return fmt.Errorf("busybox.tar: %w: %s", err, out)
	}
	return nil
}
