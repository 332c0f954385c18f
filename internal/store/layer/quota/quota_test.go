package quota

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"ply/internal/errs"
)

// onEach runs a test on each kind of file system with project quotas that this machine can make and the kernel can mount.
func onEach(t *testing.T, f func(t *testing.T, dir string)) {
	for _, fsys := range []struct {
		kind string
		size int64
		make []string
	}{
		{"ext4", 64 << 20, []string{"mkfs.ext4", "-q", "-O", "project,quota", "-E", "quotatype=prjquota"}},
		{"xfs", 400 << 20, []string{"mkfs.xfs", "-q"}}, // it makes none smaller than 300 MiB; the file is sparse
	} {
		t.Run(fsys.kind, func(t *testing.T) {
			image, dir := filepath.Join(t.TempDir(), "image"), t.TempDir()
			if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, fsys.size)); err != nil {
				t.Fatal(err)
			}
			if _, err := exec.LookPath(fsys.make[0]); err != nil {
				t.Skip(err)
			}
			if out, err := exec.Command(fsys.make[0], append(fsys.make[1:], image)...).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			if out, err := exec.Command("mount", "-t", fsys.kind, "-o", "loop,prjquota", image, dir).CombinedOutput(); err != nil {
				t.Skipf("the kernel does not mount %s with project quotas: %v: %s", fsys.kind, err, out)
			}
			t.Cleanup(func() {
				if err := syscall.Unmount(dir, 0); err != nil {
					t.Error(err)
				}
			})
			f(t, dir)
		})
	}
}

func mkdir(t *testing.T, elem ...string) string {
	t.Helper()
	dir := filepath.Join(elem...)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// write writes n KiB.
func write(name string, n int) error {
	return errors.Join(os.WriteFile(name, bytes.Repeat([]byte("x"), n<<10), 0o600))
}

// Directories of one limit share it, files of others do not count, and a limit that was freed holds nothing back.
func TestLimit(t *testing.T) { onEach(t, testLimit) }

func testLimit(t *testing.T, dir string) {
	if err := Check(dir); err != nil {
		t.Fatal(err)
	}
	upper, work, other := mkdir(t, dir, "upper"), mkdir(t, dir, "work"), mkdir(t, dir, "other")
	if err := Limit(1<<20, upper, work); err != nil {
		t.Fatal(err)
	}
	project, err := Of(upper)
	if err != nil || project == 0 {
		t.Fatal(project, err)
	}
	if p, err := Of(work); p != project || err != nil {
		t.Fatal(p, err)
	}
	if p, err := Of(other); p != 0 || err != nil {
		t.Fatal(p, err)
	}
	below := mkdir(t, upper, "below")
	if p, err := Of(below); p != project || err != nil {
		t.Fatal(p, err)
	}
	if err := write(filepath.Join(work, "w"), 500); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(work, "w"), filepath.Join(below, "w")); err != nil {
		t.Errorf("a file does not move within the limit: %v", err)
	}
	if err := write(filepath.Join(other, "much"), 3000); err != nil {
		t.Errorf("another directory is limited: %v", err)
	}
	dropped := withoutResource(t)
	err = write(filepath.Join(below, "more"), 3000)
	dropped()
	if !errors.Is(err, syscall.EDQUOT) && !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("%v, want that the limit is reached", err)
	}
	f, err := open(other)
	if err == nil {
		err = errors.Join(assign(f, 5), f.Close())
	}
	if p, ofErr := Of(other); p != 0 || err != nil || ofErr != nil {
		t.Errorf("a project of someone else is %d: %v, %v", p, err, ofErr)
	}
	second := mkdir(t, dir, "second")
	if err := Limit(1<<20, second); err != nil {
		t.Fatal(err)
	}
	if p, err := Of(second); p == project || p == 0 || err != nil {
		t.Errorf("second project is %d, the first %d: %v", p, project, err)
	}
	if err := errors.Join(os.RemoveAll(upper), os.RemoveAll(work), Free(dir, project)); err != nil {
		t.Fatal(err)
	}
}

// A directory whose file system has no quotas is refused, with what it lacks.
func TestNoQuotas(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "ply-quota-test")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	}()
	for what, err := range map[string]error{"Check": Check(dir), "Limit": Limit(1<<20, dir)} {
		if !errors.Is(err, errs.Precondition) || !strings.Contains(err.Error(), "project quotas") || !strings.Contains(err.Error(), "tmpfs") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if p, err := Of(dir); p != 0 || err != nil {
		t.Error(p, err)
	}
	if err := Limit(1, filepath.Join(dir, "absent")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// The limit holds for what root writes through overlayfs, new files and copies of lower ones alike, and the size of the whole is that of the limit.
func TestThroughOverlay(t *testing.T) { onEach(t, testThroughOverlay) }

func testThroughOverlay(t *testing.T, dir string) {
	lower, upper, work, target := mkdir(t, dir, "lower"), mkdir(t, dir, "upper"), mkdir(t, dir, "work"), mkdir(t, dir, "target")
	if err := errors.Join(write(filepath.Join(lower, "large"), 3000), write(filepath.Join(lower, "small"), 100)); err != nil {
		t.Fatal(err)
	}
	if err := Limit(1<<20, upper, work); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("overlay", target, "overlay", 0, "lowerdir="+lower+",upperdir="+upper+",workdir="+work); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := syscall.Unmount(target, 0); err != nil {
			t.Error(err)
		}
	}()
	var st syscall.Statfs_t
	if err := syscall.Statfs(target, &st); err != nil || int64(st.Blocks)*st.Bsize != 1<<20 {
		t.Errorf("size %d: %v", int64(st.Blocks)*st.Bsize, err)
	}
	full := func(err error) bool { return errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.ENOSPC) }
	if err := write(filepath.Join(target, "new"), 3000); !full(err) {
		t.Errorf("new file: %v, want that the limit is reached", err)
	}
	if err := os.Remove(filepath.Join(target, "new")); err != nil {
		t.Error(err)
	}
	if err := os.Chmod(filepath.Join(target, "large"), 0o644); !full(err) {
		t.Errorf("copy of a lower file: %v, want that the limit is reached", err)
	}
	if err := errors.Join(os.Chmod(filepath.Join(target, "small"), 0o644), write(filepath.Join(target, "fits"), 500)); err != nil {
		t.Errorf("files that fit: %v", err)
	}
}
