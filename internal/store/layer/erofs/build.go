package erofs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/layer/erofs/image"
	"ply/internal/store/layer/tarscan"
)

// builder writes the index of one layer for one chain of parents.
type builder struct {
	d       *Driver
	dir     string // staging
	syncs   *syncing
	tree    *image.Tree
	rec     *layerRecord
	parents oci.Chain
	name    string    // of the index, without extension
	chain   *sideFile // copies of files of the parents; nil while there are none
}

func (b *builder) build(ctx context.Context, missing []image.Missing) error {
	chain, err := b.resolve(ctx, missing)
	if err != nil {
		return err
	}
	devices := []image.Device{{Tag: tarName, Size: b.rec.TarSize}}
	switch {
	case b.rec.Side != nil:
		devices = append(devices, image.Device{Tag: sideName, Size: b.rec.Side.Size})
	case chain != nil:
		// The side file is always device 2, because extents are assigned while the tar is still being read. A layer
		// without one repeats the tar as device 2.
		devices = append(devices, image.Device{Tag: tarName, Size: b.rec.TarSize})
	}
	if chain != nil {
		devices = append(devices, image.Device{Tag: chainTag, Size: chain.Size})
	}
	sum := sha256.Sum256([]byte(string(b.rec.DiffID) + " " + b.name))
	idx, err := b.write([16]byte(sum[:16]), devices)
	if err != nil {
		return err
	}
	return b.d.writeJSON(b.syncs, filepath.Join(b.dir, b.name+".json"), indexVersion, indexRecord{Index: *idx, Chain: chain})
}

func (b *builder) write(uuid [16]byte, devices []image.Device) (*fileSum, error) {
	f, err := b.d.fs.OpenFile(filepath.Join(b.dir, b.name+".erofs"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	size, err := b.tree.Write(io.MultiWriter(f, h), uuid, devices)
	return &fileSum{size, oci.DigestOfHash(h)}, b.syncs.file(f, err)
}

// resolve fills in what the layer takes from its parents: the attributes of directories and the targets of hard links.
func (b *builder) resolve(ctx context.Context, missing []image.Missing) (sum *fileSum, err error) {
	if len(missing) == 0 {
		return nil, nil
	}
	var below *os.File
	if len(b.parents) > 0 {
		v, err := b.d.openChain(b.parents)
		if err != nil {
			return nil, fmt.Errorf("layer %s: open the layers below: %w", b.rec.DiffID.Short(), err)
		}
		defer errs.Close(&err, v)
		below = v.root
	}
	for _, m := range missing {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		if err := b.fill(below, m); err != nil {
			return nil, errors.Join(err, b.closeChain())
		}
	}
	if b.chain == nil {
		return nil, nil
	}
	return b.chain.finish(b.syncs)
}

func (b *builder) closeChain() error {
	if b.chain == nil {
		return nil
	}
	return b.chain.f.Close()
}

func (b *builder) fill(below *os.File, m image.Missing) error {
	name := b.tree.Path(m)
	gone := func() error {
		if !m.File {
			return nil // the directory is new in this layer and keeps the default attributes
		}
		return errs.New(errs.Invalid, "layer tar: hard link to %.200q, which is a file neither of this layer nor of those below", name)
	}
	if below == nil {
		return gone()
	}
	fd, err := openBelow(below, name, unix.O_PATH|unix.O_NOFOLLOW)
	if absent(err) {
		return gone()
	}
	if err != nil {
		return &os.PathError{Op: "open below", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	a, err := attrOf(f)
	if err != nil {
		return err
	}
	if dir := a.Mode&unix.S_IFMT == unix.S_IFDIR; dir == m.File {
		return gone()
	}
	if a.Mode&unix.S_IFMT == unix.S_IFREG && a.Size > 0 {
		if a.Extent, err = b.copyUp(below, name, a.Size); err != nil {
			return err
		}
	}
	return b.tree.Fill(m, a)
}

// copyUp copies the content of a file of the parents into the side file of the chain.
func (b *builder) copyUp(below *os.File, name string, size int64) (image.Extent, error) {
	fd, err := openBelow(below, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK)
	if err != nil {
		return image.Extent{}, &os.PathError{Op: "open below", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if b.chain == nil {
		if b.chain, err = b.d.newSide(filepath.Join(b.dir, chainFile(b.name))); err != nil {
			return image.Extent{}, err
		}
	}
	off, err := b.chain.add(f, size)
	return image.Extent{Device: 3, Offset: off}, err
}

func openBelow(root *os.File, name string, flags uint64) (int, error) {
	for {
		fd, err := unix.Openat2(int(root.Fd()), name, &unix.OpenHow{
			Flags:   flags | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
		})
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}

// attrOf returns the attributes of an inode, without the extent of its content. f may be open with O_PATH.
func attrOf(f *os.File) (image.Attr, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return image.Attr{}, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	a := image.Attr{
		Mode: st.Mode, UID: st.Uid, GID: st.Gid, Mtime: time.Unix(st.Mtim.Sec, st.Mtim.Nsec), Rdev: st.Rdev, Size: st.Size,
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		buf := make([]byte, 4096)
		n, err := unix.Readlinkat(int(f.Fd()), "", buf)
		if err != nil {
			return a, &os.PathError{Op: "readlink", Path: f.Name(), Err: err}
		}
		a.Link = string(buf[:n])
	}
	var err error
	a.Xattrs, err = xattrsOf(f)
	return a, err
}

func xattrsOf(f *os.File) ([]tarscan.Xattr, error) {
	p := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	buf := make([]byte, 64<<10)
	n, err := unix.Listxattr(p, buf)
	if err != nil {
		if errors.Is(err, unix.ENOTSUP) {
			return nil, nil
		}
		return nil, &os.PathError{Op: "listxattr", Path: f.Name(), Err: err}
	}
	var all []tarscan.Xattr
	names := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
	slices.Sort(names)
	for _, name := range names {
		if name == "" || strings.HasPrefix(name, "trusted.overlay.") {
			continue
		}
		n, err := unix.Getxattr(p, name, buf)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "getxattr " + name, Path: f.Name(), Err: err}
		}
		all = append(all, tarscan.Xattr{Name: name, Value: string(buf[:n])})
	}
	return all, nil
}

func absent(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}
