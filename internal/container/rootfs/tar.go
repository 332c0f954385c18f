package rootfs

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/safepath"
)

// Export writes everything below root as a tar stream. The root directory itself gets no entry.
func Export(ctx context.Context, root *os.File, w io.Writer) error {
	t := newTarWriter(ctx, w)
	names, err := sortedNames(root)
	if err != nil {
		return err
	}
	if err := t.tree(root, listed{"", names}); err != nil {
		return err
	}
	return t.tw.Close()
}

// tarWriter writes files as a tar stream. It opens every file relative to the descriptor of its directory and reads it
// through the descriptor whose kind it has checked, so a file that is replaced meanwhile does not lead it elsewhere.
type tarWriter struct {
	ctx   context.Context
	tw    *tar.Writer
	links map[[2]uint64]string // device and inode of a file with several links → its first name
	buf   []byte
}

func newTarWriter(ctx context.Context, w io.Writer) *tarWriter {
	return &tarWriter{ctx: ctx, tw: tar.NewWriter(w), links: map[[2]uint64]string{}, buf: make([]byte, 128<<10)}
}

// listed is a directory whose entries are being written.
type listed struct {
	prefix string   // of the names of its entries
	names  []string // those that are not written yet
}

// tree writes everything below dir.
func (t *tarWriter) tree(dir *os.File, l listed) error {
	dirs, err := safepath.NewDirs(dir)
	if err != nil {
		return err
	}
	defer dirs.Close()
	stack := []listed{l}
	for len(stack) > 0 {
		if err := t.ctx.Err(); err != nil {
			return context.Cause(t.ctx)
		}
		low := &stack[len(stack)-1]
		if len(low.names) == 0 {
			if stack = stack[:len(stack)-1]; len(stack) > 0 {
				err = dirs.Leave()
			}
			if err != nil {
				return err
			}
			continue
		}
		base := low.names[0]
		low.names = low.names[1:]
		name := low.prefix + base
		if len(name) > maxPath { // longer ones are refused everywhere, so no reader could use the stream
			return invalid("%s: path is longer than %d bytes", clip(name), maxPath)
		}
		f, st, err := openEntry(dirs.Dir(), base)
		if isGone(err) {
			continue // removed since the directory was read
		}
		if err != nil {
			return fmt.Errorf("%s: %w", clip(name), err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if err := errors.Join(t.file(f, &st, name), f.Close()); err != nil {
				return fmt.Errorf("%s: %w", clip(name), err)
			}
			continue
		}
		sub, names, err := t.directory(f, &st, name)
		if isGone(err) {
			continue // removed since it was opened
		}
		if err != nil {
			return fmt.Errorf("%s: %w", clip(name), err)
		}
		if err := dirs.Push(sub); err != nil {
			return err
		}
		stack = append(stack, listed{name + "/", names})
	}
	return nil
}

// opened writes a file and, for a directory, everything below it.
func (t *tarWriter) opened(f *os.File, st *unix.Stat_t, name string) error {
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return t.file(f, st, name)
	}
	again, err := openNode(f, ".")
	if err != nil {
		return err
	}
	dir, names, err := t.directory(again, st, name)
	if err != nil {
		return err
	}
	defer dir.Close()
	return t.tree(dir, listed{name + "/", names})
}

// openEntry opens the file base of dir without side effects, whatever kind of file it is.
func openEntry(dir *os.File, base string) (*os.File, unix.Stat_t, error) {
	var st unix.Stat_t
	f, err := openNode(dir, base)
	if err != nil {
		return nil, st, err
	}
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, st, errors.Join(err, f.Close())
	}
	return f, st, nil
}

// isGone reports the error of a file that was removed.
func isGone(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESTALE) }

// directory writes the entry of the directory f, which it closes. It returns the directory, opened for reading, and the
// names in it.
func (t *tarWriter) directory(f *os.File, st *unix.Stat_t, name string) (*os.File, []string, error) {
	defer f.Close()
	fd, err := unix.Openat(int(f.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	dir := os.NewFile(uintptr(fd), name)
	names, err := sortedNames(dir)
	if err == nil {
		err = t.header(st, name+"/", "", dir)
	}
	if err != nil {
		return nil, nil, errors.Join(err, dir.Close())
	}
	return dir, names, nil
}

func sortedNames(dir *os.File) ([]string, error) {
	names, err := dir.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

// file writes a file that is not a directory. f was opened with O_PATH.
func (t *tarWriter) file(f *os.File, st *unix.Stat_t, name string) error {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return t.regular(f, st, name)
	case unix.S_IFSOCK:
		return nil // the format has no sockets
	case unix.S_IFLNK:
		target, err := safepath.Readlinkat(f, "")
		if err != nil {
			return err
		}
		return t.header(st, name, target, nil)
	}
	return t.header(st, name, "", nil)
}

func (t *tarWriter) regular(node *os.File, st *unix.Stat_t, name string) error {
	if st.Nlink > 1 {
		key := [2]uint64{uint64(st.Dev), st.Ino}
		if first, ok := t.links[key]; ok {
			h := tarHeader(st, name)
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return t.tw.WriteHeader(h)
		}
		t.links[key] = name
	}
	f, err := safepath.Reopen(node, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fstat(int(f.Fd()), st); err != nil {
		return err
	}
	if err := t.header(st, name, "", f); err != nil {
		return err
	}
	for left := st.Size; left > 0; {
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
			// The header states the old size. Zeros in place of the rest would be content that the file never had.
			return errs.New(errs.Conflict, "file became %d bytes shorter while it was read", left)
		}
		if err != nil {
			return err
		}
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
