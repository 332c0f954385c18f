package tree

import (
	"context"
	"errors"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/memory"
	"ply/internal/store/layer/tarscan"
)

// unpacker creates the tree. Directories get their attributes last, because creating their content would change them.
type unpacker struct {
	fsys durable.FS
	dir  string
	root *os.File
	rec  *recipe
	meta Meta
	buf  []byte

	maxDirs int               // of dirs: an entry can imply many
	dirs    map[string]*attrs // every directory of the tree except the root
	rootAt  *attrs            // of the root, if an entry describes it
	opaque  map[string]bool
	white   map[string]bool     // whiteouts that are devices in the tree
	wiped   map[string]bool     // all whiteouts
	pending map[string]string   // hard links to files of lower layers → their targets
	links   map[string][]string // the same by directory
	hidden  map[string]int      // recipe name → number in hidden/
	names   map[string]string

	pool  *memory.Pool
	share *memory.Share // for the maps above
	kept  int64         // bytes that they take, about

	parent   string // the path of parentFD
	parentFD int    // -1 for none; never the root's own descriptor
}

// attrs are the attributes of a directory. Implied is true when no entry described it.
type attrs struct {
	implied  bool
	mode     uint32
	uid, gid uint32
	mtime    unix.Timespec
	xattrs   []tarscan.Xattr
}

func newUnpacker(fsys durable.FS, dir string, root *os.File, rec *recipe, pool *memory.Pool) *unpacker {
	return &unpacker{
		pool: pool, share: pool.Share(), fsys: fsys, dir: dir, root: root, rec: rec, buf: make([]byte, 256<<10), parentFD: -1,
		dirs: map[string]*attrs{}, opaque: map[string]bool{}, white: map[string]bool{}, wiped: map[string]bool{}, pending: map[string]string{},
		links: map[string][]string{}, hidden: map[string]int{}, names: map[string]string{},
	}
}

// run reads the whole tar. Its errors name the entry. The class is errs.Invalid when the tar is the cause.
func (u *unpacker) run(ctx context.Context, r io.Reader, lim tarscan.Limits) (err error) {
	defer func() {
		u.dropParent()
		err = errors.Join(err, u.root.Close())
	}()
	if u.maxDirs = lim.Entries; u.maxDirs == 0 {
		u.maxDirs = tarscan.MaxEntries
	}
	err = tarscan.Scan(io.TeeReader(r, u.rec), lim, func(e *tarscan.Entry, data io.Reader) error {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if err := u.entry(e, data); err != nil {
			return u.blame(e, err)
		}
		return nil
	})
	err = errors.Join(err, u.rec.close())
	if err != nil {
		return err
	}
	return u.finish()
}

// nameCost is what a name that is kept takes in memory besides its bytes.
const nameCost = 300

// keep makes room for what is kept of a name until the end: its path, in several maps, and texts of more bytes. A layer that finds
// no room in the pool takes a turn, if no other layer has it.
func (u *unpacker) keep(p string, more int64) error {
	u.kept += nameCost + 3*int64(len(p)) + more
	if u.share.Fit(u.kept) {
		return nil
	}
	if turn := u.pool.TryTurn(); turn != nil {
		u.share.Close()
		u.share = turn
		if turn.Fit(u.kept) {
			return nil
		}
	}
	return u.pool.Exhausted("list of the directories of the layer")
}

// blame adds the entry to an error, and the class errs.Invalid when the tar is the cause.
func (u *unpacker) blame(e *tarscan.Entry, err error) error {
	if _, ok := errors.AsType[*errs.Error](err); ok {
		return err
	}
	for _, tarsFault := range []error{unix.ENAMETOOLONG, unix.ELOOP, unix.ENOTDIR, errTar} {
		if errors.Is(err, tarsFault) {
			return errs.New(errs.Invalid, "layer tar: entry %.200q: %w", e.Path, err)
		}
	}
	for _, full := range []error{unix.ENOSPC, unix.EDQUOT} {
		if errors.Is(err, full) {
			return errs.New(errs.Exhausted, "unpack %.200q: %w", e.Path, err)
		}
	}
	if e.Path != "" && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.ErrClosedPipe) {
		return &os.PathError{Op: "unpack", Path: e.Path, Err: err}
	}
	return err
}

type tarError string

func (e tarError) Error() string        { return string(e) }
func (e tarError) Is(target error) bool { return target == errTar }

var errTar = errors.New("the tar is at fault")

func (u *unpacker) entry(e *tarscan.Entry, data io.Reader) error {
	if e.Path == "." {
		if e.Kind == tarscan.Opaque {
			u.opaque["."] = true
			return nil
		}
		u.rootAt = attrsOf(e)
		u.meta.Entries++
		return nil
	}
	p, err := u.prepare(e)
	if err != nil {
		return err
	}
	switch e.Kind {
	case tarscan.Opaque:
		u.opaque[p] = true
		return u.keep(p, 0)
	case tarscan.Whiteout:
		return u.whiteout(p)
	case tarscan.Dir:
		u.meta.Entries++
		return u.directory(p, e)
	case tarscan.Hardlink:
		u.meta.Entries++
		return u.hardlink(p, e)
	}
	u.meta.Entries++
	delete(u.pending, p)
	err = u.node(p, e, data)
	if errors.Is(err, unix.EEXIST) { // the last entry of a name wins
		if err := u.clear(p); err != nil {
			return err
		}
		return u.node(p, e, data)
	}
	return err
}

func attrsOf(e *tarscan.Entry) *attrs {
	return &attrs{mode: e.Mode, uid: e.UID, gid: e.GID, mtime: timespec(e), xattrs: slices.Clone(e.Xattrs)}
}

func timespec(e *tarscan.Entry) unix.Timespec {
	return unix.Timespec{Sec: e.Mtime.Unix(), Nsec: int64(e.Mtime.Nanosecond())}
}

func (u *unpacker) directory(p string, e *tarscan.Entry) error {
	var more int64
	for _, x := range e.Xattrs {
		more += int64(len(x.Name)+len(x.Value)) + tarscan.XattrCost
	}
	if err := u.keep(p, more); err != nil {
		return err
	}
	if u.dirs[p] != nil {
		u.dirs[p] = attrsOf(e)
		return nil
	}
	if !u.white[p] {
		if err := u.clear(p); err != nil {
			return err
		}
	}
	return u.mkdir(p, attrsOf(e))
}

func (u *unpacker) hardlink(p string, e *tarscan.Entry) error {
	dir, err := u.resolve(path.Dir(e.Link), false)
	if err != nil {
		return tarError("hard link to " + strconv.Quote(e.Link) + ", whose parent is no directory of a layer")
	}
	target := path.Join(dir, path.Base(e.Link))
	if strings.HasPrefix(target, p+"/") {
		return tarError("hard link to " + strconv.Quote(e.Link) + ", which it replaces itself")
	}
	if lower := u.pending[target]; lower != "" { // a hard link to a hard link into a lower layer
		if target == p {
			return nil
		}
		target = lower
		return u.linkBelow(p, target)
	}
	_, kind, err := u.inspect(target)
	switch {
	case err != nil:
		return err
	case kind == unix.S_IFDIR:
		return tarError("hard link to the directory " + strconv.Quote(e.Link))
	case kind == 0 || u.white[target]:
		return u.linkBelow(p, target)
	case target == p:
		return nil
	}
	if err := u.clear(p); err != nil {
		return err
	}
	if _, kind, err := u.inspect(target); err != nil || kind == 0 {
		return tarError("hard link to " + strconv.Quote(e.Link) + ", which it replaces itself")
	}
	if _, err := u.enter(path.Dir(p)); err != nil {
		return err
	}
	dirfd, base := u.at(p)
	err = unix.Linkat(int(u.root.Fd()), target, dirfd, base, 0)
	if errors.Is(err, unix.EMLINK) {
		return tarError("has too many hard links for this file system")
	}
	return err
}

// linkBelow records a hard link to a file that this layer does not have.
func (u *unpacker) linkBelow(p, target string) error {
	if target == p {
		return tarError("hard link to itself")
	}
	if err := u.keep(p, 3*int64(len(target))); err != nil {
		return err
	}
	if err := u.clear(p); err != nil {
		return err
	}
	u.pending[p] = target
	u.links[path.Dir(p)] = append(u.links[path.Dir(p)], p)
	return nil
}

// finish sets the attributes of the directories, deepest first, and completes the Meta.
func (u *unpacker) finish() error {
	u.dropParent()
	paths := make([]string, 0, len(u.dirs))
	for p := range u.dirs {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	for _, p := range slices.Backward(paths) {
		if err := u.dress(p, u.dirs[p]); err != nil {
			return u.blame(&tarscan.Entry{Path: p}, err)
		}
	}
	root := u.rootAt
	if root == nil {
		root = &attrs{mode: 0o755}
	}
	u.meta.OwnRoot, u.meta.OpaqueRoot = u.rootAt != nil, u.opaque["."]
	if err := u.dress(".", root); err != nil {
		return u.blame(&tarscan.Entry{Path: "."}, err)
	}
	covered := map[string]bool{".": u.opaque["."]} // directories that hide the layers below
	for _, p := range paths {
		hidden := covered[path.Dir(p)] || u.wiped[p]
		covered[p] = hidden || u.opaque[p]
		if u.dirs[p].implied && !hidden {
			u.meta.Implied = append(u.meta.Implied, Name(p))
		}
	}
	wiped := map[string]bool{}
	for p := range u.white {
		wiped[path.Dir(p)] = true
	}
	for _, p := range paths {
		if wiped[p] {
			u.meta.Wiped = append(u.meta.Wiped, Name(p))
		}
	}
	links := make([]string, 0, len(u.pending))
	for p := range u.pending {
		links = append(links, p)
	}
	slices.Sort(links)
	for _, p := range links {
		u.meta.Links = append(u.meta.Links, Link{Name: Name(p), Target: Name(u.pending[p])})
	}
	return nil
}

func (u *unpacker) dress(p string, a *attrs) error {
	fd, err := openBelow(int(u.root.Fd()), p, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Fchown(fd, int(a.uid), int(a.gid)); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, a.mode); err != nil {
		return err
	}
	for _, x := range a.xattrs {
		if err := unix.Fsetxattr(fd, x.Name, []byte(x.Value), 0); err != nil {
			return xattrError(x.Name, err)
		}
	}
	if u.opaque[p] && p != "." {
		if err := unix.Fsetxattr(fd, opaqueXattr, []byte("y"), 0); err != nil {
			return xattrError(opaqueXattr, err)
		}
	}
	return futimens(fd, a.mtime)
}

const opaqueXattr = "trusted.overlay.opaque"
