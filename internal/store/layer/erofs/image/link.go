package image

import (
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
)

// within reports whether p lies below dir.
func within(p, dir string) bool {
	return len(p) > len(dir) && p[len(dir)] == '/' && p[:len(dir)] == dir
}

// maxLinks is the kernel's limit of symbolic links in one look-up.
const maxLinks = 40

// through returns p after following the symbolic links of this layer in it, except in the last component. Links are
// followed inside the root, as when a tar is unpacked into a directory. Links of lower layers are not followed, because a
// layer must not depend on them. Components that do not exist yet are kept as written.
func (t *Tree) through(p string) (string, error) {
	dir, base := path.Split(p)
	if dir == "" || t.links == 0 {
		return p, nil
	}
	dir = dir[:len(dir)-1]
	if dir != t.lastRaw {
		resolved, err := t.follow(dir)
		if err != nil {
			return "", err
		}
		t.lastRaw, t.lastResolved = strings.Clone(dir), resolved
	}
	return path.Join(t.lastResolved, base), nil
}

func (t *Tree) follow(dir string) (string, error) {
	n, links := root, 0
	rest := strings.Split(dir, "/")
	for len(rest) > 0 {
		part := rest[0]
		if part == "" || part == "." {
			rest = rest[1:]
			continue
		}
		if part == ".." {
			if n != root {
				n = t.names.Parent(n)
			}
			rest = rest[1:]
			continue
		}
		child, ok := t.names.Find(n, part)
		if !ok || !t.dir(child) && !t.isLink(child) {
			break
		}
		rest = rest[1:]
		if t.dir(child) {
			n = child
			continue
		}
		if links++; links > maxLinks {
			return "", errs.New(errs.Invalid, "too many symbolic links on the way")
		}
		target := t.target(t.inode(t.node(child).inode))
		if strings.HasPrefix(target, "/") {
			n = root
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	resolved := path.Join("/", t.path(n), path.Join(rest...))[1:]
	if resolved == "" {
		return ".", nil
	}
	if len(resolved) > maxPath {
		return "", errs.New(errs.Invalid, "through symbolic links the path is longer than %d bytes", maxPath)
	}
	for part := range strings.SplitSeq(resolved, "/") {
		if len(part) > maxName {
			return "", errs.New(errs.Invalid, "through symbolic links a component is longer than %d bytes", maxName)
		}
	}
	return resolved, nil
}

// copyCost is what an element of copies takes in memory besides its path.
const copyCost = 100

const (
	maxPath = 4096
	maxName = 255
)

func (t *Tree) isLink(n nodeID) bool {
	i := t.node(n).inode
	return i != 0 && t.inode(i).mode&unix.S_IFMT == unix.S_IFLNK
}

// target returns the target of a symbolic link, or the path of an absent file.
func (t *Tree) target(in *inode) string { return string(t.strings.At(uint32(in.offset), int(in.size))) }

// linked returns the inode of the file at p, to which the hard link from points. When this layer does not have it, it is a
// file of a lower layer and gets an inode that Missing lists.
func (t *Tree) linked(from, p string) (inodeID, error) {
	n := root
	for part := range strings.SplitSeq(p, "/") {
		if !t.dir(n) {
			return 0, errs.New(errs.Invalid, "hard link to %.200q, which this layer has hidden", p)
		}
		var ok bool
		if n, ok = t.names.Find(n, part); !ok || t.node(n).inode == 0 {
			return t.lower(from, p)
		}
	}
	if t.dir(n) {
		return 0, errs.New(errs.Invalid, "hard link to the directory %.200q", p)
	}
	return t.node(n).inode, nil
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
	t.texts += int64(len(p)) + copyCost
	p = strings.Clone(p)
	t.unknown++
	i := t.newInode(inode{mode: unix.S_IFREG, absent: true, offset: int64(t.strings.Append(p)), size: int64(len(p))})
	t.copies[p] = i
	t.copyOrder = append(t.copyOrder, p)
	return i, nil
}

// nameCopies adds the own names of lower files to which hard links point, so that they stay one file with the links, unless
// this layer hides or replaces those names.
func (t *Tree) nameCopies() error {
	if t.copiesNamed {
		return nil
	}
	t.copiesNamed = true
	for _, p := range t.copyOrder {
		if !t.shows(p) {
			continue
		}
		n, err := t.at(p)
		if err != nil {
			return errs.New(errs.Invalid, "layer tar: entry %.200q: %w", p, err)
		}
		t.node(n).inode = t.copies[p]
	}
	return nil
}

// shows reports whether a lower file at p is seen through this layer.
func (t *Tree) shows(p string) bool {
	n := root
	for part := range strings.SplitSeq(p, "/") {
		if !t.dir(n) || t.node(n).opaque {
			return false
		}
		var ok bool
		if n, ok = t.names.Find(n, part); !ok {
			return true
		}
		if t.node(n).whiteout {
			return false
		}
	}
	return t.node(n).inode == 0
}
