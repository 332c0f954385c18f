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

	"ply/internal/errs"
	"ply/internal/safepath"
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

// MaxPath is the longest path that Changes and Diff return, in bytes. The kernel looks no longer one up.
const MaxPath = unix.PathMax - 1

// scope is what a walk needs.
type scope struct {
	xattrs bool // all of them; otherwise those that mark whiteouts and opaque directories
	paths  bool // node.path; a path that is too long is then an error
}

// walk visits the tree in the order of names. It leaves out names that disappear meanwhile. It has few files open however
// deep the tree is.
func walk(ctx context.Context, root string, sc scope, v visit) error {
	top, err := os.OpenFile(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("writable layer: %w", err)
	}
	defer top.Close()
	dirs, err := safepath.NewDirs(top)
	if err != nil {
		return fmt.Errorf("writable layer: %w", err)
	}
	defer dirs.Close()
	n := &node{path: ".", name: ".", dirfd: int(top.Fd()), fd: int(top.Fd())}
	if err := unix.Fstat(n.fd, &n.st); err != nil {
		return fmt.Errorf("writable layer: %w", &fs.PathError{Op: "stat", Path: root, Err: err})
	}
	w := &walker{ctx: ctx, scope: sc, visit: v, root: root, dirs: dirs}
	if err := w.readXattrs(n); err != nil {
		return err
	}
	n.opaque = false // the root of an upper directory is never opaque
	below, err := v(n)
	if err != nil {
		return err
	}
	if err := w.list(n, !below); err != nil {
		return err
	}
	return w.run()
}

type walker struct {
	ctx   context.Context // of the call of walk
	root  string
	scope scope
	visit visit
	buf   []byte
	dirs  *safepath.Dirs
	lists []list // one per directory of dirs
}

// list is what is left to visit in a directory.
type list struct {
	path  string
	pure  bool // of the names in it
	names []string
}

// list begins with the content of the directory n, the lowest one of dirs.
func (w *walker) list(n *node, pure bool) error {
	names, err := readNames(n.fd)
	if err != nil && !gone(err) {
		return w.fail("read", n.path, err)
	}
	w.lists = append(w.lists, list{n.path, pure, names})
	return nil
}

func (w *walker) run() error {
	for {
		if err := context.Cause(w.ctx); err != nil {
			return err
		}
		low := &w.lists[len(w.lists)-1]
		if len(low.names) > 0 {
			name := low.names[0]
			low.names = low.names[1:]
			n := &node{path: name, name: name, dirfd: int(w.dirs.Dir().Fd()), fd: -1, pure: low.pure}
			if w.scope.paths {
				if n.path = join(low.path, name); len(n.path) > MaxPath {
					return errs.New(errs.Invalid, "writable layer: path %.60q…: longer than %d bytes", n.path, MaxPath)
				}
			}
			if err := w.child(n); err != nil {
				return err
			}
			continue
		}
		if w.lists = w.lists[:len(w.lists)-1]; len(w.lists) == 0 {
			return nil
		}
		err := w.dirs.Leave()
		if errors.Is(err, errs.Conflict) && !w.scope.paths {
			// A directory was moved, so the way back is lost. What it was in has changed anyway: go on at the top.
			w.dirs.Close()
			w.lists = w.lists[:1]
			continue
		}
		if err != nil {
			return fmt.Errorf("writable layer: %w", err)
		}
	}
}

// child visits one name and enters it if it is a directory.
func (w *walker) child(n *node) error {
	err := unix.Fstatat(n.dirfd, n.name, &n.st, unix.AT_SYMLINK_NOFOLLOW)
	if gone(err) {
		return nil
	}
	if err != nil {
		return w.fail("stat", n.path, err)
	}
	isDir := n.st.Mode&unix.S_IFMT == unix.S_IFDIR
	var dir *os.File
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
		dir = os.NewFile(uintptr(n.fd), n.name)
	}
	below, err := w.see(n, isDir)
	if !isDir {
		return err
	}
	if err == nil {
		err = w.list(n, n.pure || !below)
	}
	if err != nil {
		return errors.Join(err, dir.Close())
	}
	return w.dirs.Push(dir)
}

// see completes a node and visits it.
func (w *walker) see(n *node, isDir bool) (below bool, err error) {
	n.white = isWhiteout(&n.st)
	if !n.white && (w.scope.xattrs || isDir || n.st.Size == 0) {
		if err := w.readXattrs(n); err != nil {
			return false, err
		}
	}
	return w.visit(n)
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
		case w.scope.xattrs && kept(x.name):
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
