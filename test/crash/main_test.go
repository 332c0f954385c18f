package crash

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// bin is where ply, plyd and ply-shim are; rootfs is a root file system with a shell.
var bin, rootfs string

func TestMain(m *testing.M) {
	code, err := inside(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "crash:", err)
		code = 1
	}
	os.Exit(code)
}

// inside runs the tests in a network and mount namespace of their own.
func inside(m *testing.M) (int, error) {
	if os.Getenv("PLY_CRASH_INSIDE") == "" {
		cmd := exec.Command("unshare", append([]string{"--net", "--mount", "--propagation", "private", "--", os.Args[0]}, os.Args[1:]...)...)
		cmd.Env = append(os.Environ(), "PLY_CRASH_INSIDE=1")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		err := cmd.Run()
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return exit.ExitCode(), nil
		}
		return 0, err
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return 0, fmt.Errorf("lo: %w: %s", err, out)
	}
	dir, err := os.MkdirTemp("/var/tmp", "ply-crash-main.")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	if bin = os.Getenv("PLY_BIN"); bin == "" {
		if out, err := exec.Command("make", "-C", filepath.Join("..", ".."), "build").CombinedOutput(); err != nil {
			return 0, fmt.Errorf("make build: %w\n%s", err, out)
		}
		if bin, err = filepath.Abs(filepath.Join("..", "..", "bin")); err != nil {
			return 0, err
		}
	}
	rootfs = filepath.Join(dir, "busybox.tar")
	script := `mkdir -p "$1/r/bin" "$1/r/etc" "$1/r/tmp" && cp /bin/busybox "$1/r/bin/" && for a in sh cat echo sleep dd rm; do ln -s busybox "$1/r/bin/$a"; done && tar -C "$1/r" -cf "$1/busybox.tar" .`
	if out, err := exec.Command("sh", "-euc", script, "sh", dir).CombinedOutput(); err != nil {
		return 0, fmt.Errorf("busybox.tar: %w: %s", err, out)
	}
	return m.Run(), nil
}
