package mount

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Bind mounts source, a file or directory, with the mounts below it, on target.
func Bind(source, target string, readOnly bool) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, source,
		unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return &os.PathError{Op: "bind", Path: source, Err: err}
	}
	t := &Tree{fd: fd}
	defer t.Close()
	if readOnly {
		attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, attr); err != nil {
			return &os.PathError{Op: "bind read-only", Path: source, Err: err}
		}
	}
	return t.Attach(target)
}

// CloneOptions of Clone. The zero value clones all mounts as they are.
type CloneOptions struct {
	NonRecursive bool // without the mounts below
	ReadOnly     bool
}

// Clone returns a detached copy of the mounts at and below f, which may have been opened with O_PATH. No path is looked up, so the
// tree is of the file or directory that the caller has checked. The copy is private: unmounting it unmounts nothing else.
func Clone(f *os.File, o CloneOptions) (*Tree, error) {
	flags := uint(unix.AT_EMPTY_PATH | unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if !o.NonRecursive {
		flags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(int(f.Fd()), "", flags)
	if err != nil {
		return nil, &os.PathError{Op: "clone mount", Path: f.Name(), Err: err}
	}
	t := &Tree{fd: fd}
	attr := &unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if o.ReadOnly {
		attr.Attr_set = unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, attr); err != nil {
		return nil, errors.Join(&os.PathError{Op: "make private", Path: f.Name(), Err: err}, t.Close())
	}
	return t, nil
}

// MakeReadOnly makes the mount whose root f is read-only, without those below it.
func MakeReadOnly(f *os.File) error {
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(int(f.Fd()), "", unix.AT_EMPTY_PATH, attr); err != nil {
		return &os.PathError{Op: "make read-only", Path: f.Name(), Err: err}
	}
	return nil
}

// MakePrivate stops mounts at and below target from propagating to or from other mounts. Target must be a mount point.
func MakePrivate(target string) error {
	attr := &unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(unix.AT_FDCWD, target, unix.AT_RECURSIVE, attr); err != nil {
		return &os.PathError{Op: "make private", Path: target, Err: err}
	}
	return nil
}

// Private makes dir a private mount: it mounts the directory on itself, unless it is a mount already, and stops mounts at
// and below it from propagating. It makes the directory when it does not exist. made reports whether Private mounted it.
func Private(dir string) (made bool, err error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return false, err
	}
	mounted, err := IsMounted(dir)
	if err != nil {
		return false, err
	}
	if !mounted {
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			return false, &os.PathError{Op: "bind", Path: dir, Err: err}
		}
	}
	if err := MakePrivate(dir); err != nil {
		if !mounted {
			err = errors.Join(err, Unmount(dir, true))
		}
		return false, err
	}
	return !mounted, nil
}

// Unmount unmounts the topmost mount on target. It is no error when nothing is mounted there or target does not exist. For a
// mount in use it returns EBUSY, unless detach is set: the mount then leaves the directory tree at once and ends with its last
// user.
func Unmount(target string, detach bool) error {
	flags := unix.UMOUNT_NOFOLLOW
	if detach {
		flags |= unix.MNT_DETACH
	}
	err := ignoringEINTR(func() error { return unix.Unmount(target, flags) })
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if errors.Is(err, unix.EINVAL) {
		if mounted, merr := IsMounted(target); merr == nil && !mounted {
			return nil
		}
	}
	return &os.PathError{Op: "unmount", Path: target, Err: err}
}

// IsMounted reports whether target is a mount point. A path that does not exist is none.
func IsMounted(target string) (bool, error) {
	var st unix.Statx_t
	err := ignoringEINTR(func() error {
		return unix.Statx(unix.AT_FDCWD, target, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_TYPE, &st)
	})
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return false, nil
	case err != nil:
		return false, &os.PathError{Op: "statx", Path: target, Err: err}
	}
	return st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0 && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}
