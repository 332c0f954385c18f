// Package powercut provides tests with a file system whose power can be cut: an ext4 file system on a loop device. What was
// not flushed to the device before the cut is gone after it.
package powercut

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Disk is a mounted file system of 64 MiB.
type Disk struct {
	Dir string // where it is mounted

	t      testing.TB
	base   string
	image  string
	rounds int
}

// New creates and mounts a disk for the duration of the test. It needs root, mkfs.ext4 and loop devices.
func New(t testing.TB) *Disk {
	t.Helper()
	base := t.TempDir()
	d := &Disk{Dir: filepath.Join(base, "at"), t: t, base: base, image: filepath.Join(base, "disk")}
	if err := os.Mkdir(d.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(d.image, 64<<20); err != nil {
		t.Fatal(err)
	}
	d.run("mkfs.ext4", "-q", "-F", d.image)
	d.mount()
	t.Cleanup(func() { _ = unix.Unmount(d.Dir, unix.MNT_DETACH) })
	return d
}

func (d *Disk) run(name string, args ...string) {
	d.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		d.t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// Cut ends the file system as a power cut would: operations on it fail from here on, and what was not flushed is lost.
// With journal, what ext4 has in its journal so far is kept.
func (d *Disk) Cut(journal bool) {
	d.t.Helper()
	const shutdown = 0x8004587d // EXT4_IOC_SHUTDOWN
	flag := uint32(2)
	if journal {
		flag = 1
	}
	f, err := os.Open(d.Dir)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), shutdown, uintptr(unsafe.Pointer(&flag))); errno != 0 {
		d.t.Fatalf("shut down: %v", errno)
	}
}

// Restart mounts what reached the disk before the cut. No file of the disk may be open any more.
func (d *Disk) Restart() {
	d.t.Helper()
	if err := unix.Unmount(d.Dir, 0); err != nil {
		d.t.Fatalf("unmount: %v", err)
	}
	d.mount()
}

// mount mounts a copy of the image. A mount namespace that another process created meanwhile may still have the dead file
// system mounted, and mounting the same image again would then return that one.
func (d *Disk) mount() {
	d.t.Helper()
	d.rounds++
	next := filepath.Join(d.base, fmt.Sprint("disk-", d.rounds))
	d.run("cp", "--sparse=always", d.image, next)
	if err := os.Remove(d.image); err != nil {
		d.t.Fatal(err)
	}
	d.image = next
	d.run("mount", "-o", "loop", d.image, d.Dir)
}
