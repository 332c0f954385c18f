package volume

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/safepath"
)

// The marks of overlayfs in an upper directory.
const (
	opaqueXattr   = "trusted.overlay.opaque"
	redirectXattr = "trusted.overlay.redirect"
	metacopyXattr = "trusted.overlay.metacopy"
	whiteoutXattr = "trusted.overlay.whiteout"
)

// ApplyUpper changes a tree as the upper directory of an overlay changes what is below it: whiteouts remove, opaque directories replace, and other names
// replace files and merge directories. Files keep owners, modes, times, extended attributes, holes and hard links. Neither tree is trusted: no link is
// followed. It syncs nothing. The error's class is errs.Unimplemented for an upper directory that refers to the layers below it by names, which
// overlayfs writes with redirect_dir or metacopy only.
func ApplyUpper(ctx context.Context, root, upper *os.File) error {
	c := copier{ctx: ctx, links: map[[2]uint64]string{}, root: root, upper: true}
	return c.dir(upper, root, "")
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
		if hasXattr(f, x) {
			return false, errs.New(errs.Unimplemented, "the attribute %s refers to a file of the layers below", x)
		}
	}
	if kind == unix.S_IFREG {
		return st.Size == 0 && hasXattr(f, whiteoutXattr), removeName(c.ctx, dst, name)
	}
	if hasXattr(f, opaqueXattr) {
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

// hasXattr reports whether a file has an extended attribute that is not empty, or that is a mark.
func hasXattr(f *os.File, name string) bool {
	buf := make([]byte, 1)
	n, err := unix.Fgetxattr(int(f.Fd()), name, buf)
	if name == opaqueXattr {
		return err == nil && n == 1 && buf[0] == 'y'
	}
	return err == nil || errors.Is(err, unix.ERANGE)
}
