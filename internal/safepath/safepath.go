// Package safepath opens paths inside a root file system that nobody vouches for.
//
// Every look-up is one openat2(2) with RESOLVE_IN_ROOT and RESOLVE_NO_MAGICLINKS: symbolic links, absolute or with
// any number of "..", stay below the root, and /proc's magic links are refused. The root is a directory
// descriptor, so renaming what lies above it changes nothing. Nothing else in ply joins untrusted names.
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

// Clean turns a name from a tar or a user into a clean relative path: no leading slash, no "." or empty
// components, "." for the root itself. A name with "..", a NUL, or over Linux's limits is errs.Invalid.
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

// Open opens path below root as if root were "/". Flags and mode are open(2)'s; O_CLOEXEC is added. With O_NOFOLLOW a
// link as last component is ELOOP (or opened itself with O_PATH). The error is an *os.PathError.
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
			continue // EAGAIN: something was renamed during the look-up; the kernel asks to try again
		default:
			return nil, &os.PathError{Op: "open in root", Path: name, Err: err}
		}
	}
	return nil, &os.PathError{Op: "open in root", Path: name, Err: unix.EAGAIN}
}

// OpenParent resolves the directory of name and gives it with the last component, for *at calls that do not
// follow. The base is never "..", "/" or empty; for the root itself it is ".".
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

// MkdirAll makes the missing directories of name, following links inside the root, and opens the last one
// O_RDONLY. Components made get mode; those that exist are left alone.
func MkdirAll(root *os.File, name string, mode uint32) (*os.File, error) {
	if d, err := Open(root, name, unix.O_RDONLY|unix.O_DIRECTORY, 0); err == nil {
		return d, nil
	}
	// Walk component by component: each step is resolved from the root again, so a link that
	// points elsewhere in the root is followed, and one that is swapped in meanwhile cannot lead out.
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

// mkdirOne makes part in parent unless it is there; for a link it gives its target.
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

// Readlinkat reads a link in dir; EINVAL says that it is none.
func Readlinkat(dir *os.File, base string) (string, error) {
	buf := make([]byte, maxPath)
	n, err := unix.Readlinkat(int(dir.Fd()), base, buf)
	if err != nil {
		return "", &os.PathError{Op: "readlink", Path: base, Err: err}
	}
	return string(buf[:n]), nil
}
