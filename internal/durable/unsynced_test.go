package durable

import (
	"os"
	"path/filepath"
	"testing"
)

// syncs counts the calls that make something durable.
type syncs struct {
	FS
	n *int
}

func (s syncs) OpenFile(name string, flag int, perm os.FileMode) (File, error) {
	f, err := s.FS.OpenFile(name, flag, perm)
	return countedFile{f, s.n}, err
}
func (s syncs) SyncDir(name string) error { *s.n++; return s.FS.SyncDir(name) }
func (s syncs) SyncFS(name string) error  { *s.n++; return s.FS.SyncFS(name) }

type countedFile struct {
	File
	n *int
}

func (f countedFile) Sync() error { *f.n++; return f.File.Sync() }

func TestUnsynced(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	for _, unsynced := range []bool{false, true} {
		n := 0
		var fsys FS = syncs{OS, &n}
		if unsynced {
			fsys = Unsynced(fsys)
		}
		if err := WriteFile(fsys, name, []byte("content"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := fsys.SyncFS(name); err != nil {
			t.Fatal(err)
		}
		if (n == 0) != unsynced {
			t.Errorf("unsynced %t: %d syncs", unsynced, n)
		}
		if b, err := os.ReadFile(name); err != nil || string(b) != "content" {
			t.Errorf("unsynced %t: %q, %v", unsynced, b, err)
		}
	}
}
