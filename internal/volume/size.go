package volume

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/safepath"
)

// treeSize returns the sum of the lengths of the regular files below root, in bytes; a file with several names counts once. Containers
// write to the tree meanwhile, so treeSize looks no path up: it follows no link, even one that replaces a directory, and skips what
// disappears. When a directory is moved away while it is read, the sum is of what was seen until then.
func treeSize(ctx context.Context, root string) (int64, error) {
	top, err := os.OpenFile(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ENOENT) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer top.Close()
	dirs, err := safepath.NewDirs(top)
	if err != nil {
		return 0, err
	}
	defer dirs.Close()
	names, err := top.Readdirnames(-1)
	if err != nil {
		return 0, err
	}
	var total int64
	seen := map[[2]uint64]struct{}{}
	stack := [][]string{names} // per directory of dirs, the names that are not counted yet
	for {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		low := &stack[len(stack)-1]
		if len(*low) == 0 {
			if dirs.Depth() == 0 {
				return total, nil
			}
			if err := dirs.Leave(); errors.Is(err, errs.Conflict) {
				return total, nil
			} else if err != nil {
				return 0, err
			}
			stack = stack[:len(stack)-1]
			continue
		}
		name := (*low)[len(*low)-1]
		*low = (*low)[:len(*low)-1]
		var st unix.Stat_t
		err := unix.Fstatat(int(dirs.Dir().Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return 0, &os.PathError{Op: "stat", Path: name, Err: err}
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			err := dirs.Enter(name)
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
				continue
			}
			if err != nil {
				return 0, err
			}
			below, err := dirs.Dir().Readdirnames(-1)
			if err != nil {
				return 0, err
			}
			stack = append(stack, below)
		case unix.S_IFREG:
			if st.Nlink > 1 {
				key := [2]uint64{uint64(st.Dev), st.Ino}
				if _, dup := seen[key]; dup {
					continue
				}
				seen[key] = struct{}{}
			}
			total += st.Size
		}
	}
}
