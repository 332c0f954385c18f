package run

import (
	"errors"
	"io"
	"os"

	"ply/internal/errs"
)

// cidFile is the file of --cidfile. It must not exist before, and it is removed when no ID was written. Without the flag, f is nil and
// the methods do nothing.
type cidFile struct {
	f       *os.File
	written bool
}

func openCIDFile(path string) (*cidFile, error) {
	if path == "" {
		return &cidFile{}, nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if errors.Is(err, os.ErrExist) {
		return nil, errs.New(errs.Exists, "container ID file found, make sure the other container isn't running or delete %s", path)
	}
	if err != nil {
		return nil, errs.New(errs.Invalid, "failed to create the container ID file: %w", err)
	}
	return &cidFile{f: f}, nil
}

func (c *cidFile) write(id string) error {
	if c.f == nil {
		return nil
	}
	if _, err := io.WriteString(c.f, id); err != nil {
		return errs.New(errs.Invalid, "failed to write the container ID (%s) to file: %w", id, err)
	}
	c.written = true
	return nil
}

func (c *cidFile) close() {
	if c.f == nil {
		return
	}
	c.f.Close()
	if !c.written {
		os.Remove(c.f.Name())
	}
}
