// Package durable writes to disk so that the result survives a crash. It is the only way in which the store writes: FS is
// an interface, so that tests can let any operation fail, and the functions are the recipes.
//
// The recipe: create a temporary file in the same directory, write, fsync, rename, fsync the directory. A committed file is
// never changed. A crash leaves nothing but temporaries, whose names start with TempPrefix; the next start may remove them.
package durable

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// TempPrefix starts the names of the files and directories that a crash may leave behind.
const TempPrefix = ".tmp-"

// File is an open file. *os.File is one.
type File interface {
	io.ReadWriteCloser
	io.ReaderAt
	io.WriterAt
	io.Seeker
	Name() string
	Fd() uintptr
	Stat() (fs.FileInfo, error)
	// Sync makes the content durable. An error is final: some of the content may be lost, so the caller must give up the
	// file and not call Sync again.
	Sync() error
	Truncate(size int64) error
}

// FS contains every operation by which the store changes a file system. Safe for concurrent use.
type FS interface {
	OpenFile(name string, flag int, perm fs.FileMode) (File, error)
	Mkdir(name string, perm fs.FileMode) error
	MkdirAll(name string, perm fs.FileMode) error
	// Rename replaces newname if it exists, in one step: a file by a file, and an empty directory by a directory.
	Rename(oldname, newname string) error
	Link(oldname, newname string) error
	Remove(name string) error
	RemoveAll(name string) error
	Lstat(name string) (fs.FileInfo, error)
	ReadDir(name string) ([]fs.DirEntry, error)
	// SyncDir makes the names in a directory durable.
	SyncDir(name string) error
	// SyncFS writes everything of the file system that contains name to disk. It is for trees of many files.
	SyncFS(name string) error
}

var tempCount atomic.Uint64

// TempName returns a new name for a temporary in dir. It creates nothing.
func TempName(dir string) string {
	return filepath.Join(dir, TempPrefix+strconv.FormatInt(time.Now().UnixNano(), 36)+"-"+
		strconv.Itoa(os.Getpid())+"-"+strconv.FormatUint(tempCount.Add(1), 36))
}

// IsTemp reports whether a base name is that of a temporary.
func IsTemp(base string) bool { return strings.HasPrefix(base, TempPrefix) }

// WriteFile replaces the content of a file, completely or not at all, durable when it returns.
func WriteFile(fsys FS, name string, data []byte, perm fs.FileMode) (err error) {
	tmp := TempName(filepath.Dir(name))
	f, err := fsys.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ignoreNotExist(fsys.Remove(tmp)))
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return Rename(fsys, tmp, name)
}

// Rename gives a file or directory that was synced its final name, durable when it returns.
func Rename(fsys FS, oldname, newname string) error {
	if err := fsys.Rename(oldname, newname); err != nil {
		return err
	}
	return fsys.SyncDir(filepath.Dir(newname))
}

// ReadFile reads a whole file. It is an error when the file has more than limit bytes.
func ReadFile(fsys FS, name string, limit int64) (data []byte, err error) {
	f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err = io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = &fs.PathError{Op: "read", Path: name, Err: errors.New("file is larger than its limit")}
	}
	return data, err
}

// RemoveTemps removes the temporaries in dir that a crash left. It is called before anything is written there.
func RemoveTemps(fsys FS, dir string) error {
	entries, err := fsys.ReadDir(dir)
	if err != nil {
		return ignoreNotExist(err)
	}
	var all error
	for _, e := range entries {
		if IsTemp(e.Name()) {
			all = errors.Join(all, fsys.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return all
}

func ignoreNotExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
