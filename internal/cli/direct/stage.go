package direct

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// stageName begins the name of what is not complete yet, beside the place where it goes. 16 hexadecimal digits follow.
const stageName = ".ply-output-"

// isStage reports whether a name is that of a stage.
func isStage(name string) bool {
	id, ok := strings.CutPrefix(name, stageName)
	_, err := hex.DecodeString(id)
	return ok && len(id) == 16 && err == nil && id == strings.ToLower(id)
}

// stage is a file or directory that is written before it takes its place. It is locked while it is used, so that others know what a killed process has left.
type stage struct {
	root *os.Root // the directory in which it is
	name string
	file *os.File // holds the lock
}

// newStage removes what killed processes have left in a directory, and makes a new file or directory there.
func newStage(root *os.Root, dir bool) (*stage, error) {
	clean(root)
	for {
		var id [8]byte
		rand.Read(id[:])
		s := &stage{root: root, name: stageName + hex.EncodeToString(id[:])}
		var err error
		if dir {
			if err = root.Mkdir(s.name, 0o700); err == nil {
				s.file, err = root.Open(s.name)
			}
		} else {
			s.file, err = root.OpenFile(s.name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
		}
		if errors.Is(err, fs.ErrNotExist) {
			continue // another process took it for a remainder before it was locked
		}
		if err != nil {
			return nil, err
		}
		_ = lock(s.file, unix.LOCK_EX) // where there are no locks, nobody else gets one to remove it
		if s.here() {
			return s, nil
		}
		_ = s.file.Close() // another process has removed it, as above
	}
}

// here reports whether the name still is that of the file.
func (s *stage) here() bool {
	named, err := s.root.Lstat(s.name)
	if err != nil {
		return false
	}
	mine, err := s.file.Stat()
	return err == nil && os.SameFile(named, mine)
}

// remove removes what was written.
func (s *stage) remove() error {
	return errors.Join(s.root.RemoveAll(s.name), s.file.Close())
}

// lock locks a file. The lock ends with the process.
func lock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// clean removes what killed processes have left in a directory: what has such a name, belongs to this user, and is not locked. An error leaves it there.
func clean(root *os.Root) {
	dir, err := root.Open(".")
	if err != nil {
		return
	}
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(1000)
		for _, n := range names {
			if isStage(n) {
				cleanOne(root, n)
			}
		}
		if err != nil {
			return // or the end
		}
	}
}

func cleanOne(root *os.Root, name string) {
	st, err := root.Lstat(name)
	if err != nil || !st.IsDir() && !st.Mode().IsRegular() {
		return
	}
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return
	}
	defer f.Close()
	mine, err := f.Stat()
	if err != nil || !os.SameFile(st, mine) || !owned(mine) || lock(f, unix.LOCK_EX|unix.LOCK_NB) != nil {
		return
	}
	_ = root.RemoveAll(name) // the next output tries again
}

// owned reports whether a file belongs to this user.
func owned(st fs.FileInfo) bool {
	sys, ok := st.Sys().(*syscall.Stat_t)
	return ok && int(sys.Uid) == os.Geteuid()
}

// place moves what is in a directory to another one: directories are joined, and everything else takes the place of what has its name.
func place(root *os.Root, from, to string) error {
	dir, err := root.Open(from)
	if err != nil {
		return err
	}
	defer dir.Close()
	for {
		list, err := dir.ReadDir(1000)
		for _, e := range list {
			if err := placeOne(root, path.Join(from, e.Name()), path.Join(to, e.Name()), e.IsDir()); err != nil {
				return err
			}
		}
		if len(list) == 0 {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if _, err := dir.Seek(0, 0); err != nil { // what was read is gone
			return err
		}
	}
}

func placeOne(root *os.Root, from, to string, dir bool) error {
	old, err := root.Lstat(to)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case dir && old.IsDir():
		if err := place(root, from, to); err != nil {
			return err
		}
		return root.Remove(from)
	case old.IsDir():
		if err := root.RemoveAll(to); err != nil {
			return err
		}
	case dir:
		if err := root.Remove(to); err != nil {
			return err
		}
	}
	return root.Rename(from, to)
}
