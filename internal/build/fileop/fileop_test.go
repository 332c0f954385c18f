package fileop

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ply/internal/build/ops"
	"ply/internal/build/tree"
	"ply/internal/build/tree/treetest"
	"ply/internal/errs"
)

var now = time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC)

func makeTree(t *testing.T, rootOwned bool, files ...string) *tree.Tree {
	t.Helper()
	tr, err := tree.New(treetest.Dir(t, files...), tree.Options{RootOwned: rootOwned})
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func write(t *testing.T, base *tree.Tree, steps ...Step) (string, error) {
	t.Helper()
	var b bytes.Buffer
	o := Options{Now: now, Users: func(_ *tree.Tree, name string, group bool) (uint32, uint32, error) {
		if name != "joe" {
			return 0, 0, errs.New(errs.Invalid, "unable to find %s", name)
		}
		return 1000, map[bool]uint32{false: 1001, true: 100}[group], nil
	}}
	warnings := ""
	o.Warn = func(text string) { warnings += "\nwarning: " + text }
	for i := range steps {
		steps[i].Owner = func(ops.Identity) *tree.Tree { return base }
	}
	if err := Write(context.Background(), &b, base, steps, o); err != nil {
		return "", err
	}
	return list(t, &b) + warnings, nil
}

// list describes the entries of a tar, one per line.
func list(t *testing.T, r io.Reader) string {
	t.Helper()
	var lines []string
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return strings.Join(lines, "\n")
		}
		if err != nil {
			t.Fatal(err)
		}
		line := fmt.Sprintf("%s %o", h.Name, h.Mode)
		if h.Uid != 0 || h.Gid != 0 {
			line += fmt.Sprintf(" %d:%d", h.Uid, h.Gid)
		}
		switch h.Typeflag {
		case tar.TypeReg:
			b, err := io.ReadAll(tr)
			if err != nil {
				t.Fatal(err)
			}
			line += fmt.Sprintf(" %q", b)
		case tar.TypeSymlink:
			line += " -> " + h.Linkname
		case tar.TypeLink:
			line += " == " + h.Linkname
		}
		lines = append(lines, line)
	}
}

func cp(src, dest string, edit ...func(*ops.Copy)) *ops.Copy {
	c := &ops.Copy{Src: src, Dest: dest, Wildcards: true, Follow: true, ContentsOnly: true, MakeDest: true}
	for _, f := range edit {
		f(c)
	}
	return c
}

var context_ = []string{"a = 1", "b = 2", "d/f = 3", "d/e/g = 4", "link -> a", "d/l -> f", "h1 = 5", "h2 == h1"}

// What COPY writes. The base has /etc, /usr/bin, a link /bin to it and a file /file.
func TestCopy(t *testing.T) {
	parents := func(c *ops.Copy) { c.ContentsOnly = false; c.Follow = false }
	for _, c := range []struct {
		name string
		do   ops.FileAction
		want string
	}{
		{"file to a name", cp("/a", "/x"), `x 644 "1"`},
		{"file into a directory that is there", cp("/a", "/etc/"), "etc/ 755\n" + `etc/a 644 "1"`},
		{"file to the name of a directory", cp("/a", "/etc"), "etc/ 755\n" + `etc/a 644 "1"`},
		{"file over a file", cp("/a", "/file"), `file 644 "1"`},
		{"file into a new directory", cp("/a", "/new/dir/"), "new/ 755\nnew/dir/ 755\n" + `new/dir/a 644 "1"`},
		{"through a link", cp("/a", "/bin/x"), "usr/ 755\nusr/bin/ 755\n" + `usr/bin/x 644 "1"`},
		{"wildcards", cp("/?", "/x/"), "x/ 755\n" + `x/a 644 "1"` + "\n" + `x/b 644 "2"` + "\nx/e/ 755\n" + `x/e/g 644 "4"` + "\n" + `x/f 644 "3"` + "\nx/l 777 -> f"},
		{"directory", cp("/d", "/x"), "x/ 755\nx/e/ 755\n" + `x/e/g 644 "4"` + "\n" + `x/f 644 "3"` + "\nx/l 777 -> f"},
		{"directory into one that is there", cp("/d", "/etc"), "etc/ 755\netc/e/ 755\n" + `etc/e/g 644 "4"` + "\n" + `etc/f 644 "3"` + "\netc/l 777 -> f"},
		{"directory itself", cp("/d", "/etc", parents), "etc/ 755\netc/d/ 755\netc/d/e/ 755\n" + `etc/d/e/g 644 "4"` + "\n" + `etc/d/f 644 "3"` + "\netc/d/l 777 -> f"},
		{"link is followed", cp("/link", "/x"), `x 644 "1"`},
		{"link as it is", cp("/link", "/x", func(c *ops.Copy) { c.Follow = false }), "x 777 -> a"},
		{"hard links", cp("/h*", "/x/"), "x/ 755\n" + `x/h1 644 "5"` + "\nx/h2 644 == x/h1"},
		{"hard links in a directory", cp("/", "/x", func(c *ops.Copy) { c.Include = []string{"h1", "h2"} }), "x/ 755\n" + `x/h1 644 "5"` + "\nx/h2 644 == x/h1"},
		{"owner", cp("/a", "/n/x", func(c *ops.Copy) {
			c.Owner = &ops.Owner{User: &ops.Identity{Name: "joe"}, Group: &ops.Identity{Name: "joe"}}
		}),
			"n/ 755 1000:100\n" + `n/x 644 1000:100 "1"`},
		{"owner by number", cp("/a", "/x", func(c *ops.Copy) { c.Owner = &ops.Owner{User: &ops.Identity{ID: 5}} }), `x 644 5:5 "1"`},
		{"owner and group by number", cp("/a", "/x", func(c *ops.Copy) { c.Owner = &ops.Owner{User: &ops.Identity{ID: 5}, Group: &ops.Identity{}} }), `x 644 5:0 "1"`},
		{"owner with the group of passwd", cp("/a", "/x", func(c *ops.Copy) { c.Owner = &ops.Owner{User: &ops.Identity{Name: "joe"}} }), `x 644 1000:1001 "1"`},
		{"unknown owner", cp("/a", "/x", func(c *ops.Copy) { c.Owner = &ops.Owner{User: &ops.Identity{Name: "nobody"}} }), `x 644 "1"` + "\n" + `warning: owner "nobody": unable to find nobody; 0 is used`},
		{"mode", cp("/a", "/x", func(c *ops.Copy) { c.Mode = "4711" }), `x 4711 "1"`},
		{"mode in symbols", cp("/d", "/x", func(c *ops.Copy) { c.Mode = "go=,u+X" }), "x/ 755\nx/e/ 700\n" + `x/e/g 600 "4"` + "\n" + `x/f 600 "3"` + "\nx/l 777 -> f"},
		{"exclude", cp("/d", "/x", func(c *ops.Copy) { c.Exclude = []string{"e"} }), "x/ 755\n" + `x/f 644 "3"` + "\nx/l 777 -> f"},
		{"nothing matches, which is allowed", cp("/z*", "/x", func(c *ops.Copy) { c.AllowEmpty = true }), ""},
		{"directory over a file, replacing", cp("/d", "/file", func(c *ops.Copy) { c.ReplaceExisting = true; c.Include = []string{"f"} }), "file/ 755\n" + `file/f 644 "3"`},
		{"make a directory", &ops.MakeDir{Path: "/w/x", Mode: 0o750, Parents: true}, "w/ 750\nw/x/ 750"},
		{"make a directory that is there", &ops.MakeDir{Path: "/usr/bin", Mode: 0o700, Parents: true}, ""},
		{"make a file", &ops.MakeFile{Path: "/etc/new", Mode: 0o600, Data: []byte("x")}, "etc/ 755\n" + `etc/new 600 "x"`},
		{"make a link", &ops.Symlink{Path: "/l", Target: "/etc"}, "l 777 -> /etc"},
		{"remove", &ops.Remove{Path: "/etc/passwd"}, "etc/ 755\n" + `etc/.wh.passwd 0 ""`},
		{"remove by pattern", &ops.Remove{Path: "/etc/p*", Wildcards: true}, "etc/ 755\n" + `etc/.wh.passwd 0 ""`},
		{"remove what is not there", &ops.Remove{Path: "/none", AllowMissing: true}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			base := makeTree(t, true, "etc/passwd = root", "usr/bin/", "bin -> usr/bin", "file = old")
			got, err := write(t, base, Step{Do: c.do, From: makeTree(t, true, context_...)})
			if err != nil || got != c.want {
				t.Errorf("%v\n%s\nwant\n%s", err, got, c.want)
			}
		})
	}
}

func TestCopyRefuses(t *testing.T) {
	for _, c := range []struct {
		name  string
		do    ops.FileAction
		words string
	}{
		{"absent source", cp("/z", "/x"), `"/z": not found`},
		{"nothing matches", cp("/z*", "/x"), `"/z*": not found`},
		{"source through a file", cp("/a/b", "/x"), `"/a/b": not found`},
		{"directory over a file", cp("/d", "/file"), "cannot copy to non-directory: /file"},
		{"file over a directory", cp("/d", "/x", func(c *ops.Copy) { c.Dest = "/over" }), "cannot replace directory /over/f with file"},
		{"mode", cp("/a", "/x", func(c *ops.Copy) { c.Mode = "rwx" }), "mode"},
		{"destination without its directory", cp("/a", "/no/x", func(c *ops.Copy) { c.MakeDest = false }), "does not exist"},
		{"reserved name", cp("/a", "/.wh.x"), "reserved"},
		{"endless links", cp("/a", "/loop/x"), "too many levels"},
		{"below a file", cp("/a", "/file/x/"), "not a directory"},
		{"remove what is not there", &ops.Remove{Path: "/none"}, "not found"},
		{"remove the root", &ops.Remove{Path: "/"}, "root"},
		{"file as root", &ops.MakeFile{Path: "/", Mode: 0o644}, "is a directory"},
		{"link over a file", &ops.Symlink{Path: "/file", Target: "x"}, "exists"},
	} {
		t.Run(c.name, func(t *testing.T) {
			base := makeTree(t, true, "file = old", "over/f/x = 1", "loop -> loop")
			got, err := write(t, base, Step{Do: c.do, From: makeTree(t, true, context_...)})
			if err == nil || !strings.Contains(err.Error(), c.words) {
				t.Errorf("%v\n%s", err, got)
			}
		})
	}
}

// Actions of one operation see what those before them made.
func TestSeveralActions(t *testing.T) {
	src := makeTree(t, true, context_...)
	got, err := write(t, makeTree(t, true, "etc/passwd = root"),
		Step{Do: &ops.MakeDir{Path: "/real", Mode: 0o755}}, Step{Do: &ops.Symlink{Path: "/to", Target: "real"}},
		Step{Do: cp("/a", "/to/"), From: src}, Step{Do: cp("/b", "/to/a"), From: src})
	want := "real/ 755\nto 777 -> real\n" + `real/a 644 "1"` + "\n" + `real/a 644 "2"`
	if err != nil || got != want {
		t.Errorf("%v\n%s\nwant\n%s", err, got, want)
	}
	_, err = write(t, nil, Step{Do: &ops.MakeDir{Path: "/d", Mode: 0o755}}, Step{Do: &ops.Remove{Path: "/d"}})
	if !errors.Is(err, errs.Unimplemented) {
		t.Errorf("removing what the operation made: %v", err)
	}
	got, err = write(t, nil, Step{Do: cp("/a", "/x/y"), From: src})
	if err != nil || got != "x/ 755\n"+`x/y 644 "1"` {
		t.Errorf("on an empty tree: %v\n%s", err, got)
	}
}

// The layer repeats the directories above what it has with the attributes that they have.
func TestParentsKeepTheirAttributes(t *testing.T) {
	base := makeTree(t, false, "p/q/")
	if err := errors.Join(os.Chmod(filepath.Join(base.Root().Name(), "p"), 0o700), os.Chown(filepath.Join(base.Root().Name(), "p/q"), 3, 4)); err != nil {
		t.Fatal(err)
	}
	got, err := write(t, base, Step{Do: cp("/a", "/p/q/"), From: makeTree(t, true, context_...)})
	if err != nil || got != "p/ 700\np/q/ 755 3:4\n"+`p/q/a 644 "1"` {
		t.Errorf("%v\n%s", err, got)
	}
}

// The same input gives the same bytes.
func TestSameBytes(t *testing.T) {
	src := makeTree(t, true, context_...)
	var first []byte
	for range 3 {
		var b bytes.Buffer
		if err := Write(context.Background(), &b, nil, []Step{{Do: cp("/", "/x"), From: src}}, Options{Now: now}); err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = b.Bytes()
		}
		if !bytes.Equal(first, b.Bytes()) {
			t.Error("the bytes differ")
		}
	}
}

type entry struct {
	name, text, link string
	kind             byte
	mode             int64
	stored           bool // in a zip, not compressed
}

func tarOf(t *testing.T, entries ...entry) string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if e.mode == 0 {
			e.mode = 0o644
		}
		if err := w.WriteHeader(&tar.Header{Name: e.name, Typeflag: e.kind, Linkname: e.link, Size: int64(len(e.text)), Mode: e.mode, Uid: 5, ModTime: now}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func zipOf(t *testing.T, entries ...entry) string {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, e := range entries {
		h := &zip.FileHeader{Name: e.name, Modified: now, Method: zip.Deflate}
		h.SetMode(os.FileMode(e.mode))
		if e.stored {
			h.Method = zip.Store
		}
		if e.link != "" {
			h.SetMode(os.ModeSymlink | 0o777)
			e.text = e.link
		}
		f, err := w.CreateHeader(h)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(f, e.text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// ADD unpacks archives into the destination and nowhere else.
func TestUnpack(t *testing.T) {
	unpack := func(c *ops.Copy) { c.Unpack = true }
	for _, c := range []struct {
		name, data, want, fails string
	}{
		{"tar", tarOf(t, entry{name: "d/", kind: tar.TypeDir, mode: 0o700}, entry{name: "d/f", text: "x"}, entry{name: "d/l", kind: tar.TypeSymlink, link: "f"},
			entry{name: "h", kind: tar.TypeLink, link: "d/f"}, entry{name: "p", kind: tar.TypeFifo}),
			"to/ 755\nto/d/ 700 5:0\n" + `to/d/f 644 5:0 "x"` + "\nto/d/l 777 5:0 -> f\nto/h 644 5:0 == to/d/f\nto/p 644 5:0", ""},
		{"no archive", "plain", "to/ 755\n" + `to/file 644 "plain"`, ""},
		{"empty file", "", "to/ 755\n" + `to/file 644 ""`, ""},
		{"out by dots", tarOf(t, entry{name: "../../f", text: "x"}), "to/ 755\n" + `to/f 644 5:0 "x"`, ""},
		{"absolute", tarOf(t, entry{name: "/etc/f", text: "x"}), "to/ 755\nto/etc/ 755\n" + `to/etc/f 644 5:0 "x"`, ""},
		{"out by a link", tarOf(t, entry{name: "l", kind: tar.TypeSymlink, link: "/"}, entry{name: "l/etc", text: "x"}), "to/ 755\nto/l 777 5:0 -> /\n" + `to/etc 644 5:0 "x"`, ""},
		{"out by a link with dots", tarOf(t, entry{name: "l", kind: tar.TypeSymlink, link: "../../.."}, entry{name: "l/etc/f", text: "x"}),
			"to/ 755\nto/l 777 5:0 -> ../../..\nto/etc/ 755\n" + `to/etc/f 644 5:0 "x"`, ""},
		{"hard link to nothing", tarOf(t, entry{name: "h", kind: tar.TypeLink, link: "/etc/shadow"}), "", "not there"},
		{"whiteout", tarOf(t, entry{name: ".wh.passwd"}), "", "reserved"},
		{"file over a directory", tarOf(t, entry{name: "d/", kind: tar.TypeDir}, entry{name: "d", text: "x"}), "", "cannot overwrite directory"},
		{"cut", tarOf(t, entry{name: "f", text: strings.Repeat("x", 5000)})[:2000], "", "damaged archive"},
		{"zip", zipOf(t, entry{name: "d/", mode: 0o755}, entry{name: "d/f", text: "x", mode: 0o755}, entry{name: "l", link: "d/f"}),
			"to/ 755\nto/d/ 755\n" + `to/d/f 755 "x"` + "\nto/l 777 -> d/f", ""},
		{"zip out by dots", zipOf(t, entry{name: "../../f", text: "x", mode: 0o644}), "to/ 755\n" + `to/f 644 "x"`, ""},
		{"zip out by a link", zipOf(t, entry{name: "l", link: "/"}, entry{name: "l/etc", text: "x", mode: 0o644}), "to/ 755\nto/l 777 -> /\n" + `to/etc 644 "x"`, ""},
		{"zip that lies", strings.Replace(zipOf(t, entry{name: "f", text: "written", stored: true}), "written", "changed", 1), "", "damaged archive"},
		{"zip stored", zipOf(t, entry{name: "f", text: "written", mode: 0o644, stored: true}), "to/ 755\n" + `to/f 644 "written"`, ""},
		{"zip cut", zipOf(t, entry{name: "f", text: "x"})[:60], "", "damaged archive"},
	} {
		t.Run(c.name, func(t *testing.T) {
			src := makeTree(t, true, "file = "+c.data)
			got, err := write(t, makeTree(t, true, "etc/passwd = root"), Step{Do: cp("/file", "/to/", unpack), From: src})
			if c.fails != "" {
				if err == nil || !strings.Contains(err.Error(), c.fails) {
					t.Errorf("%v\n%s", err, got)
				}
				return
			}
			if err != nil || got != c.want {
				t.Errorf("%v\n%s\nwant\n%s", err, got, c.want)
			}
		})
	}
}
