package image

import (
	"bytes"
	"hash/maphash"
	"path"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/store/layer/tarscan"
)

// Limits of a Tree. Exceeding them is an error of class errs.Invalid.
const (
	MaxNames = tarscan.MaxEntries // including the directories that entries imply
	MaxBytes = tarscan.MaxText    // of names, link targets and extended attributes together, in memory
)

// Extent is the position of a file's content.
type Extent struct {
	Device int   // 1 is the first device; 0 means none (an empty file)
	Offset int64 // a multiple of BlockSize
}

// Attr holds all attributes of an inode.
type Attr struct {
	Mode   uint32 // with S_IFMT
	UID    uint32
	GID    uint32
	Mtime  time.Time
	Xattrs []tarscan.Xattr // sorted by name
	Link   string
	Rdev   uint64 // unix.Mkdev
	Size   int64
	Extent Extent
}

type (
	nodeID  uint32
	inodeID uint32
)

const noNode = ^nodeID(0)

// node is a name in a directory.
type node struct {
	parent   nodeID
	name     uint32 // offset in names
	length   uint8
	replaced bool // another node has the name now; what is below this one does not exist any more
	whiteout bool // hides the name in the layers below
	opaque   bool // hides the content of the layers below
	inode    inodeID
}

type inode struct {
	mode     uint32
	uid, gid uint32
	nsec     uint32
	mtime    int64
	size     int64
	offset   int64 // of the content, or of the link target in names
	rdev     uint64
	xattrs   uint32 // index in Tree.xattrs; 0 means none
	device   uint16
	implied  bool // a directory that no entry described
	absent   bool // a file of a lower layer: see Missing
	// The fields below are set when the image is laid out.
	nlink     uint32
	opaque    bool
	whiteouts bool
	pos       int64 // of the inode in the image
	block     uint32
}

func (i *inode) isDir() bool { return i.mode&unix.S_IFMT == unix.S_IFDIR }

// Tree collects the entries of one layer. The zero value is not usable. Not safe for concurrent use.
type Tree struct {
	names  []byte
	nodes  []node
	inodes []inode // inodes[0] means none
	xattrs [][]tarscan.Xattr
	bytes  int
	texts  int64 // bytes of texts that are not in names, with what keeping them costs

	table []nodeID // a hash table with open addressing on (parent, name)
	seed  maphash.Seed

	copies      map[string]inodeID // lower files to which hard links point
	copyOrder   []string
	copiesNamed bool // nameCopies has run

	// the directory of the last entry, because tars go directory by directory
	lastDir  string
	lastNode nodeID

	links                 int // number of symbolic links so far
	lastRaw, lastResolved string
}

const root nodeID = 0

// NewTree returns a tree with an implied root.
func NewTree() *Tree {
	t := &Tree{seed: maphash.MakeSeed(), table: make([]nodeID, 1024), xattrs: make([][]tarscan.Xattr, 1), copies: map[string]inodeID{}}
	for i := range t.table {
		t.table[i] = noNode
	}
	t.inodes = append(t.inodes, inode{})
	t.nodes = append(t.nodes, node{parent: noNode, inode: t.implied()})
	t.lastDir = "."
	return t
}

func (t *Tree) implied() inodeID {
	return t.newInode(inode{mode: unix.S_IFDIR | 0o755, implied: true})
}

func (t *Tree) newInode(i inode) inodeID {
	t.inodes = append(t.inodes, i)
	return inodeID(len(t.inodes) - 1)
}

func (t *Tree) name(n nodeID) []byte {
	d := &t.nodes[n]
	return t.names[d.name : d.name+uint32(d.length)]
}

func (t *Tree) dir(n nodeID) bool { return t.inodes[t.nodes[n].inode].isDir() }

func (t *Tree) slot(parent nodeID, name string) int {
	var h maphash.Hash
	h.SetSeed(t.seed)
	h.WriteString(name)
	i := int((h.Sum64()+uint64(parent)*0x9e3779b97f4a7c15)>>7) & (len(t.table) - 1)
	for {
		n := t.table[i]
		if n == noNode || t.nodes[n].parent == parent && string(t.name(n)) == name {
			return i
		}
		i = (i + 1) & (len(t.table) - 1)
	}
}

func (t *Tree) lookup(parent nodeID, name string) nodeID { return t.table[t.slot(parent, name)] }

// make adds a name that does not exist yet.
func (t *Tree) make(parent nodeID, name string) (nodeID, error) {
	if len(t.nodes) >= MaxNames {
		return 0, errs.New(errs.Invalid, "more than %d names", MaxNames)
	}
	if err := t.account(len(name)); err != nil {
		return 0, err
	}
	if len(t.nodes)*2 >= len(t.table) {
		t.grow()
	}
	n := nodeID(len(t.nodes))
	at := t.slot(parent, name)
	t.nodes = append(t.nodes, node{parent: parent, name: t.text(name), length: uint8(len(name))})
	t.table[at] = n
	return n, nil
}

// replace gives the name of n to a new node, which removes everything below n at once.
func (t *Tree) replace(n nodeID) (nodeID, error) {
	if len(t.nodes) >= MaxNames {
		return 0, errs.New(errs.Invalid, "more than %d names", MaxNames)
	}
	at := t.slot(t.nodes[n].parent, string(t.name(n)))
	fresh := t.nodes[n]
	fresh.inode = 0
	t.nodes[n].replaced = true
	t.nodes = append(t.nodes, fresh)
	t.table[at] = nodeID(len(t.nodes) - 1)
	t.lastDir, t.lastNode = ".", root
	if len(t.nodes)*2 >= len(t.table) {
		t.grow()
	}
	return nodeID(len(t.nodes) - 1), nil
}

func (t *Tree) grow() {
	t.table = make([]nodeID, 2*len(t.table))
	for i := range t.table {
		t.table[i] = noNode
	}
	for i := range t.nodes {
		if n := nodeID(i); n != root && !t.nodes[n].replaced {
			t.table[t.slot(t.nodes[n].parent, string(t.name(n)))] = n
		}
	}
}

// text appends s to the arena and returns its offset.
func (t *Tree) text(s string) uint32 {
	off := uint32(len(t.names))
	t.names = append(t.names, s...)
	return off
}

func (t *Tree) account(n int) error {
	if t.bytes += n; t.bytes > MaxBytes {
		return errs.New(errs.Invalid, "more than %d bytes of names and attributes", MaxBytes)
	}
	return nil
}

// dirOf returns the directory p, and creates it and its parents if necessary.
func (t *Tree) dirOf(p string) (nodeID, error) {
	if p == t.lastDir {
		return t.lastNode, nil
	}
	n := root
	if p != "." {
		for part := range strings.SplitSeq(p, "/") {
			child := t.lookup(n, part)
			var err error
			if child == noNode {
				child, err = t.make(n, part)
			}
			if err != nil {
				return 0, err
			}
			if !t.dir(child) {
				t.nodes[child].inode = t.implied()
				t.lastRaw = ""
			}
			n = child
		}
	}
	t.lastDir, t.lastNode = strings.Clone(p), n
	return n, nil
}

// at returns the node of p, and creates it and its parents if necessary.
func (t *Tree) at(p string) (nodeID, error) {
	if p == "." {
		return root, nil
	}
	dir, base := ".", p
	if i := strings.LastIndexByte(p, '/'); i >= 0 {
		dir, base = p[:i], p[i+1:]
	}
	parent, err := t.dirOf(dir)
	if err != nil {
		return 0, err
	}
	if n := t.lookup(parent, base); n != noNode {
		return n, nil
	}
	return t.make(parent, base)
}

// Add adds the next entry. Content is the position of a non-empty Regular. The error's class is errs.Invalid.
func (t *Tree) Add(e *tarscan.Entry, content Extent) error {
	resolved := *e
	var err error
	if e.Kind == tarscan.Opaque { // the last component is the marker's own name
		resolved.Path, err = t.through(e.Path + "/x")
		resolved.Path = path.Dir(resolved.Path)
	} else {
		resolved.Path, err = t.through(e.Path)
	}
	if err == nil && e.Kind == tarscan.Hardlink {
		resolved.Link, err = t.through(e.Link)
	}
	if err == nil {
		err = t.add(&resolved, content)
	}
	if err != nil {
		return errs.New(errs.Invalid, "layer tar: entry %.200q: %w", e.Path, err)
	}
	return nil
}

func (t *Tree) add(e *tarscan.Entry, content Extent) error {
	switch e.Kind {
	case tarscan.Whiteout:
		n, err := t.at(e.Path)
		if err == nil {
			t.nodes[n].whiteout = true
		}
		return err
	case tarscan.Opaque:
		n, err := t.dirOf(e.Path)
		if err == nil {
			t.nodes[n].opaque = true
		}
		return err
	case tarscan.Hardlink:
		if e.Path != e.Link && (within(e.Path, e.Link) || within(e.Link, e.Path)) {
			return errs.New(errs.Invalid, "hard link to %.200q, its own parent or child", e.Link)
		}
		target, err := t.target(e.Path, e.Link)
		if err != nil {
			return err
		}
		return t.put(e.Path, target)
	}
	i, err := t.inodeOf(e, content)
	if err != nil {
		return err
	}
	return t.put(e.Path, i)
}

// put gives the name p to an inode.
func (t *Tree) put(p string, i inodeID) error {
	n, err := t.at(p)
	if err != nil {
		return err
	}
	if t.nodes[n].inode != 0 && t.dir(n) && !t.inodes[i].isDir() {
		if n, err = t.replace(n); err != nil {
			return err
		}
	}
	was := t.isLink(n)
	t.nodes[n].inode = i
	if was || t.isLink(n) {
		t.links++
		t.lastRaw = "" // it may now lead somewhere else
	}
	return nil
}

var kinds = [...]uint32{
	tarscan.Regular: unix.S_IFREG, tarscan.Dir: unix.S_IFDIR, tarscan.Symlink: unix.S_IFLNK,
	tarscan.CharDev: unix.S_IFCHR, tarscan.BlockDev: unix.S_IFBLK, tarscan.Fifo: unix.S_IFIFO,
}

func (t *Tree) inodeOf(e *tarscan.Entry, content Extent) (inodeID, error) {
	a := Attr{
		Mode: kinds[e.Kind] | e.Mode, UID: e.UID, GID: e.GID, Mtime: e.Mtime, Xattrs: e.Xattrs,
		Link: e.Link, Size: e.Size, Extent: content,
	}
	if e.Kind == tarscan.CharDev || e.Kind == tarscan.BlockDev {
		a.Rdev = unix.Mkdev(e.Major, e.Minor)
	}
	i := t.newInode(inode{})
	return i, t.set(i, a)
}

func (t *Tree) set(id inodeID, a Attr) error {
	i := inode{
		mode: a.Mode, uid: a.UID, gid: a.GID, mtime: a.Mtime.Unix(), nsec: uint32(a.Mtime.Nanosecond()), rdev: a.Rdev,
	}
	switch a.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if i.size = a.Size; a.Size > 0 {
			i.device, i.offset = uint16(a.Extent.Device), a.Extent.Offset
			if i.device == 0 || i.offset < 0 || i.offset%BlockSize != 0 || i.offset/BlockSize >= 1<<32-1 {
				return errs.New(errs.Internal, "content at %d of device %d cannot be mapped", i.offset, i.device)
			}
		}
	case unix.S_IFLNK:
		i.size, i.offset = int64(len(a.Link)), int64(t.text(a.Link))
	}
	total := len(a.Link)
	if len(a.Xattrs) > 0 {
		i.xattrs = uint32(len(t.xattrs))
		t.xattrs = append(t.xattrs, append([]tarscan.Xattr(nil), a.Xattrs...))
		for _, x := range a.Xattrs {
			total += len(x.Name) + len(x.Value) + tarscan.XattrCost
		}
		t.texts += int64(total)
	}
	t.inodes[id] = i
	return t.account(total)
}

// What a name and an inode take in memory besides their texts, with what Missing and Write need for them.
const (
	nodeCost  = int64(unsafe.Sizeof(node{})) + 2 + int64(unsafe.Sizeof(Missing{})) + 2*4
	inodeCost = int64(unsafe.Sizeof(inode{})) + 3*8
)

// Memory returns how many bytes the tree takes, and Write with it.
func (t *Tree) Memory() int64 {
	return int64(cap(t.names)) + int64(cap(t.nodes))*nodeCost + int64(cap(t.inodes))*inodeCost + int64(len(t.table))*4 +
		int64(cap(t.xattrs))*int64(unsafe.Sizeof(t.xattrs[0])) + t.texts
}

// Len returns the number of names, replaced ones included.
func (t *Tree) Len() int { return len(t.nodes) }

// Missing is something that depends on the layers below.
type Missing struct {
	File bool // a file that must exist there; otherwise a directory that may
	id   inodeID
	node nodeID // of a directory
}

// Path returns the path of m in the layers below.
func (t *Tree) Path(m Missing) string {
	if in := &t.inodes[m.id]; in.absent {
		return string(t.names[in.offset : in.offset+in.size])
	}
	return t.path(m.node)
}

// Missing returns the inodes for which Fill should be called, parents first. The root is not among them: see ImpliedRoot.
// No entry may be added afterwards.
func (t *Tree) Missing() ([]Missing, error) {
	if err := t.nameCopies(); err != nil {
		return nil, err
	}
	live := t.live()
	hidden := make([]bool, len(t.nodes)) // whether this directory hides the layers below
	listed := map[inodeID]bool{}
	var all []Missing
	hidden[root] = t.nodes[root].opaque
	for i := 1; i < len(t.nodes); i++ {
		n := &t.nodes[i]
		if !live[i] {
			continue
		}
		in := &t.inodes[n.inode]
		cut := hidden[n.parent] || n.whiteout
		hidden[i] = cut || n.opaque || !in.isDir()
		switch {
		case in.implied && in.isDir() && !cut:
			all = append(all, Missing{id: n.inode, node: nodeID(i)})
		case in.absent && !listed[n.inode]:
			listed[n.inode] = true
			all = append(all, Missing{File: true, id: n.inode})
		}
	}
	return all, nil
}

// Fill sets the attributes of a missing inode. For a File, a must not be a directory.
func (t *Tree) Fill(m Missing, a Attr) error {
	if m.File == (a.Mode&unix.S_IFMT == unix.S_IFDIR) {
		return errs.New(errs.Internal, "%.200q: filled with mode %o", t.Path(m), a.Mode)
	}
	return t.set(m.id, a)
}

// ImpliedRoot reports whether no entry described the root.
func (t *Tree) ImpliedRoot() bool { return t.inodes[t.nodes[root].inode].implied }

// OpaqueRoot reports whether the layer hides everything below it. Overlayfs does not support that mark on a root.
func (t *Tree) OpaqueRoot() bool { return t.nodes[root].opaque }

// live reports for each node whether it is still in the tree. Parents come before their children.
func (t *Tree) live() []bool {
	live := make([]bool, len(t.nodes))
	live[root] = true
	for i := 1; i < len(t.nodes); i++ {
		n := &t.nodes[i]
		live[i] = !n.replaced && live[n.parent] && t.dir(n.parent) && (n.inode != 0 || n.whiteout)
	}
	return live
}

func (t *Tree) path(n nodeID) string {
	var parts [][]byte
	for ; n != root; n = t.nodes[n].parent {
		parts = append(parts, t.name(n))
	}
	for i, j := 0, len(parts)-1; i < j; i, j = i+1, j-1 {
		parts[i], parts[j] = parts[j], parts[i]
	}
	return path.Clean(string(bytes.Join(parts, []byte("/"))))
}
