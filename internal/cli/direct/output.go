package direct

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"ply/internal/errs"
)

// Output is where an output of a build goes. The zero Output takes nothing.
type Output struct {
	dest   string
	stdout io.Writer // used when dest is "-"
	check  func(f *os.File, write bool) error
}

// ToFile returns an output that is written to a file. It replaces the file when the output is complete.
func ToFile(name string) Output { return Output{dest: name} }

// ToDir returns an output that is unpacked into a directory. It replaces files of the same name, and keeps others.
func ToDir(name string) Output { return Output{dest: name} }

// ToWriter returns an output that is written to w.
func ToWriter(w io.Writer) Output { return Output{dest: "-", stdout: w} }

// openRoot opens a directory to write into.
func (o Output) openRoot(dir string) (*os.Root, error) {
	root, err := os.OpenRoot(dir)
	if err != nil || o.check == nil {
		return root, err
	}
	f, err := root.Open(".")
	if err == nil {
		err = errors.Join(o.check(f, true), f.Close())
	}
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return root, nil
}

// takeFile writes the stream of an output to its file.
func (o Output) takeFile(r io.Reader, complete func() error) error {
	if o.stdout != nil {
		if _, err := io.Copy(o.stdout, r); err != nil {
			return err
		}
		return complete()
	}
	if err := os.MkdirAll(filepath.Dir(o.dest), 0o755); err != nil {
		return err
	}
	if st, err := os.Stat(o.dest); err == nil && !st.Mode().IsRegular() {
		return o.takeSpecial(r, st, complete)
	}
	root, err := o.openRoot(filepath.Dir(o.dest))
	if err != nil {
		return err
	}
	defer root.Close()
	s, err := newStage(root, false)
	if err != nil {
		return err
	}
	if _, err = io.Copy(s.file, r); err == nil {
		err = complete()
	}
	if err == nil {
		err = root.Rename(s.name, filepath.Base(o.dest))
	}
	if err != nil {
		return errors.Join(err, s.remove())
	}
	return s.file.Close()
}

// takeSpecial writes an output to a device or a pipe.
func (o Output) takeSpecial(r io.Reader, st fs.FileInfo, complete func() error) error {
	if st.IsDir() {
		return errs.New(errs.Invalid, "destination %s is a directory", o.dest)
	}
	f, err := os.OpenFile(o.dest, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if o.check != nil {
		err = o.check(f, true)
	}
	if err == nil {
		_, err = io.Copy(f, r)
	}
	if err == nil {
		err = complete()
	}
	return errors.Join(err, f.Close())
}

// takeDir unpacks the stream of an output below its directory. Files belong to the user, as those of buildx do. They take their places when all of them are there, so
// that an output that breaks off changes nothing.
func (o Output) takeDir(r io.Reader, complete func() error) (err error) {
	if o.stdout != nil {
		return o.takeFile(r, complete)
	}
	made, err := makeDirs(o.dest)
	defer func() {
		for i := len(made) - 1; err != nil && i >= 0; i-- {
			_ = os.Remove(made[i]) // it stays when somebody has put something into it
		}
	}()
	if err != nil {
		return err
	}
	root, err := o.openRoot(o.dest)
	if err != nil {
		return err
	}
	defer root.Close()
	s, err := newStage(root, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.remove()) }()
	staged, err := root.OpenRoot(s.name)
	if err != nil {
		return err
	}
	defer staged.Close()
	u := unpacker{root: staged}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = u.entry(h, tr)
		}
		if err != nil {
			return err
		}
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		return err
	}
	if err := complete(); err != nil {
		return err
	}
	if err := place(root, s.name, "."); err != nil {
		return err
	}
	for i := len(u.dirs) - 1; i >= 0; i-- { // their times changed with their content
		if err := finish(root, u.dirs[i]); err != nil {
			return err
		}
	}
	return nil
}

// makeDirs makes a directory and those above it, and returns the ones that were not there.
func makeDirs(name string) (made []string, err error) {
	for dir := filepath.Clean(name); ; dir = filepath.Dir(dir) {
		if _, err := os.Lstat(dir); err == nil || dir == filepath.Dir(dir) {
			break
		}
		made = append(made, dir)
	}
	slices.Reverse(made)
	return made, os.MkdirAll(name, 0o755)
}

// unpacker writes the entries of a tar into a directory of its own. The kernel and os.Root keep them below the root.
type unpacker struct {
	root *os.Root
	dirs []*tar.Header
}

func (u *unpacker) entry(h *tar.Header, r io.Reader) error {
	name := path.Clean(strings.TrimSuffix(h.Name, "/"))
	if name == "." || !fs.ValidPath(name) {
		return errs.New(errs.Invalid, "output: the name %q leads out of the directory", h.Name)
	}
	h.Name = name
	old, err := u.root.Lstat(name)
	if err == nil && (!old.IsDir() || h.Typeflag != tar.TypeDir) {
		err = u.root.RemoveAll(name)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if err := u.root.Mkdir(name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		u.dirs = append(u.dirs, h)
		return nil
	case tar.TypeSymlink:
		return u.root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		if !fs.ValidPath(h.Linkname) {
			return errs.New(errs.Invalid, "output: the link %q leads out of the directory", h.Name)
		}
		return u.root.Link(h.Linkname, name)
	case tar.TypeReg:
		f, err := u.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, r)
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
		return finish(u.root, h)
	}
	return errs.New(errs.Unimplemented, "output: %s is a device, which is not written into a directory", h.Name)
}

// finish sets the mode and the times of a file.
func finish(root *os.Root, h *tar.Header) error {
	if err := root.Chmod(h.Name, h.FileInfo().Mode()&(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky)); err != nil {
		return err
	}
	return root.Chtimes(h.Name, time.Time{}, h.ModTime)
}
