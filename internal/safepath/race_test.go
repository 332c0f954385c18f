package safepath

import (
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/safepath/racetest"
)

// While another process exchanges a directory of the root and a link to a directory outside, no look-up leaves the root. For
// comparison, a check followed by a look-up of the path does.
func TestLookupsStayInARootThatChanges(t *testing.T) {
	outside, inside := t.TempDir(), t.TempDir()
	for dir, data := range map[string]string{outside: "outside", filepath.Join(inside, "a"): "inside"} {
		if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "sub", "f"), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(outside, filepath.Join(inside, "link")); err != nil {
		t.Fatal(err)
	}
	root, err := os.Open(inside)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, c := range []struct {
		name string
		open func() (*os.File, error)
		safe bool
	}{
		{"Open", func() (*os.File, error) { return Open(root, "a/sub/f", unix.O_RDONLY, 0) }, true},
		{"OpenNoLinks", func() (*os.File, error) { return OpenNoLinks(root, "a/sub/f", unix.O_RDONLY) }, true},
		{"OpenParent", func() (*os.File, error) {
			dir, base, err := OpenParent(root, "a/sub/f")
			if err != nil {
				return nil, err
			}
			defer dir.Close()
			return Open(dir, base, unix.O_RDONLY, 0)
		}, true},
		{"MkdirAll", func() (*os.File, error) {
			dir, err := MkdirAll(root, "a/sub", 0o755)
			if err != nil {
				return nil, err
			}
			defer dir.Close()
			return Open(dir, "f", unix.O_RDONLY, 0)
		}, true},
		{"check then open", func() (*os.File, error) {
			f, err := OpenNoLinks(root, "a/sub/f", unix.O_PATH)
			if err != nil {
				return nil, err
			}
			_ = f.Close() // opened with O_PATH
			return os.Open(filepath.Join(inside, "a/sub/f"))
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			racetest.Exchange(t, [2]string{filepath.Join(inside, "a"), filepath.Join(inside, "link")})
			opened, left := 0, false
			limit := time.Now().Add(500 * time.Millisecond)
			if !c.safe {
				limit = limit.Add(10 * time.Second) // it ends as soon as it has left the root
			}
			for time.Now().Before(limit) && !left {
				f, err := c.open()
				if err != nil {
					continue
				}
				opened++
				b, err := io.ReadAll(f)
				_ = f.Close() // opened for reading only
				if err != nil {
					t.Fatal(err)
				}
				left = string(b) != "inside"
			}
			if opened == 0 || left == c.safe {
				t.Errorf("opened %d times, left the root: %v", opened, left)
			}
		})
	}
}

// OpenNoLinks opens directories, files and the root, and refuses links and paths that leave the root.
func TestOpenNoLinks(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "a", "b"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"link": "a", "a/up": "..", "abs": "/"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for name, ok := range map[string]bool{"": true, ".": true, "a": true, "a/b": true, "a/../a": true, "link/b": false, "a/up": false, "abs/etc": false, "..": false, "a/../..": false, "/etc": false} {
		f, err := OpenNoLinks(root, name, unix.O_RDONLY|unix.O_DIRECTORY)
		if (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
		if err == nil {
			_ = f.Close() // opened for reading only
		}
	}
}
