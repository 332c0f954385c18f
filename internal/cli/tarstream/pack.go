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

	src  string // local path, with "/" or "/." at its end as the user wrote it
	name string // first element of the names in the stream
}

// PackFrom applies docker's rules of cp to a local source and a destination in a container; follow resolves a source that is a
// symbolic link.
func PackFrom(src string, follow bool, dst End) (*Packing, error) {
	p, err := source(src, follow)
	if err != nil {
		return nil, err
	}
	st, err := os.Lstat(p.src)
	if err != nil {
		return nil, err
	}
	into, name, err := destination(st.IsDir(), dst)
	if err != nil {
		return nil, err
	}
	p.Into = into
	if name != "" {
		p.name = name
	}
	return p, nil
}

// source finds the local file that src names. A link at the end is followed if follow says so, or if src says that it is a directory;
// it keeps its name.
func source(src string, follow bool) (*Packing, error) {
	abs, err := absolute(src)
	if err != nil {
		return nil, err
	}
	p := &Packing{src: abs, name: path.Base(abs)}
	if follow {
		real, err := filepath.EvalSymlinks(abs)
		p.src = Keep(real, abs)
		return p, err
	}
	if strings.HasSuffix(abs, "/") || p.name == "." { // only a directory can have such a path
		dir, err := filepath.EvalSymlinks(strings.TrimSuffix(abs, "."))
		p.src = Keep(dir, abs)
		return p, err
	}
	dir, base := filepath.Split(abs)
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return nil, err
	}
	p.src = filepath.Join(dir, base)
	return p, nil
}

// Write writes the tar stream: the names in the order of the tree, hard links as such, and no sockets.
func (p *Packing) Write(w io.Writer) error {
	tw := tar.NewWriter(w)
	links := Links{}
	top := filepath.Clean(p.src)
	err := filepath.WalkDir(top, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(top, file)
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
	if _, err = io.CopyN(tw, f, h.Size); errors.Is(err, io.EOF) {
		return errs.New(errs.Conflict, "%s: file became shorter while it was read", file)
	}
	return err
}
