package safepath_test

import (
	"errors"
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/safepath"
)

// openFiles returns how many descriptors this process has.
func openFiles(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// nest makes directories d/d/d/… below the lowest directory of dirs and enters them.
func nest(t *testing.T, dirs *safepath.Dirs, depth int) {
	t.Helper()
	for range depth {
		if err := unix.Mkdirat(int(dirs.Dir().Fd()), "d", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := dirs.Enter("d"); err != nil {
			t.Fatal(err)
		}
	}
}

// A chain of thousands of directories keeps few of them open and finds its way back through every one.
func TestDirsAreFewDescriptors(t *testing.T) {
	top, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer top.Close()
	dirs, err := safepath.NewDirs(top)
	if err != nil {
		t.Fatal(err)
	}
	defer dirs.Close()
	const depth = 3000 // deeper than PATH_MAX allows as one path
	before := openFiles(t)
	var inodes []uint64
	for i := range depth {
		var st unix.Stat_t
		if err := unix.Fstat(int(dirs.Dir().Fd()), &st); err != nil {
			t.Fatal(err)
		}
		inodes = append(inodes, st.Ino)
		nest(t, dirs, 1)
		if dirs.Depth() != i+1 {
			t.Fatalf("depth %d, want %d", dirs.Depth(), i+1)
		}
	}
	if now := openFiles(t); now > before+40 {
		t.Errorf("%d descriptors for %d directories", now-before, depth)
	}
	for i := depth - 1; i >= 0; i-- {
		if err := dirs.Leave(); err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(dirs.Dir().Fd()), &st); err != nil || st.Ino != inodes[i] {
			t.Fatalf("back at depth %d: inode %d, want %d: %v", i, st.Ino, inodes[i], err)
		}
		if err := unix.Unlinkat(int(dirs.Dir().Fd()), "d", unix.AT_REMOVEDIR); err != nil {
			t.Fatal(err)
		}
	}
	dirs.Close()
	if now := openFiles(t); now != before {
		t.Errorf("%d descriptors left open", now-before)
	}
}

// When a directory is moved elsewhere while it is read, ".." leads to another directory. The chain does not go there.
func TestDirsRefuseAnotherParent(t *testing.T) {
	base := t.TempDir()
	for _, d := range []string{"/top", "/outside", "/top/beside"} {
		if err := os.Mkdir(base+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, to := range []string{"/outside/moved", "/top/beside/moved"} {
		for depth := range 80 {
			top, err := os.Open(base + "/top")
			if err != nil {
				t.Fatal(err)
			}
			dirs, err := safepath.NewDirs(top)
			if err != nil {
				t.Fatal(err)
			}
			nest(t, dirs, 80)
			from := base + "/top/d"
			for range depth {
				from += "/d"
			}
			if err := os.Rename(from, base+to+strconv.Itoa(depth)); err != nil {
				t.Fatal(err)
			}
			for dirs.Depth() > 0 && err == nil {
				err = dirs.Leave()
			}
			// The directories that are still open are left without a look at "..".
			if err != nil && !errors.Is(err, errs.Conflict) || err == nil && depth != 0 && depth < 80-33 {
				t.Errorf("moved at depth %d to %s: %v, want class conflict", depth, to, err)
			}
			if err == nil && dirs.Dir() != top {
				t.Error("the way back ends elsewhere")
			}
			dirs.Close()
			if err := os.RemoveAll(base + "/top/d"); err != nil {
				t.Fatal(err)
			}
			top.Close()
		}
	}
}

func TestDirsDoNotFollowLinks(t *testing.T) {
	base := t.TempDir()
	if err := os.Symlink("/", base+"/link"); err != nil {
		t.Fatal(err)
	}
	top, err := os.Open(base)
	if err != nil {
		t.Fatal(err)
	}
	defer top.Close()
	dirs, err := safepath.NewDirs(top)
	if err != nil {
		t.Fatal(err)
	}
	defer dirs.Close()
	if err := dirs.Enter("link"); !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP) {
		t.Errorf("enter a link: %v", err)
	}
	if err := dirs.Enter("absent"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("enter nothing: %v", err)
	}
	if dirs.Depth() != 0 || dirs.Dir() != top {
		t.Error("a failed Enter changed the chain")
	}
}
