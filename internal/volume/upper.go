package volume

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/safepath"
	"ply/internal/store/layer/upper"
)

// The marks of overlayfs in an upper directory, besides upper.OpaqueXattr.
const (
	redirectXattr = "trusted.overlay.redirect"
	metacopyXattr = "trusted.overlay.metacopy"
	whiteoutXattr = "trusted.overlay.whiteout"
)

// ApplyUpper changes the tree root as dir, the upper directory of an overlay, changes what is below it: whiteouts remove, opaque directories replace, and other names
// replace files and merge directories. Files keep owners, modes, times, extended attributes, holes and hard links. Neither tree is trusted: no link is
// followed. It syncs nothing. The error's class is errs.Unimplemented for an upper directory that refers to the layers below it by names, which
// overlayfs writes with redirect_dir or metacopy only.
func ApplyUpper(ctx context.Context, root, dir *os.File) error {
	c := copier{ctx: ctx, links: map[[2]uint64]string{}, root: root, upper: true}
	return c.dir(dir, root, "")
}

// applyEntry handles what only an upper directory has. done reports that nothing is to be copied.
func (c *copier) applyEntry(src, dst *os.File, name string, st *unix.Stat_t) (done bool, err error) {
	kind := st.Mode & unix.S_IFMT
	if kind == unix.S_IFCHR && st.Rdev == 0 {
		return true, removeName(c.ctx, dst, name)
	}
	if kind != unix.S_IFDIR && kind != unix.S_IFREG {
		return false, removeName(c.ctx, dst, name)
	}
	node, err := unix.Openat(int(src.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	f := os.NewFile(uintptr(node), name)
	defer f.Close()
	for _, x := range []string{redirectXattr, metacopyXattr} {
		if _, marked, err := mark(f, x); err != nil {
			return false, err
		} else if marked {
			return false, errs.New(errs.Unimplemented, "the attribute %s refers to a file of the layers below", x)
		}
	}
	if kind == unix.S_IFREG {
		white := false
		if st.Size == 0 {
			if _, white, err = mark(f, whiteoutXattr); err != nil {
				return false, err
			}
		}
		return white, removeName(c.ctx, dst, name)
	}
	opaque, _, err := mark(f, upper.OpaqueXattr)
	if err != nil {
		return false, err
	}
	if opaque == "y" {
		return false, removeName(c.ctx, dst, name)
	}
	var have unix.Stat_t
	err = unix.Fstatat(int(dst.Fd()), name, &have, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) || err == nil && have.Mode&unix.S_IFMT == unix.S_IFDIR {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return false, removeName(c.ctx, dst, name)
}

// removeName removes a name and everything below it; one that is not there is no error.
func removeName(ctx context.Context, dir *os.File, name string) error {
	err := safepath.RemoveAll(dir, name, func() error { return context.Cause(ctx) })
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// mark returns the value of an extended attribute, "" for a long one, and whether the file has it.
func mark(f *os.File, name string) (value string, marked bool, err error) {
	buf := make([]byte, 1)
	n, err := unix.Fgetxattr(int(f.Fd()), name, buf)
	switch {
	case err == nil:
		return string(buf[:n]), true, nil
	case errors.Is(err, unix.ERANGE):
		return "", true, nil
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOTSUP):
		return "", false, nil
	}
	return "", false, &os.PathError{Op: "getxattr " + name, Path: f.Name(), Err: err}
}
