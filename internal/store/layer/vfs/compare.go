package vfs

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"ply/internal/store/layer"
	"ply/internal/store/layer/upper"
)

// comparer finds the changes of a container's tree compared with that of its chain.
type comparer struct {
	ctx   context.Context // of the call of compare
	since unix.Timespec   // a file with an earlier ctime was not changed
	made  map[string]mark // mount points of the runtime that have not changed

	// beyond is called for what has a longer path than upper.MaxPath. No layer can have it.
	beyond func(dir *os.File, name, path string) error

	changes []layer.Change
	pairs   map[inode]inode // of files with several names: the chain's → the container's, and the reverse
	back    map[inode]inode
	links   map[inode][]string // unchanged files of the container with several names
	emitted map[inode]bool
}

// compare returns the changes, sorted by path.
func (c *comparer) compare(base, cur *os.File) ([]layer.Change, error) {
	c.pairs, c.back = map[inode]inode{}, map[inode]inode{}
	c.links, c.emitted = map[inode][]string{}, map[inode]bool{}
	if _, err := c.dirs(base, cur, "."); err != nil {
		return nil, err
	}
	// A layer that has one name of a file must have all of them. Otherwise the hard link would be broken in it.
	for id := range c.emitted {
		for _, p := range c.links[id] {
			c.add(p, layer.Modified)
		}
	}
	slices.SortFunc(c.changes, func(a, b layer.Change) int { return strings.Compare(a.Path, b.Path) })
	return c.withParents(), nil
}

func (c *comparer) add(path string, kind layer.Kind) {
	c.changes = append(c.changes, layer.Change{Path: "/" + path, Kind: kind})
}

// withParents adds the directories that contain a change and have not changed themselves, to the sorted list.
func (c *comparer) withParents() []layer.Change {
	listed := make(map[string]bool, len(c.changes))
	for _, ch := range c.changes {
		listed[ch.Path] = true
	}
	for _, ch := range slices.Clone(c.changes) {
		for dir := ch.Path; ; {
			i := strings.LastIndexByte(dir, '/')
			if dir = dir[:max(i, 0)]; dir == "" || listed[dir] {
				break
			}
			listed[dir] = true
			c.changes = append(c.changes, layer.Change{Path: dir, Kind: layer.Modified})
		}
	}
	slices.SortFunc(c.changes, func(a, b layer.Change) int { return strings.Compare(a.Path, b.Path) })
	return c.changes
}

// dirs compares the content of two directories; base may be nil. Changed is true when anything below differs.
func (c *comparer) dirs(base, cur *os.File, path string) (changed bool, err error) {
	if err := context.Cause(c.ctx); err != nil {
		return false, err
	}
	now, err := names(cur)
	if err != nil {
		return false, ignoreGone(err)
	}
	var was []string
	if base != nil {
		if was, err = names(base); err != nil {
			return false, err
		}
	}
	for _, name := range now {
		p := join(path, name)
		if len(p) > upper.MaxPath {
			changed = true
			if err := c.beyond(cur, name, p); err != nil {
				return false, err
			}
			continue
		}
		_, had := slices.BinarySearch(was, name)
		one, err := c.one(base, cur, name, p, had)
		if err != nil {
			return false, err
		}
		changed = changed || one
	}
	for _, name := range was {
		if _, has := slices.BinarySearch(now, name); !has {
			c.add(join(path, name), layer.Deleted)
			changed = true
		}
	}
	return changed, nil
}

func ignoreGone(err error) error {
	if gone(err) {
		return nil
	}
	return err
}

func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

// one compares one name of cur.
func (c *comparer) one(base, cur *os.File, name, path string, had bool) (bool, error) {
	st, err := lstat(cur, name)
	if err != nil {
		return false, ignoreGone(err)
	}
	var old unix.Stat_t
	if had {
		if old, err = lstat(base, name); err != nil {
			return false, err
		}
	}
	own, ok := c.made[path]
	ours := ok && own.is(&st)
	kind := layer.Modified
	if !had {
		kind = layer.Added
	}
	if kindOf(&st) == unix.S_IFDIR {
		return c.dirOne(base, cur, name, path, &st, &old, kind, ours)
	}
	if ours {
		return false, nil
	}
	if had {
		same, err := c.same(base, cur, name, &old, &st)
		if err != nil {
			return false, ignoreGone(err)
		}
		if same {
			if st.Nlink > 1 {
				c.links[inodeOf(&st)] = append(c.links[inodeOf(&st)], path)
			}
			return false, nil
		}
	}
	if st.Nlink > 1 {
		c.emitted[inodeOf(&st)] = true
	}
	c.add(path, kind)
	return true, nil
}

func (c *comparer) dirOne(base, cur *os.File, name, path string, st, old *unix.Stat_t, kind layer.Kind, ours bool) (bool, error) {
	sub, err := openDir(int(cur.Fd()), name)
	if err != nil {
		return false, ignoreGone(err)
	}
	defer sub.Close()
	var below *os.File
	differs := !ours
	if kind == layer.Modified && kindOf(old) == unix.S_IFDIR {
		if below, err = openDir(int(base.Fd()), name); err != nil {
			return false, err
		}
		defer below.Close()
		if differs, err = attrsDiffer(base, cur, name, old, st); err != nil {
			return false, ignoreGone(err)
		}
		differs = differs || st.Mtim != old.Mtim
	}
	inside, err := c.dirs(below, sub, path)
	if err != nil {
		return false, err
	}
	if differs || inside {
		c.add(path, kind)
	}
	return differs || inside, nil
}

// attrsDiffer compares type, mode, owner and xattrs.
func attrsDiffer(base, cur *os.File, name string, old, st *unix.Stat_t) (bool, error) {
	if old.Mode != st.Mode || old.Uid != st.Uid || old.Gid != st.Gid {
		return true, nil
	}
	was, err := upper.Xattrs(int(base.Fd()), name)
	if err != nil {
		return false, err
	}
	now, err := upper.Xattrs(int(cur.Fd()), name)
	return !slices.Equal(was, now), err
}

// same reports whether two names that are not directories are the same for a layer.
func (c *comparer) same(base, cur *os.File, name string, old, st *unix.Stat_t) (bool, error) {
	if old.Nlink > 1 || st.Nlink > 1 {
		o, n := inodeOf(old), inodeOf(st)
		if to, ok := c.pairs[o]; ok && to != n {
			return false, nil
		}
		if from, ok := c.back[n]; ok && from != o {
			return false, nil
		}
		c.pairs[o], c.back[n] = n, o
	}
	if st.Ctim.Sec < c.since.Sec || st.Ctim.Sec == c.since.Sec && st.Ctim.Nsec < c.since.Nsec {
		return true, nil
	}
	if old.Mtim != st.Mtim || old.Rdev != st.Rdev || old.Size != st.Size {
		return false, nil
	}
	if differ, err := attrsDiffer(base, cur, name, old, st); differ || err != nil {
		return false, err
	}
	switch kindOf(st) {
	case unix.S_IFLNK:
		was, err := readlink(int(base.Fd()), name)
		if err != nil {
			return false, err
		}
		now, err := readlink(int(cur.Fd()), name)
		return was == now, err
	case unix.S_IFREG:
		return sameContent(base, cur, name)
	}
	return true, nil
}

// sameContent compares two regular files. A file of the container that has become something else is not opened; it differs.
func sameContent(base, cur *os.File, name string) (bool, error) {
	a, err := openFile(int(base.Fd()), name)
	if err != nil {
		return false, err
	}
	defer a.Close()
	b, err := openFile(int(cur.Fd()), name)
	if errors.Is(err, unix.ENXIO) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer b.Close()
	bufA, bufB := make([]byte, 128<<10), make([]byte, 128<<10)
	for {
		n, errA := io.ReadFull(a, bufA)
		m, errB := io.ReadFull(b, bufB)
		if !bytes.Equal(bufA[:n], bufB[:m]) {
			return false, nil
		}
		for _, err := range []error{errA, errB} {
			if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
				return false, err
			}
		}
		if errA != nil || errB != nil {
			return true, nil
		}
	}
}
