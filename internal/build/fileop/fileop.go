// Package fileop executes the file operations of a build: COPY, ADD, WORKDIR and their like. It reads trees and writes the tar of a layer in one
// pass, without a container and without a copy on disk.
//
// Invariants: a source is read only through its tree (package tree), so patterns and links cannot lead out of it; a destination is resolved in the
// tree that the layer will lie on, by this package, and never opened for writing; the same input gives the same bytes.
package fileop

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	mode "github.com/tonistiigi/dchapes-mode"
	"golang.org/x/sys/unix"

	"ply/internal/build/ops"
	"ply/internal/build/tree"
	"ply/internal/errs"
	"ply/internal/spill"
)

// Step is an action with the trees that it works on.
type Step struct {
	Do   ops.FileAction
	From *tree.Tree // what a Copy reads; nil = an empty tree
	// Owner returns the tree whose /etc/passwd and /etc/group have the names of owners: the one that an Identity refers to. nil = names are unknown
	Owner func(ops.Identity) *tree.Tree
	Time  *time.Time // of copied files, but not of unpacked ones; nil = their own
}

// Options of Write.
type Options struct {
	Now    time.Time // modification time of what has no other
	Latest time.Time // no file is younger; zero = files keep their times
	// Users returns the numbers of a user, with its group, or of a group. An unknown name is errs.Invalid.
	Users func(t *tree.Tree, name string, group bool) (uid, gid uint32, err error)
	Warn  func(text string) // nil = warnings are dropped
	// Limits of each archive that is unpacked.
	Limits Limits
	// Scratch opens a file for names that do not fit into memory; nil = they stay there.
	Scratch func() (*os.File, error)
}

// Write writes, as the tar of a layer, what steps change in base. base is nil for an empty tree. Errors: errs.NotFound for a source that is not
// there, errs.Invalid for one that cannot be copied or unpacked.
func Write(ctx context.Context, w io.Writer, base *tree.Tree, steps []Step, o Options) (err error) {
	l := newLayer(base, w, o)
	defer errs.Close(&err, l.space)
	defer spill.Guard(&err)()
	for i := range steps {
		x := executor{ctx: ctx, l: l, step: &steps[i], o: &o, last: i == len(steps)-1}
		if err := x.run(); err != nil {
			return err
		}
	}
	return l.tw.Close()
}

type executor struct {
	ctx  context.Context
	l    *layer
	step *Step
	o    *Options
	last bool // no step comes after it
}

func (x *executor) run() error {
	switch do := x.step.Do.(type) {
	case *ops.Copy:
		return x.copy(do)
	case *ops.MakeFile:
		return x.makeFile(do)
	case *ops.MakeDir:
		return x.makeDir(do)
	case *ops.Symlink:
		return x.symlink(do)
	case *ops.Remove:
		return x.remove(do)
	default:
		return errs.New(errs.Unimplemented, "file action %T", do)
	}
}

// owner returns the IDs of an owner; set is false when the source's owner stays. A user without a group has the group of /etc/passwd, and a number
// also is that of the group, as BuildKit has it. A name that is not known is 0, with a warning.
func (x *executor) owner(o *ops.Owner) (uid, gid uint32, set bool, err error) {
	if o == nil {
		return 0, 0, false, nil
	}
	if uid, gid, err = x.identity(o.User, false); err != nil {
		return 0, 0, false, err
	}
	if o.Group != nil {
		_, gid, err = x.identity(o.Group, true)
	}
	return uid, gid, true, err
}

func (x *executor) identity(i *ops.Identity, group bool) (uid, gid uint32, err error) {
	switch {
	case i == nil:
		return 0, 0, nil
	case i.Name == "":
		return i.ID, i.ID, nil
	}
	uid, gid, err = x.o.Users(x.step.Owner(*i), i.Name, group)
	if errors.Is(err, errs.Invalid) {
		if x.o.Warn != nil {
			x.o.Warn(fmt.Sprintf("owner %q: %v; 0 is used", i.Name, err))
		}
		return 0, 0, nil
	}
	return uid, gid, err
}

func (x *executor) time(t *time.Time) time.Time {
	if t != nil {
		return *t
	}
	return x.o.Now
}

func (x *executor) makeDir(do *ops.MakeDir) error {
	uid, gid, _, err := x.owner(do.Owner)
	if err != nil {
		return err
	}
	p, err := x.l.resolve("/", do.Path, true)
	if err != nil {
		return err
	}
	a := attrs{mode: do.Mode & 0o777, uid: uid, gid: gid, time: x.time(do.Time)}
	if do.Parents {
		return x.l.mkdirAll(p, a)
	}
	n, _, err := x.l.lookup(p)
	if err != nil || n != nil {
		return err
	}
	return x.l.mkdir(p, a)
}

func (x *executor) makeFile(do *ops.MakeFile) error {
	uid, gid, _, err := x.owner(do.Owner)
	if err != nil {
		return err
	}
	p, err := x.l.resolve("/", do.Path, true)
	if err != nil {
		return err
	}
	if n, _, err := x.l.lookup(p); err != nil || n != nil && n.isDir() {
		return errors.Join(err, &os.PathError{Op: "create", Path: do.Path, Err: unix.EISDIR})
	}
	return x.l.file(p, int64(len(do.Data)), bytes.NewReader(do.Data), attrs{mode: do.Mode & 0o777, uid: uid, gid: gid, time: x.time(do.Time)})
}

func (x *executor) symlink(do *ops.Symlink) error {
	uid, gid, _, err := x.owner(do.Owner)
	if err != nil {
		return err
	}
	p, err := x.l.resolve("/", do.Path, false)
	if err != nil {
		return err
	}
	if n, _, err := x.l.lookup(p); err != nil || n != nil {
		return errors.Join(err, &os.PathError{Op: "symlink", Path: do.Path, Err: fs.ErrExist})
	}
	return x.l.symlink(p, do.Target, attrs{uid: uid, gid: gid, time: x.time(do.Time)})
}

func (x *executor) remove(do *ops.Remove) error {
	paths := []string{do.Path}
	if do.Wildcards && x.l.base != nil {
		var err error
		if paths, err = x.l.base.Match(do.Path, false); err != nil {
			return err
		}
	}
	for _, name := range paths {
		p, err := x.l.resolve("/", name, false)
		if err != nil {
			return err
		}
		n, _, err := x.l.lookup(p)
		if err != nil {
			return err
		}
		if n == nil {
			if do.AllowMissing {
				continue
			}
			return errs.New(errs.NotFound, "%s: not found", name)
		}
		if err := x.l.remove(p); err != nil {
			return err
		}
	}
	return nil
}

// copying is one Copy under way.
type copying struct {
	*executor
	do       *ops.Copy
	uid, gid uint32
	chown    bool
	chmod    func(uint32) uint32        // nil = modes stay
	files    *spill.Names[spill.NameID] // files with several names, by their IDs → the first in layer.made; nil while there are none
}

func (x *executor) copy(do *ops.Copy) error {
	if x.step.From == nil {
		return missing(do.Src)
	}
	c := copying{executor: x, do: do}
	var err error
	if c.uid, c.gid, c.chown, err = x.owner(do.Owner); err != nil {
		return err
	}
	if c.chmod, err = parseMode(do.Mode); err != nil {
		return err
	}
	if !do.MakeDest {
		p, err := x.l.resolve("/", do.Dest, true)
		if err != nil {
			return err
		}
		if n, _, err := x.l.lookup(path.Dir(p)); err != nil || n == nil {
			return errors.Join(err, errs.New(errs.NotFound, "destination %s: its directory does not exist", do.Dest))
		}
	}
	sel := c.selection()
	items, err := x.step.From.Items(&sel)
	if err != nil {
		return err
	}
	if len(items) == 0 && !do.AllowEmpty {
		return missing(do.Src)
	}
	for i, item := range items {
		if do.Unpack {
			done, err := c.unpack(item)
			if err != nil {
				return err
			}
			if done {
				continue
			}
		}
		if err := c.item(item, x.last && i == len(items)-1); err != nil {
			return err
		}
	}
	return nil
}

// Selects returns what a Copy takes from its source.
func Selects(do *ops.Copy) tree.Selection {
	return tree.Selection{Src: do.Src, Follow: do.Follow, Wildcards: do.Wildcards, Include: do.Include, Exclude: do.Exclude}
}

func (c *copying) selection() tree.Selection { return Selects(c.do) }

func missing(src string) error { return errs.New(errs.NotFound, "%q: not found", src) }

// parseMode returns what a mode of --chmod does to the mode of a file: octal digits, or symbols as chmod(1) reads them.
func parseMode(s string) (func(uint32) uint32, error) {
	if s == "" {
		return nil, nil
	}
	if n, err := strconv.ParseUint(s, 8, 32); err == nil {
		return func(uint32) uint32 { return uint32(n) & 0o7777 }, nil
	}
	set, err := mode.ParseWithUmask(s, 0)
	if err != nil {
		return nil, errs.New(errs.Invalid, "mode %.40q: %v", s, err)
	}
	return func(m uint32) uint32 { return unixMode(set.Apply(goMode(m))) }, nil
}

func goMode(m uint32) os.FileMode {
	out := os.FileMode(m & 0o777)
	for bit, flag := range map[uint32]os.FileMode{unix.S_ISUID: os.ModeSetuid, unix.S_ISGID: os.ModeSetgid, unix.S_ISVTX: os.ModeSticky} {
		if m&bit != 0 {
			out |= flag
		}
	}
	if m&unix.S_IFMT == unix.S_IFDIR {
		out |= os.ModeDir
	}
	return out
}

func unixMode(m os.FileMode) uint32 {
	out := uint32(m.Perm())
	for bit, flag := range map[uint32]os.FileMode{unix.S_ISUID: os.ModeSetuid, unix.S_ISGID: os.ModeSetgid, unix.S_ISVTX: os.ModeSticky} {
		if m&flag != 0 {
			out |= bit
		}
	}
	return out
}

// attrs returns the attributes of the copy of a file.
func (c *copying) attrs(i *tree.Info) attrs {
	a := attrs{mode: i.Mode & 0o7777, uid: i.UID, gid: i.GID, time: i.Time, xattrs: i.Xattrs}
	if c.chown {
		a.uid, a.gid = c.uid, c.gid
	}
	if c.chmod != nil {
		a.mode = c.chmod(i.Mode)
	}
	if c.step.Time != nil {
		a.time = *c.step.Time
	}
	if c.do.Time != nil {
		a.time = *c.do.Time
	}
	return a
}

// dirAttrs returns the attributes of directories that the destination needs.
func (c *copying) dirAttrs() attrs {
	a := attrs{mode: 0o755, uid: c.uid, gid: c.gid, time: c.time(c.do.Time)}
	if c.chmod != nil {
		if n, err := strconv.ParseUint(c.do.Mode, 8, 32); err == nil {
			a.mode = uint32(n) & 0o7777
		}
	}
	return a
}

// item copies one file or directory. Last says that nothing is done after it.
func (c *copying) item(item string, last bool) error {
	from := c.step.From
	info, err := from.Stat(item, c.do.Follow)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return missing(c.do.Src)
	}
	if err != nil {
		return err
	}
	dest, err := c.destination(item, &info)
	if err != nil {
		return err
	}
	c.l.final = last
	err = from.Walk(item, tree.WalkOptions{Follow: c.do.Follow, Include: c.do.Include, Exclude: c.do.Exclude, Context: c.ctx}, func(e *tree.Entry) error {
		return c.entry(e, path.Join(dest, e.Rel))
	})
	if errors.Is(err, fs.ErrNotExist) {
		return missing(c.do.Src)
	}
	return err
}

// destination returns the resolved path at which the copy of an item begins, and makes the directories above it.
func (c *copying) destination(item string, info *tree.Info) (string, error) {
	dest := path.Join("/", c.do.Dest)
	trailing := strings.HasSuffix(c.do.Dest, "/") || strings.HasSuffix(c.do.Dest, "/.") || c.do.Dest == "."
	ensure := path.Dir(dest)
	if trailing {
		ensure = dest
	}
	up, err := c.l.resolve("/", ensure, true)
	if err != nil {
		return "", err
	}
	if err := c.l.mkdirAll(up, c.dirAttrs()); err != nil {
		return "", err
	}
	if dest, err = c.l.resolve("/", dest, true); err != nil {
		return "", err
	}
	old, _, err := c.l.lookup(dest)
	if err != nil {
		return "", err
	}
	if !c.do.ContentsOnly && info.IsDir() && old != nil || !info.IsDir() && old != nil && old.isDir() {
		dest = path.Join(dest, path.Base("/"+item))
	}
	above := path.Dir(dest)
	if c.do.ContentsOnly && info.IsDir() && old == nil {
		above = dest
	}
	return dest, c.l.mkdirAll(above, c.dirAttrs())
}

// entry copies one file to a resolved path.
func (c *copying) entry(e *tree.Entry, p string) (err error) {
	i := &e.Info
	a := c.attrs(i)
	old, _, err := c.l.lookup(p)
	if err != nil {
		return err
	}
	if i.IsDir() {
		switch {
		case old == nil:
		case !old.isDir() && !c.do.ReplaceExisting:
			return errs.New(errs.Invalid, "cannot copy to non-directory: %s", p)
		case old.isDir() && e.Rel == "":
			return nil // the destination keeps its attributes, as everything below it gets those of the source
		}
		return c.l.mkdir(p, a)
	}
	if old != nil && old.isDir() && !c.do.ReplaceExisting {
		return errs.New(errs.Invalid, "cannot replace directory %s with file", p)
	}
	if id, several := i.HardLink(); several {
		if first := c.first(id); first != "" {
			return c.l.hardLink(p, first, a)
		}
		defer func(final bool) {
			if c.l.final = final; err == nil {
				c.remember(id, p)
			}
		}(c.l.final)
		c.l.final = false
	}
	switch {
	case i.IsRegular():
		f, err := e.Open()
		if err != nil {
			return err
		}
		defer f.Close()
		return c.l.file(p, i.Size, reader{c.ctx, f}, a)
	case i.IsLink():
		return c.l.symlink(p, i.Link, a)
	default:
		return c.l.special(p, i.Mode, i.Rdev, a)
	}
}

// first returns the path of the first copy of a file with several names; "" when there is none.
func (c *copying) first(id tree.FileID) string {
	if c.files == nil {
		return ""
	}
	at, ok := c.files.Find(spill.Root, fileKey(id))
	if !ok {
		return ""
	}
	return string(c.l.made.Path(nil, *c.files.Value(at)))
}

// remember makes p the first copy of a file with several names.
func (c *copying) remember(id tree.FileID, p string) {
	at, ok, _ := c.l.find(p)
	if !ok {
		return // a socket, which is not copied
	}
	if c.files == nil {
		c.files = spill.NewNames[spill.NameID](c.l.space)
	}
	c.files.Add(spill.Root, fileKey(id), at)
}

func fileKey(id tree.FileID) string {
	var b [16]byte
	binary.NativeEndian.PutUint64(b[:8], id.Dev)
	binary.NativeEndian.PutUint64(b[8:], id.Ino)
	return string(b[:])
}
