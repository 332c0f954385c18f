package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"ply/test/private"
)

// bin is the directory of ply, plyd and ply-shim, root the source tree; images holds root file systems for tests.
var bin, root, images string

func TestMain(m *testing.M) {
	private.Main(m, func(dir string) (err error) {
		if root, err = private.Root(); err != nil {
			return err
		}
		if bin, err = private.Binaries(); err != nil {
			return err
		}
		images = filepath.Join(dir, "images")
		return makeImages(images)
	})
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
