// Package faultfs contains file systems for tests of durability. FS fails on purpose: at the Nth operation that changes the
// disk, or at the Nth that reads it, once or from then on, with an error or with the death of the process. Tests increase N until no operation fails,
// and check each time that the store has exactly what was acknowledged. Order checks the order of operations.
package faultfs

import (
	"fmt"
	"io/fs"
	"os"
	"sync"
	"syscall"

	"ply/internal/durable"
)

// FS counts operations and lets them fail. Set its fields before use. Safe for concurrent use.
type FS struct {
	Under   durable.FS
	FailAt  int          // number of the operation that fails, from 1; 0 means none
	Forever bool         // all later operations fail too
	Reads   bool         // operations that read are counted and fail, and not those that change the disk
	Err     error        // the error; nil means EIO
	Short   bool         // a failing write writes half of its data first
	Kill    bool         // instead of failing, the process kills itself
	Trace   func(string) // receives "op path" for every counted operation; may be nil

	mu    sync.Mutex
	count int
	hit   bool
}

// Count returns the number of operations so far.
func (f *FS) Count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.count
}

// Hit reports whether the fault happened.
func (f *FS) Hit() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.hit
}

// step counts an operation that changes the disk, and returns the error with which it fails.
func (f *FS) step(op, path string) error { return f.operation(false, op, path) }

// read counts an operation that reads, and returns the error with which it fails.
func (f *FS) read(op, path string) error { return f.operation(true, op, path) }

func (f *FS) operation(reads bool, op, path string) error {
	if reads != f.Reads {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count++
	if f.Trace != nil {
		f.Trace(op + " " + path)
	}
	if f.FailAt == 0 || f.count < f.FailAt || (f.count > f.FailAt && !f.Forever) {
		return nil
	}
	f.hit = true
	if f.Kill {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	err := f.Err
	if err == nil {
		err = syscall.EIO
	}
	return &fs.PathError{Op: op, Path: path, Err: fmt.Errorf("injected: %w", err)}
}

// OpenFile implements durable.FS. It counts as a change when it may create or truncate the file, and as a read otherwise.
func (f *FS) OpenFile(name string, flag int, perm fs.FileMode) (durable.File, error) {
	count := f.read
	if flag&(os.O_CREATE|os.O_TRUNC) != 0 {
		count = f.step
	}
	if err := count("open", name); err != nil {
		return nil, err
	}
	file, err := f.Under.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return &faultFile{file, f}, nil
}

// Mkdir implements durable.FS. It counts.
func (f *FS) Mkdir(name string, perm fs.FileMode) error {
	if err := f.step("mkdir", name); err != nil {
		return err
	}
	return f.Under.Mkdir(name, perm)
}

// MkdirAll implements durable.FS. It counts.
func (f *FS) MkdirAll(name string, perm fs.FileMode) error {
	if err := f.step("mkdirall", name); err != nil {
		return err
	}
	return f.Under.MkdirAll(name, perm)
}

// Rename implements durable.FS. It counts.
func (f *FS) Rename(o, n string) error {
	if err := f.step("rename", n); err != nil {
		return err
	}
	return f.Under.Rename(o, n)
}

// Link implements durable.FS. It counts.
func (f *FS) Link(o, n string) error {
	if err := f.step("link", n); err != nil {
		return err
	}
	return f.Under.Link(o, n)
}

// Remove implements durable.FS. It counts.
func (f *FS) Remove(name string) error {
	if err := f.step("remove", name); err != nil {
		return err
	}
	return f.Under.Remove(name)
}

// RemoveAll implements durable.FS. It counts.
func (f *FS) RemoveAll(name string) error {
	if err := f.step("removeall", name); err != nil {
		return err
	}
	return f.Under.RemoveAll(name)
}

// Lstat implements durable.FS. It counts as a read.
func (f *FS) Lstat(name string) (fs.FileInfo, error) {
	if err := f.read("lstat", name); err != nil {
		return nil, err
	}
	return f.Under.Lstat(name)
}

// ReadDir implements durable.FS. It counts as a read.
func (f *FS) ReadDir(name string) ([]fs.DirEntry, error) {
	if err := f.read("readdir", name); err != nil {
		return nil, err
	}
	return f.Under.ReadDir(name)
}

// SyncDir implements durable.FS. It counts.
func (f *FS) SyncDir(name string) error {
	if err := f.step("syncdir", name); err != nil {
		return err
	}
	return f.Under.SyncDir(name)
}

// SyncFS implements durable.FS. It counts.
func (f *FS) SyncFS(name string) error {
	if err := f.step("syncfs", name); err != nil {
		return err
	}
	return f.Under.SyncFS(name)
}

type faultFile struct {
	durable.File
	fs *FS
}

func (f *faultFile) Write(p []byte) (int, error) {
	if err := f.fs.step("write", f.Name()); err != nil {
		return f.short(p), err
	}
	return f.File.Write(p)
}

// Read counts as a read. A failing one reads half of what it could when Short is set.
func (f *faultFile) Read(p []byte) (int, error) {
	if err := f.fs.read("read", f.Name()); err != nil {
		if !f.fs.Short {
			return 0, err
		}
		n, _ := f.File.Read(p[:len(p)/2])
		return n, err
	}
	return f.File.Read(p)
}

func (f *faultFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.fs.read("readat", f.Name()); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, off)
}

func (f *faultFile) short(p []byte) int {
	if !f.fs.Short {
		return 0
	}
	n, _ := f.File.Write(p[:len(p)/2])
	return n
}

func (f *faultFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.fs.step("writeat", f.Name()); err != nil {
		if !f.fs.Short {
			return 0, err
		}
		n, _ := f.File.WriteAt(p[:len(p)/2], off)
		return n, err
	}
	return f.File.WriteAt(p, off)
}

func (f *faultFile) Sync() error {
	if err := f.fs.step("sync", f.Name()); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f *faultFile) Truncate(size int64) error {
	if err := f.fs.step("truncate", f.Name()); err != nil {
		return err
	}
	return f.File.Truncate(size)
}
