package rootfs

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Export writes everything below root as a tar stream. The root directory itself gets no entry.
func Export(ctx context.Context, root *os.File, w io.Writer) error {
	t := newTarWriter(ctx, w)
	if err := t.tree(root, ""); err != nil {
		return err
	}
	return t.tw.Close()
}

// tarWriter writes files as a tar stream. It opens every file relative to the descriptor of its directory, so a
// directory that is replaced by a link meanwhile does not lead it elsewhere.
type tarWriter struct {
	ctx   context.Context
	tw    *tar.Writer
	links map[[2]uint64]string // device and inode of a file with several links → its first name
	buf   []byte
}

func newTarWriter(ctx context.Context, w io.Writer) *tarWriter {
	return &tarWriter{ctx: ctx, tw: tar.NewWriter(w), links: map[[2]uint64]string{}, buf: make([]byte, 128<<10)}
}

// tree writes the content of dir under prefix. With the prefix "" the names start at the root of the stream and dir
// gets no entry of its own.
func (t *tarWriter) tree(dir *os.File, prefix string) error {
	if prefix != "" {
		var st unix.Stat_t
		if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
			return err
		}
		if err := t.header(&st, prefix+"/", "", dir); err != nil {
			return err
		}
	}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, n := range names {
		if err := t.ctx.Err(); err != nil {
			return context.Cause(t.ctx)
		}
		err := t.entry(dir, n, path.Join(prefix, n))
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
			continue // removed or replaced since the directory was read
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// entry writes the file base of dir, and what is below it, as name.
func (t *tarWriter) entry(dir *os.File, base, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFSOCK:
		return nil // the format has no sockets
	case unix.S_IFLNK:
		buf := make([]byte, 4096)
		n, err := unix.Readlinkat(int(dir.Fd()), base, buf)
		if err != nil {
			return err
		}
		return t.header(&st, name, string(buf[:n]), nil)
	case unix.S_IFREG, unix.S_IFDIR:
	default:
		return t.header(&st, name, "", nil)
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
		return unix.ENOENT // replaced by a file of another kind
	case kind == unix.S_IFDIR:
		return t.tree(f, name)
	}
	return t.file(f, &st, name)
}

func (t *tarWriter) file(f *os.File, st *unix.Stat_t, name string) error {
	if st.Nlink > 1 {
		key := [2]uint64{uint64(st.Dev), st.Ino}
		if first, ok := t.links[key]; ok {
			h := tarHeader(st, name)
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return t.tw.WriteHeader(h)
		}
		t.links[key] = name
	}
	if err := t.header(st, name, "", f); err != nil {
		return err
	}
	left := st.Size
	for left > 0 {
		if err := t.ctx.Err(); err != nil {
			return context.Cause(t.ctx)
		}
		n, err := f.Read(t.buf[:min(int64(len(t.buf)), left)])
		if n > 0 {
			if _, err := t.tw.Write(t.buf[:n]); err != nil {
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
	// A file that became shorter while it was read is filled with zeros, because its header states the old size.
	clear(t.buf)
	for left > 0 {
		n, err := t.tw.Write(t.buf[:min(int64(len(t.buf)), left)])
		if err != nil {
			return err
		}
		left -= int64(n)
	}
	return nil
}

// header writes the header of an entry. The xattrs are read from f; nil writes none.
func (t *tarWriter) header(st *unix.Stat_t, name, link string, f *os.File) error {
	h := tarHeader(st, name)
	h.Linkname = link
	if f != nil {
		h.PAXRecords = readXattrs(f)
	}
	return t.tw.WriteHeader(h)
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

// readXattrs returns the xattrs of a file as PAX records, without those of overlayfs. Xattrs that cannot be read or
// written as a record are left out.
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
		if n == "" || isOverlayXattr(n) || strings.ContainsRune(n, '=') {
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
