package safepath_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"ply/internal/safepath"
)

func openDir(t *testing.T, path string) *os.File {
	t.Helper()
	d, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// A tree that is deeper than a process may open files is deleted whole.
func TestRemoveAllOfADeepTree(t *testing.T) {
	base := t.TempDir()
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	low := old
	low.Cur = 300
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
			t.Error(err)
		}
	}()
	if err := os.Mkdir(base+"/tree", 0o755); err != nil {
		t.Fatal(err)
	}
	dirs, err := safepath.NewDirs(openDir(t, base+"/tree"))
	if err != nil {
		t.Fatal(err)
	}
	nest(t, dirs, 3000)
	for _, name := range []string{"a", "z"} { // before and after "d"
		if fd, err := unix.Openat(int(dirs.Dir().Fd()), name, unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600); err != nil {
			t.Fatal(err)
		} else if err := unix.Close(fd); err != nil {
			t.Fatal(err)
		}
	}
	dirs.Close()
	if err := safepath.RemoveAll(openDir(t, base), "tree", nil); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(base + "/tree"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the tree is still there: %v", err)
	}
}

// RemoveAll deletes files of any kind, does not follow links, and accepts what is not there.
func TestRemoveAll(t *testing.T) {
	base := t.TempDir()
	outside := filepath.Join(base, "outside")
	for _, d := range []string{"outside", "tree/empty", "tree/full/sub"} {
		if err := os.MkdirAll(filepath.Join(base, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	err := errors.Join(os.WriteFile(outside+"/kept", []byte("kept"), 0o600), os.WriteFile(base+"/tree/full/f", nil, 0o400),
		os.Symlink(outside, base+"/tree/link"), os.Symlink("nowhere", base+"/tree/full/dangling"), unix.Mkfifo(base+"/tree/fifo", 0o600),
		os.Symlink(outside, base+"/only-a-link"), os.WriteFile(base+"/only-a-file", nil, 0o600))
	if err != nil {
		t.Fatal(err)
	}
	d := openDir(t, base)
	for _, name := range []string{"tree", "tree", "only-a-link", "only-a-file", "none"} {
		if err := safepath.RemoveAll(d, name, nil); err != nil {
			t.Errorf("RemoveAll(%q): %v", name, err)
		}
	}
	left, err := os.ReadDir(base)
	if err != nil || len(left) != 1 || left[0].Name() != "outside" {
		t.Errorf("left: %v, %v", left, err)
	}
	if b, err := os.ReadFile(outside + "/kept"); string(b) != "kept" {
		t.Errorf("a link was followed: %q, %v", b, err)
	}
}

// What can be deleted is deleted, and the first error is returned.
func TestRemoveAllGoesOnAfterAnError(t *testing.T) {
	base := t.TempDir()
	for _, d := range []string{"tree/a", "tree/mnt", "tree/z"} {
		if err := os.MkdirAll(filepath.Join(base, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("none", base+"/tree/mnt", "tmpfs", 0, ""); err != nil {
		t.Skipf("no right to mount: %v", err)
	}
	defer func() {
		if err := unix.Unmount(base+"/tree/mnt", unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	if err := safepath.RemoveAll(openDir(t, base), "tree", nil); !errors.Is(err, unix.EBUSY) {
		t.Errorf("RemoveAll over a mount point: %v, want %v", err, unix.EBUSY)
	}
	left, err := os.ReadDir(base + "/tree")
	if err != nil || len(left) != 1 || left[0].Name() != "mnt" {
		t.Errorf("left: %v, %v", left, err)
	}
	why := errors.New("enough")
	if err := safepath.RemoveAll(openDir(t, base), "tree", func() error { return why }); !errors.Is(err, why) {
		t.Errorf("stopped: %v", err)
	}
}

// A file of another kind is never opened, also when it takes the place of a regular one.
func TestReopen(t *testing.T) {
	base := t.TempDir()
	if err := errors.Join(os.WriteFile(base+"/f", []byte("content"), 0o600), unix.Mkfifo(base+"/fifo", 0o600), os.Symlink("f", base+"/link")); err != nil {
		t.Fatal(err)
	}
	root := openDir(t, base)
	open := func(name string, flags int) (*os.File, error) {
		node, err := safepath.Open(root, name, unix.O_PATH|unix.O_NOFOLLOW, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer node.Close()
		if name == "f" { // the name leads to another file by now
			if err := errors.Join(os.Rename(base+"/f", base+"/moved"), unix.Mkfifo(base+"/f", 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		return safepath.Reopen(node, flags)
	}
	for _, name := range []string{"fifo", "link", "."} {
		if f, err := open(name, unix.O_RDONLY|unix.O_NONBLOCK); !errors.Is(err, unix.ENXIO) {
			t.Errorf("Reopen of %s = %v, %v, want ENXIO", name, f, err)
		}
	}
	f, err := open("f", unix.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 7)
	if _, err := f.ReadAt(b, 0); err != nil || string(b) != "content" {
		t.Errorf("read %q, %v", b, err)
	}
}
