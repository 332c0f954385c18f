package rootfs

import (
	"context"
	"errors"
	"io"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/safepath"
)

// CopyOut writes the file or directory at p as a tar stream. The names begin with the last component of p: "dir" for
// "/dir" and "/dir/", "." for "/dir/.", and "" for "/", so that the names of the whole root begin with "/". A symbolic
// link is written as a link unless p ends in "/" or "/.". Before the first byte is written, found is called with what is
// at p. Errors: *PathError.
func CopyOut(ctx context.Context, root *os.File, p string, found func(Info) error, w io.Writer) error {
	f, st, info, err := find(root, p)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := found(info); err != nil {
		return err
	}
	t := newTarWriter(ctx, w)
	name := info.Name
	if name == "/" {
		name = ""
	}
	if err := t.opened(f, &st, name); err != nil {
		return err
	}
	return t.tw.Close()
}

// CopyInOptions of CopyIn.
type CopyInOptions struct {
	KeepKinds bool   // refuse to replace a directory by another kind of file, and the other way round
	ReadOnly  bool   // refuse directories that are not on a mount of their own
	Chown     bool   // give the files to the account User instead of the owners in the stream
	User      string // user[:group], looked up in the root
}

// CopyIn unpacks a tar stream, compressed or not, into the directory p. Errors: *PathError when p cannot be opened;
// errs.Invalid for a bad stream and where p is not a directory; errs.Forbidden where p is read-only.
func CopyIn(ctx context.Context, root *os.File, p string, r io.Reader, o CopyInOptions) error {
	p = path.Clean(cleanPath(p)) // a link at the end is followed
	dir, err := safepath.Open(root, p, unix.O_PATH|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ENOTDIR) {
		return invalid("extraction point is not a directory")
	}
	if err != nil {
		return &PathError{p, err}
	}
	defer dir.Close()
	if err := checkWritable(root, dir, o.ReadOnly); err != nil {
		return err
	}
	x := &extractor{ctx: ctx, root: root, dir: p, keepKinds: o.KeepKinds}
	if o.Chown {
		acc, err := LookupUser(root, o.User, nil)
		if err != nil {
			return err
		}
		x.owner = &acc
	}
	return x.run(r)
}

// checkWritable refuses a directory on a read-only volume, and one of the root itself when readOnly says that the
// container was created with a read-only root.
func checkWritable(root, dir *os.File, readOnly bool) error {
	var at unix.Statfs_t
	var a, b unix.Statx_t
	if err := errors.Join(unix.Fstatfs(int(dir.Fd()), &at),
		unix.Statx(int(dir.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &a),
		unix.Statx(int(root.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &b)); err != nil {
		return err
	}
	if a.Mnt_id == b.Mnt_id {
		if readOnly {
			return errs.New(errs.Forbidden, "container rootfs is marked read-only")
		}
		return nil
	}
	if at.Flags&unix.ST_RDONLY != 0 {
		return errs.New(errs.Forbidden, "mounted volume is marked read-only")
	}
	return nil
}

// Pack writes a directory and everything below it as a tar stream whose names begin with "./". The first entry is the directory.
func Pack(ctx context.Context, dir *os.File, w io.Writer) error {
	return CopyOut(ctx, dir, "/.", func(Info) error { return nil }, w)
}

// Unpack unpacks a tar stream, compressed or not, into a directory that no one else has. The directory gets the attributes of the entry
// "./" of the stream, if there is one. The error's class is errs.Invalid for a bad stream.
func Unpack(ctx context.Context, dir *os.File, r io.Reader) error {
	top, err := safepath.Open(dir, "/", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer top.Close()
	x := &extractor{ctx: ctx, root: dir, dir: "/", top: top}
	return x.run(r)
}
