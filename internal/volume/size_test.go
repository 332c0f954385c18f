package volume

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/safepath/racetest"
)

// A tree that is nested deeper than a path can be long has a size, and so has one with links and several names of a file.
func TestSizeOfDeepTrees(t *testing.T) {
	dir := t.TempDir()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 3000 {
		if err := unix.Mkdirat(fd, "d", 0o700); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(fd, "d", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Close(fd); err != nil {
			t.Fatal(err)
		}
		fd = next
	}
	f, err := unix.Openat(fd, "f", unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Ftruncate(f, 1000); err != nil {
		t.Fatal(err)
	}
	_, _ = unix.Close(f), unix.Close(fd)
	for name, size := range map[string]int64{"a": 20, "b": 3} {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "again")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if n, err := treeSize(t.Context(), dir); err != nil || n != 1023 {
		t.Errorf("size %d, %v; want 1023", n, err)
	}
}

// A container that exchanges a directory and a link to the host cannot make the size count files of the host.
func TestSizeCountsNoFileOfTheHost(t *testing.T) {
	host, dir := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(host, "f"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "d", "f"), make([]byte, 10), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(host, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	stop := racetest.Exchange(t, [2]string{filepath.Join(dir, "d"), filepath.Join(dir, "link")})
	defer stop()
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
		n, err := treeSize(t.Context(), dir)
		if err != nil || n > 20 {
			t.Fatalf("size %d, %v", n, err)
		}
	}
}
