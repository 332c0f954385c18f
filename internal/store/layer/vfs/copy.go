package vfs

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"ply/internal/durable"
	"ply/internal/safepath"
	"ply/internal/store/layer/upper"
)

// openBelow opens a path below dirfd without following symbolic links.
func openBelow(dirfd int, path string, flags int) (*os.File, error) {
	for {
		fd, err := unix.Openat2(dirfd, path, &unix.OpenHow{
			Flags:   uint64(flags | unix.O_CLOEXEC),
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
		})
		if err == nil {
			return os.NewFile(uintptr(fd), path), nil
		}
		if err != unix.EINTR && err != unix.EAGAIN {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
	}
}

func openDir(dirfd int, path string) (*os.File, error) {
	return openBelow(dirfd, path, unix.O_RDONLY|unix.O_DIRECTORY)
}

// openFile opens a regular file for reading. The error is ENXIO for anything else: to open it could have effects.
func openFile(dirfd int, name string) (*os.File, error) {
	at, err := openBelow(dirfd, name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	return safepath.Reopen(at, unix.O_RDONLY)
}

func openRoot(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// names returns the names in an open directory, sorted.
func names(d *os.File) ([]string, error) {
	if _, err := d.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	list, err := d.Readdirnames(-1)
	slices.Sort(list)
	return list, err
}

func lstat(d *os.File, name string) (st unix.Stat_t, err error) {
	err = unix.Fstatat(int(d.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		err = &os.PathError{Op: "stat", Path: name, Err: err}
	}
	return st, err
}

func kindOf(st *unix.Stat_t) uint32 { return st.Mode & unix.S_IFMT }

func join(dir, name string) string {
	if dir == "." {
		return name
	}
	return dir + "/" + name
}

type inode struct{ dev, ino uint64 }

func inodeOf(st *unix.Stat_t) inode { return inode{st.Dev, st.Ino} }

// copier copies a tree with all attributes and hard links.
type copier struct {
	ctx    context.Context // of the call of copyTree
	to     *os.File
	copies map[inode]string
}

// copyTree copies the content of from, and the attributes of from itself, into the empty directory to.
func copyTree(ctx context.Context, from, to *os.File) error {
	c := &copier{ctx: ctx, to: to, copies: map[inode]string{}}
	return c.dir(from, to, ".")
}

func (c *copier) dir(from, to *os.File, path string) error {
	if err := context.Cause(c.ctx); err != nil {
		return err
	}
	list, err := names(from)
	if err != nil {
		return err
	}
	for _, name := range list {
		if err := c.child(from, to, name, join(path, name)); err != nil {
			return err
		}
	}
	return upper.CopyAttrs(int(to.Fd()), int(from.Fd()), ".")
}

func (c *copier) child(from, to *os.File, name, path string) error {
	st, err := lstat(from, name)
	if err != nil {
		return err
	}
	if kindOf(&st) == unix.S_IFDIR {
		if err := unix.Mkdirat(int(to.Fd()), name, 0o700); err != nil {
			return &os.PathError{Op: "mkdir", Path: path, Err: err}
		}
		sub, err := openDir(int(from.Fd()), name)
		if err != nil {
			return err
		}
		defer sub.Close()
		made, err := openDir(int(to.Fd()), name)
		if err != nil {
			return err
		}
		defer made.Close()
		return c.dir(sub, made, path)
	}
	if st.Nlink > 1 {
		if had := c.copies[inodeOf(&st)]; had != "" {
			if err := unix.Linkat(int(c.to.Fd()), had, int(to.Fd()), name, 0); err != nil {
				return &os.PathError{Op: "link", Path: path, Err: err}
			}
			return nil
		}
		c.copies[inodeOf(&st)] = path
	}
	return copyNode(c.ctx, int(from.Fd()), name, &st, int(to.Fd()), name)
}

// copyNode copies anything but a directory. The copy of a socket has no listener.
func copyNode(ctx context.Context, from int, src string, st *unix.Stat_t, to int, dst string) error {
	var err error
	switch kindOf(st) {
	case unix.S_IFREG:
		err = copyFile(ctx, from, src, st.Size, to, dst)
	case unix.S_IFLNK:
		var target string
		if target, err = readlink(from, src); err == nil {
			err = unix.Symlinkat(target, to, dst)
		}
	default:
		err = unix.Mknodat(to, dst, kindOf(st)|0o600, int(st.Rdev))
	}
	if err != nil {
		return &os.PathError{Op: "copy", Path: src, Err: err}
	}
	return upper.SetAttrs(to, dst, st, from, src)
}

func readlink(dirfd int, name string) (string, error) {
	buf := make([]byte, 4096)
	n, err := unix.Readlinkat(dirfd, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

func copyFile(ctx context.Context, from int, src string, size int64, to int, dst string) error {
	r, err := openFile(from, src)
	if err != nil {
		return err
	}
	defer r.Close()
	out, err := unix.Openat(to, dst, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	w := os.NewFile(uintptr(out), dst)
	if size > 0 && unix.IoctlFileClone(out, int(r.Fd())) != nil {
		err = durable.CopySparse(ctx, w, r, size)
	}
	return errors.Join(err, w.Close())
}

// removeAll removes a name and everything below it.
func removeAll(d *os.File, name string) error {
	err := unix.Unlinkat(int(d.Fd()), name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) {
		return &os.PathError{Op: "remove", Path: name, Err: err}
	}
	if err := empty(d, name); err != nil {
		return err
	}
	if err := unix.Unlinkat(int(d.Fd()), name, unix.AT_REMOVEDIR); err != nil {
		return &os.PathError{Op: "remove", Path: name, Err: err}
	}
	return nil
}

// empty removes the content of a directory.
func empty(d *os.File, name string) error {
	sub, err := openDir(int(d.Fd()), name)
	if err != nil {
		return err
	}
	defer sub.Close()
	list, err := names(sub)
	if err != nil {
		return err
	}
	for _, n := range list {
		if err := removeAll(sub, n); err != nil {
			return err
		}
	}
	return nil
}

func parentOf(path string) (dir, base string) {
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return ".", path
	}
	return path[:i], path[i+1:]
}
