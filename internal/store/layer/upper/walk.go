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

// node is one name of the upper directory while it is visited. dirfd and fd are valid only
// during the visit.
type node struct {
	path   string // relative, "." for the root
	name   string
	dirfd  int // descriptor of the parent directory
	fd     int // a directory's own descriptor, else -1
	st     unix.Stat_t
	xattrs []xattr // without overlay's own
	white  bool    // a whiteout of either form
	opaque bool    // a directory with the opaque mark
	pure   bool    // an ancestor is opaque or new: nothing from below shines through here
}

type xattr struct{ name, value string }

// visit sees every name, a directory before what it holds. below says for a directory whether the stack below can
// be seen through it; it is ignored for the rest.
type visit func(n *node) (below bool, err error)

// walk goes through the tree in order of names. Names that vanish meanwhile are left out.
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
	ctx    context.Context // for the one call of walk
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

// readXattrs fills in the xattrs of n and takes overlay's own marks out of them.
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

// kept says which xattrs belong to a layer: what the content means, not what this host's
// security modules noted about it.
func kept(name string) bool {
	return name == "security.capability" || strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "trusted.") ||
		name == "system.posix_acl_access" || name == "system.posix_acl_default"
}

// listXattrs reads all of path itself (links are not followed), sorted by the file system's order.
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

// sized calls with a buffer that is big enough; 64 KiB is the kernel's own limit.
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

// gone says that a name was removed or changed its type while it was read.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) ||
		errors.Is(err, unix.ESTALE)
}

func (w *walker) fail(op, path string, err error) error {
	return fmt.Errorf("writable layer: %w", &os.PathError{Op: op, Path: filepath.Join(w.root, path), Err: err})
}
