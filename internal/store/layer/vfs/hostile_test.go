package vfs

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/safepath"
)

// A tree that is deeper than a path can be long is measured whole. It is in no layer: Changes and Diff refuse it.
func TestTreeDeeperThanAnyPath(t *testing.T) {
	d, err := Open(durable.OS, t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, c := range []struct {
		depth int
		class error
	}{{500, nil}, {2500, errs.Invalid}} {
		dir := t.TempDir()
		if err := d.CreateWritable(t.Context(), dir, nil); err != nil {
			t.Fatal(err)
		}
		top, err := os.Open(treeOf(dir))
		if err != nil {
			t.Fatal(err)
		}
		dirs, err := safepath.NewDirs(top)
		if err != nil {
			t.Fatal(err)
		}
		for range c.depth {
			if err := errors.Join(unix.Mkdirat(int(dirs.Dir().Fd()), "d", 0o755), dirs.Enter("d")); err != nil {
				t.Fatal(err)
			}
		}
		fd, err := unix.Openat(int(dirs.Dir().Fd()), "f", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Write(fd, []byte("abc")); err != nil {
			t.Fatal(err)
		}
		if err := unix.Close(fd); err != nil {
			t.Fatal(err)
		}
		dirs.Close()
		if n, err := d.Usage(t.Context(), dir, nil); n != 3 || err != nil {
			t.Errorf("depth %d: Usage = %d, %v, want 3", c.depth, n, err)
		}
		changes, err := d.Changes(t.Context(), dir, nil)
		if !errors.Is(err, c.class) || c.class == nil && len(changes) != c.depth+1 {
			t.Errorf("depth %d: %d changes, %v, want class %v", c.depth, len(changes), err, c.class)
		}
		if err := d.Diff(t.Context(), dir, nil, io.Discard); !errors.Is(err, c.class) {
			t.Errorf("depth %d: Diff: %v, want class %v", c.depth, err, c.class)
		}
		if err := errors.Join(safepath.RemoveAll(top, "d", nil), top.Close()); err != nil {
			t.Error(err)
		}
	}
}

// A container exchanges a file with a FIFO, which stands for a device, while its tree is compared. The FIFO is never opened.
func TestCompareOpensRegularFilesOnly(t *testing.T) {
	baseDir, curDir := t.TempDir(), t.TempDir()
	for _, dir := range []string{baseDir, curDir} {
		if err := os.WriteFile(filepath.Join(dir, "f"), []byte("content"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	special := filepath.Join(curDir, "special")
	if err := unix.Mkfifo(special, 0o600); err != nil {
		t.Fatal(err)
	}
	base, err := openRoot(baseDir)
	if err != nil {
		t.Fatal(err)
	}
	defer base.Close()
	cur, err := openRoot(curDir)
	if err != nil {
		t.Fatal(err)
	}
	defer cur.Close()
	// Opening a FIFO for writing without blocking succeeds only while someone has it open for reading.
	var opened bool
	stop := make(chan struct{})
	var work sync.WaitGroup
	work.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			for _, name := range []string{"f", "special"} {
				fd, err := unix.Openat(int(cur.Fd()), name, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
				if err != nil {
					continue
				}
				var st unix.Stat_t
				if unix.Fstat(fd, &st) == nil && kindOf(&st) == unix.S_IFIFO {
					opened = true
				}
				_ = unix.Close(fd)
			}
		}
	})
	work.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			_ = unix.Renameat2(int(cur.Fd()), "f", int(cur.Fd()), "special", unix.RENAME_EXCHANGE)
		}
	})
	same := 0
	for range 4_000 {
		ok, err := sameContent(base, cur, "f")
		if err != nil && !gone(err) {
			t.Errorf("sameContent: %v", err)
			break
		}
		if ok {
			same++
		}
	}
	close(stop)
	work.Wait()
	if opened {
		t.Error("the FIFO was opened")
	}
	if same == 0 {
		t.Error("the file was never compared, so this shows nothing")
	}
}
