package container

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// packer writes a tree as a tar, by descriptors only: nothing that is swapped in meanwhile leads out of it.
type packer struct {
	ctx   context.Context
	tw    *tar.Writer
	links map[[2]uint64]string
	buf   []byte
}

func newPacker(ctx context.Context, w io.Writer) *packer {
	return &packer{ctx: ctx, tw: tar.NewWriter(w), links: map[[2]uint64]string{}, buf: make([]byte, 128<<10)}
}

// tree writes dir's content under prefix; "" puts it at the archive's root. The directory itself gets an entry when
// prefix is not "".
func (p *packer) tree(dir *os.File, prefix string) error {
	if prefix != "" {
		var st unix.Stat_t
		if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
			return err
		}
		if err := p.header(&st, prefix+"/", "", dir); err != nil {
			return err
		}
	}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, n := range names {
		if err := p.ctx.Err(); err != nil {
			return context.Cause(p.ctx)
		}
		err := p.entry(dir, n, path.Join(prefix, n))
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
			continue // removed or replaced while we looked
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// entry writes one name of dir.
func (p *packer) entry(dir *os.File, base, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFSOCK:
		return nil // a tar has no sockets
	case unix.S_IFLNK:
		buf := make([]byte, 4096)
		n, err := unix.Readlinkat(int(dir.Fd()), base, buf)
		if err != nil {
			return err
		}
		return p.header(&st, name, string(buf[:n]), nil)
	case unix.S_IFREG, unix.S_IFDIR:
	default:
		return p.header(&st, name, "", nil)
	}
	fd, err := unix.Openat(int(dir.Fd()), base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	kind := st.Mode & unix.S_IFMT
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	switch {
	case st.Mode&unix.S_IFMT != kind:
		return unix.ENOENT // replaced meanwhile
	case kind == unix.S_IFDIR:
		return p.tree(f, name)
	}
	return p.file(f, &st, name)
}

func (p *packer) file(f *os.File, st *unix.Stat_t, name string) error {
	if st.Nlink > 1 {
		key := [2]uint64{uint64(st.Dev), st.Ino}
		if first, ok := p.links[key]; ok {
			h := tarHeader(st, name)
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return p.tw.WriteHeader(h)
		}
		p.links[key] = name
	}
	if err := p.header(st, name, "", f); err != nil {
		return err
	}
	left := st.Size
	for left > 0 {
		if err := p.ctx.Err(); err != nil {
			return context.Cause(p.ctx)
		}
		n, err := f.Read(p.buf[:min(int64(len(p.buf)), left)])
		if n > 0 {
			if _, err := p.tw.Write(p.buf[:n]); err != nil {
				return err
			}
			left -= int64(n)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	// The file became shorter while it was read; the header has promised more.
	clear(p.buf)
	for left > 0 {
		n, err := p.tw.Write(p.buf[:min(int64(len(p.buf)), left)])
		if err != nil {
			return err
		}
		left -= int64(n)
	}
	return nil
}

// header writes an entry's header; f, when given, has the xattrs.
func (p *packer) header(st *unix.Stat_t, name, link string, f *os.File) error {
	h := tarHeader(st, name)
	h.Linkname = link
	if f != nil {
		h.PAXRecords = readXattrs(f)
	}
	return p.tw.WriteHeader(h)
}

func tarHeader(st *unix.Stat_t, name string) *tar.Header {
	h := &tar.Header{
		Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Sec, st.Mtim.Nsec), Format: tar.FormatPAX,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		h.Typeflag = tar.TypeDir
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(uint64(st.Rdev))), int64(unix.Minor(uint64(st.Rdev)))
	default:
		h.Typeflag, h.Size = tar.TypeReg, st.Size
	}
	return h
}

const xattrPrefix = "SCHILY.xattr."

// readXattrs gives a file's xattrs as PAX records, without the overlay's own. What cannot be read is left out.
func readXattrs(f *os.File) map[string]string {
	size, err := unix.Flistxattr(int(f.Fd()), nil)
	if err != nil || size == 0 {
		return nil
	}
	list := make([]byte, size)
	if size, err = unix.Flistxattr(int(f.Fd()), list); err != nil {
		return nil
	}
	var out map[string]string
	for n := range strings.SplitSeq(strings.TrimRight(string(list[:size]), "\x00"), "\x00") {
		if n == "" || isOverlayXattr(n) {
			continue
		}
		vs, err := unix.Fgetxattr(int(f.Fd()), n, nil)
		if err != nil {
			continue
		}
		v := make([]byte, vs)
		if vs, err = unix.Fgetxattr(int(f.Fd()), n, v); err != nil {
			continue
		}
		if strings.ContainsRune(n, '=') {
			continue // cannot be written as a PAX record
		}
		if out == nil {
			out = map[string]string{}
		}
		out[xattrPrefix+n] = string(v[:vs])
	}
	return out
}

func isOverlayXattr(n string) bool {
	return strings.HasPrefix(n, "trusted.overlay.") || strings.HasPrefix(n, "user.overlay.")
}

// fileMode turns a stat's mode into Go's bits.
func fileMode(mode uint32) fs.FileMode {
	m := fs.FileMode(mode & 0o777)
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		m |= fs.ModeDir
	case unix.S_IFLNK:
		m |= fs.ModeSymlink
	case unix.S_IFIFO:
		m |= fs.ModeNamedPipe
	case unix.S_IFSOCK:
		m |= fs.ModeSocket
	case unix.S_IFBLK:
		m |= fs.ModeDevice
	case unix.S_IFCHR:
		m |= fs.ModeDevice | fs.ModeCharDevice
	}
	if mode&unix.S_ISUID != 0 {
		m |= fs.ModeSetuid
	}
	if mode&unix.S_ISGID != 0 {
		m |= fs.ModeSetgid
	}
	if mode&unix.S_ISVTX != 0 {
		m |= fs.ModeSticky
	}
	return m
}
