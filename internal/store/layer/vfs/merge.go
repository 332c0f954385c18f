package vfs

import (
	"context"
	"errors"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/store/layer/tree"
	"ply/internal/store/layer/upper"
)

// merger merges a tree in overlay format into a plain one by moving its files there.
type merger struct {
	ctx      context.Context // of the call of run
	from     *os.File        // the layer alone
	to       *os.File        // the stack
	spare    *os.File        // a directory for copies, on the same file system
	meta     *tree.Meta
	implied  map[string]bool
	attrsSet map[string]bool        // directories that have the attributes of the layer
	times    map[string]unix.Stat_t // times of directories, set at the end
}

// lowerLink is a file of a lower layer to which the layer has hard links.
type lowerLink struct {
	copy   string // in spare
	was    inode
	target string
	names  []string
}

func (m *merger) run() error {
	m.implied, m.attrsSet, m.times = map[string]bool{}, map[string]bool{}, map[string]unix.Stat_t{}
	for _, p := range m.meta.Implied {
		m.implied[string(p)] = true
	}
	links, err := m.copyTargets()
	if err != nil {
		return err
	}
	root, err := lstat(m.to, ".")
	if err != nil {
		return err
	}
	if m.meta.OwnRoot { // the layer's root, before moving its files away changes it
		if root, err = lstat(m.from, "."); err != nil {
			return err
		}
	}
	if m.meta.OpaqueRoot {
		if err := empty(m.to, "."); err != nil {
			return err
		}
	}
	if err := m.dir(m.from, m.to, "."); err != nil {
		return err
	}
	for _, l := range links {
		if err := m.nameCopy(l); err != nil {
			return err
		}
	}
	if err := m.setAllAttrs(m.from, "."); err != nil {
		return err
	}
	for p, st := range m.times { // nothing changes the directories any more
		if err := setTime(m.to, p, &st); err != nil {
			return err
		}
	}
	if m.meta.OwnRoot {
		if err := upper.CopyAttrs(int(m.to.Fd()), int(m.from.Fd()), "."); err != nil {
			return err
		}
	}
	return setTime(m.to, ".", &root)
}

func setTime(d *os.File, p string, st *unix.Stat_t) error {
	err := unix.UtimesNanoAt(int(d.Fd()), p, []unix.Timespec{st.Mtim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) {
		return &os.PathError{Op: "set time", Path: p, Err: err}
	}
	return nil
}

// copyTargets copies the lower files to which the layer has hard links, before anything hides them.
func (m *merger) copyTargets() ([]*lowerLink, error) {
	byTarget := map[string]*lowerLink{}
	var all []*lowerLink
	for _, l := range m.meta.Links {
		target := string(l.Target)
		link := byTarget[target]
		if link == nil {
			dir, base := parentOf(target)
			parent, err := openDir(int(m.to.Fd()), dir)
			if err != nil {
				return nil, m.noTarget(l)
			}
			st, err := lstat(parent, base)
			if err == nil && kindOf(&st) != unix.S_IFDIR {
				link = &lowerLink{copy: strconv.Itoa(len(all)), was: inodeOf(&st), target: target}
				err = copyNode(m.ctx, int(parent.Fd()), base, &st, int(m.spare.Fd()), link.copy)
				if err == nil { // a second name, so that the inode number is not used again
					err = unix.Linkat(int(parent.Fd()), base, int(m.spare.Fd()), link.copy+"-was", 0)
				}
			} else {
				err = m.noTarget(l)
			}
			parent.Close()
			if err != nil {
				return nil, err
			}
			byTarget[target], all = link, append(all, link)
		}
		link.names = append(link.names, string(l.Name))
	}
	return all, nil
}

func (m *merger) noTarget(l tree.Link) error {
	return errs.New(errs.Invalid, "layer %s: entry %q: hard link to %q, which neither it nor a layer below has", m.meta.DiffID, l.Name, l.Target)
}

// nameCopy gives the copy of a lower file its names: those of the layer, and the old one unless the layer hides or replaces
// it.
func (m *merger) nameCopy(l *lowerLink) error {
	for _, name := range append(l.names, l.target) {
		dir, base := parentOf(name)
		parent, err := openDir(int(m.to.Fd()), dir)
		if name == l.target && err != nil {
			continue
		}
		if err != nil {
			return err
		}
		err = m.nameOne(l, parent, dir, base, name == l.target)
		parent.Close()
		if err != nil {
			return err
		}
	}
	return errors.Join(removeAll(m.spare, l.copy), removeAll(m.spare, l.copy+"-was"))
}

func (m *merger) nameOne(l *lowerLink, parent *os.File, dir, base string, old bool) error {
	if old {
		st, err := lstat(parent, base)
		if err != nil || inodeOf(&st) != l.was {
			return nil
		}
		if err := m.remember(parent, dir); err != nil {
			return err
		}
	}
	if err := removeAll(parent, base); err != nil {
		return err
	}
	if err := unix.Linkat(int(m.spare.Fd()), l.copy, int(parent.Fd()), base, 0); err != nil {
		return &os.PathError{Op: "link", Path: join(dir, base), Err: err}
	}
	return nil
}

// remember records the time of a directory that is about to change because of the merge.
func (m *merger) remember(d *os.File, path string) error {
	if _, ok := m.times[path]; ok || path == "." {
		return nil
	}
	st, err := lstat(d, ".")
	m.times[path] = st
	return err
}

func (m *merger) dir(from, to *os.File, path string) error {
	if err := context.Cause(m.ctx); err != nil {
		return err
	}
	list, err := names(from)
	if err != nil {
		return err
	}
	for _, name := range list {
		if err := m.child(from, to, name, join(path, name)); err != nil {
			return err
		}
	}
	return nil
}

func (m *merger) child(from, to *os.File, name, path string) error {
	st, err := lstat(from, name)
	if err != nil {
		return err
	}
	if kindOf(&st) == unix.S_IFCHR && st.Rdev == 0 {
		return removeAll(to, name)
	}
	if kindOf(&st) == unix.S_IFDIR {
		return m.subdir(from, to, name, path, st)
	}
	if err := removeAll(to, name); err != nil {
		return err
	}
	if err := unix.Renameat(int(from.Fd()), name, int(to.Fd()), name); err != nil {
		return &os.PathError{Op: "rename", Path: path, Err: err}
	}
	return nil
}

func (m *merger) subdir(from, to *os.File, name, path string, st unix.Stat_t) error {
	was, err := lstat(to, name)
	kept := err == nil && kindOf(&was) == unix.S_IFDIR
	switch {
	case kept && upper.Opaque(int(from.Fd()), name):
		if err := empty(to, name); err != nil {
			return err
		}
	case !kept:
		if err := removeAll(to, name); err != nil {
			return err
		}
		if err := unix.Mkdirat(int(to.Fd()), name, 0o700); err != nil {
			return &os.PathError{Op: "mkdir", Path: path, Err: err}
		}
	}
	if kept && m.implied[path] {
		m.times[path] = was
	} else {
		m.attrsSet[path], m.times[path] = true, st
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
	return m.dir(sub, made, path)
}

// setAllAttrs sets the attributes of directories to those of the layer, after everything was moved.
func (m *merger) setAllAttrs(from *os.File, path string) error {
	list, err := names(from)
	if err != nil {
		return err
	}
	for _, name := range list { // files have moved away, so these are directories and whiteouts
		st, err := lstat(from, name)
		if err != nil {
			return err
		}
		if kindOf(&st) != unix.S_IFDIR {
			continue
		}
		p := join(path, name)
		sub, err := openDir(int(from.Fd()), name)
		if err != nil {
			return err
		}
		err = m.setAllAttrs(sub, p)
		sub.Close()
		if err == nil && m.attrsSet[p] {
			err = m.setAttrs(p)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// setAttrs replaces all attributes of the directory p, xattrs included.
func (m *merger) setAttrs(p string) error {
	old, err := upper.Xattrs(int(m.to.Fd()), p)
	if err != nil {
		return err
	}
	for _, x := range old {
		if err := upper.RemoveXattr(int(m.to.Fd()), p, x); err != nil {
			return err
		}
	}
	return upper.CopyAttrs(int(m.to.Fd()), int(m.from.Fd()), p)
}
