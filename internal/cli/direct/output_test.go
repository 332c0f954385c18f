package direct

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func tarOf(t *testing.T, list ...tar.Header) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range list {
		h.Size = 0
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len("text"))
		}
		h.Mode = 0o644
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			w.Write([]byte("text"))
		}
	}
	w.Close()
	return &b
}

// What leads out of the directory of an output is refused, by its name or through a link, and nothing outside is changed.
func TestOutputStaysInItsDirectory(t *testing.T) {
	for name, list := range map[string][]tar.Header{
		"name":      {{Name: "../out", Typeflag: tar.TypeReg}},
		"absolute":  {{Name: "/out", Typeflag: tar.TypeReg}},
		"link":      {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: ".."}, {Name: "l/out", Typeflag: tar.TypeReg}},
		"hard link": {{Name: "l", Typeflag: tar.TypeLink, Linkname: "../secret"}},
		"device":    {{Name: "d", Typeflag: tar.TypeChar}},
	} {
		top := t.TempDir()
		if err := os.WriteFile(filepath.Join(top, "secret"), []byte("s"), 0o600); err != nil {
			t.Fatal(err)
		}
		err := ToDir(filepath.Join(top, "dest")).takeDir(tarOf(t, list...), func() error { return nil })
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
		if _, err := os.Lstat(filepath.Join(top, "out")); err == nil {
			t.Errorf("%s: wrote outside of the directory", name)
		}
	}
}

// A file appears under its name when it is complete; an output that breaks off leaves the old one, and no other file.
func TestOutputIsCompleteOrAbsent(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "f")
	if err := ToFile(name).takeFile(strings.NewReader("one"), func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken off")
	if err := ToFile(name).takeFile(strings.NewReader("tw"), func() error { return broken }); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
	list, err := os.ReadDir(dir)
	if err != nil || len(list) != 1 {
		t.Errorf("files %v, %v", list, err)
	}
	if b, err := os.ReadFile(name); err != nil || string(b) != "one" {
		t.Errorf("%q, %v", b, err)
	}
}

// A file of a directory is replaced when the new one is complete. A link in its place is replaced, not followed, and other files stay.
func TestFilesOfADirectoryAreWhole(t *testing.T) {
	top := t.TempDir()
	dest := filepath.Join(top, "dest")
	write := func(name, text string) {
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	content := func(name string) string {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Error(err)
		}
		return string(b)
	}
	write(filepath.Join(dest, "f"), "old")
	write(filepath.Join(dest, "mine"), "mine")
	write(filepath.Join(top, "secret"), "secret")
	if err := os.Symlink("../secret", filepath.Join(dest, "link")); err != nil {
		t.Fatal(err)
	}
	whole := tarOf(t, tar.Header{Name: "f", Typeflag: tar.TypeReg}, tar.Header{Name: "link", Typeflag: tar.TypeReg}).Bytes()
	if err := ToDir(dest).takeDir(bytes.NewReader(whole[:512+2]), func() error { return nil }); err == nil {
		t.Error("a tar that ends in a file is complete")
	}
	if list, err := os.ReadDir(dest); err != nil || len(list) != 3 || content(filepath.Join(dest, "f")) != "old" {
		t.Errorf("afterwards: %v, %v, f is %q", list, err, content(filepath.Join(dest, "f")))
	}
	if err := ToDir(dest).takeDir(bytes.NewReader(whole), func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"dest/f": "text", "dest/link": "text", "dest/mine": "mine", "secret": "secret"} {
		if got := content(filepath.Join(top, name)); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

// An output whose directory must not be used writes nothing, and leaves no directory.
func TestOutputThatIsRefused(t *testing.T) {
	top := t.TempDir()
	no := errors.New("no")
	refuse := func(f *os.File, write bool) error {
		if !write {
			t.Error("asked whether it may be read")
		}
		return no
	}
	for name, take := range map[string]func(Output, io.Reader, func() error) error{"file": Output.takeFile, "dir": Output.takeDir} {
		o := Output{dest: filepath.Join(top, name), check: refuse}
		if err := take(o, tarOf(t, tar.Header{Name: "a", Typeflag: tar.TypeReg}), func() error { return nil }); !errors.Is(err, no) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if left, err := os.ReadDir(top); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
