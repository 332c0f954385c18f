package image

import (
	"bytes"
	"cmp"
	"math/bits"
	"slices"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/spill"
	"ply/internal/store/layer/tarscan"
)

// BlockSize is the block size of the images. Content must start at a multiple of it, as in a tar.
const BlockSize = 512

// Sizes and offsets of the format (fs/erofs/erofs_fs.h in the kernel), in bytes.
const (
	superOffset = 1024
	superSize   = 128
	slotSize    = 128
	inodeSize   = 64
	nidUnit     = 32
	direntSize  = 12
	chunkIndex  = 8
)

// layout holds the positions of all parts of an image.
type layout struct {
	t       *Tree
	first   []uint32 // children of node n are kids[first[n]:first[n+1]]
	kids    []nodeID
	order   []nodeID // in the order of the image, each inode by one of its names
	end     int64    // of the inodes, a multiple of BlockSize
	data    []nodeID // whose tails do not fit behind them: they have blocks after end
	blocks  int64    // of the whole image, in blocks
	devices int
}

// plan computes the layout of t. It is called once, after Missing was handled.
func (t *Tree) plan(devices int) (*layout, error) {
	if err := t.nameCopies(); err != nil {
		return nil, err
	}
	t.names.Forget()
	l := &layout{t: t, devices: devices}
	if err := l.connect(); err != nil {
		return nil, err
	}
	l.sort()
	return l, l.assignPositions()
}

// connect counts links and groups names by directory.
func (l *layout) connect() error {
	t := l.t
	live := t.live()
	var white inodeID
	l.first = spill.Make[uint32](t.space, len(live)+1)
	for i := 1; i < len(live); i++ {
		t.space.Visit(i)
		if !live[i] {
			continue
		}
		up := t.names.Parent(nodeID(i))
		t.space.Visit(int(up))
		n := t.node(nodeID(i))
		if n.inode == 0 { // a whiteout: all whiteouts are hard links to one inode
			if white == 0 {
				white = t.newInode(inode{mode: unix.S_IFCHR})
			}
			n.inode = white
			t.inode(t.node(up).inode).whiteouts = true
		} else if n.whiteout && t.dir(nodeID(i)) {
			n.opaque = true // removed in the layers below and created again here
		}
		in := t.inode(n.inode)
		if in.absent {
			return errs.New(errs.Internal, "%.200q: link target was not filled in", t.path(nodeID(i)))
		}
		in.nlink++
		if in.isDir() {
			in.nlink = 2
			in.opaque = n.opaque
			t.inode(t.node(up).inode).nlink++
		}
		l.first[up]++
	}
	r := t.inode(t.node(root).inode)
	r.nlink += 2
	r.opaque = t.node(root).opaque
	end := uint32(0) // first becomes the end of each directory, and then its start
	for i := range l.first {
		end += l.first[i]
		l.first[i] = end
	}
	l.kids = spill.Make[nodeID](t.space, int(end))
	for i := len(live) - 1; i > 0; i-- {
		t.space.Visit(i)
		if live[i] {
			up := t.names.Parent(nodeID(i))
			l.first[up]--
			l.kids[l.first[up]] = nodeID(i)
		}
	}
	return nil
}

func (l *layout) children(n nodeID) []nodeID { return l.kids[l.first[n]:l.first[n+1]] }

func (l *layout) sort() {
	t := l.t
	for n := range t.names.Len() {
		slices.SortFunc(l.children(nodeID(n)), func(a, b nodeID) int {
			t.space.Tick()
			return bytes.Compare(t.names.Name(a), t.names.Name(b))
		})
	}
}

// assignPositions gives each inode its position: first the inodes of a directory's names, then those of its subdirectories,
// so that a walk of the tree reads the image forwards.
func (l *layout) assignPositions() error {
	t := l.t
	l.order = spill.Make[nodeID](t.space, len(l.kids)+1)[:0]
	pos := int64(align(superOffset+superSize+slotSize*l.devices, BlockSize))
	pos = l.put(root, pos)
	stack := []nodeID{root}
	for len(stack) > 0 {
		dir := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		kids := l.children(dir)
		for _, k := range kids {
			t.space.Visit(int(k))
			if t.inode(t.node(k).inode).pos == 0 {
				pos = l.put(k, pos)
			}
		}
		for _, k := range slices.Backward(kids) {
			t.space.Visit(int(k))
			if t.dir(k) {
				stack = append(stack, k)
			}
		}
	}
	l.end = int64(align(int(pos), BlockSize))
	l.blocks = l.end / BlockSize
	for _, n := range l.data {
		t.space.Visit(int(n))
		in := t.inode(t.node(n).inode)
		in.block = uint32(l.blocks)
		l.blocks += (in.size + BlockSize - 1) / BlockSize
	}
	l.blocks = (l.blocks + 7) / 8 * 8 // whole pages: tools read the superblock with the 4 KiB around it
	if l.blocks >= 1<<32 {
		return errs.New(errs.Invalid, "index is too large")
	}
	return nil
}

// put assigns a position at or after pos to the inode of a name, and returns the end of the inode.
func (l *layout) put(n nodeID, pos int64) int64 {
	in := l.t.inode(l.t.node(n).inode)
	if in.isDir() {
		in.size = l.dirSize(n)
	}
	pos = int64(align(int(pos), nidUnit))
	head := inodeSize + l.xattrSize(in)
	room := inodeSize // bytes that must not cross a block boundary
	tail, inline := l.tail(in, head)
	if inline {
		room = head + tail
	}
	if rest := BlockSize - int(pos%BlockSize); rest < room {
		pos += int64(rest)
	}
	in.pos = pos
	l.order = append(l.order, n)
	if !inline && in.size > 0 && in.mode&unix.S_IFMT != unix.S_IFREG {
		l.data = append(l.data, n)
	}
	if in.chunked() {
		return pos + int64(align(head, chunkIndex)) + chunkIndex
	}
	return pos + int64(head+tail)
}

func (i *inode) chunked() bool { return i.mode&unix.S_IFMT == unix.S_IFREG && i.size > 0 }

// tail returns the size of what follows the inode in its own block: the names of a small directory or the target of a link.
func (l *layout) tail(in *inode, head int) (size int, inline bool) {
	switch in.mode & unix.S_IFMT {
	case unix.S_IFDIR, unix.S_IFLNK:
		if in.size <= int64(BlockSize-head) {
			return int(in.size), true
		}
	}
	return 0, false
}

func (i *inode) nid() uint64 { return uint64(i.pos / nidUnit) }

// chunkBits returns the base-2 logarithm of the size of the smallest chunk that covers the whole file.
func (i *inode) chunkBits() int { return max(9, bits.Len64(uint64(i.size-1))) }

func align(n, to int) int { return (n + to - 1) / to * to }

// names calls visit with the entries of a directory, "." and ".." included, in their order on disk.
func (l *layout) names(dir nodeID, visit func(name []byte, id inodeID)) {
	t := l.t
	dots := [2]struct {
		name []byte
		id   inodeID
	}{{dot, t.node(dir).inode}, {dotdot, t.node(t.names.Parent(dir)).inode}}
	next := 0
	for _, k := range l.children(dir) {
		t.space.Visit(int(k))
		name := t.names.Name(k)
		for next < 2 && bytes.Compare(dots[next].name, name) < 0 {
			visit(dots[next].name, dots[next].id)
			next++
		}
		visit(name, t.node(k).inode)
	}
	for ; next < 2; next++ {
		visit(dots[next].name, dots[next].id)
	}
}

var dot, dotdot = []byte("."), []byte("..")

// dirSize returns the size of a directory: whole blocks, and the used bytes of the last one.
func (l *layout) dirSize(dir nodeID) int64 {
	var full int64
	used := 0
	l.names(dir, func(name []byte, _ inodeID) {
		need := direntSize + len(name)
		if used+need > BlockSize {
			full += BlockSize
			used = 0
		}
		used += need
	})
	return full + int64(used)
}

// diskXattr is an extended attribute as stored, with a number for its prefix.
type diskXattr struct {
	prefix      byte
	name, value string
}

var prefixes = []struct {
	index  byte
	prefix string
}{
	{1, "user."}, {2, "system.posix_acl_access"}, {3, "system.posix_acl_default"}, {4, "trusted."}, {6, "security."},
}

func diskForm(x tarscan.Xattr) (diskXattr, bool) {
	for _, p := range prefixes {
		if len(x.Name) >= len(p.prefix) && x.Name[:len(p.prefix)] == p.prefix {
			return diskXattr{p.index, x.Name[len(p.prefix):], x.Value}, true
		}
	}
	return diskXattr{}, false
}

// xattrsOf returns the extended attributes of an inode as stored, in order.
func (l *layout) xattrsOf(in *inode) []diskXattr {
	if in.xattrs == 0 && !in.opaque && !in.whiteouts {
		return nil
	}
	var all []diskXattr
	for _, x := range l.t.xattrs[in.xattrs] {
		if d, ok := diskForm(x); ok {
			all = append(all, d)
		}
	}
	if in.opaque {
		all = append(all, diskXattr{4, "overlay.opaque", "y"})
	}
	if in.whiteouts {
		all = append(all, diskXattr{4, "overlay.origin", ""})
	}
	slices.SortFunc(all, func(a, b diskXattr) int {
		return cmp.Or(cmp.Compare(a.prefix, b.prefix), cmp.Compare(a.name, b.name))
	})
	return all
}

func (l *layout) xattrSize(in *inode) int {
	all := l.xattrsOf(in)
	if len(all) == 0 {
		return 0
	}
	size := 12
	for _, x := range all {
		size += align(4+len(x.name)+len(x.value), 4)
	}
	return size
}
