package direct

import (
	"archive/tar"
	"context"
	"io"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"ply/internal/build/export"
	"ply/internal/build/tree"
	"ply/internal/errs"
)

// writeTar writes a directory as a tar.
func writeTar(ctx context.Context, w io.Writer, files export.Files) error {
	tw := tar.NewWriter(w)
	links := map[any]string{}
	err := files.Walk(ctx, func(name string, info tree.Info) error {
		if name == "" || name == "." {
			return nil
		}
		h, err := header(name, &info, links)
		if err != nil || h == nil {
			return err
		}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg {
			return nil
		}
		f, err := files.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.CopyN(tw, f, h.Size)
		return err
	})
	if err != nil {
		return err
	}
	return tw.Close()
}

// header returns the entry of a file; nil for a socket.
func header(name string, info *tree.Info, links map[any]string) (*tar.Header, error) {
	h := &tar.Header{Name: name, Mode: int64(info.Mode & 0o7777), Uid: int(info.UID), Gid: int(info.GID), ModTime: info.Time, Format: tar.FormatPAX}
	for key, value := range info.Xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+key] = value
	}
	switch info.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, strings.TrimSuffix(name, "/")+"/"
	case unix.S_IFLNK:
		h.Typeflag, h.Linkname = tar.TypeSymlink, info.Link
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, info.Size
		if id, ok := info.HardLink(); ok {
			if first := links[id]; first != "" {
				h.Typeflag, h.Size, h.Linkname = tar.TypeLink, 0, first
				return h, nil
			}
			links[id] = path.Clean(name)
		}
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if info.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(info.Rdev)), int64(unix.Minor(info.Rdev))
	case unix.S_IFSOCK:
		return nil, nil
	default:
		return nil, errs.New(errs.Invalid, "%s: a file of unknown kind", name)
	}
	return h, nil
}
