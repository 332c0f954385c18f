// Package durable is the one way to write to disk: a file-system seam that tests can make
// fail at any operation, and the recipes that keep records behind their data.
//
// The recipe: temporary file in the same directory, write, fsync, rename, fsync directory.
// A committed file is immutable; a crash leaves temporaries (names that start with TempPrefix),
// which start-up may delete, and nothing else.
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

// TempPrefix starts the name of every file or directory that a crash may leave behind.
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
	// Sync makes the content durable. An error is final: what was written may be gone, so the
	// caller must give the object up and never call Sync again on it.
	Sync() error
	Truncate(size int64) error
}

// FS is every file-system operation by which the store changes the disk. Safe for concurrent use.
type FS interface {
	OpenFile(name string, flag int, perm fs.FileMode) (File, error)
	Mkdir(name string, perm fs.FileMode) error
	MkdirAll(name string, perm fs.FileMode) error
	Rename(oldname, newname string) error
	Link(oldname, newname string) error
	Remove(name string) error
	RemoveAll(name string) error
	Lstat(name string) (fs.FileInfo, error)
	ReadDir(name string) ([]fs.DirEntry, error)
	// SyncDir makes the names in a directory durable.
	SyncDir(name string) error
	// SyncFS flushes the whole file system that holds name, for trees of many files.
	SyncFS(name string) error
}

var tempCount atomic.Uint64

// TempName gives a fresh name for a temporary in dir. It does not create anything.
func TempName(dir string) string {
	return filepath.Join(dir, TempPrefix+strconv.FormatInt(time.Now().UnixNano(), 36)+"-"+
		strconv.Itoa(os.Getpid())+"-"+strconv.FormatUint(tempCount.Add(1), 36))
}

// IsTemp reports whether a base name is a temporary's.
func IsTemp(base string) bool { return strings.HasPrefix(base, TempPrefix) }

// WriteFile replaces name by data, all or nothing, durable when it returns.
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

// Rename moves a synced file or directory to its final name and makes that name durable.
func Rename(fsys FS, oldname, newname string) error {
	if err := fsys.Rename(oldname, newname); err != nil {
		return err
	}
	return fsys.SyncDir(filepath.Dir(newname))
}

// ReadFile reads a whole file of at most limit bytes; a longer one is an error.
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

// RemoveTemps deletes the temporaries in dir that a crash left. Call it before anybody writes there.
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
