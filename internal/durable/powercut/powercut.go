// Package powercut provides tests with file systems whose power can be cut: ext4, xfs and btrfs on a loop device.
//
// A cut ends in one of the states that a disk can have after a real one. There are three kinds:
//
//   - Journal and NoJournal use the ioctl that shuts ext4 and xfs down. What the file system has not sent to the device is lost;
//     Journal lets it write out its journal first.
//   - Snapshot copies the device at one instant, and works with every file system. The file behind the loop device has every write
//     that the file system has sent to the device so far and nothing else: pages that the file system keeps in memory are not in
//     it. The copy is a clone of the file (FICLONE), for which the kernel locks the file against writes, so no write is in it
//     without all writes that were complete when that write was sent.
//
// In each kind, the device keeps every write that it was sent. A real device may lose or reorder those that were not flushed yet;
// it is the duty of the file system, and not of the code that is tested here, to flush them in time.
package powercut

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Kind is a type of file system.
type Kind string

// The file systems.
const (
	Ext4  Kind = "ext4"
	XFS   Kind = "xfs"
	Btrfs Kind = "btrfs"
)

// Kinds are all file systems.
var Kinds = []Kind{Ext4, XFS, Btrfs}

// Cut is a way to cut the power.
type Cut string

// The ways to cut the power.
const (
	Journal   Cut = "with its journal"
	NoJournal Cut = "without its journal"
	Snapshot  Cut = "snapshot"
)

// Cuts returns the ways to cut the power that work with a file system.
func (k Kind) Cuts() []Cut {
	if k == Btrfs {
		return []Cut{Snapshot}
	}
	return []Cut{Journal, NoJournal, Snapshot}
}

// Disk is a mounted file system.
type Disk struct {
	Dir string // where it is mounted

	t      testing.TB
	kind   Kind
	images string // a file system on which files can be cloned; it holds the disk's image
	image  string // what is mounted
	next   string // what Restart mounts; "" = what image is then
	rounds int
}

// New creates and mounts a disk for the duration of the test, in memory. It needs root, loop devices, mkfs.xfs and the mkfs of kind.
func New(t testing.TB, kind Kind) *Disk {
	t.Helper()
	base := t.TempDir()
	d := &Disk{Dir: filepath.Join(base, "at"), t: t, kind: kind, images: filepath.Join(base, "images")}
	memory := filepath.Join(base, "memory")
	for _, dir := range []string{d.Dir, d.images, memory} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	d.unmountLater(memory)
	if err := unix.Mount("powercut", memory, "tmpfs", 0, "mode=700"); err != nil {
		t.Fatal(err)
	}
	under := filepath.Join(memory, "images")
	d.file(under, 1<<30)
	d.run("mkfs.xfs", "-q", "-m", "reflink=1", under)
	d.unmountLater(d.images)
	d.run("mount", "-o", "loop,discard", under, d.images)
	d.image = filepath.Join(d.images, "0")
	switch kind {
	case Ext4:
		d.file(d.image, 192<<20)
		d.run("mkfs.ext4", "-q", "-F", d.image)
	case XFS:
		d.file(d.image, 320<<20)
		d.run("mkfs.xfs", "-q", d.image)
	case Btrfs:
		d.file(d.image, 256<<20)
		d.run("mkfs.btrfs", "-q", d.image)
	default:
		t.Fatalf("no file system %q", kind)
	}
	d.unmountLater(d.Dir)
	d.mount()
	return d
}

func (d *Disk) unmountLater(dir string) {
	d.t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }) // it may not be mounted
}

// file creates a file of holes.
func (d *Disk) file(name string, size int64) {
	d.t.Helper()
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		d.t.Fatal(err)
	}
	if err := os.Truncate(name, size); err != nil {
		d.t.Fatal(err)
	}
}

func (d *Disk) run(name string, args ...string) {
	d.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		d.t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// Cut cuts the power. After Journal and NoJournal, operations on the disk fail. After Snapshot they do not, but have no effect on
// what Restart mounts.
func (d *Disk) Cut(how Cut) {
	d.t.Helper()
	if how == Snapshot {
		d.clone()
		return
	}
	const shutdown = 0x8004587d // EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN
	flag := uint32(2)
	if how == Journal {
		flag = 1
	}
	f, err := os.Open(d.Dir)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), shutdown, uintptr(unsafe.Pointer(&flag))); errno != 0 {
		d.t.Fatalf("shut down %s: %v", d.kind, errno)
	}
}

// clone makes a clone of the image for Restart to mount. Two images of one file system have the same identity, so an image is
// mounted once and then replaced.
func (d *Disk) clone() {
	d.t.Helper()
	d.rounds++
	d.next = filepath.Join(d.images, fmt.Sprint(d.rounds))
	d.run("cp", "--reflink=always", d.image, d.next)
}

// Restart mounts what reached the disk before the cut. No file of the disk may be open any more.
func (d *Disk) Restart() {
	d.t.Helper()
	d.eventually("unmount", func() error { return unix.Unmount(d.Dir, 0) })
	if d.kind == Btrfs { // it finds file systems by their identity; the mount namespace of a process that ends may hold the old one
		d.eventually("release of the loop device", d.released)
	}
	if d.next == "" {
		d.clone()
	}
	if err := os.Remove(d.image); err != nil {
		d.t.Fatal(err)
	}
	d.image, d.next = d.next, ""
	d.mount()
}

// eventually calls do until it succeeds. Processes that were killed let go of the disk a moment later.
func (d *Disk) eventually(what string, do func() error) {
	d.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		err := do()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("%s: %v", what, err)
		}
	}
}

// released returns an error while a loop device uses the image.
func (d *Disk) released() error {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return err
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err == nil && strings.HasSuffix(strings.TrimSpace(string(b)), d.image) {
			return fmt.Errorf("%s is still used", d.image)
		}
	}
	return nil
}

func (d *Disk) mount() {
	d.t.Helper()
	opts := "loop"
	if d.kind == XFS {
		opts += ",nouuid" // the mount namespace of another process may still have the old file system mounted
	}
	d.run("mount", "-t", string(d.kind), "-o", opts, d.image, d.Dir)
}
