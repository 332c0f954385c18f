package layertest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/layer"
)

// RunFaults makes a stack of layers and a writable over and over, each time letting another file-system operation of
// the driver fail: once with an error, and once as if the process ended there. After that a driver on the same
// root must start, hold whole layers or none, keep no leftovers, and take the same layers again.
func RunFaults(t *testing.T, open func(fsys durable.FS, root string) (layer.Driver, error)) {
	tars := [][]byte{
		makeTar(t, dir("a").chmod(0o700), file("a/f", noise(30, 20_000)), file("a/f", "again")),
		makeTar(t, file("a/g", "x"), hardlink("l", "a/f"), file("b/.wh.x", "")),
	}
	for _, dead := range []bool{false, true} {
		t.Run(map[bool]string{false: "error", true: "death"}[dead], func(t *testing.T) {
			for n := 1; ; n++ {
				if n > 500 {
					t.Fatal("the operation never gets through")
				}
				if done := faultAt(t, open, tars, n, dead); done {
					t.Logf("%d operations", n-1)
					return
				}
			}
		})
	}
}

// faultAt runs the story with operation n failing; done says that it ended before.
func faultAt(t *testing.T, open func(fsys durable.FS, root string) (layer.Driver, error), tars [][]byte, n int, dead bool) (done bool) {
	t.Helper()
	base := t.TempDir()
	root, dir := filepath.Join(base, "driver"), filepath.Join(base, "rw")
	must(t, os.Mkdir(root, 0o755))
	must(t, os.Mkdir(dir, 0o755))
	// Most trees are small; what a run leaves is not needed by the next.
	defer os.RemoveAll(base)
	fsys := &faultyFS{FS: durable.OS, at: n, dead: dead}
	story := func(fsys durable.FS) error {
		d, err := open(fsys, root)
		if err != nil {
			return err
		}
		var chain oci.Chain
		for _, data := range tars {
			info, err := tryIn(t.Context(), d, chain, data, diffID(data))
			if err != nil {
				return errors.Join(err, d.Close())
			}
			chain = append(chain, info.DiffID)
		}
		err = d.CreateWritable(t.Context(), dir, chain)
		return errors.Join(err, d.Close())
	}
	err := story(fsys)
	if !fsys.hit() {
		must(t, err)
		return true
	}
	if left := leftovers(t, root); !dead && len(left) > 0 && !strings.HasPrefix(fsys.what, "remove") {
		t.Errorf("operation %d (%s) failing leaves %q", n, fsys.what, left)
	}
	if err == nil && dead {
		t.Errorf("operation %d (%s): everything failed and nobody noticed", n, fsys.what)
	}
	d, err := open(durable.OS, root)
	if err != nil {
		t.Errorf("operation %d (%s): opening again: %v", n, fsys.what, err)
		return false
	}
	if left := leftovers(t, root); len(left) > 0 {
		t.Errorf("operation %d (%s): opening again leaves %q", n, fsys.what, left)
	}
	var chain oci.Chain
	for _, data := range tars {
		chain = append(chain, diffID(data))
		_, err := d.Stat(t.Context(), chain)
		if errors.Is(err, errs.NotFound) {
			continue
		}
		if err == nil {
			err = d.Verify(t.Context(), chain)
		}
		if err != nil {
			t.Errorf("operation %d (%s): layer %d is there, but %v", n, fsys.what, len(chain)-1, err)
		}
	}
	must(t, d.RemoveWritable(t.Context(), dir))
	must(t, d.Close())
	if err := story(durable.OS); err != nil {
		t.Errorf("operation %d (%s): second try: %v", n, fsys.what, err)
	}
	return false
}

var errInjected = fmt.Errorf("injected: %w", unix.EIO)

// faultyFS lets operation number at fail, and all after it when dead.
type faultyFS struct {
	durable.FS
	at   int
	dead bool

	mu   sync.Mutex
	n    int
	what string
}

func (f *faultyFS) hit() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.n >= f.at
}

func (f *faultyFS) next(op, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n++
	if f.n == f.at {
		f.what = op + " " + filepath.Base(name)
	}
	if f.n == f.at || f.dead && f.n > f.at {
		return &fs.PathError{Op: op, Path: name, Err: errInjected}
	}
	return nil
}

func (f *faultyFS) OpenFile(name string, flag int, perm fs.FileMode) (durable.File, error) {
	if err := f.next("open", name); err != nil {
		return nil, err
	}
	file, err := f.FS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return &faultyFile{File: file, fs: f}, nil
}

func (f *faultyFS) Mkdir(name string, perm fs.FileMode) error {
	return f.do("mkdir", name, func() error { return f.FS.Mkdir(name, perm) })
}

func (f *faultyFS) Rename(o, n string) error {
	return f.do("rename", n, func() error { return f.FS.Rename(o, n) })
}

func (f *faultyFS) RemoveAll(name string) error {
	return f.do("remove", name, func() error { return f.FS.RemoveAll(name) })
}

func (f *faultyFS) SyncDir(name string) error {
	return f.do("syncdir", name, func() error { return f.FS.SyncDir(name) })
}

func (f *faultyFS) SyncFS(name string) error {
	return f.do("syncfs", name, func() error { return f.FS.SyncFS(name) })
}

func (f *faultyFS) do(op, name string, call func() error) error {
	if err := f.next(op, name); err != nil {
		return err
	}
	return call()
}

type faultyFile struct {
	durable.File
	fs *faultyFS
}

func (f *faultyFile) Write(p []byte) (int, error) {
	if err := f.fs.next("write", f.Name()); err != nil {
		return 0, err
	}
	return f.File.Write(p)
}

func (f *faultyFile) Sync() error {
	return f.fs.do("fsync", f.Name(), f.File.Sync)
}
