package rootfs

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"ply/internal/errs"
)

func openRoot(t *testing.T) (*os.File, string) {
	t.Helper()
	dir := t.TempDir()
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root, dir
}

// stream returns a tar stream of headers; a regular file has its name as content.
func stream(t *testing.T, headers ...tar.Header) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		h.ModTime, h.Uid, h.Gid = time.Unix(1e9, 0), os.Getuid(), os.Getgid()
		if h.Mode == 0 {
			h.Mode = 0o750
		}
		if h.Typeflag == 0 {
			h.Typeflag, h.Size = tar.TypeReg, int64(len(h.Name))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := io.WriteString(w, h.Name); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

// names reads a tar stream: name → content, or "-> target" of a link.
func names(t *testing.T, r io.Reader) map[string]string {
	t.Helper()
	out := map[string]string{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		out[h.Name] = string(b)
		if h.Linkname != "" {
			out[h.Name] = "-> " + h.Linkname
		}
	}
}

func anything(Info) error { return nil }

// What was copied in comes out again, with times and modes.
func TestCopyInAndOut(t *testing.T) {
	root, dir := openRoot(t)
	check(t, os.Mkdir(filepath.Join(dir, "to"), 0o755))
	check(t, CopyIn(t.Context(), root, "/to", stream(t, tar.Header{Name: "d/", Typeflag: tar.TypeDir}, tar.Header{Name: "d/f"},
		tar.Header{Name: "d/hard", Typeflag: tar.TypeLink, Linkname: "d/f"}, tar.Header{Name: "d/soft", Typeflag: tar.TypeSymlink, Linkname: "f"}), CopyInOptions{}))
	var out bytes.Buffer
	check(t, CopyOut(t.Context(), root, "/to/d", anything, &out))
	got := names(t, &out)
	if len(got) != 4 || got["d/f"] != "d/f" || got["d/hard"] != "-> d/f" || got["d/soft"] != "-> f" {
		t.Errorf("copied out %v", got)
	}
	out.Reset()
	check(t, CopyOut(t.Context(), root, "/to/d/soft", anything, &out))
	if got := names(t, &out); len(got) != 1 || got["soft"] != "-> f" {
		t.Errorf("a link copied out as %v", got)
	}
	out.Reset()
	check(t, Export(t.Context(), root, &out))
	if got := names(t, &out); got["to/d/f"] != "d/f" {
		t.Errorf("exported %v", got)
	}
	st, err := Lstat(root, "/to/d/soft")
	if err != nil || st.Name != "soft" || st.LinkTarget != "/to/d/f" || st.Mode&fs.ModeSymlink == 0 {
		t.Errorf("Lstat of a link = %+v, %v", st, err)
	}
	if st, err = Lstat(root, "/to/d/f"); err != nil || st.Size != 3 || st.Mode != 0o750 || st.ModTime.Unix() != 1e9 {
		t.Errorf("Lstat of a file = %+v, %v", st, err)
	}
	var pe *PathError
	if _, err = Lstat(root, "/to/d/f/"); !errors.As(err, &pe) {
		t.Errorf("Lstat of a file as a directory = %v, want a PathError", err)
	}
}

// CopyIn refuses streams that lead out of the directory, and kinds that do not fit where the caller asks for that.
func TestCopyInRefusals(t *testing.T) {
	root, dir := openRoot(t)
	outside := filepath.Join(t.TempDir(), "victim")
	check(t, os.WriteFile(outside, []byte("host"), 0o600))
	check(t, os.MkdirAll(filepath.Join(dir, "to", "sub"), 0o755))
	check(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	for name, h := range map[string]tar.Header{
		"a name above":        {Name: "../out"},
		"a hard link above":   {Name: "x", Typeflag: tar.TypeLink, Linkname: "../../../../../.." + outside},
		"a hard link outside": {Name: "x", Typeflag: tar.TypeLink, Linkname: outside},
		"an empty link":       {Name: "x", Typeflag: tar.TypeSymlink},
		"an unknown type":     {Name: "x", Typeflag: 'Z'},
	} {
		if err := CopyIn(t.Context(), root, "/to", stream(t, h), CopyInOptions{}); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	// A link that the stream makes is resolved below the root.
	err := CopyIn(t.Context(), root, "/to", stream(t, tar.Header{Name: "esc", Typeflag: tar.TypeSymlink, Linkname: filepath.Dir(outside)}, tar.Header{Name: "esc/planted"}), CopyInOptions{})
	if _, serr := os.Lstat(filepath.Join(filepath.Dir(outside), "planted")); serr == nil {
		t.Fatalf("a file was written outside the root (%v)", err)
	}
	if err := CopyIn(t.Context(), root, "/to", stream(t, tar.Header{Name: "sub"}), CopyInOptions{KeepKinds: true}); !errors.Is(err, errs.Invalid) {
		t.Errorf("a file over a directory = %v, want Invalid", err)
	}
	check(t, CopyIn(t.Context(), root, "/to", stream(t, tar.Header{Name: "sub"}), CopyInOptions{}))
	if err := CopyIn(t.Context(), root, "/to", stream(t, tar.Header{Name: "x"}), CopyInOptions{ReadOnly: true}); !errors.Is(err, errs.Forbidden) {
		t.Errorf("into a read-only root = %v, want Forbidden", err)
	}
	if err := CopyIn(t.Context(), root, "/file", stream(t), CopyInOptions{}); !errors.Is(err, errs.Invalid) {
		t.Errorf("into a file = %v, want Invalid", err)
	}
	var pe *PathError
	if err := CopyIn(t.Context(), root, "/none", stream(t), CopyInOptions{}); !errors.As(err, &pe) || pe.Path != "/none" {
		t.Errorf("into nothing = %v, want a PathError", err)
	}
	if err := errors.Join(CheckPath(""), CheckPath("a\x00")); !errors.Is(err, errs.Invalid) {
		t.Errorf("CheckPath = %v", err)
	}
}
