package rootfs

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"ply/internal/compress"
	"ply/internal/errs"
	"ply/internal/safepath"
)

// extractor unpacks a tar stream below a directory of a root that other processes may change at the same time. The
// kernel resolves every parent directory from the root; the last component of a name is never followed.
type extractor struct {
	ctx       context.Context
	root      *os.File
	dir       string   // path below root to unpack into
	keepKinds bool     // refuse to replace a directory by another kind of file, and the other way round
	owner     *Account // owner of every file; nil = as the stream says
	top       *os.File // the directory itself, to which the entry "./" gives its attributes; nil = it keeps those that it has
	topHeader *tar.Header
	dirs      []dirTime
	named     int // bytes of the names in dirs
	buf       []byte
}

// dirTime is a directory whose time is set after everything in it was unpacked.
type dirTime struct {
	name string
	h    *tar.Header
}

const (
	maxEntries = 2 << 20   // entries of one stream
	maxNames   = 256 << 20 // bytes of the names of the directories of one stream
	maxRaces   = 100       // tries to create a name that another process keeps creating
	largeFile  = 1 << 20   // files from this size on, in bytes, are refused when the space that is left cannot hold them
)

func (x *extractor) run(r io.Reader) error {
	in, _, err := compress.NewReader(x.ctx, r)
	if err != nil {
		return err
	}
	defer in.Close()
	x.buf = make([]byte, 128<<10)
	tr := tar.NewReader(in)
	for n := 0; ; n++ {
		if err := x.ctx.Err(); err != nil {
			return context.Cause(x.ctx)
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return invalid("tar: %w", err)
		}
		if n == maxEntries {
			return invalid("tar: more than %d entries", maxEntries)
		}
		if err := x.entry(h, tr); err != nil {
			if errors.Is(err, unix.EROFS) {
				return errs.New(errs.Forbidden, "mounted volume is marked read-only: %s", clip(h.Name))
			}
			return err
		}
	}
	for i := len(x.dirs) - 1; i >= 0; i-- {
		if err := x.setTime(x.dirs[i]); err != nil {
			return err
		}
	}
	if x.topHeader != nil {
		if err := x.attributes(x.top, x.topHeader); err != nil {
			return x.describe(x.topHeader, err)
		}
	}
	// Read the padding behind the end of the stream: a client that still sends it must not be cut off.
	_, err = io.Copy(io.Discard, io.LimitReader(in, 1<<20))
	return err
}

func (x *extractor) entry(h *tar.Header, tr io.Reader) error {
	switch h.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil
	case tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeFifo, tar.TypeChar, tar.TypeBlock:
	default:
		return invalid("tar: entry %q has the unknown type %q", clip(h.Name), h.Typeflag)
	}
	name, err := safepath.Clean(h.Name)
	if err != nil {
		return err
	}
	if name == "." { // the directory exists
		if x.top != nil && h.Typeflag == tar.TypeDir {
			x.topHeader = h
		}
		return nil
	}
	if sub := path.Dir(name); sub != "." {
		d, err := safepath.MkdirAll(x.root, path.Join(x.dir, sub), 0o755)
		if err != nil {
			return x.describe(h, err)
		}
		_ = d.Close() // opened for reading only
	}
	parent, base, err := safepath.OpenParent(x.root, path.Join(x.dir, name))
	if err != nil {
		return x.describe(h, err)
	}
	defer parent.Close()
	for try := 1; ; try++ {
		keep, err := x.clear(parent, base, h)
		if err != nil {
			return err
		}
		err = x.make(parent, base, h, tr, keep)
		if errors.Is(err, unix.EEXIST) && try < maxRaces {
			continue // another process created the name; no content of the entry was read yet
		}
		if err != nil {
			return x.describe(h, err)
		}
		break
	}
	if h.Typeflag == tar.TypeDir {
		// The names can be parts of a PAX header of 1 MiB, and h has that header too.
		name = strings.Clone(name)
		if x.named += len(name) + len(h.Name); x.named > maxNames {
			return invalid("tar: the names of its directories have more than %d bytes", maxNames)
		}
		x.dirs = append(x.dirs, dirTime{name, &tar.Header{Name: strings.Clone(h.Name), Typeflag: h.Typeflag, ModTime: h.ModTime, AccessTime: h.AccessTime}})
	}
	return nil
}

func (x *extractor) describe(h *tar.Header, err error) error {
	if _, classified := errors.AsType[*errs.Error](err); classified {
		return err
	}
	return fmt.Errorf("unpack %s: %w", clip(h.Name), err)
}

// clear removes the file that has the name of an entry. keep reports that the file stays: a directory that the entry
// names too, or a file that is a mount point and can only be overwritten.
func (x *extractor) clear(parent *os.File, base string, h *tar.Header) (keep bool, err error) {
	var st unix.Stat_t
	err = unix.Fstatat(int(parent.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, x.describe(h, err)
	}
	isDir, wantDir := st.Mode&unix.S_IFMT == unix.S_IFDIR, h.Typeflag == tar.TypeDir
	switch {
	case isDir && wantDir:
		return true, nil
	case x.keepKinds && isDir:
		return false, invalid("cannot overwrite directory %q with non-directory %q", path.Join(x.dir, h.Name), x.dir)
	case x.keepKinds && wantDir:
		return false, invalid("cannot overwrite non-directory %q with directory %q", path.Join(x.dir, h.Name), x.dir)
	case isDir:
		return false, x.wrap(h, safepath.RemoveAll(parent, base, func() error { return context.Cause(x.ctx) }))
	}
	err = unix.Unlinkat(int(parent.Fd()), base, 0)
	if errors.Is(err, unix.EBUSY) && h.Typeflag == tar.TypeReg {
		return true, nil
	}
	if errors.Is(err, unix.ENOENT) {
		return false, nil // another process removed it
	}
	return false, x.wrap(h, err)
}

func (x *extractor) wrap(h *tar.Header, err error) error {
	if err == nil {
		return nil
	}
	return x.describe(h, err)
}

func (x *extractor) make(parent *os.File, base string, h *tar.Header, tr io.Reader, keep bool) error {
	dfd := int(parent.Fd())
	mode := uint32(h.Mode) & 0o7777
	switch h.Typeflag {
	case tar.TypeReg:
		return x.file(parent, base, h, tr, keep)
	case tar.TypeDir:
		if !keep {
			if err := unix.Mkdirat(dfd, base, 0o700); err != nil {
				return err
			}
		}
	case tar.TypeSymlink:
		if len(h.Linkname) >= 4096 || h.Linkname == "" || strings.IndexByte(h.Linkname, 0) >= 0 {
			return invalid("tar: link %q has the bad target %q", clip(h.Name), clip(h.Linkname))
		}
		if err := unix.Symlinkat(h.Linkname, dfd, base); err != nil {
			return err
		}
	case tar.TypeLink:
		return x.link(parent, base, h)
	default:
		kind := map[byte]uint32{tar.TypeFifo: unix.S_IFIFO, tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK}[h.Typeflag]
		if err := unix.Mknodat(dfd, base, kind|mode, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))); err != nil {
			return err
		}
	}
	f, err := openNode(parent, base)
	if err != nil {
		return err
	}
	defer f.Close()
	return x.attributes(f, h)
}

// openNode opens a file of any kind without side effects.
func openNode(parent *os.File, base string) (*os.File, error) {
	fd, err := unix.Openat(int(parent.Fd()), base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), base), nil
}

func (x *extractor) link(parent *os.File, base string, h *tar.Header) error {
	target, err := safepath.Clean(h.Linkname)
	if err != nil {
		return err
	}
	dir, name, err := safepath.OpenParent(x.root, path.Join(x.dir, target))
	if err != nil {
		return err
	}
	defer dir.Close()
	return unix.Linkat(int(dir.Fd()), name, int(parent.Fd()), base, 0)
}

func (x *extractor) file(parent *os.File, base string, h *tar.Header, tr io.Reader, keep bool) (err error) {
	if err := checkSpace(parent, h.Size); err != nil {
		return err
	}
	f, err := openForContent(parent, base, keep)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for {
		if err := x.ctx.Err(); err != nil {
			return context.Cause(x.ctx)
		}
		n, rerr := tr.Read(x.buf)
		if n > 0 {
			if _, err := f.Write(x.buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(rerr, io.EOF) {
			break
		}
		if rerr != nil {
			return invalid("tar: %w", rerr)
		}
	}
	return x.attributes(f, h)
}

// checkSpace refuses a large file that the file system cannot hold, before anything of it is written: a sparse file of a stream can
// claim any size in a few bytes.
func checkSpace(parent *os.File, size int64) error {
	if size < largeFile {
		return nil
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(parent.Fd()), &st); err != nil {
		return err
	}
	if st.Blocks > 0 && uint64(size)/uint64(max(st.Bsize, 1)) > st.Bavail { // some file systems state no size
		return unix.ENOSPC
	}
	return nil
}

// openForContent opens the file that gets the content of an entry: a new one, or with keep the regular file that is there.
func openForContent(parent *os.File, base string, keep bool) (*os.File, error) {
	if !keep {
		const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
		fd, err := unix.Openat(int(parent.Fd()), base, flags, 0o600)
		if err != nil {
			return nil, err
		}
		return os.NewFile(uintptr(fd), base), nil
	}
	node, err := openNode(parent, base)
	if err != nil {
		return nil, err
	}
	defer node.Close()
	return safepath.Reopen(node, unix.O_WRONLY|unix.O_TRUNC)
}

// attributes sets owner, mode, xattrs and time of a file by its descriptor. The order matters: a change of the owner
// clears setuid bits and capabilities, and every change sets the time.
func (x *extractor) attributes(f *os.File, h *tar.Header) error {
	uid, gid := h.Uid, h.Gid
	if x.owner != nil {
		uid, gid = int(x.owner.UID), int(x.owner.GID)
	}
	if uid < 0 || gid < 0 || uid > 1<<32-2 || gid > 1<<32-2 {
		return invalid("tar: entry %q has the owner %d:%d", clip(h.Name), uid, gid)
	}
	if err := unix.Fchownat(int(f.Fd()), "", uid, gid, unix.AT_EMPTY_PATH); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeSymlink {
		return unix.UtimesNanoAt(int(f.Fd()), "", times(h), unix.AT_EMPTY_PATH)
	}
	self := fdPath(f) // chmod and setxattr do not take an O_PATH descriptor
	if err := unix.Chmod(self, uint32(h.Mode)&0o7777); err != nil {
		return err
	}
	for k, v := range h.PAXRecords {
		n, ok := strings.CutPrefix(k, xattrPrefix)
		if !ok || isOverlayXattr(n) {
			continue
		}
		if err := unix.Setxattr(self, n, []byte(v), 0); err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("xattr %s: %w", n, err)
		}
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, self, times(h), 0)
}

func times(h *tar.Header) []unix.Timespec {
	m := unix.NsecToTimespec(h.ModTime.UnixNano())
	a := m
	if !h.AccessTime.IsZero() {
		a = unix.NsecToTimespec(h.AccessTime.UnixNano())
	}
	return []unix.Timespec{a, m}
}

func (x *extractor) setTime(d dirTime) error {
	parent, base, err := safepath.OpenParent(x.root, path.Join(x.dir, d.name))
	if err != nil {
		return nil // another process moved it
	}
	defer parent.Close()
	err = unix.UtimesNanoAt(int(parent.Fd()), base, times(d.h), unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	return x.wrap(d.h, err)
}
