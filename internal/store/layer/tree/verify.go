package tree

import (
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"path"
	"unsafe"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/memory"
	"ply/internal/oci"
	"ply/internal/store/layer/tarscan"
)

// Verified returns a reader that ends with an error of class errs.DataLoss instead of io.EOF when the content does not have
// this digest and size.
func Verified(r io.ReadCloser, want oci.DiffID, size int64) io.ReadCloser {
	return &verified{r: r, sum: sha256.New(), want: want, left: size}
}

type verified struct {
	r    io.ReadCloser
	sum  hash.Hash
	want oci.DiffID
	left int64
	err  error
}

func (v *verified) Read(p []byte) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	n, err := v.r.Read(p)
	v.sum.Write(p[:n])
	v.left -= int64(n)
	switch {
	case err == io.EOF && v.left != 0:
		err = errs.New(errs.DataLoss, "layer %s: its tar has the wrong length", v.want)
	case err == io.EOF && oci.DiffID(oci.DigestOfHash(v.sum)) != v.want:
		err = errs.New(errs.DataLoss, "layer %s: its tar has the digest %s", v.want, oci.DigestOfHash(v.sum))
	case err != nil && err != io.EOF && !errors.Is(err, errs.DataLoss):
		err = errs.New(errs.DataLoss, "layer %s: %w", v.want, err)
	}
	v.err = err
	return n, err
}

func (v *verified) Close() error { return v.r.Close() }

// Check reads the tar of a layer to its end and compares each name with the tree on disk: type, mode, owner, size, time and
// link target. Rebuilding the tar has compared the content. The error's class is errs.DataLoss. Of a layer with entries
// below its own symbolic links only the content is compared.
//
// Check keeps the names of the layer in memory, so one layer is checked at a time; errs.Exhausted says that there are too many.
func Check(ctx context.Context, tar io.Reader, tree string, lim tarscan.Limits) error {
	pool := memory.Process()
	share, err := pool.Turn(ctx)
	if err != nil {
		return err
	}
	defer share.Close()
	c := checker{last: map[string]*expected{}, kids: map[string][]string{}}
	err = tarscan.Scan(tar, lim, func(e *tarscan.Entry, data io.Reader) error {
		if c.note(e); !share.Fit(c.kept) {
			return pool.Exhausted("list of the files of the layer")
		}
		_, err := io.Copy(io.Discard, data)
		return errors.Join(err, context.Cause(ctx))
	})
	if err != nil {
		return err
	}
	if c.lost {
		return nil
	}
	root, err := unix.Open(tree, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return errs.New(errs.DataLoss, "tree: %w", err)
	}
	defer unix.Close(root)
	for p, want := range c.last {
		if err := want.check(root, p); err != nil {
			return errs.New(errs.DataLoss, "file %q: %w", p, err)
		}
	}
	return nil
}

// checkCost is what a name takes in memory besides its bytes.
const checkCost = int64(unsafe.Sizeof(expected{})) + 100

// expected is what the last entry of a name describes.
type expected struct {
	mode     uint32 // with the type
	uid, gid uint32
	size     int64
	mtime    unix.Timespec
	link     string
	exists   bool // only the existence is known: a hard link
}

type checker struct {
	last   map[string]*expected
	kids   map[string][]string // names that entries have created in a directory
	parent string              // directory of the previous entry
	kept   int64               // bytes that last and kids take, about
	lost   bool                // an entry went through a symbolic link of the layer, so paths are ambiguous
}

var kinds = map[tarscan.Kind]uint32{
	tarscan.Regular: unix.S_IFREG, tarscan.Dir: unix.S_IFDIR, tarscan.Symlink: unix.S_IFLNK,
	tarscan.CharDev: unix.S_IFCHR, tarscan.BlockDev: unix.S_IFBLK, tarscan.Fifo: unix.S_IFIFO,
}

func (c *checker) note(e *tarscan.Entry) {
	dir := path.Dir(e.Path)
	if e.Kind == tarscan.Opaque {
		dir = e.Path
	}
	c.enter(dir)
	switch e.Kind {
	case tarscan.Whiteout, tarscan.Opaque:
		return
	case tarscan.Hardlink:
		was := c.last[e.Link]
		c.forget(e.Path)
		if was != nil && e.Path != e.Link {
			c.set(e.Path, &expected{mode: was.mode, exists: true})
		}
		return // the target is a lower file, so the link is in the variant
	}
	was := c.last[e.Path]
	if e.Kind != tarscan.Dir {
		c.forget(e.Path)
	} else if was != nil && was.mode&unix.S_IFMT != unix.S_IFDIR {
		delete(c.last, e.Path)
	}
	c.set(e.Path, &expected{
		mode: kinds[e.Kind] | e.Mode, uid: e.UID, gid: e.GID, size: e.Size, mtime: timespec(e), link: e.Link,
	})
}

// enter makes dir and its parents directories, as unpacking does.
func (c *checker) enter(dir string) {
	if dir == c.parent {
		return
	}
	for p := dir; p != "."; p = path.Dir(p) {
		x := c.last[p]
		if x != nil && x.mode&unix.S_IFMT == unix.S_IFLNK {
			c.lost = true
			return
		}
		if x == nil || x.mode&unix.S_IFMT != unix.S_IFDIR {
			c.set(p, &expected{mode: unix.S_IFDIR, exists: true})
		}
	}
	c.parent = dir
}

func (c *checker) set(p string, x *expected) {
	if _, known := c.last[p]; !known && p != "." {
		c.kept += checkCost + int64(len(p)+len(x.link))
		c.kids[path.Dir(p)] = append(c.kids[path.Dir(p)], p)
	}
	c.last[p] = x
}

// forget removes a name and, if it was a directory, everything below it.
func (c *checker) forget(p string) {
	c.parent = ""
	was := c.last[p]
	delete(c.last, p)
	if was == nil || was.mode&unix.S_IFMT != unix.S_IFDIR {
		return
	}
	for _, q := range c.kids[p] {
		c.forget(q)
	}
	delete(c.kids, p)
}

func (x *expected) check(root int, p string) error {
	dir, base := root, p
	if parent := path.Dir(p); parent != "." {
		fd, err := openBelow(root, parent, unix.O_PATH|unix.O_DIRECTORY)
		if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
			return nil // an entry went through a link of the layer, or the parent was replaced
		}
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		dir, base = fd, path.Base(p)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if x.exists {
		if st.Mode&unix.S_IFMT != x.mode&unix.S_IFMT {
			return errors.New("has another type")
		}
		return nil
	}
	switch {
	case st.Mode != x.mode:
		return errors.New("has another type or mode")
	case st.Uid != x.uid || st.Gid != x.gid:
		return errors.New("has another owner")
	case st.Mtim != x.mtime:
		return errors.New("has another time")
	case st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size != x.size:
		return errors.New("has another size")
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		buf := make([]byte, 4096)
		n, err := unix.Readlinkat(dir, base, buf)
		if err != nil || string(buf[:n]) != x.link {
			return errors.New("leads elsewhere")
		}
	}
	return nil
}
