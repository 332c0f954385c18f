package durable

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Nameless opens an empty file in dir that has no name, for what only this process needs: it is gone when it is closed. No one else can open it.
func Nameless(dir string) (*os.File, error) {
	f, err := os.OpenFile(dir, os.O_RDWR|unix.O_TMPFILE, 0o600)
	if errors.Is(err, unix.EOPNOTSUPP) { // not every file system has files that never had a name
		return unnamed(dir)
	}
	return f, err
}

// unnamed makes a file and takes its name away.
func unnamed(dir string) (*os.File, error) {
	f, err := os.OpenFile(TempName(dir), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
