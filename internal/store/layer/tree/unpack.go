package tree

import (
	"context"
	"errors"
	"hash/crc64"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/vbatts/tar-split/tar/storage"
	"golang.org/x/sys/unix"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/store/layer/tarscan"
)

// unpacker makes the tree. Directories get their attributes at the end, so that making what they hold
// neither needs nor changes them.
type unpacker struct {
	fsys durable.FS
	dir  string
	root *os.File
	rec  *recipe
	meta Meta
	buf  []byte

	dirs    map[string]*attrs // every directory of the tree but the root
	rootAt  *attrs            // of the root, when an entry describes it
	opaque  map[string]bool
	white   map[string]bool     // whiteouts that stand in the tree as devices
	wiped   map[string]bool     // all whiteouts
	pending map[string]string   // hard links to lower files → their targets
	links   map[string][]string // the same by directory
	hidden  map[string]int      // recipe name → number in hidden/
	names   map[string]string

	parent   string // path of parentFD
	parentFD int    // -1 for none; the root's own descriptor is never kept here
}

// attrs are what a directory gets at the end; nil xattrs and implied for one that nobody described.
type attrs struct {
	implied  bool
	mode     uint32
	uid, gid uint32
	mtime    unix.Timespec
	xattrs   []tarscan.Xattr
}

func newUnpacker(fsys durable.FS, dir string, root *os.File, rec *recipe) *unpacker {
	return &unpacker{
		fsys: fsys, dir: dir, root: root, rec: rec, buf: make([]byte, 256<<10), parentFD: -1,
		dirs: map[string]*attrs{}, opaque: map[string]bool{}, white: map[string]bool{}, wiped: map[string]bool{}, pending: map[string]string{},
		links: map[string][]string{}, hidden: map[string]int{}, names: map[string]string{},
	}
}

// run reads the whole tar. Its errors name the entry; errs.Invalid is the tar's fault.
func (u *unpacker) run(ctx context.Context, r io.Reader, lim tarscan.Limits) (err error) {
	defer func() {
		u.dropParent()
		err = errors.Join(err, u.root.Close())
	}()
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

// blame names the entry, and says whether tar or host is at fault.
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
	p, err := u.place(e)
	if err != nil {
		return err
	}
	switch e.Kind {
	case tarscan.Opaque:
		u.opaque[p] = true
		return nil
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

// place makes sure of the parent directory of an entry and gives the entry's path without links.
// For an opaque marker the entry is its directory itself.
func (u *unpacker) place(e *tarscan.Entry) (string, error) {
	dir, base := path.Split(e.Path)
	dir = path.Clean(dir)
	if e.Kind == tarscan.Opaque {
		dir, base = e.Path, ""
	}
	dir, err := u.enter(dir)
	if err != nil {
		return "", err
	}
	if base == "" {
		return dir, nil
	}
	return path.Join(dir, base), nil
}

// enter opens the directory dir as the current parent, making what is missing, and gives its path without links.
func (u *unpacker) enter(dir string) (string, error) {
	if dir == u.parent && u.parentFD >= 0 {
		return dir, nil
	}
	if dir == "." {
		u.dropParent()
		u.parent = "."
		return dir, nil
	}
	if u.dirs[dir] == nil {
		var err error
		if dir, err = u.resolve(dir, true); err != nil {
			return "", err
		}
		if err := u.makeAll(dir); err != nil {
			return "", err
		}
		if dir == "." {
			u.dropParent()
			u.parent = "."
			return dir, nil
		}
	}
	fd, err := openBelow(int(u.root.Fd()), dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return "", err
	}
	u.dropParent()
	u.parent, u.parentFD = dir, fd
	return dir, nil
}

func (u *unpacker) dropParent() {
	if u.parentFD >= 0 {
		unix.Close(u.parentFD)
	}
	u.parent, u.parentFD = "", -1
}

// at gives what the *at calls need for path p, whose parent was entered last.
func (u *unpacker) at(p string) (dirfd int, base string) {
	if path.Dir(p) == u.parent && u.parentFD >= 0 {
		return u.parentFD, path.Base(p)
	}
	return int(u.root.Fd()), p
}

const maxLinks = 40

// resolve follows the links of this very layer that stand in dir, inside the tree. When forced, anything else
// that stands in the way is removed.
func (u *unpacker) resolve(dir string, force bool) (string, error) {
	pending := strings.Split(dir, "/")
	done := "."
	for links := 0; len(pending) > 0; {
		part := pending[0]
		pending = pending[1:]
		if part == "" || part == "." {
			continue
		}
		if part == ".." {
			done = path.Dir(done)
			continue
		}
		next := path.Join(done, part)
		if u.dirs[next] != nil {
			done = next
			continue
		}
		target, kind, err := u.look(next)
		switch {
		case err != nil:
			return "", err
		case kind == 0 || u.white[next]:
			done = next
		case kind != unix.S_IFLNK && !force:
			return "", unix.ENOTDIR
		case kind != unix.S_IFLNK: // the last entry wins: what is below it makes it a directory
			if err := u.clear(next); err != nil {
				return "", err
			}
			done = next
		default:
			if links++; links > maxLinks {
				return "", tarError("its path has a loop of symbolic links")
			}
			if strings.HasPrefix(target, "/") {
				done = "."
			}
			pending = append(strings.Split(target, "/"), pending...)
		}
		if len(done) > 4096 {
			return "", unix.ENAMETOOLONG
		}
	}
	return done, nil
}

// look says what stands at p: kind is 0 for nothing, target is that of a link.
func (u *unpacker) look(p string) (target string, kind uint32, err error) {
	var st unix.Stat_t
	err = unix.Fstatat(int(u.root.Fd()), p, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return "", 0, nil
	}
	if err != nil {
		return "", 0, err
	}
	kind = st.Mode & unix.S_IFMT
	if kind == unix.S_IFLNK {
		buf := make([]byte, 4096)
		n, err := unix.Readlinkat(int(u.root.Fd()), p, buf)
		if err != nil {
			return "", 0, err
		}
		target = string(buf[:n])
	}
	return target, kind, nil
}

// makeAll makes the missing directories of a path without links.
func (u *unpacker) makeAll(dir string) error {
	if dir == "." || u.dirs[dir] != nil {
		return nil
	}
	if err := u.makeAll(path.Dir(dir)); err != nil {
		return err
	}
	return u.mkdir(dir, &attrs{implied: true, mode: 0o755})
}

// mkdir makes dir; a whiteout that stands there makes it opaque.
func (u *unpacker) mkdir(dir string, a *attrs) error {
	delete(u.pending, dir)
	if u.wiped[dir] {
		u.opaque[dir] = true
	}
	if u.white[dir] {
		delete(u.white, dir)
		if err := unix.Unlinkat(int(u.root.Fd()), dir, 0); err != nil {
			return err
		}
	}
	dirfd, base := u.at(dir)
	if err := unix.Mkdirat(dirfd, base, 0o700); err != nil {
		return err
	}
	u.dirs[dir] = a
	return nil
}

func attrsOf(e *tarscan.Entry) *attrs {
	return &attrs{mode: e.Mode, uid: e.UID, gid: e.GID, mtime: timespec(e), xattrs: slices.Clone(e.Xattrs)}
}

func timespec(e *tarscan.Entry) unix.Timespec {
	return unix.Timespec{Sec: e.Mtime.Unix(), Nsec: int64(e.Mtime.Nanosecond())}
}

func (u *unpacker) directory(p string, e *tarscan.Entry) error {
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

func (u *unpacker) whiteout(p string) error {
	u.wiped[p] = true
	switch _, kind, err := u.look(p); {
	case err != nil:
		return err
	case u.dirs[p] != nil:
		u.opaque[p] = true
	case kind == 0 && u.pending[p] == "":
		dirfd, base := u.at(p)
		if err := unix.Mknodat(dirfd, base, unix.S_IFCHR, 0); err != nil {
			return err
		}
		u.white[p] = true
	}
	return nil // the layer's own file hides what is below anyway
}

// clear removes what an earlier entry of this tar put at p, keeping content that the recipe needs.
func (u *unpacker) clear(p string) error {
	delete(u.pending, p)
	if u.white[p] {
		delete(u.white, p)
	} else if u.dirs[p] != nil {
		if err := u.clearDir(p); err != nil {
			return err
		}
		return nil
	}
	dirfd, base := u.at(p)
	var st unix.Stat_t
	err := unix.Fstatat(dirfd, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size > 0 {
		if err := u.hide(p, dirfd, base, st.Nlink > 1); err != nil {
			return err
		}
	}
	err = unix.Unlinkat(dirfd, base, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// clearDir removes a directory of this layer and all below it.
func (u *unpacker) clearDir(p string) error {
	u.dropParent()
	fd, err := openBelow(int(u.root.Fd()), p, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), p)
	names, err := f.Readdirnames(-1)
	f.Close()
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		if err := u.clear(p + "/" + name); err != nil {
			return err
		}
	}
	for _, link := range u.links[p] {
		delete(u.pending, link)
	}
	delete(u.links, p)
	delete(u.dirs, p)
	return unix.Unlinkat(int(u.root.Fd()), p, unix.AT_REMOVEDIR)
}

// hide keeps the content of a file that is about to go.
func (u *unpacker) hide(p string, dirfd int, base string, shared bool) error {
	name := p
	if later := u.names[p]; later != "" {
		name = later
	}
	if _, done := u.hidden[name]; done {
		return nil
	}
	hidden := u.dir + "/" + hiddenName
	n := len(u.hidden)
	if n == 0 {
		if err := u.fsys.Mkdir(hidden, 0o700); err != nil {
			return err
		}
	}
	u.hidden[name] = n
	u.meta.Hidden = append(u.meta.Hidden, Hidden{Name: Name(name), File: n})
	to := hidden + "/" + strconv.Itoa(n)
	if !shared {
		return unix.Renameat(dirfd, base, unix.AT_FDCWD, to)
	}
	fd, err := unix.Openat(dirfd, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	src := os.NewFile(uintptr(fd), p)
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
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
	if lower := u.pending[target]; lower != "" { // a link to a link into a lower layer
		if target == p {
			return nil
		}
		target = lower
		return u.linkBelow(p, target)
	}
	_, kind, err := u.look(target)
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
	if _, kind, err := u.look(target); err != nil || kind == 0 {
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

// linkBelow notes a link to a file that this layer does not have.
func (u *unpacker) linkBelow(p, target string) error {
	if target == p {
		return tarError("hard link to itself")
	}
	if err := u.clear(p); err != nil {
		return err
	}
	u.pending[p] = target
	u.links[path.Dir(p)] = append(u.links[path.Dir(p)], p)
	return nil
}

// node makes everything that is no directory and no link to another entry.
func (u *unpacker) node(p string, e *tarscan.Entry, data io.Reader) error {
	if _, err := u.enter(path.Dir(p)); err != nil { // clear may have left it
		return err
	}
	dirfd, base := u.at(p)
	switch e.Kind {
	case tarscan.Regular:
		return u.file(p, dirfd, base, e, data)
	case tarscan.Symlink:
		if err := unix.Symlinkat(e.Link, dirfd, base); err != nil {
			return err
		}
	case tarscan.CharDev, tarscan.BlockDev, tarscan.Fifo:
		mode := uint32(unix.S_IFIFO)
		if e.Kind == tarscan.CharDev {
			mode = unix.S_IFCHR
		} else if e.Kind == tarscan.BlockDev {
			mode = unix.S_IFBLK
		}
		if err := unix.Mknodat(dirfd, base, mode|0o600, int(unix.Mkdev(e.Major, e.Minor))); err != nil {
			return err
		}
	default:
		return tarError("entry of kind " + strconv.Itoa(int(e.Kind)))
	}
	return setAt(dirfd, base, e)
}

// setAt gives a name its attributes without following it.
func setAt(dirfd int, base string, e *tarscan.Entry) error {
	if err := unix.Fchownat(dirfd, base, int(e.UID), int(e.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if e.Kind != tarscan.Symlink {
		// Made by us a moment ago in a directory that nobody else can reach, and no link: fchmodat may be used.
		if err := unix.Fchmodat(dirfd, base, e.Mode, 0); err != nil {
			return err
		}
	}
	for _, x := range e.Xattrs {
		if err := setXattr(procPath(dirfd, base), x); err != nil {
			return err
		}
	}
	ts := []unix.Timespec{timespec(e), timespec(e)}
	return unix.UtimesNanoAt(dirfd, base, ts, unix.AT_SYMLINK_NOFOLLOW)
}

func procPath(dirfd int, base string) string {
	return "/proc/self/fd/" + strconv.Itoa(dirfd) + "/" + base
}

func setXattr(at string, x tarscan.Xattr) error {
	err := unix.Lsetxattr(at, x.Name, []byte(x.Value), 0)
	if err != nil {
		return xattrError(x.Name, err)
	}
	return nil
}

// xattrError says what to do about a file system that cannot hold an attribute; silence would lose file
// capabilities.
func xattrError(name string, err error) error {
	if errors.Is(err, unix.EINVAL) {
		return tarError("extended attribute " + name + ": " + err.Error())
	}
	return errs.New(errs.Precondition, "extended attribute %s: %w", name, err)
}

func (u *unpacker) file(p string, dirfd int, base string, e *tarscan.Entry, data io.Reader) (err error) {
	fd, err := unix.Openat(dirfd, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	if err := u.content(fd, p, e, data); err != nil {
		return err
	}
	u.meta.Size += e.Size
	if e.UID != 0 || e.GID != 0 {
		if err := unix.Fchown(fd, int(e.UID), int(e.GID)); err != nil {
			return err
		}
	}
	if err := unix.Fchmod(fd, e.Mode); err != nil {
		return err
	}
	for _, x := range e.Xattrs {
		if err := unix.Fsetxattr(fd, x.Name, []byte(x.Value), 0); err != nil {
			return xattrError(x.Name, err)
		}
	}
	ts := timespec(e)
	return futimens(fd, ts)
}

// futimens sets both times of an open file.
func futimens(fd int, ts unix.Timespec) error {
	return unix.UtimesNanoAt(fd, "", []unix.Timespec{ts, ts}, unix.AT_EMPTY_PATH)
}

// content copies the bytes of a file and tells the recipe where they are.
func (u *unpacker) content(fd int, p string, e *tarscan.Entry, data io.Reader) error {
	if e.Size == 0 {
		return nil
	}
	if e.Sparse {
		return u.sparse(fd, e.Size, data)
	}
	if err := u.rec.content(e.Offset, e.Size); err != nil {
		return err
	}
	var crc uint64
	for left := e.Size; left > 0; {
		n, err := io.ReadAtLeast(data, u.buf[:min(left, int64(len(u.buf)))], int(min(left, int64(len(u.buf)))))
		if err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		crc = crc64.Update(crc, storage.CRCTable, u.buf[:n])
		if err := writeAll(fd, u.buf[:n]); err != nil {
			return err
		}
		left -= int64(n)
	}
	name := p
	if _, taken := u.hidden[p]; taken {
		name = p + "\x00" + strconv.Itoa(len(u.hidden))
		u.names[p] = name
	}
	return u.rec.stored(name, e.Size, crc)
}

// sparse writes a file whose content is not one piece of the tar: the recipe keeps it as raw bytes. Zeros become
// holes.
func (u *unpacker) sparse(fd int, size int64, data io.Reader) error {
	for at := int64(0); at < size; {
		n, err := io.ReadFull(data, u.buf[:min(size-at, 64<<10)])
		if err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		if !zeros(u.buf[:n]) {
			if _, err := unix.Pwrite(fd, u.buf[:n], at); err != nil {
				return err
			}
		}
		at += int64(n)
	}
	return unix.Ftruncate(fd, size)
}

func zeros(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// finish gives directories their attributes, deepest first, and completes the Meta.
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
	covered := map[string]bool{".": u.opaque["."]} // directories that let nothing shine through
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
