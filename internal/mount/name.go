package mount

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Kind returns the name of the file system that a path lies on as in `docker info`, or its magic number.
func Kind(path string) (string, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return "", fmt.Errorf("statfs %s: %w", path, err)
	}
	switch magic := int64(st.Type); magic {
	case unix.EXT4_SUPER_MAGIC:
		return "extfs", nil
	case unix.XFS_SUPER_MAGIC:
		return "xfs", nil
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs", nil
	case unix.TMPFS_MAGIC:
		return "tmpfs", nil
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlayfs", nil
	case 0x2fc12fc1:
		return "zfs", nil
	case unix.F2FS_SUPER_MAGIC:
		return "f2fs", nil
	case unix.FUSE_SUPER_MAGIC:
		return "fuse", nil
	default:
		return fmt.Sprintf("0x%x", magic), nil
	}
}
