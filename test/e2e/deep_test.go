package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ply/internal/safepath"
)

// A container that nests its directories deeper than plyd may open files, or than a path can be long, costs no other container
// anything: ps -s and system df answer, and rm -f removes the tree. Its own tree is copied, exported, compared and committed whole,
// or that is refused with the reason.
func TestDeepTree(t *testing.T) {
	w := newWorld(t)
	w.busybox()
	const few = 250
	if err := unix.Prlimit(w.plyd.Process.Pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: few, Max: few}, nil); err != nil {
		t.Fatal(err)
	}
	tooDeep := 5000
	if os.Getenv("PLY_NIGHTLY") != "" {
		tooDeep = 40_000
	}
	w.ply("create", "--name", "beside", "busybox", "sh")
	w.ply("cp", filepath.Join(images, "busybox.tar"), "beside:/tmp/file")
	for depth, whole := range map[int]bool{1500: true, tooDeep: false} {
		w.ply("volume", "create", "deep")
		id := w.ply("run", "-d", "--name", "deep", "-v", "deep:/vol", "busybox", "sleep", "1000")
		volume := w.ply("volume", "inspect", "-f", "{{.Mountpoint}}", "deep")
		rootfs := filepath.Join(w.dir, "run", "containers", id, "rootfs", "tmp")
		nestBelow(t, rootfs, depth)
		nestBelow(t, volume, depth)
		try := func(want string, args ...string) {
			t.Helper()
			o, e, err := w.run("ply", args...)
			switch {
			case whole && (err != nil || !strings.Contains(o+e, want)):
				t.Errorf("%d levels: ply %s: %v, want %q in the output\n%.300s", depth, strings.Join(args, " "), err, want, e)
			case !whole && (err == nil || !strings.Contains(e, "longer than")):
				t.Errorf("%d levels: ply %s: %v, want an error that says that the path is too long\n%.300s", depth, strings.Join(args, " "), err, e)
			}
		}
		end := strings.Repeat("d/", depth) + "end"
		try("/tmp/"+end, "diff", "deep")
		try("", "commit", "deep", "deep")
		// A stream is cut off after its first bytes, so the client cannot tell the reason.
		for _, args := range [][]string{{"export", "deep"}, {"cp", "deep:/tmp", "-"}, {"cp", "deep:/vol", "-"}} {
			o, e, err := w.run("ply", args...)
			if whole != (err == nil) || whole && !strings.Contains(o, end) {
				t.Errorf("%d levels: ply %s: %v, %d bytes\n%s", depth, strings.Join(args, " "), err, len(o), e)
			}
		}
		for _, args := range [][]string{{"ps", "-as"}, {"system", "df", "-v"}} {
			if out := w.ply(args...); !strings.Contains(out, "deep") || !strings.Contains(out, "beside") || !strings.Contains(out, "MB") {
				t.Errorf("%d levels: ply %s prints\n%s", depth, strings.Join(args, " "), out)
			}
		}
		w.ply("rm", "-f", "deep")
		w.ply("volume", "rm", "deep")
		for _, dir := range []string{filepath.Join(w.dir, "data", "containers", id), filepath.Dir(volume)} {
			if _, err := os.Lstat(dir); !os.IsNotExist(err) {
				t.Errorf("%d levels: %s is still there: %v", depth, dir, err)
			}
		}
	}
}

// nestBelow makes directories d/d/d/… with a link at the end.
func nestBelow(t *testing.T, dir string, depth int) {
	t.Helper()
	top, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer top.Close()
	dirs, err := safepath.NewDirs(top)
	if err != nil {
		t.Fatal(err)
	}
	defer dirs.Close()
	for range depth {
		if err := unix.Mkdirat(int(dirs.Dir().Fd()), "d", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := dirs.Enter("d"); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Symlinkat("nowhere", int(dirs.Dir().Fd()), "end"); err != nil {
		t.Fatal(err)
	}
}

// A removal that cannot delete every file says so. The container is gone, and plyd deletes the rest when it starts.
func TestRemoveThatLeavesFiles(t *testing.T) {
	w := newWorld(t)
	w.busybox()
	id := w.ply("create", "busybox", "sh")
	w.ply("cp", filepath.Join(images, "busybox.tar"), id+":/tmp/file")
	file := filepath.Join(w.dir, "data", "containers", id, "rw", "upper", "tmp", "file")
	if out, err := exec.Command("chattr", "+i", file).CombinedOutput(); err != nil {
		t.Skipf("the file system has no immutable files: %s", out)
	}
	defer func() { _ = exec.Command("chattr", "-i", file).Run() }() // it is gone if the test succeeds
	if out := w.fail(1, "rm", "-f", id); !strings.Contains(out, "is removed, but not all of its files are") || !strings.Contains(out, "operation not permitted") {
		t.Errorf("rm -f prints %q", out)
	}
	if out := w.ply("ps", "-aq", "--no-trunc"); out != "" {
		t.Errorf("left: %s", out)
	}
	if out, err := exec.Command("chattr", "-i", file).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	w.stopPlyd()
	w.startPlyd()
	if _, err := os.Lstat(filepath.Join(w.dir, "data", "containers", id)); !os.IsNotExist(err) {
		t.Errorf("the container's directory is still there: %v", err)
	}
}
