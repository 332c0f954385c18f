package tree

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/build/tree/treetest"
	"ply/internal/errs"
	"ply/internal/safepath/racetest"
)

func newTree(t *testing.T, o Options, files ...string) (*Tree, string) {
	t.Helper()
	root := treetest.Dir(t, files...)
	tr, err := New(root, o)
	if err != nil {
		t.Fatal(err)
	}
	return tr, root.Name()
}

func walk(t *testing.T, tr *Tree, start string, o WalkOptions) string {
	t.Helper()
	var names []string
	err := tr.Walk(start, o, func(e *Entry) error {
		name := e.Rel
		if name == "" {
			name = "."
		}
		if e.Info.IsDir() {
			name += "/"
		}
		names = append(names, name)
		return nil
	})
	if err != nil {
		return err.Error()
	}
	return strings.Join(names, " ")
}

var sample = []string{"a = 1", "d/b = 2", "d/e/c = 3", "d/e/x.log = 4", "other/", "link -> d", "abs -> /d/e", "out -> ../../../etc/passwd"}

func TestWalk(t *testing.T) {
	for _, c := range []struct {
		name  string
		tree  Options
		start string
		o     WalkOptions
		want  string
	}{
		{"all", Options{}, "/", WalkOptions{}, "./ a abs d/ d/b d/e/ d/e/c d/e/x.log link other/ out"},
		{"file", Options{}, "a", WalkOptions{}, "."},
		{"link", Options{}, "link", WalkOptions{}, "."},
		{"followed", Options{}, "link", WalkOptions{Follow: true}, "./ b e/ e/c e/x.log"},
		{"absolute link", Options{}, "abs", WalkOptions{Follow: true}, "./ c x.log"},
		{"through a link", Options{}, "link/e/c", WalkOptions{}, "."},
		{"depth", Options{}, "/", WalkOptions{Depth: 1}, "./ a abs d/ link other/ out"},
		{"ignored", Options{Exclude: []string{"d", "!d/e/c"}}, "/", WalkOptions{}, "./ a abs d/ d/e/ d/e/c link other/ out"},
		{"ignored directory", Options{Exclude: []string{"d"}}, "/", WalkOptions{}, "./ a abs link other/ out"},
		{"ignored start", Options{Exclude: []string{"d"}}, "d/b", WalkOptions{}, "open d/b: file does not exist"},
		{"ignored behind a link", Options{Exclude: []string{"d"}}, "link/b", WalkOptions{}, "open link/b: file does not exist"},
		{"pattern", Options{Exclude: []string{"**/*.log"}}, "d", WalkOptions{}, "./ b e/ e/c"},
		{"include", Options{Include: []string{"d/e"}}, "/", WalkOptions{}, "./ d/ d/e/ d/e/c d/e/x.log"},
		{"include of the copy", Options{}, "/", WalkOptions{Include: []string{"**/c"}}, "./ d/ d/e/ d/e/c"},
		{"exclude of the copy", Options{}, "d", WalkOptions{Exclude: []string{"e/c"}}, "./ b e/ e/x.log"},
		{"absent", Options{}, "nothing", WalkOptions{}, "openat2 nothing: no such file or directory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tr, _ := newTree(t, c.tree, sample...)
			got := walk(t, tr, c.start, c.o)
			if c.name == "absent" {
				if !strings.Contains(got, "no such file") {
					t.Errorf("got %q", got)
				}
				return
			}
			if got != c.want {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
		})
	}
}

func TestMatch(t *testing.T) {
	tr, _ := newTree(t, Options{}, "a.go = 1", "b.go = 2", "d/c.go = 3", "d/e/f.go = 4", "[x] = 5")
	for pattern, want := range map[string]string{
		"*.go": "/a.go /b.go", "d/*.go": "/d/c.go", "*/*.go": "/d/c.go", "d*": "/d", "a.go": "/a.go", "nothing*": "", "no/such/*": "", `\[x\]`: `/\[x\]`, "?.go": "/a.go /b.go",
	} {
		got, err := tr.Match(pattern, false)
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("%s: %q, %v, want %q", pattern, got, err, want)
		}
	}
	if _, err := tr.Match("[", false); !errors.Is(err, errs.Invalid) {
		t.Errorf("a malformed pattern: %v", err)
	}
}

func TestReadFile(t *testing.T) {
	tr, _ := newTree(t, Options{Exclude: []string{"hidden"}}, append(sample, "hidden = secret")...)
	if b, err := tr.ReadFile("link/e/../b", 0, 10); err != nil || string(b) != "2" {
		t.Errorf("%q, %v", b, err)
	}
	for _, p := range []string{"hidden", "out", "d", "nothing"} {
		if b, err := tr.ReadFile(p, 0, 10); err == nil {
			t.Errorf("%s: %q", p, b)
		}
	}
	names, _, err := tr.ReadDir("d/e")
	if err != nil || strings.Join(names, " ") != "c x.log" {
		t.Errorf("%q, %v", names, err)
	}
	if _, err := tr.Stat("hidden", false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a hidden file: %v", err)
	}
}

func digest(t *testing.T, tr *Tree, s ...Selection) string {
	t.Helper()
	d, err := tr.Digest(context.Background(), s)
	if err != nil {
		t.Fatal(err)
	}
	return string(d)
}

// What a copy would take decides about the digest: everything but times, and nothing else.
func TestDigest(t *testing.T) {
	sel := Selection{Src: "/d"}
	for _, c := range []struct {
		name    string
		change  func(dir string) error
		differs bool
	}{
		{"nothing", func(string) error { return nil }, false},
		{"time", func(dir string) error { return os.Chtimes(filepath.Join(dir, "d/b"), time.Unix(1, 0), time.Unix(1, 0)) }, false},
		{"outside", func(dir string) error { return os.WriteFile(filepath.Join(dir, "a"), []byte("9"), 0o644) }, false},
		{"content of the same size", func(dir string) error { return os.WriteFile(filepath.Join(dir, "d/b"), []byte("9"), 0o644) }, true},
		{"mode", func(dir string) error { return os.Chmod(filepath.Join(dir, "d/b"), 0o600) }, true},
		{"mode of a directory", func(dir string) error { return os.Chmod(filepath.Join(dir, "d/e"), 0o700) }, true},
		{"name", func(dir string) error { return os.Rename(filepath.Join(dir, "d/b"), filepath.Join(dir, "d/bb")) }, true},
		{"new file", func(dir string) error { return os.WriteFile(filepath.Join(dir, "d/new"), nil, 0o644) }, true},
		{"removed file", func(dir string) error { return os.Remove(filepath.Join(dir, "d/e/c")) }, true},
		{"link", func(dir string) error { return os.Symlink("b", filepath.Join(dir, "d/l")) }, true},
		{"file as directory", func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, "d/b")), os.Mkdir(filepath.Join(dir, "d/b"), 0o755))
		}, true},
		{"attribute", func(dir string) error { return unix.Setxattr(filepath.Join(dir, "d/b"), "user.x", []byte("y"), 0) }, true},
		{"value of an attribute", func(dir string) error { return unix.Setxattr(filepath.Join(dir, "d/b"), "user.known", []byte("2"), 0) }, true},
		{"target of a link", func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, "d/to")), os.Symlink("two", filepath.Join(dir, "d/to")))
		}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := NewDigests()
			tr, dir := newTree(t, Options{RootOwned: true, Digests: d}, sample...)
			if err := errors.Join(os.Symlink("one", filepath.Join(dir, "d/to")), unix.Setxattr(filepath.Join(dir, "d/b"), "user.known", []byte("1"), 0)); err != nil {
				t.Fatal(err)
			}
			before := digest(t, tr, sel)
			if err := c.change(dir); err != nil {
				t.Fatal(err)
			}
			if got := digest(t, tr, sel); (got != before) != c.differs {
				t.Errorf("the digest is %s, was %s", got, before)
			}
		})
	}
	a, _ := newTree(t, Options{}, "x/y = 1")
	b, _ := newTree(t, Options{}, "xy = 1")
	if digest(t, a, Selection{Src: "/"}) == digest(t, b, Selection{Src: "/"}) {
		t.Error("two trees with other names have one digest")
	}
}

// A remembered digest is used only while the file cannot have changed.
func TestDigestsAreNotStale(t *testing.T) {
	d := NewDigests()
	tr, dir := newTree(t, Options{Digests: d}, "f = 1")
	p := filepath.Join(dir, "f")
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(p, old, old); err != nil {
		t.Fatal(err)
	}
	first := digest(t, tr, Selection{Src: "f"})
	// The same size and the same modification time: only the time of the attributes tells.
	if err := errors.Join(os.WriteFile(p, []byte("2"), 0o644), os.Chtimes(p, old, old)); err != nil {
		t.Fatal(err)
	}
	if digest(t, tr, Selection{Src: "f"}) == first {
		t.Error("the digest of the old content was used")
	}
}

// A file whose digest is remembered is not opened, and every change of it is seen.
func TestDigestsSeeChanges(t *testing.T) {
	for _, c := range []struct {
		what   string
		change func(p string) error
	}{
		{"content", func(p string) error { return os.WriteFile(p, []byte("2"), 0o644) }},
		{"mode", func(p string) error { return os.Chmod(p, 0o600) }},
		{"attribute", func(p string) error { return unix.Setxattr(p, "user.x", []byte("y"), 0) }},
		{"another file", func(p string) error {
			return errors.Join(os.WriteFile(p+".new", []byte("3"), 0o644), os.Rename(p+".new", p))
		}},
	} {
		t.Run(c.what, func(t *testing.T) {
			d := NewDigests()
			d.racy = -time.Hour
			tr, dir := newTree(t, Options{Digests: d}, "f = 1")
			p := filepath.Join(dir, "f")
			first := digest(t, tr, Selection{Src: "/"})
			opened := true
			if err := tr.Walk("/", WalkOptions{known: true}, func(e *Entry) error { opened = e.Rel == "f" && e.sum == nil; return nil }); err != nil {
				t.Fatal(err)
			}
			if opened || digest(t, tr, Selection{Src: "/"}) != first {
				t.Error("the digest is not remembered")
			}
			var before, after unix.Stat_t
			for err := unix.Stat(p, &before); before.Ctim == after.Ctim || after.Ino == 0; err = unix.Stat(p, &after) { // a clock may be coarse
				if err = errors.Join(err, c.change(p)); err != nil {
					t.Fatal(err)
				}
			}
			if digest(t, tr, Selection{Src: "/"}) == first {
				t.Error("the change was not seen")
			}
		})
	}
}

// A directory that is exchanged for a link while it is walked leads nowhere else.
func TestWalkRacesLinks(t *testing.T) {
	secret := t.TempDir()
	if err := os.WriteFile(filepath.Join(secret, "b"), []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	tr, dir := newTree(t, Options{}, "d/b = 2")
	if err := os.Symlink(secret, filepath.Join(dir, "evil")); err != nil {
		t.Fatal(err)
	}
	racetest.Exchange(t, [2]string{filepath.Join(dir, "d"), filepath.Join(dir, "evil")})
	for range 2000 {
		for _, p := range []string{"/", "d", "d/b"} {
			_ = tr.Walk(p, WalkOptions{Follow: true}, func(e *Entry) error { // errors are the racing's; what is read counts
				if !e.Info.IsRegular() {
					return nil
				}
				f, err := e.Open()
				if err != nil {
					return err
				}
				defer f.Close()
				b := make([]byte, 10)
				n, _ := f.Read(b)
				if strings.Contains(string(b[:n]), "secret") {
					t.Error("a file outside of the tree was read")
				}
				return nil
			})
		}
		if b, err := tr.ReadFile("d/b", 0, 10); err == nil && slices.Equal(b, []byte("secret")) {
			t.Fatal("a file outside of the tree was read")
		}
	}
}
