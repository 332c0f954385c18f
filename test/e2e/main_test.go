package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// bin is where ply, plyd and ply-shim are; images holds root file systems for tests.
var bin, images string

func TestMain(m *testing.M) {
	code, err := inside(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

// inside runs the tests in a network and mount namespace of their own, so that bridges, rules, ports and mounts are theirs.
func inside(m *testing.M) (int, error) {
	if os.Getenv("PLY_E2E_INSIDE") == "" {
		cmd := exec.Command("unshare", append([]string{"--net", "--mount", "--propagation", "private", "--", os.Args[0]}, os.Args[1:]...)...)
		cmd.Env = append(os.Environ(), "PLY_E2E_INSIDE=1")
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
	dir, err := os.MkdirTemp("/var/tmp", "ply-e2e.")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	if bin = os.Getenv("PLY_BIN"); bin == "" {
		bin = filepath.Join(dir, "bin")
		if out, err := exec.Command("make", "-C", filepath.Join("..", ".."), "build").CombinedOutput(); err != nil {
			return 0, fmt.Errorf("make build: %w\n%s", err, out)
		}
		if bin, err = filepath.Abs(filepath.Join("..", "..", "bin")); err != nil {
			return 0, err
		}
	}
	images = filepath.Join(dir, "images")
	if err := makeImages(images); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// makeImages builds busybox.tar: a root file system with a shell, a few users, and the applets that scripts use.
func makeImages(dir string) error {
	root := filepath.Join(dir, "busybox")
	script := `set -eu
mkdir -p "$1"/bin "$1"/etc "$1"/tmp "$1"/root "$1"/home/joe "$1"/var/data
cp /bin/busybox "$1"/bin/busybox
for a in $(/bin/busybox --list); do [ "$a" = busybox ] || ln -s busybox "$1/bin/$a"; done
chmod 1777 "$1"/tmp
printf 'root:x:0:0:root:/root:/bin/sh\njoe:x:1000:1000:joe:/home/joe:/bin/sh\n' >"$1"/etc/passwd
printf 'root:x:0:\njoe:x:1000:\nwheel:x:10:joe\n' >"$1"/etc/group
printf 'from the image\n' >"$1"/var/data/seed
chown 1000:1000 "$1"/home/joe "$1"/var/data/seed
printf 'text\n' >"$1"/etc/notexec
tar --sort=name --numeric-owner --mtime=@1700000000 -C "$1" -cf "$1".tar .
rm -rf "$1"
`
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if out, err := exec.Command("sh", "-c", script, "sh", root).CombinedOutput(); err != nil {
		return fmt.Errorf("make busybox.tar: %w: %s", err, out)
	}
	return nil
}
