package overlay2

import (
	"context"
	"errors"
	"io"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"ply/internal/store/layer/tree"
	"ply/internal/store/layer/upper"
)

// resolver makes the tree of a variant. It contains directories that the layer implies, with the attributes they have
// below; directories that must be merged with another one; and copies of the lower files to which the layer has hard links,
// with all their names.
type resolver struct {
	ctx       context.Context // of the call of run
	meta      *tree.Meta
	top       *os.File // the variant
	own       *os.File // the layer
	lower     *upper.Stack
	lowerDirs []*os.File
	all       *upper.Stack // the layer on top of the lower ones
	made      bool
	dirs      []madeDir
	isImplied map[string]bool
}

type madeDir struct {
	from int
	path string
}

func (r *resolver) run() error {
	r.isImplied = make(map[string]bool, len(r.meta.Implied))
	for _, name := range r.meta.Implied {
		r.isImplied[string(name)] = true
	}
	for _, name := range r.meta.Implied {
		if err := r.implied(string(name)); err != nil {
			return err
		}
	}
	for _, name := range r.meta.Wiped {
		if err := r.wiped(string(name)); err != nil {
			return err
		}
	}
	first := map[string]string{} // target of a link → a name that has its copy
	for _, l := range r.meta.Links {
		if err := r.link(l, first); err != nil {
			return err
		}
	}
	for i := len(r.dirs) - 1; i >= 0; i-- { // creating what is inside changed their times
		if err := upper.CopyAttrs(int(r.top.Fd()), r.dirs[i].from, r.dirs[i].path); err != nil {
			return err
		}
	}
	return nil
}

func (r *resolver) implied(p string) error {
	st, _, found, err := r.lower.Where(p)
	if err != nil {
		return err
	}
	if !found || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil // the layer's own directory is right
	}
	return r.makeAll(p)
}

// wiped makes a directory with whiteouts in the variant, unless there is one below with which it is merged.
func (r *resolver) wiped(p string) error {
	st, _, found, err := r.lower.Where(p)
	if err != nil {
		return err
	}
	if found && st.Mode&unix.S_IFMT == unix.S_IFDIR && !r.hides(p) {
		return nil
	}
	return r.makeAll(p)
}

// hides reports whether the layer hides what is below its directory p: the directory, or one above it, is opaque.
func (r *resolver) hides(p string) bool {
	for ; p != "."; p = path.Dir(p) {
		if upper.Opaque(int(r.own.Fd()), p) {
			return true
		}
	}
	return false
}

// makeAll makes the directory p and its parents, with the attributes that they have in the stack of layer and chain.
func (r *resolver) makeAll(p string) error {
	if p == "." {
		return nil
	}
	if err := unix.Faccessat(int(r.top.Fd()), p, unix.F_OK, unix.AT_SYMLINK_NOFOLLOW); err == nil {
		return nil
	}
	if err := r.makeAll(path.Dir(p)); err != nil {
		return err
	}
	from, err := r.attrsOf(p)
	if err != nil {
		return err
	}
	if err := unix.Mkdirat(int(r.top.Fd()), p, 0o700); err != nil {
		return &os.PathError{Op: "mkdir", Path: p, Err: err}
	}
	r.made = true
	r.dirs = append(r.dirs, madeDir{from, p})
	return nil
}

// attrsOf returns the descriptor of the layer from which directory p has its attributes: the layer itself if it has an
// entry, otherwise a layer below.
func (r *resolver) attrsOf(p string) (fd int, err error) {
	if !r.isImplied[p] {
		var st unix.Stat_t
		err := unix.Fstatat(int(r.own.Fd()), p, &st, unix.AT_SYMLINK_NOFOLLOW)
		if err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return int(r.own.Fd()), nil
		}
	}
	st, l, found, err := r.lower.Where(p)
	if err != nil {
		return 0, err
	}
	if found && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return int(r.lowerDirs[l].Fd()), nil
	}
	return int(r.own.Fd()), nil
}

func (r *resolver) link(l tree.Link, first map[string]string) error {
	if err := context.Cause(r.ctx); err != nil {
		return err
	}
	target, name := string(l.Target), string(l.Name)
	st, layer, found, err := r.lower.Where(target)
	if err != nil {
		return err
	}
	if !found || st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return noTarget(r.meta, l)
	}
	if err := r.makeAll(path.Dir(name)); err != nil {
		return err
	}
	top := int(r.top.Fd())
	r.made = true
	if had := first[target]; had != "" {
		return r.wrap("link", name, unix.Linkat(top, had, top, name, 0))
	}
	if err := copyNode(int(r.lowerDirs[layer].Fd()), target, &st, top, name); err != nil {
		return err
	}
	first[target] = name
	// The target is the same file as the link, unless this layer hides or replaces it.
	now, _, still, err := r.all.Where(target)
	if err != nil {
		return err
	}
	if !still || now.Dev != st.Dev || now.Ino != st.Ino {
		return nil
	}
	if err := r.makeAll(path.Dir(target)); err != nil {
		return err
	}
	return r.wrap("link", target, unix.Linkat(top, name, top, target, 0))
}

func (r *resolver) wrap(op, p string, err error) error {
	if err == nil {
		return nil
	}
	return &os.PathError{Op: op, Path: p, Err: err}
}

// copyNode copies anything but a directory, with all attributes.
func copyNode(from int, src string, st *unix.Stat_t, to int, dst string) error {
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		err = copyFile(from, src, to, dst)
	case unix.S_IFLNK:
		buf := make([]byte, 4096)
		var n int
		if n, err = unix.Readlinkat(from, src, buf); err == nil {
			err = unix.Symlinkat(string(buf[:n]), to, dst)
		}
	default:
		err = unix.Mknodat(to, dst, st.Mode&unix.S_IFMT|0o600, int(st.Rdev))
	}
	if err != nil {
		return &os.PathError{Op: "copy from a lower layer", Path: src, Err: err}
	}
	return upper.SetAttrs(to, dst, st, from, src)
}

func copyFile(from int, src string, to int, dst string) error {
	in, err := unix.Openat(from, src, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	r := os.NewFile(uintptr(in), src)
	defer r.Close()
	out, err := unix.Openat(to, dst, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	w := os.NewFile(uintptr(out), dst)
	if err := unix.IoctlFileClone(out, in); err != nil {
		_, err = io.Copy(w, r) // uses copy_file_range where the kernel supports it
		return errors.Join(err, w.Close())
	}
	return w.Close()
}
