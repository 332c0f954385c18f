// Package safepath opens paths inside a root file system whose content is untrusted.
//
// Every look-up is one openat2(2) with RESOLVE_IN_ROOT and RESOLVE_NO_MAGICLINKS: symbolic links, absolute or with any number of
// "..", stay below the root, and the magic links of /proc are refused. The root is a directory descriptor, so renaming its parents
// changes nothing. No other package joins untrusted names.
package safepath

import (
	"errors"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
)

const (
	maxPath      = 4096
	maxComponent = 255
	maxLinks     = 40 // the kernel's own limit for one look-up
)

// Clean turns a name from a tar or a user into a clean relative path: without a leading slash and without "." or empty
// components; the root itself is ".". The error's class is errs.Invalid for a name with ".." or a NUL, and for one that
// exceeds the limits of Linux.
func Clean(name string) (string, error) {
	if len(name) > maxPath {
		return "", errs.New(errs.Invalid, "path %.60q…: longer than %d bytes", name, maxPath)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return "", errs.New(errs.Invalid, "path %q: holds a NUL", name)
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", errs.New(errs.Invalid, "path %q: climbs with ..", name)
		}
		if len(part) > maxComponent {
			return "", errs.New(errs.Invalid, "path %.60q…: a component is longer than %d bytes", name, maxComponent)
		}
	}
	return path.Clean(strings.TrimLeft(name, "/")), nil
}

// Open opens a path below root as if root were "/". Flags and mode are those of open(2); O_CLOEXEC is added. With O_NOFOLLOW,
// a link as the last component is ELOOP, or is opened itself with O_PATH. The error is an *os.PathError.
func Open(root *os.File, name string, flags int, mode uint32) (*os.File, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	if flags&(unix.O_CREAT|unix.O_TMPFILE) != 0 {
		how.Mode = uint64(mode & 0o7777)
	}
	if name == "" {
		name = "."
	}
	for range 64 {
		fd, err := unix.Openat2(int(root.Fd()), name, &how)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), name), nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue // EAGAIN: a directory was renamed during the look-up
		default:
			return nil, &os.PathError{Op: "open in root", Path: name, Err: err}
		}
	}
	return nil, &os.PathError{Op: "open in root", Path: name, Err: unix.EAGAIN}
}

// OpenParent opens the directory of name and returns it with the last component, for *at calls that do not follow links. The
// base is never "..", "/" or empty; for the root itself it is ".". The error's class is errs.Invalid when name ends in ".." or
// has a NUL.
func OpenParent(root *os.File, name string) (dir *os.File, base string, err error) {
	trimmed := strings.TrimRight(name, "/")
	dirName, base := path.Split(trimmed)
	if base == ".." || strings.IndexByte(name, 0) >= 0 {
		return nil, "", errs.New(errs.Invalid, "path %q: has no last component", name)
	}
	if base == "" {
		base = "."
	}
	dir, err = Open(root, dirName, unix.O_PATH|unix.O_DIRECTORY, 0)
	return dir, base, err
}

// MkdirAll makes the missing directories of name, following links inside the root, and opens the last one with O_RDONLY. New
// directories get the mode; others are not changed.
func MkdirAll(root *os.File, name string, mode uint32) (*os.File, error) {
	if d, err := Open(root, name, unix.O_RDONLY|unix.O_DIRECTORY, 0); err == nil {
		return d, nil
	}
	// Each component is resolved from the root again. So a link that points elsewhere in the root is followed, and a link that
	// replaces a directory meanwhile cannot lead out of the root.
	pending := strings.Split(strings.Trim(name, "/"), "/")
	done, links := "", 0
	for len(pending) > 0 {
		part := pending[0]
		pending = pending[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			done = path.Dir("/" + done)[1:]
			continue
		}
		target, made, err := mkdirOne(root, done, part, mode)
		if err != nil {
			return nil, err
		}
		if target == "" || made {
			done = path.Join(done, part)
			continue
		}
		if links++; links > maxLinks {
			return nil, &os.PathError{Op: "mkdir in root", Path: name, Err: unix.ELOOP}
		}
		if strings.HasPrefix(target, "/") {
			done = ""
		}
		pending = append(strings.Split(target, "/"), pending...)
	}
	return Open(root, done, unix.O_RDONLY|unix.O_DIRECTORY, 0)
}

// mkdirOne makes part in parent unless it exists. When it is a link, mkdirOne returns its target.
func mkdirOne(root *os.File, parent, part string, mode uint32) (target string, made bool, err error) {
	dir, err := Open(root, parent, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", false, err
	}
	defer dir.Close()
	err = unix.Mkdirat(int(dir.Fd()), part, mode)
	if err == nil {
		return "", true, nil
	}
	if !errors.Is(err, unix.EEXIST) {
		return "", false, &os.PathError{Op: "mkdir in root", Path: path.Join(parent, part), Err: err}
	}
	target, err = Readlinkat(dir, part)
	if errors.Is(err, unix.EINVAL) { // not a link
		return "", false, nil
	}
	return target, false, err
}

// Readlinkat returns the target of a link in dir; EINVAL when it is not a link.
func Readlinkat(dir *os.File, base string) (string, error) {
	buf := make([]byte, maxPath)
	n, err := unix.Readlinkat(int(dir.Fd()), base, buf)
	if err != nil {
		return "", &os.PathError{Op: "readlink", Path: base, Err: err}
	}
	return string(buf[:n]), nil
}
