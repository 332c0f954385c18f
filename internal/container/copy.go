package container

import (
	"context"
	"errors"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/container/runspec"
	"ply/internal/errs"
	"ply/internal/safepath"
)

// follows reports whether a path names what its last link leads to: "dir/" and "dir/.".
func follows(p string) bool {
	return strings.HasSuffix(p, "/") || strings.HasSuffix(p, "/.") || p == "."
}

func checkPath(p string) error {
	if p == "" {
		return invalid("path cannot be empty")
	}
	if len(p) > 4096 || strings.IndexByte(p, 0) >= 0 {
		return invalid("path %q is not one of a file", clip(p))
	}
	return nil
}

func noFile(p string, c *ctr, err error) error {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return errs.New(errs.NotFound, "Could not find the file %s in container %s", p, c.id)
	case errors.Is(err, unix.ELOOP):
		return invalid("path %s in container %s: too many levels of symbolic links", p, c.id)
	case errors.Is(err, unix.ENAMETOOLONG):
		return invalid("path %s in container %s: file name too long", clip(p), c.id)
	}
	return err
}

// openPath opens the file that a user means, without reading it.
func openPath(root *os.File, p string) (*os.File, error) {
	flags := unix.O_PATH | unix.O_NOFOLLOW
	if follows(p) {
		flags = unix.O_PATH | unix.O_DIRECTORY
	}
	return safepath.Open(root, p, flags, 0)
}

// PathStat describes a file of a container, running or not. A link is described itself, with the path that it
// leads to in the container. Errors: NotFound.
func (s *Service) PathStat(ctx context.Context, ref, p string) (out PathStat, err error) {
	if err := checkPath(p); err != nil {
		return out, err
	}
	c, err := s.find(ref)
	if err != nil {
		return out, err
	}
	err = s.view(ctx, c, func(_ context.Context, root *os.File) error {
		out, err = statPath(root, p)
		return noFile(p, c, err)
	})
	return out, err
}

func statPath(root *os.File, p string) (out PathStat, err error) {
	f, err := openPath(root, p)
	if err != nil {
		return out, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return out, err
	}
	out = PathStat{
		Name: path.Base(p), Size: st.Size, Mode: uint32(fileMode(st.Mode)),
		Mtime: time.Unix(st.Mtim.Sec, st.Mtim.Nsec),
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		out.LinkTarget, err = linkTarget(root, f, p)
	}
	return out, err
}

// linkTarget gives where a link leads, as an absolute path of the container.
func linkTarget(root, link *os.File, p string) (string, error) {
	if t, err := safepath.Open(root, p, unix.O_PATH, 0); err == nil {
		defer t.Close()
		base, err1 := os.Readlink(fdPath(root))
		full, err2 := os.Readlink(fdPath(t))
		if rest, ok := strings.CutPrefix(full, base); ok && err1 == nil && err2 == nil {
			return path.Join("/", rest), nil
		}
	}
	// It dangles: what it says is all there is.
	raw, err := safepath.Readlinkat(link, "")
	if err != nil {
		return "", err
	}
	if !path.IsAbs(raw) {
		raw = path.Join("/", path.Dir(p), raw)
	}
	return path.Clean(raw), nil
}

// CopyFrom writes a file or directory of a container as a tar whose names begin with the path's last component.
// A link is written as a link unless the path ends in "/" or "/.". Errors: NotFound.
func (s *Service) CopyFrom(ctx context.Context, ref, p string, w io.Writer) error {
	if err := checkPath(p); err != nil {
		return err
	}
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	err = s.view(ctx, c, func(ctx context.Context, root *os.File) error {
		return packPath(ctx, root, p, w, func(err error) error { return noFile(p, c, err) })
	})
	if err == nil {
		s.publish(c, "archive-path")
	}
	return err
}

func packPath(ctx context.Context, root *os.File, p string, w io.Writer, explain func(error) error) error {
	f, err := openPath(root, p)
	if err != nil {
		return explain(err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	pk := newPacker(ctx, w)
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		fd, err := unix.Openat(int(f.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return explain(err)
		}
		dir := os.NewFile(uintptr(fd), p)
		defer dir.Close()
		name := path.Base(p)
		if name == "/" {
			name = "."
		}
		if err := pk.tree(dir, name); err != nil {
			return err
		}
		return pk.tw.Close()
	}
	dir, base, err := safepath.OpenParent(root, p)
	if err != nil {
		return explain(err)
	}
	defer dir.Close()
	if err := pk.entry(dir, base, base); err != nil {
		return explain(err)
	}
	return pk.tw.Close()
}

// Export writes the root file system of a container, running or not, as a tar. What is mounted in it is left out;
// the mount points stay.
func (s *Service) Export(ctx context.Context, ref string, w io.Writer) (err error) {
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	if st := c.status(); st == StatusDead || st == StatusRemoving {
		return errs.New(errs.Conflict, "You cannot export container %s which is %s", c.id, st)
	}
	if err := s.mountRoot(ctx, c); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.unmountRoot(c)) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.done, cancel)()
	root, err := c.openRoot()
	if err != nil {
		return err
	}
	defer root.Close()
	pk := newPacker(ctx, w)
	if err := pk.tree(root, ""); err != nil {
		return err
	}
	if err := pk.tw.Close(); err != nil {
		return err
	}
	s.publish(c, "export")
	return nil
}

// CopyTo unpacks a tar, compressed or not, into a directory of a container. noOverwriteDirNonDir refuses to put a file
// in a directory's place and the other way round; copyUIDGID gives the files to the container's user instead of the
// owners that the tar names. Errors: NotFound, Invalid, Forbidden for a read-only place.
func (s *Service) CopyTo(ctx context.Context, ref, p string, tarball io.Reader, noOverwriteDirNonDir, copyUIDGID bool) error {
	if err := checkPath(p); err != nil {
		return err
	}
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	c.mu.Lock()
	readonly, user := c.rec.Spec.ReadonlyRootfs, c.rec.Spec.User
	c.mu.Unlock()
	err = s.view(ctx, c, func(ctx context.Context, root *os.File) error {
		dir, err := safepath.Open(root, p, unix.O_PATH|unix.O_DIRECTORY, 0)
		if errors.Is(err, unix.ENOTDIR) {
			return invalid("extraction point is not a directory")
		}
		if err != nil {
			return noFile(p, c, err)
		}
		defer dir.Close()
		if err := writable(root, dir, readonly); err != nil {
			return err
		}
		x := &extractor{ctx: ctx, root: root, dir: p, strict: noOverwriteDirNonDir}
		if copyUIDGID {
			acc, err := runspec.LookupUser(root, user, nil)
			if err != nil {
				return err
			}
			x.owner = &acc
		}
		return x.run(tarball)
	})
	if err == nil {
		s.publish(c, "extract-to-dir")
	}
	return err
}

// writable refuses a directory on a read-only volume, or on the root of a container that was made read-only.
func writable(root, dir *os.File, readonly bool) error {
	var at unix.Statfs_t
	var a, b unix.Statx_t
	if err := errors.Join(unix.Fstatfs(int(dir.Fd()), &at),
		unix.Statx(int(dir.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &a),
		unix.Statx(int(root.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &b)); err != nil {
		return err
	}
	if a.Mnt_id == b.Mnt_id {
		if readonly {
			return errs.New(errs.Forbidden, "container rootfs is marked read-only")
		}
		return nil
	}
	if at.Flags&unix.ST_RDONLY != 0 {
		return errs.New(errs.Forbidden, "mounted volume is marked read-only")
	}
	return nil
}
