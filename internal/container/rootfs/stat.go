package rootfs

import (
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
	Name       string // last component of the path
	Size       int64  // bytes
	Mode       fs.FileMode
	ModTime    time.Time
	LinkTarget string // for a symbolic link, the absolute path below the root that it leads to
}

// Lstat describes the file at p. It does not follow a symbolic link at the end of p unless p ends in "/" or "/.".
// Errors: *PathError.
func Lstat(root *os.File, p string) (Info, error) {
	f, err := openPath(root, p)
	if err != nil {
		return Info{}, &PathError{p, err}
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return Info{}, &PathError{p, err}
	}
	out := Info{Name: path.Base(p), Size: st.Size, Mode: fileMode(st.Mode), ModTime: time.Unix(st.Mtim.Sec, st.Mtim.Nsec)}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		if out.LinkTarget, err = linkTarget(root, f, p); err != nil {
			return Info{}, &PathError{p, err}
		}
	}
	return out, nil
}

// followsLast reports whether p names the file that its last link leads to: "dir/" and "dir/.".
func followsLast(p string) bool {
	return strings.HasSuffix(p, "/") || strings.HasSuffix(p, "/.") || p == "."
}

// openPath opens the file at p without reading it, as a user means p.
func openPath(root *os.File, p string) (*os.File, error) {
	flags := unix.O_PATH | unix.O_NOFOLLOW
	if followsLast(p) {
		flags = unix.O_PATH | unix.O_DIRECTORY
	}
	return safepath.Open(root, p, flags, 0)
}

// linkTarget returns the absolute path below root that a link leads to.
func linkTarget(root, link *os.File, p string) (string, error) {
	if t, err := safepath.Open(root, p, unix.O_PATH, 0); err == nil {
		defer t.Close()
		base, err1 := os.Readlink(fdPath(root))
		full, err2 := os.Readlink(fdPath(t))
		if rest, ok := strings.CutPrefix(full, base); ok && err1 == nil && err2 == nil {
			return path.Join("/", rest), nil
		}
	}
	// The link leads to no file; return the path that it states.
	raw, err := safepath.Readlinkat(link, "")
	if err != nil {
		return "", err
	}
	if !path.IsAbs(raw) {
		raw = path.Join("/", path.Dir(p), raw)
	}
	return path.Clean(raw), nil
}

// fileMode returns the mode of a stat as Go's bits.
func fileMode(mode uint32) fs.FileMode {
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
