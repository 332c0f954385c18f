package tarstream

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"ply/internal/errs"
)

// Packing packs one local path for a copy into a container.
type Packing struct {
	Into string // directory in the container where the stream is unpacked

	src  string // local path
	name string // first element of the names in the stream
}

// PackFrom applies docker's rules of cp to a local source and a destination in a container. exists and dirDst say whether the
// destination exists and is a directory; follow resolves a source that is a symbolic link.
func PackFrom(src string, follow bool, dst string, exists, dirDst bool) (*Packing, error) {
	contents := strings.HasSuffix(src, "/.") || src == "."
	abs, err := filepath.Abs(src)
	if err != nil {
		return nil, err
	}
	base := filepath.Base(abs)
	if follow {
		if abs, err = filepath.EvalSymlinks(abs); err != nil {
			return nil, err
		}
	}
	st, err := os.Lstat(abs)
	if err != nil {
		return nil, err
	}
	if strings.HasSuffix(src, "/") || contents {
		if st, err = os.Stat(abs); err != nil {
			return nil, err
		}
		if !st.IsDir() {
			return nil, errs.New(errs.Invalid, "%s: not a directory", src)
		}
		if abs, err = filepath.EvalSymlinks(abs); err != nil {
			return nil, err
		}
	}
	p := &Packing{src: abs, name: base}
	switch {
	case exists && dirDst:
		p.Into = dst
		if st.IsDir() && contents {
			p.name = "."
		}
	case exists && st.IsDir():
		return nil, errs.New(errs.Invalid, "cannot copy directory")
	case exists && strings.HasSuffix(dst, "/"):
		return nil, errs.New(errs.Invalid, "not a directory")
	default:
		if !exists && strings.HasSuffix(dst, "/") && !st.IsDir() {
			return nil, errs.New(errs.NotFound, "no such directory")
		}
		clean := path.Clean("/" + dst)
		p.Into, p.name = path.Dir(clean), path.Base(clean)
	}
	return p, nil
}

// Write writes the tar stream: the names in the order of the tree, hard links as such, and no sockets.
func (p *Packing) Write(w io.Writer) error {
	tw := tar.NewWriter(w)
	links := Links{}
	err := filepath.WalkDir(p.src, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(p.src, file)
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err != nil || st.Mode()&fs.ModeSocket != 0 {
			return err
		}
		return links.Add(tw, file, path.Join(p.name, filepath.ToSlash(rel)), st)
	})
	return errors.Join(err, tw.Close())
}

// Links maps device and inode of the files of one stream to their first name, so that further names become hard links.
type Links map[[2]uint64]string

// Add writes a local file to tw under name.
func (l Links) Add(tw *tar.Writer, file, name string, st fs.FileInfo) error {
	target := ""
	if st.Mode()&fs.ModeSymlink != 0 {
		var err error
		if target, err = os.Readlink(file); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(st, target)
	if err != nil {
		return err
	}
	h.Name, h.Uname, h.Gname, h.Format = name, "", "", tar.FormatPAX
	h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
	if st.IsDir() {
		h.Name += "/"
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && st.Mode().IsRegular() && sys.Nlink > 1 {
		key := [2]uint64{uint64(sys.Dev), sys.Ino}
		if first, ok := l[key]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
		} else {
			l[key] = name
		}
	}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.CopyN(tw, f, h.Size)
	return err
}
