package durable

import (
	"os"
	"path/filepath"
	"testing"
)

func TestMkdirPrivate(t *testing.T) {
	base := t.TempDir()
	mode := func(name string) os.FileMode {
		fi, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		return fi.Mode().Perm()
	}
	fresh := filepath.Join(base, "parent", "fresh")
	if err := MkdirPrivate(OS, fresh); err != nil || mode(fresh) != 0o700 || mode(filepath.Dir(fresh)) != 0o711 {
		t.Errorf("new directory: %v, %v", mode(fresh), err)
	}
	for _, c := range []struct{ was, want os.FileMode }{{0o711, 0o700}, {0o755, 0o700}, {0o750, 0o700}, {0o700, 0o700}, {0o500, 0o500}} {
		dir := filepath.Join(base, c.was.String())
		if err := os.Mkdir(dir, c.was); err != nil {
			t.Fatal(err)
		}
		if err := MkdirPrivate(OS, dir); err != nil || mode(dir) != c.want {
			t.Errorf("%v became %v, want %v; %v", c.was, mode(dir), c.want, err)
		}
	}
	real, link := filepath.Join(base, "real"), filepath.Join(base, "link")
	if err := os.Mkdir(real, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	if err := MkdirPrivate(OS, link); err != nil || mode(real) != 0o700 {
		t.Errorf("behind a link: %v, %v", mode(real), err)
	}
	file := filepath.Join(base, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := MkdirPrivate(OS, file); err == nil || mode(file) != 0o644 {
		t.Errorf("a file: %v, %v", mode(file), err)
	}
}
