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

	"ply/internal/errs"
)

// Extraction unpacks the tar stream of one path into a local directory. The first element of every name in the stream is replaced.
type Extraction struct {
	Shown string // the destination as it is shown to the user

	dir, base string // base, below dir, takes the place of the first element
	from      string // the source's own name
	contents  bool   // the entries are the contents of the source, without its name
}

// ExtractTo applies docker's rules of cp to a source in a container and a local destination. rebase, when it is not empty, is the
// name under which the source appears in an existing directory; srcDir says that the source is a directory.
func ExtractTo(src, rebase string, srcDir bool, dst string) (*Extraction, error) {
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
	e := &Extraction{from: from, Shown: abs, contents: contents}
	if strings.HasSuffix(dst, "/") || strings.HasSuffix(dst, "/.") || dst == "." {
		e.Shown = strings.TrimSuffix(abs, "/") + "/"
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

// rename returns the name in dir for the name of an entry.
func (e *Extraction) rename(name string) string {
	if e.contents || e.from == "/" {
		return path.Join(e.base, name)
	}
	_, rest, _ := strings.Cut(name, "/") // the first element is the source's own name
	return path.Join(e.base, rest)
}

// Extract unpacks r below an os.Root, so that no entry can reach out of the destination. With owner, files get the owner of the
// entry.
func (e *Extraction) Extract(r io.Reader, owner bool) error {
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

// modeOf returns the permission bits of an entry, with setuid, setgid and sticky.
func modeOf(h *tar.Header) fs.FileMode {
	return h.FileInfo().Mode() & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)
}

// entry creates one entry below root.
func (e *Extraction) entry(root *os.Root, name string, h *tar.Header, r io.Reader) error {
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

// clearPath removes a file at the name that another file gets. A directory is an error.
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

var errTarName = errors.New("leads out of the destination")

// tarName returns the clean relative name of an entry. A name that leads out of the destination is refused.
func tarName(h *tar.Header) (string, error) {
	name := path.Clean("/" + h.Name)[1:]
	if strings.Contains(h.Name, "\x00") || strings.HasPrefix(path.Clean(h.Name), "..") {
		return "", errs.New(errs.Invalid, "archive entry %q: %w", h.Name, errTarName)
	}
	return name, nil
}
