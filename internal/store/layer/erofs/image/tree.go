package image

import (
	"path"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/spill"
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
	nodeID  = spill.NameID
	inodeID uint32
)

// node is what belongs to a name in a directory.
type node struct {
	inode    inodeID
	replaced bool // another node has the name now; what is below this one does not exist any more
	whiteout bool // hides the name in the layers below
	opaque   bool // hides the content of the layers below
}

type inode struct {
	mode     uint32
	uid, gid uint32
	nsec     uint32
	mtime    int64
	size     int64
	offset   int64 // of the content, or of the link target in texts
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
	space   *spill.Space
	names   *spill.Names[node]
	inodes  spill.Array[inode] // the first one means none
	strings spill.Text         // link targets
	xattrs  [][]tarscan.Xattr
	bytes   int
	texts   int64 // bytes of texts that are not in the space, with what keeping them costs
	unknown int64 // inodes that were implied or absent

	copies      map[string]inodeID // lower files to which hard links point
	copyOrder   []string
	copiesNamed bool // nameCopies has run

	// the directory of the last entry, because tars go directory by directory
	lastDir  string
	lastNode nodeID

	links                 int // number of symbolic links so far
	lastRaw, lastResolved string
}

const root = spill.Root

// NewTree returns a tree with an implied root, which stays in memory.
func NewTree() *Tree { return NewTreeIn(spill.NewSpace(0, nil)) }

// NewTreeIn returns a tree with an implied root. It uses space, which the caller closes after the tree.
func NewTreeIn(space *spill.Space) *Tree {
	t := &Tree{
		space: space, names: spill.NewNames[node](space), inodes: spill.NewArray[inode](space), strings: spill.NewText(space),
		xattrs: make([][]tarscan.Xattr, 1), copies: map[string]inodeID{},
	}
	t.inodes.Append(inode{})
	i := t.implied()
	t.node(root).inode = i
	t.lastDir = "."
	return t
}

// node returns what belongs to a name. The pointer is valid until the next name is added.
func (t *Tree) node(n nodeID) *node { return t.names.Value(n) }

// inode returns an inode. The pointer is valid until the next one is added.
func (t *Tree) inode(i inodeID) *inode { return t.inodes.At(int(i)) }

func (t *Tree) implied() inodeID {
	t.unknown++
	return t.newInode(inode{mode: unix.S_IFDIR | 0o755, implied: true})
}

func (t *Tree) newInode(i inode) inodeID {
	t.inodes.Append(i)
	return inodeID(t.inodes.Len() - 1)
}

func (t *Tree) dir(n nodeID) bool { return t.inode(t.node(n).inode).isDir() }

// make adds a name that does not exist yet.
func (t *Tree) make(parent nodeID, name string) (nodeID, error) {
	if t.names.Len() >= MaxNames {
		return 0, errs.New(errs.Invalid, "more than %d names", MaxNames)
	}
	if err := t.account(len(name)); err != nil {
		return 0, err
	}
	t.space.Tick()
	return t.names.Add(parent, name, node{}), nil
}

// replace gives the name of n to a new node, which removes everything below n at once.
func (t *Tree) replace(n nodeID) (nodeID, error) {
	if t.names.Len() >= MaxNames {
		return 0, errs.New(errs.Invalid, "more than %d names", MaxNames)
	}
	fresh := *t.node(n)
	fresh.inode = 0
	t.node(n).replaced = true
	t.lastDir, t.lastNode = ".", root
	return t.names.Replace(n, fresh), nil
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
			child, ok := t.names.Find(n, part)
			var err error
			if !ok {
				child, err = t.make(n, part)
			}
			if err != nil {
				return 0, err
			}
			if !t.dir(child) {
				t.node(child).inode = t.implied()
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
	if n, ok := t.names.Find(parent, base); ok {
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
			t.node(n).whiteout = true
		}
		return err
	case tarscan.Opaque:
		n, err := t.dirOf(e.Path)
		if err == nil {
			t.node(n).opaque = true
		}
		return err
	case tarscan.Hardlink:
		if e.Path != e.Link && (within(e.Path, e.Link) || within(e.Link, e.Path)) {
			return errs.New(errs.Invalid, "hard link to %.200q, its own parent or child", e.Link)
		}
		target, err := t.linked(e.Path, e.Link)
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
	if t.node(n).inode != 0 && t.dir(n) && !t.inode(i).isDir() {
		if n, err = t.replace(n); err != nil {
			return err
		}
	}
	was := t.isLink(n)
	t.node(n).inode = i
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
		i.size, i.offset = int64(len(a.Link)), int64(t.strings.Append(a.Link))
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
	*t.inode(id) = i
	return t.account(total)
}

// perName is what Missing and Write need in memory for a name, besides the memory of the table of names, which Write uses for itself.
const perName = 8

// Memory returns how many bytes the tree takes, and Write with it.
func (t *Tree) Memory() int64 {
	return t.space.Memory() + int64(t.names.Len())*perName + t.unknown*int64(unsafe.Sizeof(Missing{})) +
		int64(cap(t.xattrs))*int64(unsafe.Sizeof(t.xattrs[0])) + t.texts
}

// Len returns the number of names, replaced ones included.
func (t *Tree) Len() int { return t.names.Len() }

// Missing is something that depends on the layers below.
type Missing struct {
	File bool // a file that must exist there; otherwise a directory that may
	id   inodeID
	node nodeID // of a directory
}

// Path returns the path of m in the layers below.
func (t *Tree) Path(m Missing) string {
	if in := t.inode(m.id); in.absent {
		return t.target(in)
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
	hidden := make([]bool, t.names.Len()) // whether this directory hides the layers below
	listed := map[inodeID]bool{}
	var all []Missing
	hidden[root] = t.node(root).opaque
	for i := 1; i < len(hidden); i++ {
		t.space.Tick()
		if !live[i] {
			continue
		}
		n := t.node(nodeID(i))
		in := t.inode(n.inode)
		cut := hidden[t.names.Parent(nodeID(i))] || n.whiteout
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
func (t *Tree) ImpliedRoot() bool { return t.inode(t.node(root).inode).implied }

// OpaqueRoot reports whether the layer hides everything below it. Overlayfs does not support that mark on a root.
func (t *Tree) OpaqueRoot() bool { return t.node(root).opaque }

// live reports for each node whether it is still in the tree. Parents come before their children.
func (t *Tree) live() []bool {
	live := make([]bool, t.names.Len())
	live[root] = true
	for i := 1; i < len(live); i++ {
		t.space.Tick()
		n, parent := t.node(nodeID(i)), t.names.Parent(nodeID(i))
		live[i] = !n.replaced && live[parent] && t.dir(parent) && (n.inode != 0 || n.whiteout)
	}
	return live
}

// path returns the clean path of a name; that of the root is ".".
func (t *Tree) path(n nodeID) string {
	if n == root {
		return "."
	}
	return string(t.names.Path(nil, n)[1:])
}
