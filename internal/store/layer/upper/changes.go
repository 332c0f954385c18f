package upper

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"ply/internal/store/layer"
)

// Changes lists what upperDir adds, modifies and deletes compared with lower, sorted by path. A directory with a change
// inside is Modified or Added itself. Of a deleted directory only the directory is listed. The root is never listed.
func Changes(ctx context.Context, upperDir string, lower Lower) ([]layer.Change, error) {
	var all []layer.Change
	add := func(p string, kind layer.Kind) { all = append(all, layer.Change{Path: "/" + p, Kind: kind}) }
	err := walk(ctx, upperDir, scope{paths: true}, func(n *node) (bool, error) {
		if n.path == "." {
			return true, nil
		}
		was, found, err := lower.Lookup(n.path)
		if err != nil {
			return false, fmt.Errorf("writable layer: look-up below: %w", err)
		}
		if n.white {
			// What an opaque directory hides is listed together with the directory.
			if found && !n.pure {
				add(n.path, layer.Deleted)
			}
			return false, nil
		}
		if !found {
			add(n.path, layer.Added)
			return false, nil
		}
		add(n.path, layer.Modified)
		if n.fd < 0 || was.Mode&unix.S_IFMT != unix.S_IFDIR {
			return false, nil
		}
		if !n.opaque && !n.pure {
			return true, nil
		}
		hidden, err := hiddenBelow(n, lower)
		for _, name := range hidden {
			add(join(n.path, name), layer.Deleted)
		}
		return false, err
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(all, func(a, b layer.Change) int { return strings.Compare(a.Path, b.Path) })
	return all, nil
}

// hiddenBelow returns the names that lower has in directory n and that n, which hides the layers below, does not have.
func hiddenBelow(n *node, lower Lower) ([]string, error) {
	below, err := lower.List(n.path)
	if err != nil {
		return nil, fmt.Errorf("writable layer: look-up below: %w", err)
	}
	return slices.DeleteFunc(below, func(name string) bool {
		var st unix.Stat_t
		err := unix.Fstatat(n.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
		return err == nil && !isWhiteout(&st)
	}), nil
}

// Usage returns the sum of the sizes of the regular files in upperDir, in bytes. A file with several names counts once.
func Usage(ctx context.Context, upperDir string) (int64, error) {
	var sum int64
	seen := map[inode]bool{}
	err := walk(ctx, upperDir, scope{}, func(n *node) (bool, error) {
		if n.st.Mode&unix.S_IFMT != unix.S_IFREG || n.white {
			return true, nil
		}
		if n.st.Nlink > 1 {
			id := inode{n.st.Dev, n.st.Ino}
			if seen[id] {
				return true, nil
			}
			seen[id] = true
		}
		sum += n.st.Size
		return true, nil
	})
	return sum, err
}

type inode struct{ dev, ino uint64 }
