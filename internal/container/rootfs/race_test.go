package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/safepath/racetest"
)

const secret = "content of a file of the host" // no file below a root has it

// host is a directory beside a root that nothing below the root may reach.
type host struct {
	t   *testing.T
	dir string
	was map[string]unix.Stat_t
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{t: t, dir: filepath.Join(t.TempDir(), "host")}
	check(t, os.MkdirAll(filepath.Join(h.dir, "sub"), 0o755))
	for _, name := range []string{"f", "etc", "sub/f"} {
		check(t, os.WriteFile(filepath.Join(h.dir, name), []byte(strings.Repeat(secret+"\n", 100)), 0o640))
	}
	h.was = racetest.State(t, h.dir)
	return h
}

// untouched fails the test if a file of the host was made, changed or removed.
func (h *host) untouched() {
	h.t.Helper()
	now := racetest.State(h.t, h.dir)
	for p, st := range now {
		if was, ok := h.was[p]; !ok || was != st {
			h.t.Errorf("%s was written to", p)
		}
	}
	if len(now) != len(h.was) {
		h.t.Errorf("%d files of the host, want %d", len(now), len(h.was))
	}
}

// raced calls f for a second, and for a minute at most on a busy machine, until it has counted something.
func raced(counted *int, f func(i int)) {
	for i, begun := 0, time.Now(); time.Since(begun) < time.Second || *counted == 0 && time.Since(begun) < time.Minute; i++ {
		f(i)
	}
}

// A container that exchanges directories and files with links to the host, while they are copied, exported or looked at, gets
// nothing of the host read or written.
func TestCopiesRaceLinksToTheHost(t *testing.T) {
	h := newHost(t)
	root, dir := openRoot(t)
	climb := strings.Repeat("../", 30) + h.dir[1:]
	for _, d := range []string{"dir", "deep/dir"} {
		check(t, os.MkdirAll(filepath.Join(dir, d, "sub"), 0o755))
		for _, f := range []string{"f", "etc", "sub/f"} {
			check(t, os.WriteFile(filepath.Join(dir, d, f), []byte("inside"), 0o644))
		}
	}
	check(t, os.WriteFile(filepath.Join(dir, "file"), []byte("inside"), 0o644))
	for name, target := range map[string]string{"dirlink": h.dir, "deep/dirlink": climb, "filelink": h.dir + "/f"} {
		check(t, os.Symlink(target, filepath.Join(dir, name)))
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	racetest.Exchange(t, [2]string{in("dir"), in("dirlink")}, [2]string{in("deep/dir"), in("deep/dirlink")}, [2]string{in("file"), in("filelink")})

	// What a check followed by a second look-up would do: it shows that the exchange comes between.
	left := 0
	raced(&left, func(int) {
		if fi, err := os.Lstat(in("dir")); err == nil && fi.IsDir() {
			if b, err := os.ReadFile(in("dir/f")); err == nil && bytes.Contains(b, []byte(secret)) {
				left++
			}
		}
	})
	if left == 0 {
		t.Error("the exchange never came between a check and its use")
	}

	var read int
	reads := func(what string, f func(w io.Writer) error) {
		raced(&read, func(int) {
			var b bytes.Buffer
			if f(&b) == nil {
				read++
			}
			if bytes.Contains(b.Bytes(), []byte(secret)) {
				t.Fatalf("%s returned a file of the host", what)
			}
		})
	}
	paths := []string{"/dir", "/dir/", "/dir/.", "/dir/f", "/dir/sub", "/deep", "/deep/dir/sub/f", "/file", "/dirlink/f", "/"}
	next := 0
	reads("a copy", func(w io.Writer) error {
		next++
		return CopyOut(t.Context(), root, paths[next%len(paths)], anything, w)
	})
	reads("an export", func(w io.Writer) error { return Export(t.Context(), root, w) })
	raced(&read, func(i int) {
		if st, err := Lstat(root, paths[i%len(paths)]); err == nil {
			if read++; st.Size > 1000 && st.Mode.IsRegular() {
				t.Fatalf("Lstat of %s described a file of the host: %+v", paths[i%len(paths)], st)
			}
		}
	})
	if read == 0 {
		t.Error("nothing was read at all")
	}
	h.untouched()

	wrote := 0
	raced(&wrote, func(i int) {
		headers := []tar.Header{
			{Name: "f"}, {Name: "sub/", Typeflag: tar.TypeDir, Mode: 0o777}, {Name: "sub/f", Mode: 0o4755}, {Name: "made/new"},
			{Name: "etc/passwd"}, {Name: "hard", Typeflag: tar.TypeLink, Linkname: "f"}, {Name: "soft", Typeflag: tar.TypeSymlink, Linkname: h.dir}, {Name: "soft/planted"},
		}
		to := paths[i%len(paths)]
		if i%3 == 0 {
			to = "/"
			for i := range headers {
				headers[i].Name = "dir/" + headers[i].Name
			}
		}
		if CopyIn(t.Context(), root, to, stream(t, headers...), CopyInOptions{KeepKinds: i%2 == 0}) == nil {
			wrote++
		}
		for _, d := range []string{"dir", "deep/dir"} { // as they were
			check(t, os.MkdirAll(in("spare/sub"), 0o755))
			check(t, os.WriteFile(in("spare/f"), []byte("inside"), 0o644))
			if _, err := os.Lstat(in(d)); err != nil {
				_ = os.Rename(in("spare"), in(d)) // the exchange may have made it again
			}
		}
	})
	if wrote == 0 {
		t.Error("nothing was written at all")
	}
	h.untouched()
}

// A device or FIFO that takes the place of a regular file is never opened: that alone can have effects on the host.
func TestCopiesOpenRegularFilesOnly(t *testing.T) {
	root, dir := openRoot(t)
	check(t, os.Mkdir(filepath.Join(dir, "etc"), 0o755))
	fifo := filepath.Join(dir, "etc", "fifo")
	check(t, unix.Mkfifo(fifo, 0o666))
	held, err := os.OpenFile(fifo, unix.O_PATH, 0) // leads to the FIFO wherever it is
	check(t, err)
	check(t, os.WriteFile(filepath.Join(dir, "etc", "passwd"), []byte("root:x:7:8::/root:/bin/sh\n"), 0o644))
	var opened atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		f, err := os.OpenFile(fdPath(held), os.O_WRONLY, 0) // waits until somebody opens it for reading
		opened.Store(true)
		if err == nil {
			f.Close()
		}
	}()
	racetest.Exchange(t, [2]string{fifo, filepath.Join(dir, "etc", "passwd")})
	ok := 0
	raced(&ok, func(i int) {
		switch i % 4 {
		case 0:
			if _, err := LookupUser(root, "root", nil); err == nil {
				ok++
			}
		case 1:
			_ = Export(t.Context(), root, io.Discard) // which of the two it finds is not the point
		case 2:
			_ = CopyOut(t.Context(), root, "/etc/passwd", anything, io.Discard)
		case 3:
			if f, err := openForContent(mustOpen(t, filepath.Join(dir, "etc")), "passwd", true); err == nil {
				_, _ = f.WriteString("root:x:7:8::/root:/bin/sh\n")
				f.Close()
			}
		}
	})
	if opened.Load() {
		t.Error("the FIFO was opened")
	}
	if ok == 0 {
		t.Error("the file was never read")
	}
	r, err := os.OpenFile(fdPath(held), os.O_RDONLY|unix.O_NONBLOCK, 0) // ends the goroutine
	check(t, err)
	<-done
	check(t, errors.Join(r.Close(), held.Close()))
}

func mustOpen(t *testing.T, p string) *os.File {
	t.Helper()
	f, err := os.Open(p)
	check(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// A tree that is as deep as a path can be long is copied and exported whole, with few files open. A deeper one is refused.
func TestDeepTrees(t *testing.T) {
	var old unix.Rlimit
	check(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &old))
	low := old
	low.Cur = 300
	check(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &low))
	defer func() { check(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &old)) }()
	for depth, whole := range map[int]bool{1900: true, 3000: false} {
		root, dir := openRoot(t)
		check(t, os.Mkdir(filepath.Join(dir, "top"), 0o755))
		at := mustOpen(t, filepath.Join(dir, "top"))
		for range depth {
			check(t, unix.Mkdirat(int(at.Fd()), "d", 0o755))
			fd, err := unix.Openat(int(at.Fd()), "d", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			check(t, err)
			at.Close()
			at = os.NewFile(uintptr(fd), "d")
		}
		check(t, unix.Symlinkat("end", int(at.Fd()), "end"))
		at.Close()
		for what, f := range map[string]func(w io.Writer) error{
			"export": func(w io.Writer) error { return Export(t.Context(), root, w) },
			"copy":   func(w io.Writer) error { return CopyOut(t.Context(), root, "/top", anything, w) },
		} {
			var b bytes.Buffer
			err := f(&b)
			if !whole {
				if err == nil || !strings.Contains(err.Error(), "path is longer than") {
					t.Errorf("%s of %d levels: %v, want an error that says that the path is too long", what, depth, err)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s of %d levels: %v", what, depth, err)
			}
			if got := names(t, &b); len(got) != depth+2 || got["top/"+strings.Repeat("d/", depth)+"end"] != "-> end" {
				t.Errorf("%s of %d levels has %d entries", what, depth, len(got))
			}
		}
		// A file in place of the tree removes the tree.
		check(t, CopyIn(context.Background(), root, "/", stream(t, tar.Header{Name: "top"}), CopyInOptions{}))
		if b, err := os.ReadFile(filepath.Join(dir, "top")); err != nil || string(b) != "top" {
			t.Errorf("after a copy over the tree: %q, %v", b, err)
		}
	}
}
