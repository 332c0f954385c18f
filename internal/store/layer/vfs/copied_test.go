package vfs

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/record"
	"ply/internal/record/recordtest"
	"ply/internal/store/layer"
	"ply/internal/store/layer/tree"
)

// The form in which a writable is described. The files of builds before the first release decode too.
func TestGoldenCopied(t *testing.T) {
	v := copied{Since: [2]int64{1700000000, 5}, Made: []mark{{
		Path: tree.Name("etc/hosts"), Ino: 12, Mode: unix.S_IFREG | 0o644, Uid: 1, Gid: 2, Size: 3, Mtime: [2]int64{1700000001, 6},
	}}}
	recordtest.Filled(t, v)
	data, err := record.Marshal(copiedVersion, v)
	if err != nil {
		t.Fatal(err)
	}
	recordtest.Golden(t, "copied.v1.json", data)
	recordtest.Decodes(t, "copied.v1.json", copiedVersion, v)
	recordtest.Decodes(t, "copied.unversioned.json", copiedVersion, v)
}

// The writable of a newer release is not mounted and not changed.
func TestNewerWritableIsRefused(t *testing.T) {
	d, err := Open(durable.OS, t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	dir, target := t.TempDir(), t.TempDir()
	if err := d.CreateWritable(t.Context(), dir, nil); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, copiedName)
	newer := `{"version":2,"writer":"9.8.7"}`
	if err := os.WriteFile(name, []byte(newer), 0o600); err != nil {
		t.Fatal(err)
	}
	err = d.Mount(t.Context(), dir, nil, target, layer.MountOptions{Init: []layer.InitEntry{{Path: "/dev", Dir: true, Mode: 0o755}}})
	if !errors.Is(err, errs.Precondition) || !strings.Contains(err.Error(), "ply 9.8.7") {
		t.Errorf("Mount = %v, want class Precondition and the writer", err)
	}
	if _, err := d.Changes(t.Context(), dir, nil); !errors.Is(err, errs.Precondition) {
		t.Errorf("Changes = %v, want class Precondition", err)
	}
	if got, err := os.ReadFile(name); err != nil || string(got) != newer {
		t.Errorf("the file is now %s, %v", got, err)
	}
	if left, err := os.ReadDir(treeOf(dir)); err != nil || len(left) != 0 {
		t.Errorf("the tree now has %v, %v", left, err)
	}
}
