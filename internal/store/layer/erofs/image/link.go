package image

import (
	"strings"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
)

// within reports whether p lies below dir.
func within(p, dir string) bool {
	return len(p) > len(dir) && p[len(dir)] == '/' && p[:len(dir)] == dir
}

// target finds what the hard link from asks for; when this layer does not have it, it is a lower file and gets a
// place holder.
func (t *Tree) target(from, p string) (inodeID, error) {
	n := root
	for part := range strings.SplitSeq(p, "/") {
		if !t.dir(n) {
			return 0, errs.New(errs.Invalid, "hard link to %.200q, which this layer has hidden", p)
		}
		if n = t.lookup(n, part); n == noNode || t.nodes[n].inode == 0 {
			return t.lower(from, p)
		}
	}
	if t.dir(n) {
		return 0, errs.New(errs.Invalid, "hard link to the directory %.200q", p)
	}
	return t.nodes[n].inode, nil
}

func (t *Tree) lower(from, p string) (inodeID, error) {
	if from == p {
		return 0, errs.New(errs.Invalid, "hard link to itself")
	}
	if i, ok := t.copies[p]; ok {
		return i, nil
	}
	if err := t.account(2*len(p) + 64); err != nil {
		return 0, err
	}
	p = strings.Clone(p)
	i := t.newInode(inode{mode: unix.S_IFREG, absent: true, offset: int64(t.text(p)), size: int64(len(p))})
	t.copies[p] = i
	t.copyOrder = append(t.copyOrder, p)
	return i, nil
}

// settle gives the lower files that links name their own names, so that both are one file, unless this layer hides or
// replaces these.
func (t *Tree) settle() error {
	if t.settled {
		return nil
	}
	t.settled = true
	for _, p := range t.copyOrder {
		if !t.shows(p) {
			continue
		}
		n, err := t.at(p)
		if err != nil {
			return errs.New(errs.Invalid, "layer tar: entry %.200q: %w", p, err)
		}
		t.nodes[n].inode = t.copies[p]
	}
	return nil
}

// shows reports whether a lower file at p is seen through this layer.
func (t *Tree) shows(p string) bool {
	n := root
	for part := range strings.SplitSeq(p, "/") {
		if !t.dir(n) || t.nodes[n].opaque {
			return false
		}
		if n = t.lookup(n, part); n == noNode {
			return true
		}
		if t.nodes[n].whiteout {
			return false
		}
	}
	return t.nodes[n].inode == 0
}
