package volume

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/safepath"
	"ply/internal/safepath/racetest"
)

// While a volume is filled, another container that has it exchanges what was just copied and links to the host, and the source
// changes in the same way. Nothing of the host is read or changed.
func TestFillRacesLinksToTheHost(t *testing.T) {
	const secret = "content of a file of the host"
	host, from, to := filepath.Join(t.TempDir(), "host"), t.TempDir(), filepath.Join(t.TempDir(), "volume")
	for _, dir := range []string{filepath.Join(host, "sub"), filepath.Join(from, "d", "sub"), to} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	twice := make([]string, 30) // files of d with a second name beside d
	for i := range twice {
		twice[i] = "first" + strconv.Itoa(i)
	}
	for _, name := range append([]string{"f", "sub/f"}, twice...) {
		if err := errors.Join(os.WriteFile(filepath.Join(host, name), []byte(secret), 0o600), os.WriteFile(filepath.Join(from, "d", name), []byte("image"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range twice {
		if err := os.Link(filepath.Join(from, "d", name), filepath.Join(from, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.WriteFile(filepath.Join(from, "f"), []byte("image"), 0o4755),
		unix.Mkfifo(filepath.Join(from, "fifo"), 0o666), os.Symlink(host, filepath.Join(from, "link")), os.Symlink(filepath.Join(host, "f"), filepath.Join(from, "filelink"))); err != nil {
		t.Fatal(err)
	}
	was := racetest.State(t, host)
	for _, dir := range []string{from, to} {
		for a, b := range map[string]string{"d": "link", "f": "filelink", "fifo": "link"} {
			if dir == from && a == "fifo" {
				continue
			}
			stop := racetest.Exchange(t, [2]string{filepath.Join(dir, a), filepath.Join(dir, b)})
			defer stop()
		}
	}
	parent, err := os.Open(filepath.Dir(to))
	if err != nil {
		t.Fatal(err)
	}
	defer parent.Close()
	src, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	filled, disturbed := 0, 0
	for begun := time.Now(); time.Since(begun) < 2*time.Second || filled == 0 && time.Since(begun) < time.Minute; {
		if CopyTree(ctx, to, src) == nil {
			filled++
		} else {
			disturbed++
		}
		err := filepath.WalkDir(to, func(p string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return nil //nolint:nilerr // it was exchanged
			}
			fd, err := unix.Open(p, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
			if err != nil {
				return nil //nolint:nilerr // it was exchanged
			}
			defer unix.Close(fd)
			resolved, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
			if err != nil || !filepath.IsAbs(resolved) || resolved[:min(len(to), len(resolved))] != to {
				return nil //nolint:nilerr // this walk has left the volume, through an exchanged directory
			}
			b := make([]byte, 100)
			n, _ := unix.Read(fd, b)
			if bytes.Contains(b[:max(n, 0)], []byte(secret)) {
				t.Fatalf("%s has the content of a file of the host", p)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for err := safepath.RemoveAll(parent, filepath.Base(to), nil); err != nil; err = safepath.RemoveAll(parent, filepath.Base(to), nil) {
			if !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ENOTEMPTY) || time.Since(begun) > 2*time.Minute {
				t.Fatal(err)
			}
		}
		if err := errors.Join(os.Mkdir(to, 0o755), os.Symlink(host, filepath.Join(to, "link")), os.Symlink(filepath.Join(host, "f"), filepath.Join(to, "filelink"))); err != nil {
			t.Fatal(err)
		}
	}
	if filled == 0 {
		t.Errorf("filled %d times, disturbed %d times", filled, disturbed)
	}
	now := racetest.State(t, host)
	for p, st := range now {
		if was[p] != st {
			t.Errorf("%s was written to", p)
		}
	}
	if len(now) != len(was) {
		t.Errorf("%d files of the host, want %d", len(now), len(was))
	}
}

// Files with several names become links to the first copy. While they are copied, another container that has the volume exchanges the
// directories of the copies and links to the host. No file of the host gets a name in the volume.
func TestFillRacesTheWayToTheFirstName(t *testing.T) {
	host, from, to := filepath.Join(t.TempDir(), "host"), t.TempDir(), filepath.Join(t.TempDir(), "volume")
	for _, dir := range []string{host, filepath.Join(from, "d"), filepath.Join(from, "e")} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 100 {
		name := strconv.Itoa(i)
		err := errors.Join(os.WriteFile(filepath.Join(host, name), nil, 0o600), os.WriteFile(filepath.Join(from, "d", name), nil, 0o600))
		if err := errors.Join(err, os.Link(filepath.Join(from, "d", name), filepath.Join(from, "e", name))); err != nil {
			t.Fatal(err)
		}
	}
	was := racetest.State(t, host)
	src, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	filled := 0
	for begun := time.Now(); time.Since(begun) < time.Second || filled == 0 && time.Since(begun) < time.Minute; {
		if err := os.Mkdir(to, 0o755); err != nil {
			t.Fatal(err)
		}
		var pairs [][2]string
		for _, dir := range []string{"d", "e"} {
			link := filepath.Join(to, "link-"+dir)
			if err := os.Symlink(host, link); err != nil {
				t.Fatal(err)
			}
			pairs = append(pairs, [2]string{filepath.Join(to, dir), link})
		}
		stop := racetest.Exchange(t, pairs...)
		if CopyTree(ctx, to, src) == nil {
			filled++
		}
		stop()
		if err := os.RemoveAll(to); err != nil {
			t.Fatal(err)
		}
		if now := racetest.State(t, host); !maps.Equal(now, was) {
			t.Fatalf("files of the host were changed after %d copies", filled)
		}
	}
	if filled == 0 {
		t.Error("no copy was whole")
	}
}
