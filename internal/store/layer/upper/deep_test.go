package upper_test

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/safepath"
	"ply/internal/store/layer/upper"
)

// deep makes directories d/d/d/… with a file of one byte in the first and in the last, and allows this process few open files.
func deep(t *testing.T, depth int) string {
	t.Helper()
	dir := t.TempDir()
	top, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	dirs, err := safepath.NewDirs(top)
	if err != nil {
		t.Fatal(err)
	}
	write := func() {
		fd, err := unix.Openat(int(dirs.Dir().Fd()), "f", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Write(fd, []byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := unix.Close(fd); err != nil {
			t.Fatal(err)
		}
	}
	write()
	for range depth {
		if err := unix.Mkdirat(int(dirs.Dir().Fd()), "d", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := dirs.Enter("d"); err != nil {
			t.Fatal(err)
		}
	}
	write()
	dirs.Close()
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	low := old
	low.Cur = 200
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(unix.Setrlimit(unix.RLIMIT_NOFILE, &old), safepath.RemoveAll(top, "d", nil), top.Close()); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// A tree whose paths are as long as a path can be is listed and written whole, with few files open.
func TestDeepTree(t *testing.T) {
	const depth = 2000
	dir := deep(t, depth)
	if n, err := upper.Usage(t.Context(), dir); err != nil || n != 2 {
		t.Errorf("Usage = %d, %v, want 2", n, err)
	}
	changes, err := upper.Changes(t.Context(), dir, upper.Nothing)
	if err != nil || len(changes) != depth+2 {
		t.Errorf("%d changes, %v, want %d", len(changes), err, depth+2)
	}
	var tar bytes.Buffer
	if err := upper.Diff(t.Context(), dir, upper.Nothing, &tar); err != nil || !strings.Contains(tar.String(), strings.Repeat("d/", depth)+"f") {
		t.Errorf("diff of %d bytes: %v", tar.Len(), err)
	}
}

// A tree that is deeper than a path can be long is measured whole. It is in no layer: Changes and Diff refuse it.
func TestTreeDeeperThanAnyPath(t *testing.T) {
	dir := deep(t, 5000)
	if n, err := upper.Usage(t.Context(), dir); err != nil || n != 2 {
		t.Errorf("Usage = %d, %v, want 2", n, err)
	}
	if _, err := upper.Changes(t.Context(), dir, upper.Nothing); !errors.Is(err, errs.Invalid) {
		t.Errorf("Changes: %v, want class invalid argument", err)
	}
	if err := upper.Diff(t.Context(), dir, upper.Nothing, &bytes.Buffer{}); !errors.Is(err, errs.Invalid) {
		t.Errorf("Diff: %v, want class invalid argument", err)
	}
}
