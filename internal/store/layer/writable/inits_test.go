package writable

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"ply/internal/durable"
	"ply/internal/oci"
	"ply/internal/store/layer"
)

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// An init layer is used again by the next writable over the same chain with the same entries. No other writable uses it, a
// restart removes it, and the number of spare ones is bounded.
func TestInitLayersAreUsedAgain(t *testing.T) {
	top := t.TempDir()
	image := filepath.Join(top, "image")
	if err := os.MkdirAll(filepath.Join(image, "etc"), 0o711); err != nil {
		t.Fatal(err)
	}
	base := Base{Root: -1, Open: func() ([]*os.File, error) {
		f, err := OpenDir(image)
		return []*os.File{f}, err
	}}
	kept := filepath.Join(top, "inits")
	inits, err := OpenInits(durable.OS, kept)
	if err != nil {
		t.Fatal(err)
	}
	chain := oci.Chain{"sha256:01"}
	list := []layer.InitEntry{{Path: "/dev", Dir: true, Mode: 0o755}, {Path: "/etc/hosts", Mode: 0o644}}
	n := 0
	make := func(chain oci.Chain, list []layer.InitEntry) (dir, path string) {
		t.Helper()
		n++
		dir = filepath.Join(top, "w", string(rune('a'+n)))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		path, err := inits.provide(dir, chain, base, list)
		if err != nil {
			t.Fatal(err)
		}
		if st, err := os.Stat(filepath.Join(path, "etc/hosts")); err != nil || !st.Mode().IsRegular() {
			t.Errorf("no mount point: %v", err)
		}
		if st, err := os.Stat(filepath.Join(path, "etc")); err != nil || st.Mode().Perm() != 0o711 {
			t.Errorf("/etc is not the image's: %v, %v", st, err)
		}
		return dir, path
	}
	remove := func(dir string) {
		t.Helper()
		if err := Remove(durable.OS, inits, dir); err != nil {
			t.Fatal(err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%s keeps %v, %v", dir, left, err)
		}
	}
	first, path := make(chain, list)
	ino := inode(t, path)
	if again, err := inits.provide(first, chain, base, list); err != nil || inode(t, again) != ino {
		t.Errorf("a second mount of one writable made another: %v", err)
	}
	remove(first)
	if _, p := make(oci.Chain{"sha256:02"}, list); inode(t, p) == ino {
		t.Error("another chain got it")
	}
	if _, p := make(chain, append(list, layer.InitEntry{Path: "/proc", Dir: true, Mode: 0o555})); inode(t, p) == ino {
		t.Error("another list got it")
	}
	second, p := make(chain, list)
	if inode(t, p) != ino {
		t.Error("the same chain did not get it")
	}
	if _, p := make(chain, list); inode(t, p) == ino {
		t.Error("two writables have one")
	}
	// A writable with other entries gets another init layer, and keeps only that one.
	if p2, err := inits.provide(second, chain, base, list[:0]); err != nil || p2 == p {
		t.Errorf("another list: %s, %v", p2, err)
	}
	if left, err := os.ReadDir(second); err != nil || len(left) != 1 {
		t.Errorf("after another list: %v, %v", left, err)
	}

	for i := range maxSpare + 5 {
		dir, _ := make(oci.Chain{oci.DiffID(rune('a' + i))}, list)
		defer remove(dir)
	}
	t.Cleanup(func() { // after the removals above
		if left, err := os.ReadDir(kept); err != nil || len(left) != maxSpare {
			t.Errorf("%d are kept, want %d, %v", len(left), maxSpare, err)
		}
		if _, err := OpenInits(durable.OS, kept); err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(kept); err != nil || len(left) != 0 {
			t.Errorf("a new process keeps %d, %v", len(left), err)
		}
	})
}

// What is left of a damaged writable is removed, whatever it is.
func TestRemoveDamaged(t *testing.T) {
	inits, err := OpenInits(durable.OS, filepath.Join(t.TempDir(), "inits"))
	if err != nil {
		t.Fatal(err)
	}
	for what, spoil := range map[string]func(upper string) error{
		"nothing": func(string) error { return nil },
		"a file":  func(upper string) error { return os.WriteFile(upper, []byte("x"), 0o600) },
		"a link":  func(upper string) error { return os.Symlink("/", upper) },
	} {
		dir := t.TempDir()
		if err := spoil(filepath.Join(dir, upperName)); err != nil {
			t.Fatal(err)
		}
		if err := Remove(durable.OS, inits, dir); err != nil {
			t.Errorf("%s in place of the upper directory: %v", what, err)
		}
		if names, err := os.ReadDir(dir); err != nil || len(names) > 0 {
			t.Errorf("%s in place of the upper directory: left %v, %v", what, names, err)
		}
	}
}
