package cli

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"ply/internal/cli/format"
	"ply/internal/errs"
)

// counter counts bytes.
type counter struct{ n atomic.Int64 }

func (c *counter) Write(p []byte) (int, error) { c.n.Add(int64(len(p))); return len(p), nil }
func (c *counter) total() int64                { return c.n.Load() }

// copying shows a running count on a terminal until the returned function is called.
func (a *App) copying(f *cpFlags, what string, n *counter) (done func(error)) {
	if !a.showsCopy(f) {
		return func(error) {}
	}
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		t := time.NewTicker(200 * time.Millisecond)
		defer t.Stop()
		for {
			select {
			case <-stop:
				fmt.Fprint(a.Err, "\r\x1b[2K")
				return
			case <-t.C:
				fmt.Fprintf(a.Err, "\r\x1b[2K%s%s", what, format.Size4(n.total()))
			}
		}
	}()
	return func(error) { close(stop); <-ended }
}

// extraction says where an archive of one path goes: its first name element is replaced by base below dir.
type extraction struct {
	dir, base string
	from      string // the source's own name
	contents  bool   // the entries are the source's contents, without its name
	shown     string
}

// extractTarget applies docker's rules of cp to a source in a container and a local destination.
func extractTarget(src, rebase string, srcDir bool, dst string) (*extraction, error) {
	contents := strings.HasSuffix(src, "/.") || src == "."
	from := path.Base(path.Clean("/" + src))
	name := from
	if rebase != "" {
		name = rebase
	}
	abs, err := filepath.Abs(dst)
	if err != nil {
		return nil, err
	}
	e := &extraction{from: from, shown: abs, contents: contents}
	if strings.HasSuffix(dst, "/") || strings.HasSuffix(dst, "/.") || dst == "." {
		e.shown = strings.TrimSuffix(abs, "/") + "/"
	}
	st, err := os.Stat(abs)
	switch {
	case err == nil && st.IsDir() && srcDir && contents:
		e.dir, e.base = abs, "."
	case err == nil && st.IsDir():
		e.dir, e.base = abs, name
	case err == nil && srcDir:
		return nil, errs.New(errs.Invalid, "cannot copy directory")
	case err == nil && strings.HasSuffix(dst, "/"):
		return nil, errs.New(errs.Invalid, "not a directory")
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, err
	default:
		if _, perr := os.Stat(filepath.Dir(abs)); perr != nil {
			return nil, errs.New(errs.Invalid, "invalid output path: directory %q does not exist", filepath.Dir(abs))
		}
		if err != nil && strings.HasSuffix(dst, "/") && !srcDir {
			return nil, errs.New(errs.NotFound, "no such directory")
		}
		e.dir, e.base = filepath.Dir(abs), filepath.Base(abs)
	}
	return e, nil
}

// rename maps an entry's name into the destination.
func (e *extraction) rename(name string) string {
	if e.contents || e.from == "/" {
		return path.Join(e.base, name)
	}
	_, rest, _ := strings.Cut(name, "/") // the first element is the source's own name
	return path.Join(e.base, rest)
}

// extract unpacks below an os.Root: nothing in the archive can reach out of the destination.
func (e *extraction) extract(r io.Reader, owner bool) error {
	root, err := os.OpenRoot(e.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	type dirTime struct {
		name string
		h    *tar.Header
	}
	var dirs []dirTime
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		clean, err := tarName(h)
		if err != nil {
			return err
		}
		name := e.rename(clean)
		if err := e.entry(root, name, h, tr); err != nil {
			return errs.New(errs.Invalid, "archive entry %q: %w", h.Name, err)
		}
		if owner {
			if err := root.Lchown(name, h.Uid, h.Gid); err != nil {
				return err
			}
		}
		if h.Typeflag == tar.TypeDir {
			dirs = append(dirs, dirTime{name, h})
		}
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		d := dirs[i]
		if err := errors.Join(root.Chmod(d.name, modeOf(d.h)), root.Chtimes(d.name, d.h.ModTime, d.h.ModTime)); err != nil {
			return err
		}
	}
	_, err = io.Copy(io.Discard, r)
	return err
}

// modeOf gives the permission bits of an entry, setuid and its like included.
func modeOf(h *tar.Header) fs.FileMode {
	return h.FileInfo().Mode() & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)
}

func (e *extraction) entry(root *os.Root, name string, h *tar.Header, r io.Reader) error {
	switch h.Typeflag {
	case tar.TypeDir:
		if name == "." {
			return nil
		}
		err := root.Mkdir(name, 0o700)
		if errors.Is(err, fs.ErrExist) {
			if st, serr := root.Stat(name); serr != nil || !st.IsDir() {
				return errs.New(errs.Invalid, "cannot overwrite non-directory %q with directory", name)
			}
			return nil
		}
		return err
	case tar.TypeReg:
		if err := clearPath(root, name); err != nil {
			return err
		}
		f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, r)
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
		return errors.Join(root.Chmod(name, modeOf(h)), root.Chtimes(name, h.ModTime, h.ModTime))
	case tar.TypeSymlink:
		if err := clearPath(root, name); err != nil {
			return err
		}
		return root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		if err := clearPath(root, name); err != nil {
			return err
		}
		target, err := tarName(&tar.Header{Name: h.Linkname})
		if err != nil {
			return err
		}
		return root.Link(e.rename(target), name)
	case tar.TypeFifo, tar.TypeChar, tar.TypeBlock:
		return errs.New(errs.Unimplemented, "devices and pipes are not copied to the host")
	}
	return errs.New(errs.Unimplemented, "type %q is not supported", h.Typeflag)
}

// clearPath removes a file that stands where another is to go; a directory stays and is an error.
func clearPath(root *os.Root, name string) error {
	st, err := root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.IsDir() {
		return errs.New(errs.Invalid, "cannot overwrite directory %q with non-directory", name)
	}
	return root.Remove(name)
}

// packing says what is packed for a copy into a container, under which name, and where it is unpacked.
type packing struct {
	src  string // local path
	name string // first element in the archive
	into string // directory in the container
}

// packPlan applies docker's rules of cp to a local source and a destination in a container.
func packPlan(src string, follow bool, dst string, exists, dirDst bool) (*packing, error) {
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
	p := &packing{src: abs, name: base}
	switch {
	case exists && dirDst:
		p.into = dst
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
		p.into, p.name = path.Dir(clean), path.Base(clean)
	}
	return p, nil
}

// write makes the archive: names in order of the tree, hard links kept, sockets left out.
func (p *packing) write(w io.Writer) error {
	tw := tar.NewWriter(w)
	links := map[[2]uint64]string{}
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
		return packOne(tw, file, path.Join(p.name, filepath.ToSlash(rel)), st, links)
	})
	return errors.Join(err, tw.Close())
}

func packOne(tw *tar.Writer, file, name string, st fs.FileInfo, links map[[2]uint64]string) error {
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
		if first, ok := links[key]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
		} else {
			links[key] = name
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
