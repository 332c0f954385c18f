package tarstream

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"ply/internal/errs"
)

// An End is one end of a copy. A "/" or "/." at the end of Path says that it is a directory.
type End struct {
	Path   string
	Exists bool
	Dir    bool
}

// destination applies docker's rules of cp: it returns the directory into which a source is unpacked and the name that the source
// gets there. The name is "" where the source keeps its own, which is "." for the content of a directory.
func destination(srcDir bool, dst End) (dir, name string, err error) {
	switch {
	case dst.Exists && dst.Dir:
		return dst.Path, "", nil
	case dst.Exists && srcDir:
		return "", "", errs.New(errs.Invalid, "cannot copy directory")
	case !dst.Exists && !srcDir && saysDirectory(dst.Path):
		return "", "", errs.New(errs.NotFound, "no such directory")
	}
	dir, name = Split(dst.Path)
	return dir, name, nil
}

// Split returns the directory of p and the last element, which is "." for a path that ends in "/.".
func Split(p string) (dir, name string) {
	clean := path.Clean(p)
	if path.Base(p) == "." {
		return clean, "."
	}
	return path.Dir(clean), path.Base(clean)
}

// saysDirectory reports whether p can only be the path of a directory.
func saysDirectory(p string) bool { return strings.HasSuffix(p, "/") || path.Base(p) == "." }

// Keep returns the clean path with the "/" or "/." that the original has at its end: cleaning takes them away, but they say that the
// path is a directory.
func Keep(clean, original string) string {
	switch {
	case path.Base(original) == "." && path.Base(clean) != ".":
		return strings.TrimSuffix(clean, "/") + "/."
	case strings.HasSuffix(original, "/") && !strings.HasSuffix(clean, "/"):
		return clean + "/"
	}
	return clean
}

// absolute returns a local path as an absolute one, with "/" or "/." at its end as it has it.
func absolute(p string) (string, error) {
	abs, err := filepath.Abs(p)
	if err != nil {
		return "", err
	}
	return Keep(abs, p), nil
}

// maxLinks is how many links at the end of a local destination are followed, as docker.
const maxLinks = 10

// localDestination returns what is at the absolute local path p. A link at the end is followed even where it leads to nothing,
// because the copy then makes the file that the link names.
func localDestination(p string) (End, error) {
	to := p
	for range maxLinks {
		st, err := os.Lstat(to)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			parent, _ := Split(to)
			if st, err = os.Stat(parent); err == nil && !st.IsDir() {
				err = errs.New(errs.Invalid, "not a directory")
			}
			return End{Path: to}, err
		case err != nil:
			return End{}, err
		case st.Mode()&fs.ModeSymlink == 0:
			return End{Path: to, Exists: true, Dir: st.IsDir()}, nil
		}
		target, err := os.Readlink(to)
		if err != nil {
			return End{}, err
		}
		if !filepath.IsAbs(target) {
			parent, _ := Split(to)
			target = filepath.Join(parent, target)
		}
		to = target
	}
	return End{}, errs.New(errs.Invalid, "too many symlinks in %s", p)
}

// CheckOutput refuses a local destination that no copy can have, before anything is asked of the engine.
func CheckOutput(dst string) error {
	p, err := absolute(dst)
	if err != nil {
		return err
	}
	dir := filepath.Dir(filepath.Clean(p))
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return errs.New(errs.Invalid, "invalid output path: directory %q does not exist", dir)
	}
	st, err := os.Stat(p)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := CheckKind(st.Mode()); err != nil {
		return errs.New(errs.Invalid, "invalid output path: %q must be a directory or a regular file: %w", p, err)
	}
	return nil
}

// CheckKind refuses the mode of a destination that is a device or of no kind that the system knows.
func CheckKind(m fs.FileMode) error {
	switch {
	case m&fs.ModeDevice != 0:
		return errors.New("got a device")
	case m&fs.ModeIrregular != 0:
		return errors.New("got an irregular file")
	}
	return nil
}
