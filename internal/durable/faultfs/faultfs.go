// Package faultfs is a durable.FS that fails on purpose: at the Nth operation that changes the disk, once or from
// then on, with an error or with the death of the process. Tests loop N upward until an operation passes untouched,
// and look each time whether the store holds exactly what was acknowledged.
package faultfs

import (
	"fmt"
	"io/fs"
	"os"
	"sync"
	"syscall"

	"ply/internal/durable"
)

// FS counts and fails. Set its fields before use; safe for concurrent use.
type FS struct {
	Under   durable.FS
	FailAt  int          // number of the operation that fails, from 1; 0 = none
	Forever bool         // all later operations fail too
	Err     error        // what they fail with; nil = EIO
	Short   bool         // a failing write writes half first
	Kill    bool         // instead of failing, the process kills itself
	Trace   func(string) // gets "op path" for every counted operation; may be nil

	mu    sync.Mutex
	count int
	hit   bool
}

// Count is how many operations there were.
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

func (f *FS) step(op, path string) error {
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

// OpenFile counts when the file may be made or cut.
func (f *FS) OpenFile(name string, flag int, perm fs.FileMode) (durable.File, error) {
	if flag&(os.O_CREATE|os.O_TRUNC) != 0 {
		if err := f.step("open", name); err != nil {
			return nil, err
		}
	}
	file, err := f.Under.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return &faultFile{file, f}, nil
}

// Mkdir counts.
func (f *FS) Mkdir(name string, perm fs.FileMode) error {
	if err := f.step("mkdir", name); err != nil {
		return err
	}
	return f.Under.Mkdir(name, perm)
}

// MkdirAll counts.
func (f *FS) MkdirAll(name string, perm fs.FileMode) error {
	if err := f.step("mkdirall", name); err != nil {
		return err
	}
	return f.Under.MkdirAll(name, perm)
}

// Rename counts.
func (f *FS) Rename(o, n string) error {
	if err := f.step("rename", n); err != nil {
		return err
	}
	return f.Under.Rename(o, n)
}

// Link counts.
func (f *FS) Link(o, n string) error {
	if err := f.step("link", n); err != nil {
		return err
	}
	return f.Under.Link(o, n)
}

// Remove counts.
func (f *FS) Remove(name string) error {
	if err := f.step("remove", name); err != nil {
		return err
	}
	return f.Under.Remove(name)
}

// RemoveAll counts.
func (f *FS) RemoveAll(name string) error {
	if err := f.step("removeall", name); err != nil {
		return err
	}
	return f.Under.RemoveAll(name)
}

// Lstat only reads.
func (f *FS) Lstat(name string) (fs.FileInfo, error) { return f.Under.Lstat(name) }

// ReadDir only reads.
func (f *FS) ReadDir(name string) ([]fs.DirEntry, error) { return f.Under.ReadDir(name) }

// SyncDir counts.
func (f *FS) SyncDir(name string) error {
	if err := f.step("syncdir", name); err != nil {
		return err
	}
	return f.Under.SyncDir(name)
}

// SyncFS counts.
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

func (f *faultFile) short(p []byte) int {
	if !f.fs.Short {
		return 0
	}
	n, _ := f.File.Write(p[:len(p)/2])
	return n
}

func (f *faultFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.fs.step("writeat", f.Name()); err != nil {
		return 0, err
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
