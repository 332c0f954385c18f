package upper

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// CopyAttrs sets owner, mode, xattrs (without those of overlayfs) and modification time of path below the directory to from
// path below the directory from. It does not follow a symbolic link in the last component. The other components must be
// directories.
func CopyAttrs(to, from int, path string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(from, path, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return SetAttrs(to, path, &st, from, path)
}

// SetAttrs sets owner, mode and modification time of a name to those of st, and its xattrs to those of another name.
func SetAttrs(to int, path string, st *unix.Stat_t, from int, fromPath string) error {
	if err := unix.Fchownat(to, path, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "chown", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Fchmodat(to, path, st.Mode&0o7777, 0); err != nil {
			return &os.PathError{Op: "chmod", Path: path, Err: err}
		}
	}
	xattrs, err := Xattrs(from, fromPath)
	if err != nil {
		return &os.PathError{Op: "read xattrs", Path: fromPath, Err: err}
	}
	for _, x := range xattrs {
		if err := unix.Lsetxattr(procPath(to, path), x.name, []byte(x.value), 0); err != nil {
			return &os.PathError{Op: "set xattr " + x.name, Path: path, Err: err}
		}
	}
	ts := []unix.Timespec{st.Mtim, st.Mtim}
	if err := unix.UtimesNanoAt(to, path, ts, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "set time", Path: path, Err: err}
	}
	return nil
}

// Xattrs returns the xattrs of one name that belong to a layer, sorted by name.
func Xattrs(dirfd int, path string) ([]Xattr, error) {
	var buf []byte
	all, err := listXattrs(procPath(dirfd, path), &buf)
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	all = slices.DeleteFunc(all, func(x Xattr) bool { return overlayOwn(x.name) || !kept(x.name) })
	slices.SortFunc(all, func(a, b Xattr) int { return strings.Compare(a.name, b.name) })
	return all, err
}

// Xattr is an extended attribute.
type Xattr = xattr

func overlayOwn(name string) bool {
	return strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.")
}

// AttrsDigest returns a digest of the attributes that CopyAttrs copies.
func AttrsDigest(dirfd int, path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(dirfd, path, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return "", &os.PathError{Op: "stat", Path: path, Err: err}
	}
	xattrs, err := Xattrs(dirfd, path)
	if err != nil {
		return "", &os.PathError{Op: "read xattrs", Path: path, Err: err}
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%o %d %d %d.%d %q", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec, xattrs))
	return hex.EncodeToString(sum[:]), nil
}

// RemoveXattr removes an extended attribute of a name.
func RemoveXattr(dirfd int, path string, x Xattr) error {
	if err := unix.Lremovexattr(procPath(dirfd, path), x.name); err != nil {
		return &os.PathError{Op: "remove xattr " + x.name, Path: path, Err: err}
	}
	return nil
}
