package tree

import (
	"io"
	"path/filepath"
	"strconv"

	"ply/internal/durable"
	"ply/internal/errs"
)

// Examine compares the files of a layer directory with its description, without reading their content: the tree, the recipe of
// the tar, and the hidden files. The error's class is errs.DataLoss.
func Examine(fsys durable.FS, dir string, m *Meta) error {
	if err := isThere(fsys, filepath.Join(dir, FS), true); err != nil {
		return err
	}
	if err := isThere(fsys, filepath.Join(dir, recipeName), false); err != nil {
		return err
	}
	for _, h := range m.Hidden {
		if err := isThere(fsys, filepath.Join(dir, hiddenName, strconv.Itoa(h.File)), false); err != nil {
			return err
		}
	}
	return nil
}

func isThere(fsys durable.FS, name string, dir bool) error {
	fi, err := fsys.Lstat(name)
	base := filepath.Base(name)
	switch {
	case err != nil:
		return errs.New(errs.DataLoss, "%s is missing", base)
	case dir && !fi.IsDir():
		return errs.New(errs.DataLoss, "%s is not a directory", base)
	case !dir && (!fi.Mode().IsRegular() || fi.Size() == 0):
		return errs.New(errs.DataLoss, "%s is empty or not a file", base)
	}
	return nil
}

// Salvage opens the tar of a layer directory whose description may be damaged; content is the tree with its files. The tar is
// not verified.
func Salvage(fsys durable.FS, dir, content string) (io.ReadCloser, error) {
	m, err := Load(fsys, dir)
	if err != nil {
		m = &Meta{} // right for the layers that hide no files
	}
	if _, err := fsys.Lstat(filepath.Join(dir, recipeName)); err != nil {
		return nil, errs.New(errs.NotFound, "recipe of the tar: %w", err)
	}
	return OpenTar(fsys, dir, content, m)
}
