package tarstream

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
)

// Extraction unpacks the tar stream of one path into a local directory.
type Extraction struct {
	Shown string // the destination as it is shown to the user

	dir  string // where the stream is unpacked
	name string // replaces the first element of the names in the stream; "" = they stay as they are
}

// ExtractTo applies docker's rules of cp to a source in a container and a local destination. own, when it is not empty, is the name
// under which the source appears in an existing directory; srcDir says that the source is a directory.
func ExtractTo(own string, srcDir bool, dst string) (*Extraction, error) {
	abs, err := absolute(dst)
	if err != nil {
		return nil, err
	}
	to, err := localDestination(abs)
	if err != nil {
		return nil, err
	}
	e := &Extraction{Shown: abs}
	if path.Base(dst) == "." {
		e.Shown = strings.TrimSuffix(abs, ".")
	}
	if e.dir, e.name, err = destination(srcDir, to); err != nil {
		return nil, err
	}
	if e.name == "" {
		e.name = own
	}
	return e, nil
}

// rename returns the name in dir for a name in the stream. A name that leads out of the destination is refused.
func (e *Extraction) rename(name string) (string, error) {
	if strings.Contains(name, "\x00") || strings.HasPrefix(path.Clean(name), "..") {
		return "", errs.New(errs.Invalid, "archive entry %q: %w", name, errTarName)
	}
	if e.name == "" {
		return path.Join(".", path.Clean("/"+name)), nil
	}
	_, rest, _ := strings.Cut(name, "/") // the first element is the source's own name
	if strings.HasPrefix(path.Clean(rest), "..") {
		return "", errs.New(errs.Invalid, "archive entry %q: %w", name, errTarName)
	}
	return path.Join(e.name, path.Clean("/"+rest)), nil
}

// unpacked is an entry that was made: where, and from what.
type unpacked struct {
	name string
	h    *tar.Header
}

// Extract unpacks r below an os.Root, so that no entry can reach out of the destination. With owner, files get the owner of the
// entry.
func (e *Extraction) Extract(r io.Reader, owner bool) error {
	root, err := os.OpenRoot(e.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	var dirs []unpacked
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		name, err := e.rename(h.Name)
		if err != nil {
			return err
		}
		if name == "." {
			continue // the directory exists and keeps its attributes
		}
		if err := e.entry(root, name, h, tr, owner); err != nil {
			return errs.New(errs.Invalid, "archive entry %q: %w", h.Name, err)
		}
		if h.Typeflag == tar.TypeDir {
			dirs = append(dirs, unpacked{name, h})
		}
	}
	for i := len(dirs) - 1; i >= 0; i-- { // what is made in a directory changes its time, and a mode may forbid it
		if err := attributes(root, dirs[i], false); err != nil {
			return errs.New(errs.Invalid, "archive entry %q: %w", dirs[i].h.Name, err)
		}
	}
	_, err = io.Copy(io.Discard, r)
	return err
}

// entry creates one entry below root.
func (e *Extraction) entry(root *os.Root, name string, h *tar.Header, r io.Reader, owner bool) error {
	if h.Typeflag == tar.TypeDir {
		if err := e.directory(root, name); err != nil {
			return err
		}
		if owner {
			return root.Lchown(name, h.Uid, h.Gid)
		}
		return nil
	}
	if err := e.clearPath(root, name); err != nil {
		return err
	}
	if err := e.create(root, name, h, r); err != nil || h.Typeflag == tar.TypeLink {
		return err
	}
	return attributes(root, unpacked{name, h}, owner)
}

// create makes a file that is not a directory.
func (e *Extraction) create(root *os.Root, name string, h *tar.Header, r io.Reader) error {
	switch h.Typeflag {
	case tar.TypeReg:
		f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, r)
		return errors.Join(err, f.Close())
	case tar.TypeSymlink:
		return root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		target, err := e.rename(h.Linkname)
		if err != nil {
			return err
		}
		return root.Link(target, name)
	case tar.TypeFifo:
		return inParent(root, name, func(dir int, base string) error { return unix.Mkfifoat(dir, base, 0o600) })
	case tar.TypeChar, tar.TypeBlock:
		return errs.New(errs.Unimplemented, "devices are not copied to the host")
	}
	return errs.New(errs.Unimplemented, "type %q is not supported", h.Typeflag)
}

// directory makes a directory that is not there yet.
func (e *Extraction) directory(root *os.Root, name string) error {
	err := root.Mkdir(name, 0o700)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	st, err := root.Lstat(name)
	if err == nil && !st.IsDir() {
		err = errs.New(errs.Invalid, "cannot overwrite non-directory %q with directory %q", filepath.Join(e.dir, name), filepath.Clean(e.dir))
	}
	return err
}

// clearPath removes a file at the name that another file gets. A directory is an error.
func (e *Extraction) clearPath(root *os.Root, name string) error {
	st, err := root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.IsDir() {
		return errs.New(errs.Invalid, "cannot overwrite directory %q with non-directory %q", filepath.Join(e.dir, name), filepath.Clean(e.dir))
	}
	return root.Remove(name)
}

// attributes sets owner, mode, extended attributes and time of what was made at a name. A change of the owner clears setuid bits and
// capabilities, and every change sets the time.
func attributes(root *os.Root, u unpacked, owner bool) error {
	return inParent(root, u.name, func(dir int, base string) error {
		fd, err := unix.Openat(dir, base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if owner {
			if err := unix.Fchownat(fd, "", u.h.Uid, u.h.Gid, unix.AT_EMPTY_PATH); err != nil {
				return err
			}
		}
		when := []unix.Timespec{unix.NsecToTimespec(u.h.ModTime.UnixNano()), unix.NsecToTimespec(u.h.ModTime.UnixNano())}
		if u.h.Typeflag == tar.TypeSymlink {
			return unix.UtimesNanoAt(fd, "", when, unix.AT_EMPTY_PATH)
		}
		self := fmt.Sprintf("/proc/self/fd/%d", fd) // chmod and setxattr do not take an O_PATH descriptor
		if err := unix.Chmod(self, uint32(u.h.Mode)&0o7777); err != nil {
			return err
		}
		for _, name := range slices.Sorted(maps.Keys(u.h.PAXRecords)) {
			attr, ok := strings.CutPrefix(name, "SCHILY.xattr.")
			if !ok || attr != "security.capability" && !strings.HasPrefix(attr, "user.") {
				continue // the others mean something on the host where they were set
			}
			err := unix.Setxattr(self, attr, []byte(u.h.PAXRecords[name]), 0)
			if err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) {
				return fmt.Errorf("xattr %s: %w", attr, err)
			}
		}
		return unix.UtimesNanoAt(unix.AT_FDCWD, self, when, 0)
	})
}

// inParent calls do with the directory of a name below root and the last element of the name.
func inParent(root *os.Root, name string, do func(dir int, base string) error) error {
	dir, err := root.Open(path.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	return do(int(dir.Fd()), path.Base(name))
}

var errTarName = errors.New("leads out of the destination")
