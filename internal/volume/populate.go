package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/safepath"
)

// Populate copies a directory of an image into what m mounts, a volume or the directory in a volume that a subpath names, if that is there and empty.
// It keeps owners, modes, times, extended attributes and hard links, and follows no link. The directory gets the owner and mode of src even
// when src is empty, as with docker. The caller has opened src inside the container's root.
//
// When no other container refers to the volume, the copy is made in a temporary directory that then replaces the empty one,
// so a crash leaves it empty or complete. Otherwise the files are copied into the directory itself.
func (s *Service) Populate(ctx context.Context, id oci.ContainerID, m Mount, src *os.File) (err error) {
	rec, err := s.record(m.Name)
	if err != nil {
		return err
	}
	done, err := s.lockSlow(ctx, m.Name)
	if err != nil {
		return err
	}
	defer done()
	at, err := openDestination(s.path(m.Name), m.Subpath)
	if m.Subpath != "" && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR)) {
		return nil // no such directory in the volume; if it is still missing at the start, that fails
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, at.close()) }()
	data := fdPath(at.dir)
	empty, err := isEmpty(data)
	if err != nil || !empty {
		return err
	}
	s.mu.Lock()
	alone := len(rec.Options) == 0
	for _, u := range s.users(m.Name) {
		alone = alone && u == string(id)
	}
	s.mu.Unlock()
	if !alone {
		return fill(ctx, at.dir, src)
	}
	tmp := durable.TempName(s.opts.Root) // where New deletes it after a crash
	fsys := s.opts.Store.FS
	if err := fsys.Mkdir(tmp, 0o755); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, fsys.RemoveAll(tmp))
		}
	}()
	if err := CopyTree(ctx, tmp, src); err != nil {
		return err
	}
	if empty, err = isEmpty(tmp); err != nil {
		return err
	}
	if !empty { // a volume that is not empty is never filled again, so its files must be durable before it is one
		if err := fsys.SyncFS(tmp); err != nil {
			return err
		}
	}
	renamed, err := s.replace(id, m.Name, tmp, at.path)
	if err != nil || renamed {
		return err
	}
	// Another container has come to refer to the volume and may have the directory mounted, so it must not be replaced.
	return errors.Join(fill(ctx, at.dir, src), fsys.RemoveAll(tmp))
}

// destination is the directory that Populate fills.
type destination struct {
	dir    *os.File
	parent *os.File // nil for the volume's own directory
	path   string   // of dir, below parent
}

func (f *destination) close() error {
	err := f.dir.Close()
	if f.parent != nil {
		err = errors.Join(err, f.parent.Close())
	}
	return err
}

// openDestination opens a volume's directory, or a directory in it. Links are resolved inside the volume.
func openDestination(volume, subpath string) (*destination, error) {
	f := &destination{path: volume}
	var err error
	if f.dir, err = os.OpenFile(f.path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0); err != nil || subpath == "" || subpath == "." {
		return f, err
	}
	root := f.dir
	defer root.Close()
	if f.dir, err = safepath.Open(root, subpath, unix.O_RDONLY|unix.O_DIRECTORY, 0); err != nil {
		return nil, err
	}
	var base string
	if f.parent, base, err = safepath.OpenParent(root, subpath); err != nil {
		return nil, errors.Join(err, f.dir.Close())
	}
	f.path = filepath.Join(fdPath(f.parent), base)
	return f, nil
}

// replace replaces the empty directory at data in a volume by tmp, durably and in one step, unless another container has come to refer to the volume
// or the name at data is that of a link. It holds mu, so no reference is added between the check and the rename.
func (s *Service) replace(id oci.ContainerID, name, tmp, data string) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, u := range s.users(name) {
		if u != string(id) {
			return false, nil
		}
	}
	err := durable.Rename(s.opts.Store.FS, tmp, data)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENOTEMPTY) {
		return false, nil // a link, or a directory that was filled meanwhile
	}
	return err == nil, err
}

// CopyTree copies what is in src, a directory of an image, and the attributes of src, into the directory dir, as Populate does for a volume. It
// syncs nothing.
func CopyTree(ctx context.Context, dir string, src *os.File) error {
	dst, err := os.OpenFile(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer dst.Close()
	return fill(ctx, dst, src)
}

// fill is copyTree for what comes from an image.
func fill(ctx context.Context, dst, src *os.File) error {
	if err := copyTree(ctx, dst, src); err != nil {
		return fmt.Errorf("volume: fill from the image: %w", err)
	}
	return nil
}

// copyTree copies what is in src, and the attributes of src, into dst.
func copyTree(ctx context.Context, dst, src *os.File) error {
	c := copier{ctx: ctx, links: map[[2]uint64]string{}, root: dst}
	return c.dir(src, dst, "")
}

func isEmpty(dir string) (bool, error) {
	d, err := os.Open(dir)
	if err != nil {
		return false, err
	}
	defer d.Close()
	names, err := d.Readdirnames(2)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	for _, n := range names {
		if n != "lost+found" {
			return false, nil
		}
	}
	return true, nil
}

// maxPath is the longest path below a tree that is copied, in bytes.
const maxPath = 4096

// copier copies a directory tree between two descriptors.
type copier struct {
	ctx   context.Context
	links map[[2]uint64]string // inode with several names → path of its copy below root
	root  *os.File
	upper bool // the source is the upper directory of an overlay
}

func (c *copier) dir(src, dst *os.File, rel string) error {
	list, err := openAgain(src)
	if err != nil {
		return err
	}
	names, err := list.Readdirnames(-1)
	_ = list.Close()
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		if len(rel)+len(n) >= maxPath { // each directory on the way is open
			return errs.New(errs.Invalid, "%.100s…: path is longer than %d bytes", rel, maxPath)
		}
		if err := c.entry(src, dst, n, filepath.Join(rel, n)); err != nil {
			if _, known := errors.AsType[*copyError](err); known {
				return err // each directory above would write the path once more
			}
			return &copyError{filepath.Join(rel, n), err}
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(src.Fd()), &st); err != nil {
		return err
	}
	if err := copyXattrs(fdPath(src), fdPath(dst)); err != nil {
		return err
	}
	if err := unix.Fchown(int(dst.Fd()), int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Fchmod(int(dst.Fd()), st.Mode&0o7777); err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, fdPath(dst), []unix.Timespec{st.Atim, st.Mtim}, 0)
}

// copyError is the error of one file of a tree that is copied.
type copyError struct {
	path string // below the tree
	err  error
}

func (e *copyError) Error() string { return fmt.Sprintf("%.200s: %v", e.path, e.err) }

func (e *copyError) Unwrap() error { return e.err }

// ignoreExists ignores EEXIST: in a volume that is shared, a file that a container has written meanwhile stays.
func ignoreExists(err error) error {
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

func openAgain(d *os.File) (*os.File, error) {
	fd, err := unix.Openat(int(d.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), d.Name()), nil
}

func fdPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

func (c *copier) entry(src, dst *os.File, name, rel string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(int(src.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if c.upper {
		if done, err := c.applyEntry(src, dst, name, &st); done || err != nil {
			return err
		}
	}
	key := [2]uint64{uint64(st.Dev), st.Ino}
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFDIR && st.Nlink > 1 {
		if first, ok := c.links[key]; ok {
			return c.link(first, dst, name)
		}
	}
	switch kind {
	case unix.S_IFDIR:
		return c.subdir(src, dst, name, rel)
	case unix.S_IFREG:
		if err := c.file(src, dst, name, &st); err != nil {
			return err
		}
	case unix.S_IFLNK:
		buf := make([]byte, 4096)
		n, err := unix.Readlinkat(int(src.Fd()), name, buf)
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(string(buf[:n]), int(dst.Fd()), name); err != nil {
			return ignoreExists(err)
		}
	case unix.S_IFSOCK:
		return nil // a socket belongs to a running process, not to the image
	default:
		if err := unix.Mknodat(int(dst.Fd()), name, st.Mode, int(st.Rdev)); err != nil {
			return ignoreExists(err)
		}
	}
	if kind != unix.S_IFREG {
		if err := unix.Fchownat(int(dst.Fd()), name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		if kind != unix.S_IFLNK {
			if err := chmodNode(dst, name, st.Mode); err != nil {
				return err
			}
		}
		err := unix.UtimesNanoAt(int(dst.Fd()), name, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
		if err != nil {
			return err
		}
	}
	if st.Nlink > 1 {
		c.links[key] = rel
	}
	return nil
}

// link makes name another name of the copy at first. The directories on the way are opened below root: in a volume that is shared, a
// container can replace them by links.
func (c *copier) link(first string, dst *os.File, name string) error {
	dir, base, err := safepath.OpenParent(c.root, first)
	if err != nil {
		return err
	}
	defer dir.Close()
	return ignoreExists(unix.Linkat(int(dir.Fd()), base, int(dst.Fd()), name, 0))
}

// chmodNode sets the permissions of a FIFO or a device that was just made. It does not follow a link that has replaced it.
func chmodNode(dir *os.File, name string, mode uint32) error {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != mode&unix.S_IFMT {
		return errs.New(errs.Conflict, "the file was replaced while the volume was filled")
	}
	return unix.Chmod(fdPath(f), mode&0o7777)
}

func (c *copier) subdir(src, dst *os.File, name, rel string) error {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	sfd, err := unix.Openat(int(src.Fd()), name, flags, 0)
	if err != nil {
		return err
	}
	sub := os.NewFile(uintptr(sfd), name)
	defer sub.Close()
	if err := unix.Mkdirat(int(dst.Fd()), name, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	dfd, err := unix.Openat(int(dst.Fd()), name, flags, 0)
	if err != nil {
		return err
	}
	into := os.NewFile(uintptr(dfd), name)
	defer into.Close()
	return c.dir(sub, into, rel)
}

func (c *copier) file(src, dst *os.File, name string, st *unix.Stat_t) (err error) {
	sfd, err := unix.Openat(int(src.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	in := os.NewFile(uintptr(sfd), name)
	defer in.Close()
	dfd, err := unix.Openat(int(dst.Fd()), name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return ignoreExists(err)
	}
	out := os.NewFile(uintptr(dfd), name)
	defer func() { err = errors.Join(err, out.Close()) }()
	if err := durable.CopySparse(c.ctx, out, in, st.Size); err != nil {
		return err
	}
	if err := unix.Fchown(dfd, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Fchmod(dfd, st.Mode&0o7777); err != nil {
		return err
	}
	if err := copyXattrs(fdPath(in), fdPath(out)); err != nil { // after chown, which drops capabilities
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, fdPath(out), []unix.Timespec{st.Atim, st.Mtim}, 0)
}

// copyXattrs copies extended attributes except those of overlayfs. A file system without them is no error.
func copyXattrs(from, to string) error {
	size, err := unix.Listxattr(from, nil)
	if errors.Is(err, unix.ENOTSUP) || size == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	list := make([]byte, size)
	if size, err = unix.Listxattr(from, list); err != nil {
		return err
	}
	for _, n := range strings.Split(strings.TrimRight(string(list[:size]), "\x00"), "\x00") {
		if strings.HasPrefix(n, "trusted.overlay.") || strings.HasPrefix(n, "user.overlay.") {
			continue
		}
		vs, err := unix.Getxattr(from, n, nil)
		if err != nil {
			continue // removed meanwhile, or not readable
		}
		v := make([]byte, vs)
		if vs, err = unix.Getxattr(from, n, v); err != nil {
			continue
		}
		if err := unix.Setxattr(to, n, v[:vs], 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("xattr %s: %w", n, err)
		}
	}
	return nil
}
