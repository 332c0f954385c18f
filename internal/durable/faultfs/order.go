package faultfs

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"ply/internal/durable"
)

// Order is a durable.FS that checks the order of operations on which durability depends: content is synced before it gets
// its final name, and the directory is synced after that. Names that start with durable.TempPrefix, and all names below
// them, are not final. Order sees only what is done through it. Safe for concurrent use.
type Order struct {
	Under durable.FS
	// Report is called for every final name that is given to content which is not durable yet.
	Report func(problem string)

	mu    sync.Mutex
	dirty map[string]string // path → what of it is not durable; "content" of a file, "names" in a directory
}

const (
	dirtyContent = "content"
	dirtyNames   = "names"
)

// Unsynced lists what is not durable at the moment, except temporaries. It must be empty when an operation that promises
// durability has returned.
func (o *Order) Unsynced() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	var all []string
	for _, p := range slices.Sorted(maps.Keys(o.dirty)) {
		if !isTemp(p) {
			all = append(all, o.dirty[p]+" of "+p)
		}
	}
	return all
}

func isTemp(path string) bool {
	for part := range strings.SplitSeq(path, "/") {
		if durable.IsTemp(part) {
			return true
		}
	}
	return false
}

func (o *Order) mark(path, what string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.dirty == nil {
		o.dirty = map[string]string{}
	}
	o.dirty[filepath.Clean(path)] = what
}

// made marks a new name in its directory. The name of a temporary need not be durable.
func (o *Order) made(path string, err error) error {
	if err == nil && !durable.IsTemp(filepath.Base(path)) {
		o.mark(filepath.Dir(path), dirtyNames)
	}
	return err
}

func (o *Order) clean(path string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.dirty, filepath.Clean(path))
}

func isBelow(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

// OpenFile implements durable.FS.
func (o *Order) OpenFile(name string, flag int, perm fs.FileMode) (durable.File, error) {
	_, err := o.Under.Lstat(name)
	isNew := err != nil && flag&os.O_CREATE != 0
	f, err := o.Under.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	if isNew {
		_ = o.made(name, nil)
	}
	if isNew || flag&os.O_TRUNC != 0 {
		o.mark(name, dirtyContent)
	}
	return &orderFile{f, o}, nil
}

// Mkdir implements durable.FS.
func (o *Order) Mkdir(name string, perm fs.FileMode) error {
	return o.made(name, o.Under.Mkdir(name, perm))
}

// MkdirAll implements durable.FS. It is for directories that are created again at every start, so it marks nothing.
func (o *Order) MkdirAll(name string, perm fs.FileMode) error { return o.Under.MkdirAll(name, perm) }

// Rename implements durable.FS.
func (o *Order) Rename(from, to string) error {
	from, to = filepath.Clean(from), filepath.Clean(to)
	if err := o.Under.Rename(from, to); err != nil {
		return err
	}
	o.mu.Lock()
	moved := map[string]string{}
	for p, what := range o.dirty {
		if isBelow(p, to) {
			delete(o.dirty, p) // it was replaced
		}
		if isBelow(p, from) {
			delete(o.dirty, p)
			moved[to+strings.TrimPrefix(p, from)] = what
		}
	}
	maps.Copy(o.dirty, moved)
	o.mu.Unlock()
	if !isTemp(to) {
		for _, p := range slices.Sorted(maps.Keys(moved)) {
			o.Report(fmt.Sprintf("%s was renamed to %s before the %s of %s was synced", from, to, moved[p], p))
		}
	}
	o.mark(filepath.Dir(to), dirtyNames)
	return nil
}

// Link implements durable.FS.
func (o *Order) Link(from, to string) error { return o.made(to, o.Under.Link(from, to)) }

// Remove implements durable.FS.
func (o *Order) Remove(name string) error { return o.removed(name, o.Under.Remove(name)) }

// RemoveAll implements durable.FS.
func (o *Order) RemoveAll(name string) error { return o.removed(name, o.Under.RemoveAll(name)) }

// removed forgets what is gone. That the removal itself is not durable is no fault: a crash may undo it.
func (o *Order) removed(name string, err error) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for p := range o.dirty {
		if err == nil && isBelow(p, filepath.Clean(name)) {
			delete(o.dirty, p)
		}
	}
	return err
}

// Lstat implements durable.FS.
func (o *Order) Lstat(name string) (fs.FileInfo, error) { return o.Under.Lstat(name) }

// ReadDir implements durable.FS.
func (o *Order) ReadDir(name string) ([]fs.DirEntry, error) { return o.Under.ReadDir(name) }

// SyncDir implements durable.FS.
func (o *Order) SyncDir(name string) error {
	err := o.Under.SyncDir(name)
	if err == nil {
		o.clean(name)
	}
	return err
}

// SyncFS implements durable.FS.
func (o *Order) SyncFS(name string) error {
	err := o.Under.SyncFS(name)
	if err == nil {
		o.mu.Lock()
		clear(o.dirty)
		o.mu.Unlock()
	}
	return err
}

type orderFile struct {
	durable.File
	o *Order
}

func (f *orderFile) Write(p []byte) (int, error) {
	f.o.mark(f.Name(), dirtyContent)
	return f.File.Write(p)
}

func (f *orderFile) WriteAt(p []byte, off int64) (int, error) {
	f.o.mark(f.Name(), dirtyContent)
	return f.File.WriteAt(p, off)
}

func (f *orderFile) Truncate(size int64) error {
	f.o.mark(f.Name(), dirtyContent)
	return f.File.Truncate(size)
}

func (f *orderFile) Sync() error {
	err := f.File.Sync()
	if err == nil {
		f.o.clean(f.Name())
	}
	return err
}
