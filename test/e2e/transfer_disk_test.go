package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"ply/internal/oci"
	"ply/internal/transfer/remote/remotetest"
)

// smallDisk mounts a file system of 48 MB and returns a directory on it. It is unmounted after the world that is made later ends.
func smallDisk(t *testing.T, kind string) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "ply-disk.")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	root, image := filepath.Join(dir, "root"), filepath.Join(dir, "image")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	mount := []string{"-t", "tmpfs", "-o", "size=48m", "tmpfs", root}
	if kind != "tmpfs" {
		mount = []string{"-o", "loop", image, root}
		if err := os.WriteFile(image, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(image, 48<<20); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("mkfs."+kind, "-q", image).CombinedOutput(); err != nil {
			t.Fatalf("mkfs.%s: %v: %s", kind, err, out)
		}
	}
	if out, err := exec.Command("mount", mount...).CombinedOutput(); err != nil {
		t.Fatalf("mount %v: %v: %s", mount, err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, 0); err != nil {
			t.Errorf("unmount %s: %v", root, err)
			_ = unix.Unmount(root, unix.MNT_DETACH)
		}
	})
	return root
}

// fill writes a file until nothing more fits.
func fill(t *testing.T, dir string) (name string) {
	t.Helper()
	name = filepath.Join(dir, "filler")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size > 0; {
		_, err := f.Write(make([]byte, size))
		switch {
		case errors.Is(err, syscall.ENOSPC):
			size /= 4
		case err != nil:
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil && !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	return name
}

// A pull and a load that do not fit say so and leave nothing. Images can be removed from a full disk, and then everything works
// again without a restart.
func TestTransferDiskFull(t *testing.T) {
	f := remotetest.StartFake(t, false)
	for i, size := range map[uint64]int{90: 100_000, 91: 60 << 20, 92: 4 << 20} {
		f.Add("size"+string(rune('0'+i-90)), "1", remotetest.Make(t, oci.FormatOCI, noise(i, size)))
	}
	small, big, medium := f.Addr()+"/size0:1", f.Addr()+"/size1:1", f.Addr()+"/size2:1"
	roomy := newWorld(t)
	archive := filepath.Join(roomy.dir, "big.tar")
	roomy.ply("pull", big)
	roomy.ply("save", "-o", archive, big)
	roomy.ply("rmi", big)
	for kind, driver := range map[string]string{"ext4": "erofs", "tmpfs": "overlay2"} {
		t.Run(kind, func(t *testing.T) {
			disk := smallDisk(t, kind)
			w := newWorld(t, "--data-root", disk)
			info := w.ply("info", "--format", "{{.Driver}} {{.DriverStatus}}")
			if !strings.HasPrefix(info, driver+" ") || kind == "tmpfs" && !strings.Contains(info, "[erofs not used ") {
				t.Errorf("info says %s", info)
			}
			w.ply("pull", small)
			before, free := w.ply("images", "-a", "-q", "--no-trunc"), room(t, disk)
			for _, args := range [][]string{{"pull", big}, {"load", "-i", archive}} {
				out := w.fail(1, args...)
				wantFull(t, out)
				if after := w.ply("images", "-a", "-q", "--no-trunc"); after != before {
					t.Errorf("%v left images: %s", args, after)
				}
				until(t, func() bool { return room(t, disk) > free-(1<<20) }, func() string {
					return strings.Join(args, " ") + " did not give its room back:\n" + listing(disk)
				})
			}
			w.content(t, small, 90, 100_000)
			filler := fill(t, disk)
			wantFull(t, w.fail(1, "pull", medium))
			w.ply("rmi", small)
			if left := w.ply("images", "-a", "-q"); left != "" {
				t.Errorf("after rmi on the full disk: %s", left)
			}
			if err := os.Remove(filler); err != nil {
				t.Fatal(err)
			}
			w.ply("pull", medium)
			w.content(t, medium, 92, 4<<20)
			w.kill9()
			w.startPlyd()
			w.content(t, medium, 92, 4<<20)
		})
	}
}

// wantFull checks that an error reports a full disk: the kernel refused a write, or the reserve that removal needs was reached.
func wantFull(t *testing.T, text string) {
	t.Helper()
	for _, words := range []string{"no space left on device", "are kept in reserve", "bytes free. Free some space"} {
		if strings.Contains(text, words) {
			return
		}
	}
	t.Errorf("does not tell of a full disk: %s", text)
}

func room(t *testing.T, dir string) int64 {
	t.Helper()
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	return int64(fs.Bavail) * fs.Bsize
}

func listing(dir string) string {
	out, _ := exec.Command("find", dir, "-type", "f", "-size", "+100k", "-ls").CombinedOutput() // for a message
	return string(out)
}

// info says which storage driver is used and why no better one is; unusable drivers are refused.
func TestTransferDrivers(t *testing.T) {
	for name, why := range map[string]string{
		"aufs": "it was never part of the mainline kernel", "devicemapper": "Docker removed it", "nosuch": "is none of erofs, overlay2, vfs",
	} {
		w := prepareWorld(t, "--storage-driver", name)
		c := exec.Command(filepath.Join(bin, "plyd"), w.flags...)
		out, err := c.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || !strings.Contains(string(out), name) || !strings.Contains(string(out), why) {
			t.Errorf("--storage-driver %s: %v: %s", name, err, out)
		}
	}
	w := newWorld(t, "--storage-driver", "vfs")
	w.busybox()
	if got := w.ply("info", "--format", "{{.Driver}}"); got != "vfs" {
		t.Errorf("driver %s", got)
	}
	w.stopPlyd()
	c := exec.Command(filepath.Join(bin, "plyd"), append(w.flags, "--storage-driver", "overlay2")...)
	out, err := c.CombinedOutput()
	if err == nil {
		t.Error("a data root of vfs was opened with overlay2")
	}
	wantAll(t, string(out), "was made with storage driver vfs, not overlay2", "another --data-root")
	w.flags = w.flags[:len(w.flags)-2] // what the data root was made with is found without being told
	w.startPlyd()
	if got := w.ply("info", "--format", "{{.Driver}}"); got != "vfs" {
		t.Errorf("driver %s", got)
	}
	wantAll(t, w.ply("info"), "Storage Driver: vfs")
}
