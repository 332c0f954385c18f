package tree

import (
	"errors"
	"hash/crc64"
	"io"
	"path"
	"strconv"

	"github.com/vbatts/tar-split/tar/storage"
	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/store/layer/tarscan"
)

// node creates anything that is neither a directory nor a hard link.
func (u *unpacker) node(p string, e *tarscan.Entry, data io.Reader) error {
	if _, err := u.enter(path.Dir(p)); err != nil { // clear may have left the directory
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

// setAt sets the attributes of a name without following symbolic links.
func setAt(dirfd int, base string, e *tarscan.Entry) error {
	if err := unix.Fchownat(dirfd, base, int(e.UID), int(e.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if e.Kind != tarscan.Symlink {
		// The name was just created in a directory that no other process can reach, and is not a link, so fchmodat is safe.
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

// xattrError adds what to do about a file system that cannot store an attribute. Ignoring the error would lose file
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

// sparse writes a file whose content is not one piece of the tar; the recipe keeps its bytes. Zeros become holes.
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
