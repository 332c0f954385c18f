package machine

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// packages are what the disk has beside Debian's base. Those of the second line are what ply needs, the others are for the tests.
const packages = `linux-image-amd64 systemd-sysv systemd udev dbus kmod openssh-server ca-certificates
	libisal2 nftables iproute2 procps
	apparmor attr acl busybox-static bzip2 criu curl docker.io e2fsprogs erofs-utils file firewalld git iputils-ping libcap2-bin
	less make psmisc python3-docker quota skopeo strace xfsprogs btrfs-progs xz-utils zstd`

// disk is a file system image with the files to boot it and the key to log in.
type disk struct {
	dir string
}

func (d disk) path(name string) string { return filepath.Join(d.dir, name) }

// makeDisk fills a directory with a disk, unless it has one.
func makeDisk(dir string) (disk, error) {
	d := disk{dir}
	if _, err := os.Stat(d.path("complete")); err == nil {
		return d, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return d, err
	}
	root := d.path("root")
	for _, args := range [][]string{
		{"rm", "-rf", root, d.path("key"), d.path("key.pub")},
		{"ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", d.path("key")},
		{"mmdebstrap", "--quiet", "--mode=root", "--variant=important", "--include=" + strings.Join(strings.Fields(packages), ","), "bookworm", root},
		{"sh", "-euc", configure, "sh", root, d.path("key.pub")},
		{"sh", "-euc", `cp "$1"/boot/vmlinuz-* "$2"/kernel && cp "$1"/boot/initrd.img-* "$2"/initrd`, "sh", root, dir},
		{"truncate", "-s", "12G", d.path("disk.raw")},
		{"mke2fs", "-q", "-t", "ext4", "-d", root, d.path("disk.raw")},
		{"rm", "-rf", root},
		{"touch", d.path("complete")},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return d, errors.Join(fmt.Errorf("%s: %w: %s", args[0], err, out), os.RemoveAll(root))
		}
	}
	return d, nil
}

// configure makes a root that was just installed one that boots: $1 is the root and $2 the key that may log in.
const configure = `cd "$1"
echo '/dev/vda / ext4 defaults 0 1' >etc/fstab
echo plymachine >etc/hostname
printf '127.0.0.1 localhost plymachine\n::1 localhost\n' >etc/hosts
rm -f etc/resolv.conf
echo 'nameserver 10.0.2.3' >etc/resolv.conf
printf '[Match]\nName=en*\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\n' >etc/systemd/network/10-en.network
mkdir -p -m 700 root/.ssh
cp "$2" root/.ssh/authorized_keys
chmod 600 root/.ssh/authorized_keys
systemctl -q --root="$1" enable systemd-networkd
# ply alone is tried here. docker.io is there for its command line, and tests start what they need.
systemctl -q --root="$1" disable firewalld apt-daily.timer apt-daily-upgrade.timer man-db.timer e2scrub_all.timer fstrim.timer
systemctl -q --root="$1" mask docker.service docker.socket containerd.service networking.service
rm -rf var/cache/apt/archives/*.deb var/lib/apt/lists/*
`
