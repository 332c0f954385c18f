package upper

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/safepath"
)

const (
	whiteoutPrefix = ".wh."
	opaqueName     = ".wh..wh..opq"
	bufferSize     = 1 << 20
)

var buffers = sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}

// Diff writes upperDir as the tar of a layer. Directories come before their content, and names are in byte order. Whiteouts
// and opaque markers are written only where lower has something to hide. The root directory is an entry ("./") only when
// its mode, owner or xattrs differ from those of lower.
func Diff(ctx context.Context, upperDir string, lower Lower, w io.Writer) error {
	t := NewTar(w)
	d := &differ{ctx: ctx, lower: lower, tar: t}
	if err := walk(ctx, upperDir, scope{xattrs: true, paths: true}, d.visit); err != nil {
		return err
	}
	return t.Close()
}

type differ struct {
	ctx   context.Context // of the call of Diff
	lower Lower
	tar   *Tar
}

func (d *differ) visit(n *node) (bool, error) {
	if n.path == "." {
		return true, d.root(n)
	}
	if n.white || n.st.Mode&unix.S_IFMT == unix.S_IFSOCK { // a layer has no sockets, but a socket hides what it replaced
		return false, d.whiteout(n)
	}
	if err := d.tar.add(d.ctx, n); err != nil || n.fd < 0 || n.pure {
		return false, err
	}
	was, found, err := d.lower.Lookup(n.path)
	if err != nil {
		return false, fmt.Errorf("writable layer: look-up below: %w", err)
	}
	if !found || was.Mode&unix.S_IFMT != unix.S_IFDIR {
		return false, nil
	}
	if n.opaque {
		return false, d.tar.mark(n.path+"/"+opaqueName, &n.st)
	}
	return true, nil
}

func (d *differ) whiteout(n *node) error {
	if n.pure {
		return nil
	}
	_, found, err := d.lower.Lookup(n.path)
	if err != nil {
		return fmt.Errorf("writable layer: look-up below: %w", err)
	}
	if !found {
		return nil
	}
	dir := strings.TrimSuffix(n.path, n.name)
	return d.tar.mark(dir+whiteoutPrefix+n.name, &n.st)
}

func (d *differ) root(n *node) error {
	was, found, err := d.lower.Lookup(".")
	if err != nil {
		return fmt.Errorf("writable layer: look-up below: %w", err)
	}
	if !found {
		was = unix.Stat_t{Mode: unix.S_IFDIR | 0o755}
	}
	if was.Mode == n.st.Mode && was.Uid == n.st.Uid && was.Gid == n.st.Gid && len(n.xattrs) == 0 {
		return nil
	}
	return d.tar.add(d.ctx, n)
}

// Tar writes names of trees on disk as the tar of a layer: in PAX format with exact times and owners, with further names of
// an inode as hard links, and without sockets.
type Tar struct {
	out     *bufio.Writer
	tar     *tar.Writer
	entries int
	links   map[inode]string // the first path of each inode with several names
}

// NewTar starts a tar on w.
func NewTar(w io.Writer) *Tar {
	out := bufio.NewWriterSize(w, bufferSize)
	return &Tar{out: out, tar: tar.NewWriter(out), links: map[inode]string{}}
}

// Close ends the tar. It does not close the writer below.
func (t *Tar) Close() error {
	return errors.Join(t.tar.Close(), t.out.Flush())
}

// Add writes the entry name of the open directory dirfd as path. It leaves out a name that does not exist any more.
func (t *Tar) Add(ctx context.Context, dirfd int, name, path string) error {
	n := &node{path: path, name: name, dirfd: dirfd, fd: -1}
	err := unix.Fstatat(dirfd, name, &n.st, unix.AT_SYMLINK_NOFOLLOW)
	if gone(err) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	w := &walker{scope: scope{xattrs: true}}
	if err := w.readXattrs(n); err != nil {
		return err
	}
	return t.add(ctx, n)
}

// Whiteout writes the marker that hides path in the layers below.
func (t *Tar) Whiteout(path string) error {
	i := strings.LastIndexByte(path, '/') + 1
	return t.mark(path[:i]+whiteoutPrefix+path[i:], &unix.Stat_t{})
}

// mark writes a marker: an empty file owned by root, with the time of st.
func (t *Tar) mark(name string, st *unix.Stat_t) error {
	return t.header(&tar.Header{Typeflag: tar.TypeReg, Name: name, ModTime: time.Unix(st.Mtim.Sec, 0)})
}

func (t *Tar) header(h *tar.Header) error {
	h.Format = tar.FormatPAX
	if err := t.tar.WriteHeader(h); err != nil {
		return errs.New(errs.Invalid, "file %q cannot be written to a layer: %w", h.Name, err)
	}
	t.entries++
	return nil
}

func (t *Tar) add(ctx context.Context, n *node) error {
	if strings.HasPrefix(n.name, whiteoutPrefix) {
		return errs.New(errs.Invalid, "file %q cannot be kept in a layer: a name that starts with %s means a deletion there",
			"/"+n.path, whiteoutPrefix).WithHint("Rename or remove it.")
	}
	h := &tar.Header{
		Name:    n.path,
		Mode:    int64(n.st.Mode & 0o7777),
		Uid:     int(n.st.Uid),
		Gid:     int(n.st.Gid),
		ModTime: time.Unix(n.st.Mtim.Sec, n.st.Mtim.Nsec),
	}
	for _, x := range n.xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = make(map[string]string, len(n.xattrs))
		}
		h.PAXRecords["SCHILY.xattr."+x.name] = x.value
	}
	kind := n.st.Mode & unix.S_IFMT
	if kind != unix.S_IFDIR && n.st.Nlink > 1 {
		id := inode{n.st.Dev, n.st.Ino}
		if first, ok := t.links[id]; ok {
			h.Typeflag, h.Linkname, h.PAXRecords = tar.TypeLink, first, nil
			return t.header(h)
		}
		before := t.entries
		defer func() {
			if t.entries > before {
				t.links[id] = n.path
			}
		}()
	}
	switch kind {
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, n.path+"/"
	case unix.S_IFLNK:
		target, err := readlink(n.dirfd, n.name)
		if gone(err) || errors.Is(err, unix.EINVAL) {
			return nil
		}
		if err != nil {
			return &os.PathError{Op: "readlink", Path: n.path, Err: err}
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if kind == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(n.st.Rdev)), int64(unix.Minor(n.st.Rdev))
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFREG:
		return t.file(ctx, n, h)
	default:
		return nil
	}
	return t.header(h)
}

// openFile opens a regular file, without changing its time of access where that is allowed.
func openFile(n *node) (*os.File, error) {
	fd, err := retry(func() (int, error) {
		return unix.Openat(n.dirfd, n.name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, err
	}
	at := os.NewFile(uintptr(fd), n.path)
	defer at.Close()
	f, err := safepath.Reopen(at, unix.O_RDONLY|unix.O_NOATIME)
	if errors.Is(err, unix.EPERM) { // only the owner may use O_NOATIME
		f, err = safepath.Reopen(at, unix.O_RDONLY)
	}
	return f, err
}

// file writes a regular file, with exactly as many bytes as it had when it was opened.
func (t *Tar) file(ctx context.Context, n *node, h *tar.Header) error {
	f, err := openFile(n)
	if gone(err) || errors.Is(err, unix.ENXIO) { // ENXIO: it is of another kind by now
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: n.path, Err: err}
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return &os.PathError{Op: "stat", Path: n.path, Err: err}
	}
	h.Typeflag, h.Size = tar.TypeReg, st.Size
	if err := t.header(h); err != nil {
		return err
	}
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	for left := st.Size; left > 0; {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		chunk := (*buf)[:min(left, bufferSize)]
		got, err := io.ReadFull(f, chunk)
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("read %s: %w", n.path, err)
		}
		clear(chunk[got:]) // the file has become shorter
		if _, err := t.tar.Write(chunk); err != nil {
			return err
		}
		left -= int64(len(chunk))
	}
	return nil
}

func readlink(dirfd int, name string) (string, error) {
	buf := make([]byte, 4096)
	n, err := unix.Readlinkat(dirfd, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}
