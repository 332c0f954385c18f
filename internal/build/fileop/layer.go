package fileop

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/build/tree"
	"ply/internal/errs"
	"ply/internal/spill"
)

// layer is a tree under construction: the tree below it, which does not change, and what is laid on it, which is written as the tar of a layer at
// once. Paths in it are clean and absolute, and no component but the last is a link: resolve makes them so.
//
// A tar entry replaces what is at its path, and the later of two entries of one path counts, as for every reader of layers.
type layer struct {
	base  *tree.Tree // nil = empty
	tw    *tar.Writer
	buf   []byte // to copy files with
	space *spill.Space
	made  *spill.Names[made]
	links spill.Text // targets of the symbolic links that were made
	now   time.Time  // of directories that only have to exist
	last  time.Time  // no file is younger; zero = any
	final bool       // nothing is looked up any more but directories and files with several names, so the rest is not kept

	// The directory in which a name was looked up last, because copies go directory by directory.
	dir   string
	dirID spill.NameID
}

// made is what the layer knows about a name.
type made struct {
	state uint8 // 0 = the layer has nothing there, but may have something below
	flags uint8
	size  uint16
	mode  uint32
	link  uint32 // in links, with its size
}

const (
	stateMade = 1 + iota
	stateGone
)

const (
	flagFresh = 1 << iota // as in node
	flagBelow             // the layer has made something below
)

// node is a file that the layer has, or a directory of the base that it repeats.
type node struct {
	mode  uint32
	link  string // target of a symbolic link
	fresh bool   // nothing of the base is visible below this directory
	gone  bool   // removed
}

func (n *node) isDir() bool  { return !n.gone && n.mode&unix.S_IFMT == unix.S_IFDIR }
func (n *node) isLink() bool { return !n.gone && n.mode&unix.S_IFMT == unix.S_IFLNK }

// madeMemory is how much memory the names that a layer has take before they move to a file.
const madeMemory = 4 << 20

func newLayer(base *tree.Tree, w io.Writer, o Options) *layer {
	space := spill.NewSpace(madeMemory, o.Scratch)
	return &layer{
		base: base, tw: tar.NewWriter(w), now: o.Now, last: o.Latest, dir: "/",
		space: space, made: spill.NewNames[made](space), links: spill.NewText(space),
	}
}

// find returns the name of a resolved path that the layer knows, and the lowest directory above it of which the layer has anything; nil for none.
func (l *layer) find(p string) (id spill.NameID, ok bool, above *made) {
	if p == "/" {
		return spill.Root, true, nil
	}
	dir, base := path.Split(p)
	if dir = path.Clean(dir); dir == l.dir {
		if v := l.made.Value(l.dirID); v.state != 0 {
			id, ok = l.made.Find(l.dirID, base)
			return id, ok, v
		}
	}
	at := spill.Root
	for part := range strings.SplitSeq(p[1:], "/") {
		if v := l.made.Value(at); v.state != 0 {
			above = v
		}
		id, ok = l.made.Find(at, part)
		if !ok {
			return 0, false, above
		}
		at = id
	}
	l.dir, l.dirID = dir, l.made.Parent(id)
	return id, true, above
}

// have returns what the layer has at a resolved path; nil for nothing.
func (l *layer) have(p string) *node {
	id, ok, _ := l.find(p)
	if !ok {
		return nil
	}
	return l.node(id)
}

func (l *layer) node(id spill.NameID) *node {
	v := l.made.Value(id)
	switch v.state {
	case 0:
		return nil
	case stateGone:
		return &node{gone: true}
	}
	return &node{mode: v.mode, fresh: v.flags&flagFresh != 0, link: string(l.links.At(v.link, int(v.size)))}
}

// keep remembers what the layer has at a resolved path.
func (l *layer) keep(p string, n *node) (spill.NameID, error) {
	l.space.Tick()
	v := made{state: stateMade, mode: n.mode}
	if n.fresh {
		v.flags = flagFresh
	}
	if n.gone {
		v.state = stateGone
	}
	if n.link != "" {
		v.link, v.size = l.links.Append(n.link), uint16(len(n.link))
	}
	at := spill.Root
	rest := p[1:]
	if dir := path.Dir(p); dir == l.dir {
		at, rest = l.dirID, path.Base(p)
	}
	for part := range strings.SplitSeq(rest, "/") {
		if part == "" {
			break // the root
		}
		if len(part) > spill.MaxName {
			return 0, &os.PathError{Op: "create", Path: fmt.Sprintf("%.80s…", p), Err: unix.ENAMETOOLONG}
		}
		id, ok := l.made.Find(at, part)
		if !ok {
			id = l.made.Add(at, part, made{})
		}
		at = id
	}
	v.flags |= l.made.Value(at).flags & flagBelow
	*l.made.Value(at) = v
	if v.state == stateMade {
		for up := at; up != spill.Root; {
			up = l.made.Parent(up)
			above := l.made.Value(up)
			if above.flags&flagBelow != 0 {
				break // so have those above it
			}
			above.flags |= flagBelow
		}
	}
	if p != "/" {
		l.dir, l.dirID = path.Dir(p), l.made.Parent(at)
	}
	return at, nil
}

// lookup returns what is at a resolved path; nil when nothing is. The info is nil for what the layer itself made.
func (l *layer) lookup(p string) (*node, *tree.Info, error) {
	id, ok, above := l.find(p)
	if ok {
		if n := l.node(id); n != nil {
			if n.gone {
				return nil, nil, nil
			}
			return n, nil, nil
		}
	}
	if l.base == nil {
		if p == "/" {
			return &node{mode: unix.S_IFDIR | 0o755}, nil, nil
		}
		return nil, nil, nil
	}
	if above != nil && (above.state == stateGone || above.flags&flagFresh != 0 || above.mode&unix.S_IFMT != unix.S_IFDIR) {
		return nil, nil, nil
	}
	info, err := l.base.Stat(p, false)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return nil, nil, nil
	case err != nil:
		return nil, nil, err
	}
	return &node{mode: info.Mode, link: info.Link}, &info, nil
}

// maxLinks is how many links resolve follows, as the kernel does.
const maxLinks = 255

// resolve returns where p leads when the root of the tree is top, a resolved path, following links. Components that do not exist are part of the result. A link at
// the end is followed if last is set.
func (l *layer) resolve(top, p string, last bool) (string, error) {
	if len(top)+len(p) >= unix.PathMax {
		return "", &os.PathError{Op: "open", Path: fmt.Sprintf("%.80s…", p), Err: unix.ENAMETOOLONG}
	}
	at := top
	todo := strings.Split(p, "/")
	links := 0
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			if at != top {
				at = path.Dir(at)
			}
			continue
		}
		next := path.Join(at, name)
		n, _, err := l.lookup(next)
		if err != nil {
			return "", err
		}
		if n == nil || !n.isLink() || len(todo) == 0 && !last {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return "", &os.PathError{Op: "open", Path: p, Err: unix.ELOOP}
		}
		if strings.HasPrefix(n.link, "/") {
			at = top
		}
		todo = append(strings.Split(n.link, "/"), todo...)
	}
	return at, nil
}

// attrs are the attributes that an entry gets.
type attrs struct {
	mode     uint32 // permissions, with set-user-ID, set-group-ID and sticky
	uid, gid uint32
	time     time.Time
	xattrs   map[string]string
}

// header writes the header of an entry for a resolved path, and its parents before it.
func (l *layer) header(p string, h *tar.Header, n *node, a attrs) error {
	if p == "/" && h.Typeflag != tar.TypeDir {
		return errs.New(errs.Invalid, "the root of a file system must be a directory")
	}
	if strings.HasPrefix(path.Base(p), ".wh.") {
		return errs.New(errs.Invalid, "%s: names that start with .wh. are reserved: layers mark removed files so", p)
	}
	if err := l.parents(p); err != nil {
		return err
	}
	h.Name = strings.TrimPrefix(p, "/")
	if h.Typeflag == tar.TypeDir {
		h.Name += "/"
	}
	if p == "/" {
		h.Name = "./"
	}
	h.Mode, h.Uid, h.Gid, h.ModTime = int64(a.mode&0o7777), int(a.uid), int(a.gid), a.time
	if !l.last.IsZero() && a.time.After(l.last) {
		h.ModTime = l.last
	}
	h.Format = tar.FormatPAX
	for _, key := range slices.Sorted(maps.Keys(a.xattrs)) {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+key] = a.xattrs[key]
	}
	if err := l.tw.WriteHeader(h); err != nil {
		return err
	}
	n.mode = n.mode&unix.S_IFMT | a.mode&0o7777
	if l.final && !n.isDir() {
		return nil
	}
	_, err := l.keep(p, n)
	return err
}

// parents repeats the directories above p that the layer does not have, with the attributes that they have in the base: a layer replaces the
// attributes of a directory that it has something in.
func (l *layer) parents(p string) error {
	if p == "/" {
		return nil
	}
	up := path.Dir(p)
	if n := l.have(up); n != nil {
		if !n.isDir() {
			return &os.PathError{Op: "open", Path: up, Err: unix.ENOTDIR}
		}
		return nil
	}
	n, info, err := l.lookup(up)
	if err != nil {
		return err
	}
	switch {
	case up == "/" && info == nil:
		return nil // an empty base: the root of the result has the default attributes
	case n == nil:
		return &os.PathError{Op: "open", Path: up, Err: unix.ENOENT}
	case !n.isDir():
		return &os.PathError{Op: "open", Path: up, Err: unix.ENOTDIR}
	}
	if up == "/" {
		_, err := l.keep(up, &node{mode: n.mode})
		return err // every reader of layers takes the root as given
	}
	return l.header(up, &tar.Header{Typeflag: tar.TypeDir}, &node{mode: n.mode}, attrs{
		mode: info.Mode, uid: info.UID, gid: info.GID, time: info.Time, xattrs: info.Xattrs,
	})
}

// mkdir makes a directory at a resolved path, or gives an existing one new attributes.
func (l *layer) mkdir(p string, a attrs) error {
	old, _, err := l.lookup(p)
	if err != nil {
		return err
	}
	fresh := old == nil || !old.isDir() || old.fresh
	return l.header(p, &tar.Header{Typeflag: tar.TypeDir}, &node{mode: unix.S_IFDIR, fresh: fresh}, a)
}

// mkdirAll makes the missing directories of a resolved path.
func (l *layer) mkdirAll(p string, a attrs) error {
	var missing []string
	for up := p; up != "/"; up = path.Dir(up) {
		n, _, err := l.lookup(up)
		if err != nil {
			return err
		}
		if n != nil {
			if !n.isDir() {
				return &os.PathError{Op: "mkdir", Path: up, Err: unix.ENOTDIR}
			}
			break
		}
		missing = append(missing, up)
	}
	for _, dir := range slices.Backward(missing) {
		if err := l.mkdir(dir, a); err != nil {
			return err
		}
	}
	return nil
}

// file writes a regular file of exactly size bytes.
func (l *layer) file(p string, size int64, r io.Reader, a attrs) error {
	if err := l.header(p, &tar.Header{Typeflag: tar.TypeReg, Size: size}, &node{mode: unix.S_IFREG}, a); err != nil {
		return err
	}
	if size == 0 {
		return nil
	}
	if l.buf == nil {
		l.buf = make([]byte, copySize)
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{l.tw}, io.LimitReader(r, size), l.buf)
	if err == nil && n < size {
		err = errs.New(errs.Conflict, "%s became shorter while it was read", p)
	}
	return err
}

// copySize is how many bytes of a file are read at once.
const copySize = 128 << 10

// reader ends with its context, so that a cancelled build does not wait for the end of a large file.
type reader struct {
	ctx context.Context //nolint:containedctx // of one file
	r   io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}

func (l *layer) symlink(p, target string, a attrs) error {
	if len(target) >= unix.PathMax {
		return &os.PathError{Op: "symlink", Path: p, Err: unix.ENAMETOOLONG}
	}
	a.mode = 0o777
	return l.header(p, &tar.Header{Typeflag: tar.TypeSymlink, Linkname: target}, &node{mode: unix.S_IFLNK, link: target}, a)
}

// hardLink makes p another name of the file at the resolved path to, which the layer has.
func (l *layer) hardLink(p, to string, a attrs) error {
	n := l.have(to)
	if n == nil || n.gone || n.isDir() {
		return errs.New(errs.Invalid, "%s: hard link to %s, which is not there", p, to)
	}
	return l.header(p, &tar.Header{Typeflag: tar.TypeLink, Linkname: strings.TrimPrefix(to, "/")}, n, a)
}

// special makes a device or a FIFO.
func (l *layer) special(p string, mode uint32, rdev uint64, a attrs) error {
	h := &tar.Header{Devmajor: int64(unix.Major(rdev)), Devminor: int64(unix.Minor(rdev))}
	switch mode & unix.S_IFMT {
	case unix.S_IFCHR:
		h.Typeflag = tar.TypeChar
	case unix.S_IFBLK:
		h.Typeflag = tar.TypeBlock
	case unix.S_IFIFO:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeFifo, 0, 0
	default:
		return nil // a socket is of use only to the process that has it open
	}
	return l.header(p, h, &node{mode: mode & unix.S_IFMT}, a)
}

// remove removes what is at a resolved path. What the same layer made cannot be removed.
func (l *layer) remove(p string) error {
	if p == "/" {
		return errs.New(errs.Invalid, "the root of a file system cannot be removed")
	}
	if l.madeAt(p) {
		return errs.New(errs.Unimplemented, "%s: an operation that removes what it has made itself is not supported; remove it in an operation of its own", p)
	}
	if err := l.parents(p); err != nil {
		return err
	}
	h := &tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(path.Join(path.Dir(p), ".wh."+path.Base(p)), "/"), Format: tar.FormatPAX, ModTime: l.now}
	if err := l.tw.WriteHeader(h); err != nil {
		return err
	}
	_, err := l.keep(p, &node{gone: true})
	return err
}

// madeAt reports whether the layer has made something at a resolved path or below it.
func (l *layer) madeAt(p string) bool {
	id, ok, _ := l.find(p)
	if !ok {
		return false
	}
	v := l.made.Value(id)
	return v.state == stateMade || v.flags&flagBelow != 0
}
