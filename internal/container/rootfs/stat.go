package rootfs

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/safepath"
)

const maxPath = 4096 // bytes, as the kernel's PATH_MAX

// PathError reports that the path that a caller asked for cannot be opened. Err is the error of the kernel. Callers
// that know the container put their own words around it.
type PathError struct {
	Path string
	Err  error
}

func (e *PathError) Error() string { return "path " + clip(e.Path) + ": " + e.Err.Error() }
func (e *PathError) Unwrap() error { return e.Err }

// CheckPath refuses strings that no file can have as its path. Errors are errs.Invalid.
func CheckPath(p string) error {
	if p == "" {
		return invalid("path cannot be empty")
	}
	if len(p) > maxPath || strings.IndexByte(p, 0) >= 0 {
		return invalid("path %q is not one of a file", clip(p))
	}
	return nil
}

func invalid(format string, args ...any) error { return errs.New(errs.Invalid, format, args...) }

func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}

// Info describes one file below a root.
type Info struct {
	Name       string // last component of the path; "." for a path that ends in "/."
	Size       int64  // bytes
	Mode       fs.FileMode
	ModTime    time.Time
	LinkTarget string // for a symbolic link, the absolute path below the root that it leads to
}

// Lstat describes the file at p. It does not follow a symbolic link at the end of p unless p ends in "/" or "/.".
// Errors: *PathError.
func Lstat(root *os.File, p string) (Info, error) {
	f, _, info, err := find(root, p)
	if err != nil {
		return Info{}, err
	}
	return info, f.Close()
}

// find opens the file at p without reading it. Errors: *PathError.
func find(root *os.File, p string) (*os.File, unix.Stat_t, Info, error) {
	var st unix.Stat_t
	p = cleanPath(p)
	f, err := openPath(root, p)
	if err != nil {
		return nil, st, Info{}, &PathError{p, err}
	}
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		_ = f.Close() // a descriptor without a file cannot lose data
		return nil, st, Info{}, &PathError{p, err}
	}
	info := Info{Name: path.Base(p), Size: st.Size, Mode: FileMode(st.Mode), ModTime: time.Unix(st.Mtim.Sec, st.Mtim.Nsec)}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		if info.LinkTarget, err = linkTarget(root, f, p); err != nil {
			_ = f.Close() // see above
			return nil, st, Info{}, &PathError{p, err}
		}
	}
	return f, st, info, nil
}

// cleanPath returns p as a clean absolute path below the root. As docker does, it removes ".." without following links,
// and it keeps "/" or "/." at the end, which say that p is a directory.
func cleanPath(p string) string {
	clean := path.Clean("/" + p)
	switch {
	case path.Base(p) == ".":
		return strings.TrimSuffix(clean, "/") + "/."
	case strings.HasSuffix(p, "/") && clean != "/":
		return clean + "/"
	}
	return clean
}

// openPath opens the file at a clean path without reading it. A link at the end is followed where the path says that it
// is a directory.
func openPath(root *os.File, p string) (*os.File, error) {
	flags := unix.O_PATH | unix.O_NOFOLLOW
	if strings.HasSuffix(p, "/") || strings.HasSuffix(p, "/.") {
		flags = unix.O_PATH | unix.O_DIRECTORY
	}
	return safepath.Open(root, p, flags, 0)
}

// maxLinks is how many links linkTarget follows, as docker.
const maxLinks = 255

// linkTarget returns the absolute path below root that the link at p leads to. Components that do not exist are part of
// the path: docker's clients create the file that a dangling link names.
func linkTarget(root, link *os.File, p string) (string, error) {
	target, err := safepath.Readlinkat(link, "")
	if err != nil {
		return "", err
	}
	if !path.IsAbs(target) {
		target = path.Dir(p) + "/" + target
	}
	pending, done := strings.Split(target, "/"), "/"
	for links := 0; len(pending) > 0; {
		part := pending[0]
		pending = pending[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			done = path.Dir(done)
			continue
		}
		target, err := readlink(root, done, part)
		switch {
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR): // no link
			done = path.Join(done, part)
			continue
		case err != nil:
			return "", err
		}
		if links++; links > maxLinks || len(pending) > maxPath {
			return "", unix.ELOOP
		}
		if path.IsAbs(target) {
			done = "/"
		}
		pending = append(strings.Split(target, "/"), pending...)
	}
	return done, nil
}

// readlink returns the target of the link base in a directory below root.
func readlink(root *os.File, dir, base string) (string, error) {
	d, err := safepath.Open(root, dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", err
	}
	defer d.Close()
	return safepath.Readlinkat(d, base)
}

// FileMode returns the mode of a stat as Go's bits.
func FileMode(mode uint32) fs.FileMode {
	m := fs.FileMode(mode & 0o777)
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		m |= fs.ModeDir
	case unix.S_IFLNK:
		m |= fs.ModeSymlink
	case unix.S_IFIFO:
		m |= fs.ModeNamedPipe
	case unix.S_IFSOCK:
		m |= fs.ModeSocket
	case unix.S_IFBLK:
		m |= fs.ModeDevice
	case unix.S_IFCHR:
		m |= fs.ModeDevice | fs.ModeCharDevice
	}
	if mode&unix.S_ISUID != 0 {
		m |= fs.ModeSetuid
	}
	if mode&unix.S_ISGID != 0 {
		m |= fs.ModeSetgid
	}
	if mode&unix.S_ISVTX != 0 {
		m |= fs.ModeSticky
	}
	return m
}
