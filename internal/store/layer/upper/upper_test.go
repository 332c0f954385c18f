package upper_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/store/layer/upper"
)

// ground creates names below a new directory: "d/" is a directory, "w:x" a whiteout of x, "o:d" marks d opaque, anything
// else is a file.
func ground(t *testing.T, names ...string) string {
	t.Helper()
	root := t.TempDir()
	for _, n := range names {
		kind, rest, marked := strings.Cut(n, ":")
		at := filepath.Join(root, rest)
		var err error
		switch {
		case marked && kind == "w":
			err = unix.Mknod(at, unix.S_IFCHR, 0)
		case marked && kind == "x":
			if err = os.WriteFile(at, nil, 0o600); err == nil {
				err = unix.Setxattr(at, "trusted.overlay.whiteout", nil, 0)
			}
		case marked && kind == "o":
			err = unix.Setxattr(at, upper.OpaqueXattr, []byte("y"), 0)
		case strings.HasSuffix(n, "/"):
			err = os.Mkdir(filepath.Join(root, n), 0o755)
		default:
			err = os.WriteFile(filepath.Join(root, n), []byte(n), 0o644)
		}
		if err != nil {
			t.Fatalf("%s: %v", n, err)
		}
	}
	return root
}

func lower(t *testing.T, dirs ...string) *upper.Stack {
	t.Helper()
	var files []*os.File
	for _, d := range dirs {
		f, err := os.Open(d)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		files = append(files, f)
	}
	return upper.StackLower(files...)
}

func diff(t *testing.T, dir string, l upper.Lower) []byte {
	t.Helper()
	var buf bytes.Buffer
	if err := upper.Diff(t.Context(), dir, l, &buf); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// list returns the entries of a tar, each with a mark for its type.
func list(t *testing.T, data []byte) (lines []string) {
	t.Helper()
	r := tar.NewReader(bytes.NewReader(data))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return lines
		}
		if err != nil {
			t.Fatal(err)
		}
		line := string(h.Typeflag) + " " + h.Name
		if h.Linkname != "" {
			line += " -> " + h.Linkname
		}
		lines = append(lines, line)
	}
}

func TestDiffAndChanges(t *testing.T) {
	below := []string{"keep", "gone", "d/", "d/old", "d/same", "e/", "e/x", "f"}
	cases := []struct {
		name    string
		upper   []string
		diff    []string
		changes []string
	}{
		{"empty", nil, nil, nil},
		{"added", []string{"new", "n/", "n/f"}, []string{"5 n/", "0 n/f", "0 new"}, []string{"A /n", "A /n/f", "A /new"}},
		{"modified", []string{"keep", "d/", "d/old"}, []string{"5 d/", "0 d/old", "0 keep"}, []string{"C /d", "C /d/old", "C /keep"}},
		{"whiteout", []string{"w:gone", "d/", "w:d/old"}, []string{"5 d/", "0 d/.wh.old", "0 .wh.gone"}, []string{"C /d", "D /d/old", "D /gone"}},
		{"whiteout_as_xattr", []string{"x:gone"}, []string{"0 .wh.gone"}, []string{"D /gone"}},
		{"whiteout_over_nothing", []string{"w:never", "n/", "w:n/never"}, []string{"5 n/"}, []string{"A /n"}},
		{"opaque", []string{"d/", "o:d", "d/same"}, []string{"5 d/", "0 d/.wh..wh..opq", "0 d/same"}, []string{"C /d", "D /d/old", "C /d/same"}},
		{"opaque_with_whiteout", []string{"d/", "o:d", "w:d/old"}, []string{"5 d/", "0 d/.wh..wh..opq"}, []string{"C /d", "D /d/old", "D /d/same"}},
		{"opaque_over_nothing", []string{"n/", "o:n", "n/f"}, []string{"5 n/", "0 n/f"}, []string{"A /n", "A /n/f"}},
		{"opaque_over_file", []string{"f/", "o:f", "f/x"}, []string{"5 f/", "0 f/x"}, []string{"C /f", "A /f/x"}},
		{"directory_to_file", []string{"d"}, []string{"0 d"}, []string{"C /d"}},
		{"order", []string{"a/", "a/z", "a.b", "a-b", "B"}, []string{"0 B", "5 a/", "0 a/z", "0 a-b", "0 a.b"}, []string{"A /B", "A /a", "A /a-b", "A /a.b", "A /a/z"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			l, dir := lower(t, ground(t, below...)), ground(t, c.upper...)
			got := list(t, diff(t, dir, l))
			if want := c.diff; !sameOrderByPath(got, want) {
				t.Errorf("diff = %q, want %q", got, want)
			}
			changes, err := upper.Changes(t.Context(), dir, l)
			if err != nil {
				t.Fatal(err)
			}
			var lines []string
			for _, ch := range changes {
				lines = append(lines, string("CAD"[ch.Kind])+" "+ch.Path)
			}
			if !slices.Equal(lines, c.changes) {
				t.Errorf("changes = %q, want %q", lines, c.changes)
			}
		})
	}
}

// sameOrderByPath checks that the entries are the same, and that every directory comes before its content.
func sameOrderByPath(got, want []string) bool {
	seen := map[string]bool{".": true}
	for _, line := range got {
		name := strings.Fields(line)[1]
		if !seen[filepath.Dir(strings.TrimSuffix(name, "/"))] {
			return false
		}
		seen[strings.TrimSuffix(name, "/")] = true
	}
	return slices.Equal(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want)))
}

func TestDiffAttributes(t *testing.T) {
	dir := ground(t, "f", "d/", "s")
	at := func(n string) string { return filepath.Join(dir, n) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	must(os.Lchown(at("f"), 2_500_000, 4_000_000_000))
	must(os.Chmod(at("f"), 0o755|os.ModeSetuid))
	for name, value := range map[string]string{
		"security.capability": capability, "user.a": "x\x00y", "user.overlay.opaque": "y", "trusted.overlay.origin": "secret", "trusted.mine": "z", "security.selinux": "host",
	} {
		must(unix.Setxattr(at("f"), name, []byte(value), 0))
	}
	must(unix.Setxattr(at("d"), "trusted.overlay.impure", []byte("y"), 0))
	must(os.Chtimes(at("f"), time.Time{}, time.Unix(-3, 123_456_789)))
	must(os.Link(at("f"), at("z")))
	must(unix.Mknod(at("s0"), unix.S_IFSOCK|0o600, 0))
	data := diff(t, dir, upper.Nothing)
	r := tar.NewReader(bytes.NewReader(data))
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		must(err)
		switch h.Name {
		case "f":
			want := map[string]string{"SCHILY.xattr.security.capability": capability, "SCHILY.xattr.user.a": "x\x00y", "SCHILY.xattr.trusted.mine": "z"}
			for k, v := range h.PAXRecords {
				if strings.HasPrefix(k, "SCHILY.") && want[k] != v {
					t.Errorf("record %s = %q, want %q", k, v, want[k])
				}
				delete(want, k)
			}
			if len(want) > 0 {
				t.Errorf("records %v are missing", want)
			}
			if h.Uid != 2_500_000 || h.Gid != 4_000_000_000 || h.Mode != 0o4755 || !h.ModTime.Equal(time.Unix(-3, 123_456_789)) || h.Uname != "" || h.Gname != "" {
				t.Errorf("header of f = %+v", h)
			}
		case "z":
			if h.Typeflag != tar.TypeLink || h.Linkname != "f" || h.Size != 0 {
				t.Errorf("header of a second name = %+v", h)
			}
		case "d/":
			if len(h.PAXRecords) > 1 { // only the time
				t.Errorf("records of d = %v", h.PAXRecords)
			}
		case "s0":
			t.Error("a socket is in the tar")
		}
	}
	if again := diff(t, dir, upper.Nothing); !bytes.Equal(again, data) {
		t.Error("a second diff of the same tree differs")
	}
}

func TestStackLower(t *testing.T) {
	top := ground(t, "a/", "a/1", "w:b", "c", "d/", "o:d", "d/new", "w:e")
	mid := ground(t, "a/", "a/2", "b", "c/", "c/x", "d/", "d/mid", "e/", "e/x", "f")
	low := ground(t, "a", "b", "c/", "d/", "d/low", "e/", "f/", "f/x", "g/", "g/x")
	s := lower(t, top, mid, low)
	for path, want := range map[string]int{
		".": 0, "a": 0, "a/1": 0, "a/2": 1, "b": -1, "c": 0, "c/x": -1, "d/new": 0, "d/mid": -1, "d/low": -1, "e": -1, "e/x": -1, "f": 1, "f/x": -1, "g/x": 2, "g/y": -1, "none/none": -1,
	} {
		_, layer, found, err := s.Where(path)
		if err != nil {
			t.Errorf("Where(%s): %v", path, err)
		}
		if !found {
			layer = -1
		}
		if layer != want {
			t.Errorf("Where(%s) is in layer %d, want %d", path, layer, want)
		}
	}
	for path, want := range map[string]string{".": "[a c d f g]", "a": "[1 2]", "d": "[new]", "f": "[]", "none": "[]"} {
		got, err := s.List(path)
		if err != nil || fmt.Sprint(got) != want {
			t.Errorf("List(%s) = %v, %v, want %s", path, got, err, want)
		}
	}
}

func TestUsage(t *testing.T) {
	dir := ground(t, "a", "d/", "d/bb", "w:w")
	if err := os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "d/a2")); err != nil {
		t.Fatal(err)
	}
	if n, err := upper.Usage(t.Context(), dir); n != int64(len("a")+len("d/bb")) || err != nil {
		t.Errorf("Usage = %d, %v, want 5", n, err)
	}
}

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("changed my mind")
	cancel(why)
	if err := upper.Diff(ctx, ground(t, "f"), upper.Nothing, io.Discard); !errors.Is(err, why) {
		t.Errorf("diff after cancel: %v, want %v", err, why)
	}
}

func TestWriteError(t *testing.T) {
	full := errors.New("full")
	if err := upper.Diff(t.Context(), ground(t, "f"), upper.Nothing, failing{full}); !errors.Is(err, full) {
		t.Errorf("diff into a failing writer: %v, want %v", err, full)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }
