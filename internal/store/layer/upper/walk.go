package upper

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// node is one name of the upper directory. The descriptors are valid only during the visit.
type node struct {
	path   string // relative; "." for the root
	name   string
	dirfd  int // of the parent directory
	fd     int // the directory's own descriptor, or -1
	st     unix.Stat_t
	xattrs []xattr // without those of overlayfs
	white  bool    // a whiteout in either form
	opaque bool    // a directory with the opaque mark
	pure   bool    // an ancestor is opaque or new, so no name of the layers below is visible here
}

type xattr struct{ name, value string }

// visit is called for every name, for a directory before its content. For a directory it returns whether names of the
// layers below are visible in it.
type visit func(n *node) (below bool, err error)

// walk visits the tree in the order of names. It leaves out names that disappear meanwhile.
func walk(ctx context.Context, root string, withXattrs bool, v visit) error {
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("writable layer: %w", &fs.PathError{Op: "open", Path: root, Err: err})
	}
	defer unix.Close(fd)
	n := &node{path: ".", name: ".", dirfd: fd, fd: fd}
	if err := unix.Fstat(fd, &n.st); err != nil {
		return fmt.Errorf("writable layer: %w", &fs.PathError{Op: "stat", Path: root, Err: err})
	}
	w := &walker{ctx: ctx, xattrs: withXattrs, visit: v, root: root}
	if err := w.readXattrs(n); err != nil {
		return err
	}
	n.opaque = false // the root of an upper directory is never opaque
	below, err := v(n)
	if err != nil {
		return err
	}
	return w.children(fd, ".", !below)
}

type walker struct {
	ctx    context.Context // of the call of walk
	root   string
	xattrs bool
	visit  visit
	buf    []byte
}

func (w *walker) children(fd int, dir string, pure bool) error {
	if err := context.Cause(w.ctx); err != nil {
		return err
	}
	names, err := readNames(fd)
	if gone(err) {
		return nil
	}
	if err != nil {
		return w.fail("read", dir, err)
	}
	for _, name := range names {
		n := &node{path: join(dir, name), name: name, dirfd: fd, fd: -1, pure: pure}
		if err := w.child(n); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) child(n *node) error {
	err := unix.Fstatat(n.dirfd, n.name, &n.st, unix.AT_SYMLINK_NOFOLLOW)
	if gone(err) {
		return nil
	}
	if err != nil {
		return w.fail("stat", n.path, err)
	}
	isDir := n.st.Mode&unix.S_IFMT == unix.S_IFDIR
	if isDir {
		n.fd, err = retry(func() (int, error) {
			return unix.Openat(n.dirfd, n.name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		})
		if gone(err) {
			return nil
		}
		if err != nil {
			return w.fail("open", n.path, err)
		}
		defer unix.Close(n.fd)
	}
	n.white = isWhiteout(&n.st)
	if !n.white && (w.xattrs || isDir || n.st.Size == 0) {
		if err := w.readXattrs(n); err != nil {
			return err
		}
	}
	below, err := w.visit(n)
	if err != nil || !isDir {
		return err
	}
	return w.children(n.fd, n.path, n.pure || !below)
}

// readXattrs sets the xattrs of n, and removes the marks of overlayfs from them.
func (w *walker) readXattrs(n *node) error {
	at := procPath(n.dirfd, n.name)
	if n.fd >= 0 {
		at = fmt.Sprintf("/proc/self/fd/%d/.", n.fd)
	}
	all, err := listXattrs(at, &w.buf)
	if gone(err) || errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return w.fail("read xattrs of", n.path, err)
	}
	for _, x := range all {
		switch {
		case x.name == OpaqueXattr:
			n.opaque = x.value == "y"
		case x.name == "trusted.overlay.whiteout":
			n.white = n.st.Mode&unix.S_IFMT == unix.S_IFREG && n.st.Size == 0
		case strings.HasPrefix(x.name, "trusted.overlay."), strings.HasPrefix(x.name, "user.overlay."):
		case w.xattrs && kept(x.name):
			n.xattrs = append(n.xattrs, x)
		}
	}
	return nil
}

// kept reports whether an xattr belongs to a layer. The labels of this host's security modules do not.
func kept(name string) bool {
	return name == "security.capability" || strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "trusted.") ||
		name == "system.posix_acl_access" || name == "system.posix_acl_default"
}

// listXattrs returns the xattrs of path itself (links are not followed), in the order of the file system.
func listXattrs(path string, buf *[]byte) ([]xattr, error) {
	names, err := sized(buf, func(b []byte) (int, error) { return unix.Llistxattr(path, b) })
	if err != nil || len(names) == 0 {
		return nil, err
	}
	var all []xattr
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names), "\x00"), "\x00") {
		value, err := sized(buf, func(b []byte) (int, error) { return unix.Lgetxattr(path, name, b) })
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, xattr{name, string(value)})
	}
	return all, nil
}

// sized calls f with a buffer that is large enough; the kernel's limit is 64 KiB.
func sized(buf *[]byte, call func([]byte) (int, error)) ([]byte, error) {
	if *buf == nil {
		*buf = make([]byte, 4096)
	}
	n, err := call(*buf)
	if errors.Is(err, unix.ERANGE) {
		*buf = make([]byte, 64<<10)
		n, err = call(*buf)
	}
	if err != nil {
		return nil, err
	}
	return (*buf)[:n], nil
}

// gone reports whether an error means that a name was removed, or changed its type, while it was read.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) ||
		errors.Is(err, unix.ESTALE)
}

func (w *walker) fail(op, path string, err error) error {
	return fmt.Errorf("writable layer: %w", &os.PathError{Op: op, Path: filepath.Join(w.root, path), Err: err})
}
