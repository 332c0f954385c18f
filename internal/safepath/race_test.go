package safepath

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
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

// removeByPath deletes a tree as a program does that looks at a name first and then uses the name again.
func removeByPath(path string) {
	if fi, err := os.Lstat(path); err == nil && fi.IsDir() {
		entries, _ := os.ReadDir(path)
		for _, e := range entries {
			removeByPath(filepath.Join(path, e.Name()))
		}
	}
	_ = os.Remove(path) // it was exchanged, or is gone
}

// fillTree makes a directory with files at three depths.
func fillTree(t *testing.T, dir string) {
	t.Helper()
	err := os.MkdirAll(filepath.Join(dir, "sub", "deep"), 0o755)
	for _, name := range []string{"f", "sub/f", "sub/deep/f"} {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), []byte("content"), 0o644))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// While another process exchanges directories of a tree and links to the host, and moves directories, a removal of the tree deletes
// nothing outside of it. For comparison, one that uses paths does.
func TestRemoveAllStaysInATreeThatChanges(t *testing.T) {
	for _, c := range []struct {
		name   string
		remove func(parent *os.File, base string)
		safe   bool
	}{
		{"RemoveAll", func(parent *os.File, base string) { _ = RemoveAll(parent, base, nil) }, true}, // it may be disturbed
		{"by path", func(parent *os.File, base string) { removeByPath(filepath.Join(parent.Name(), base)) }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			host, base := filepath.Join(t.TempDir(), "host"), t.TempDir()
			tree := filepath.Join(base, "tree")
			fillTree(t, host)
			was := racetest.State(t, host)
			parent, err := os.Open(base)
			if err != nil {
				t.Fatal(err)
			}
			defer parent.Close()
			limit := time.Now().Add(time.Second)
			if !c.safe {
				limit = limit.Add(20 * time.Second) // it ends as soon as it has left the tree
			}
			left := false
			for time.Now().Before(limit) && !left {
				for _, dir := range []string{"a", "b", "c", "moved"} {
					fillTree(t, filepath.Join(tree, dir))
				}
				for _, link := range []string{filepath.Join(tree, "link"), filepath.Join(base, "sublink")} {
					if err := os.Symlink(host, link); err != nil {
						t.Fatal(err)
					}
				}
				stop := racetest.Exchange(t, [2]string{filepath.Join(tree, "a"), filepath.Join(tree, "link")},
					[2]string{filepath.Join(tree, "b", "sub"), filepath.Join(base, "sublink")},
					[2]string{filepath.Join(tree, "c", "sub"), filepath.Join(tree, "moved")})
				c.remove(parent, "tree")
				stop()
				left = !reflect.DeepEqual(racetest.State(t, host), was)
				// Nothing changes any more: what is left, which may be a link outside of the tree, goes now.
				for _, name := range []string{"tree", "sublink"} {
					if err := RemoveAll(parent, name, nil); err != nil {
						t.Fatal(err)
					}
				}
			}
			if left == c.safe {
				t.Errorf("left the tree: %v", left)
			}
		})
	}
}

// While another process moves directories of a deep chain, the way back leads to the directory that was entered there, or nowhere.
func TestDirsGoBackToWhereTheyCame(t *testing.T) {
	const depth = 3 * maxOpenDirs
	base := t.TempDir()
	for _, name := range []string{"top", "other"} {
		if err := os.MkdirAll(filepath.Join(base, name)+strings.Repeat("/d", depth), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	at := func(name string, n int) string { return filepath.Join(base, name) + strings.Repeat("/d", n) }
	racetest.Exchange(t, [2]string{at("top", 3), at("other", 3)}, [2]string{at("top", 20), at("other", 21)})
	top, err := os.Open(filepath.Join(base, "top"))
	if err != nil {
		t.Fatal(err)
	}
	defer top.Close()
	whole, lost := 0, 0
	for limit := time.Now().Add(30 * time.Second); time.Now().Before(limit) && (whole < 100 || lost < 100); {
		dirs, err := NewDirs(top)
		if err != nil {
			t.Fatal(err)
		}
		entered := []dirID{dirs.chain[0].id}
		for err == nil && dirs.Depth() < depth {
			if err = dirs.Enter("d"); err == nil {
				entered = append(entered, dirs.chain[dirs.Depth()].id)
			}
		}
		for err = nil; err == nil && dirs.Depth() > 0; {
			if err = dirs.Leave(); err != nil {
				break
			}
			if id, err := dirIDOf(dirs.Dir()); err != nil || id != entered[dirs.Depth()] {
				t.Fatalf("at depth %d: %v, %v, want %v", dirs.Depth(), id, err, entered[dirs.Depth()])
			}
		}
		switch {
		case err == nil:
			whole++
		case errors.Is(err, errs.Conflict):
			lost++
		default:
			t.Fatal(err)
		}
		dirs.Close()
	}
	if whole == 0 || lost == 0 {
		t.Errorf("the way back was found %d times and lost %d times", whole, lost)
	}
}

// While another process exchanges a file, a FIFO and a link to a file of the host, Reopen opens what was found. For comparison, a second
// open of the name does not.
func TestReopenWhileTheNameChanges(t *testing.T) {
	host, base := filepath.Join(t.TempDir(), "host"), t.TempDir()
	name := filepath.Join(base, "f")
	if err := errors.Join(os.WriteFile(host, []byte("outside"), 0o600), os.WriteFile(name, []byte("inside"), 0o600),
		unix.Mkfifo(filepath.Join(base, "fifo"), 0o600), os.Symlink(host, filepath.Join(base, "link"))); err != nil {
		t.Fatal(err)
	}
	root, err := os.Open(base)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, c := range []struct {
		name   string
		reopen func(node *os.File) (*os.File, error)
		safe   bool
	}{
		{"Reopen", func(node *os.File) (*os.File, error) { return Reopen(node, unix.O_RDWR|unix.O_NONBLOCK) }, true},
		{"by name", func(*os.File) (*os.File, error) { return os.OpenFile(name, os.O_RDWR|unix.O_NONBLOCK, 0) }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			racetest.Exchange(t, [2]string{name, filepath.Join(base, "fifo")}, [2]string{name, filepath.Join(base, "link")})
			opened, wrong := 0, false
			for limit := time.Now().Add(20 * time.Second); time.Now().Before(limit) && (c.safe && opened < 2000 || !c.safe && !wrong); {
				node, err := Open(root, "f", unix.O_PATH|unix.O_NOFOLLOW, 0)
				if err != nil {
					continue // it was exchanged at this moment
				}
				var st unix.Stat_t
				if err := unix.Fstat(int(node.Fd()), &st); err != nil {
					t.Fatal(err)
				}
				f, err := c.reopen(node)
				_ = node.Close() // opened with O_PATH
				if st.Mode&unix.S_IFMT != unix.S_IFREG {
					if err == nil {
						wrong = wrong || c.safe // of a FIFO or a link
						_ = f.Close()
					}
					continue
				}
				if err != nil {
					continue
				}
				opened++
				b := make([]byte, 7)
				n, _ := f.ReadAt(b, 0) // of a FIFO it fails
				wrong = wrong || string(b[:n]) != "inside"
				_ = f.Close()
			}
			if opened == 0 || wrong == c.safe {
				t.Errorf("opened %d times, another file: %v", opened, wrong)
			}
		})
	}
}
