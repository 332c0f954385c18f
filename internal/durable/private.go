package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// MkdirPrivate makes a directory that only its owner can enter. If the directory exists, MkdirPrivate takes the permissions of
// all other users away. A new directory is durable when MkdirPrivate returns. Missing parents get mode 0711.
//
// Files of images, containers and volumes have the owners and modes that an image or a container chose. A program with the
// set-user-ID bit among them must not be reachable for users of the host.
func MkdirPrivate(fsys FS, dir string) error {
	if err := fsys.MkdirAll(filepath.Dir(dir), 0o711); err != nil {
		return err
	}
	if err := fsys.Mkdir(dir, 0o700); err == nil {
		return fsys.SyncDir(filepath.Dir(dir))
	} else if !errors.Is(err, fs.ErrExist) {
		return err
	}
	// Stat follows a symbolic link: an administrator may have put a root on another disk in this way.
	fi, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		return &fs.PathError{Op: "mkdir", Path: dir, Err: errors.New("exists and is not a directory")}
	}
	if fi.Mode().Perm()&0o077 == 0 {
		return nil
	}
	return os.Chmod(dir, fi.Mode().Perm()&0o700)
}
