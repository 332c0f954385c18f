package fileop

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/build/tree"
	"ply/internal/errs"
)

// layer is a tree under construction: the tree below it, which does not change, and what is laid on it, which is written as the tar of a layer at
// once. Paths in it are clean and absolute, and no component but the last is a link: resolve makes them so.
//
// A tar entry replaces what is at its path, and the later of two entries of one path counts, as for every reader of layers.
type layer struct {
	base *tree.Tree // nil = empty
	tw   *tar.Writer
	made map[string]*node
	now  time.Time // of directories that only have to exist
	last time.Time // no file is younger; zero = any
}

// node is a file that the layer has, or a directory of the base that it repeats.
type node struct {
	mode  uint32
	link  string // target of a symbolic link
	fresh bool   // nothing of the base is visible below this directory
	gone  bool   // removed
}

func (n *node) isDir() bool  { return !n.gone && n.mode&unix.S_IFMT == unix.S_IFDIR }
func (n *node) isLink() bool { return !n.gone && n.mode&unix.S_IFMT == unix.S_IFLNK }

func newLayer(base *tree.Tree, w io.Writer, o Options) *layer {
	return &layer{base: base, tw: tar.NewWriter(w), made: map[string]*node{}, now: o.Now, last: o.Latest}
}

// close ends the tar.
func (l *layer) close() error { return l.tw.Close() }

// lookup returns what is at a resolved path; nil when nothing is. The info is nil for what the layer itself made.
func (l *layer) lookup(p string) (*node, *tree.Info, error) {
	if n := l.made[p]; n != nil {
		if n.gone {
			return nil, nil, nil
		}
		return n, nil, nil
	}
	if l.base == nil {
		if p == "/" {
			return &node{mode: unix.S_IFDIR | 0o755}, nil, nil
		}
		return nil, nil, nil
	}
	for up := p; up != "/"; {
		up = path.Dir(up)
		if n := l.made[up]; n != nil {
			if n.gone || n.fresh || !n.isDir() {
				return nil, nil, nil
			}
			break
		}
	}
	info, err := l.base.Stat(p, false)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return nil, nil, nil
	case err != nil:
		return nil, nil, err
	}
	return &node{mode: info.Mode, link: info.Link}, &info, nil
}

// maxLinks is how many links resolve follows, as the kernel does.
const maxLinks = 255

// resolve returns where p leads when the root of the tree is top, a resolved path, following links. Components that do not exist are part of the result. A link at
// the end is followed if last is set.
func (l *layer) resolve(top, p string, last bool) (string, error) {
	if len(top)+len(p) >= unix.PathMax {
		return "", &os.PathError{Op: "open", Path: fmt.Sprintf("%.80s…", p), Err: unix.ENAMETOOLONG}
	}
	at := top
	todo := strings.Split(p, "/")
	links := 0
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			if at != top {
				at = path.Dir(at)
			}
			continue
		}
		next := path.Join(at, name)
		n, _, err := l.lookup(next)
		if err != nil {
			return "", err
		}
		if n == nil || !n.isLink() || len(todo) == 0 && !last {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return "", &os.PathError{Op: "open", Path: p, Err: unix.ELOOP}
		}
		if strings.HasPrefix(n.link, "/") {
			at = top
		}
		todo = append(strings.Split(n.link, "/"), todo...)
	}
	return at, nil
}

// attrs are the attributes that an entry gets.
type attrs struct {
	mode     uint32 // permissions, with set-user-ID, set-group-ID and sticky
	uid, gid uint32
	time     time.Time
	xattrs   map[string]string
}

// header writes the header of an entry for a resolved path, and its parents before it.
func (l *layer) header(p string, h *tar.Header, n *node, a attrs) error {
	if p == "/" && h.Typeflag != tar.TypeDir {
		return errs.New(errs.Invalid, "the root of a file system must be a directory")
	}
	if strings.HasPrefix(path.Base(p), ".wh.") {
		return errs.New(errs.Invalid, "%s: names that start with .wh. are reserved: layers mark removed files so", p)
	}
	if err := l.parents(p); err != nil {
		return err
	}
	h.Name = strings.TrimPrefix(p, "/")
	if h.Typeflag == tar.TypeDir {
		h.Name += "/"
	}
	if p == "/" {
		h.Name = "./"
	}
	h.Mode, h.Uid, h.Gid, h.ModTime = int64(a.mode&0o7777), int(a.uid), int(a.gid), a.time
	if !l.last.IsZero() && a.time.After(l.last) {
		h.ModTime = l.last
	}
	h.Format = tar.FormatPAX
	for _, key := range slices.Sorted(maps.Keys(a.xattrs)) {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+key] = a.xattrs[key]
	}
	if err := l.tw.WriteHeader(h); err != nil {
		return err
	}
	n.mode = n.mode&unix.S_IFMT | a.mode&0o7777
	l.made[p] = n
	return nil
}

// parents repeats the directories above p that the layer does not have, with the attributes that they have in the base: a layer replaces the
// attributes of a directory that it has something in.
func (l *layer) parents(p string) error {
	if p == "/" {
		return nil
	}
	up := path.Dir(p)
	if n := l.made[up]; n != nil {
		if !n.isDir() {
			return &os.PathError{Op: "open", Path: up, Err: unix.ENOTDIR}
		}
		return nil
	}
	n, info, err := l.lookup(up)
	if err != nil {
		return err
	}
	switch {
	case up == "/" && info == nil:
		return nil // an empty base: the root of the result has the default attributes
	case n == nil:
		return &os.PathError{Op: "open", Path: up, Err: unix.ENOENT}
	case !n.isDir():
		return &os.PathError{Op: "open", Path: up, Err: unix.ENOTDIR}
	}
	if up == "/" {
		l.made[up] = &node{mode: n.mode}
		return nil // every reader of layers takes the root as given
	}
	return l.header(up, &tar.Header{Typeflag: tar.TypeDir}, &node{mode: n.mode}, attrs{
		mode: info.Mode, uid: info.UID, gid: info.GID, time: info.Time, xattrs: info.Xattrs,
	})
}

// mkdir makes a directory at a resolved path, or gives an existing one new attributes.
func (l *layer) mkdir(p string, a attrs) error {
	old, _, err := l.lookup(p)
	if err != nil {
		return err
	}
	fresh := old == nil || !old.isDir() || old.fresh
	return l.header(p, &tar.Header{Typeflag: tar.TypeDir}, &node{mode: unix.S_IFDIR, fresh: fresh}, a)
}

// mkdirAll makes the missing directories of a resolved path.
func (l *layer) mkdirAll(p string, a attrs) error {
	var missing []string
	for up := p; up != "/"; up = path.Dir(up) {
		n, _, err := l.lookup(up)
		if err != nil {
			return err
		}
		if n != nil {
			if !n.isDir() {
				return &os.PathError{Op: "mkdir", Path: up, Err: unix.ENOTDIR}
			}
			break
		}
		missing = append(missing, up)
	}
	for _, dir := range slices.Backward(missing) {
		if err := l.mkdir(dir, a); err != nil {
			return err
		}
	}
	return nil
}

// file writes a regular file of exactly size bytes.
func (l *layer) file(p string, size int64, r io.Reader, a attrs) error {
	if err := l.header(p, &tar.Header{Typeflag: tar.TypeReg, Size: size}, &node{mode: unix.S_IFREG}, a); err != nil {
		return err
	}
	n, err := io.Copy(l.tw, io.LimitReader(r, size))
	if err == nil && n < size {
		err = errs.New(errs.Conflict, "%s became shorter while it was read", p)
	}
	return err
}

// reader ends with its context, so that a cancelled build does not wait for the end of a large file.
type reader struct {
	ctx context.Context //nolint:containedctx // of one file
	r   io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}

func (l *layer) symlink(p, target string, a attrs) error {
	a.mode = 0o777
	return l.header(p, &tar.Header{Typeflag: tar.TypeSymlink, Linkname: target}, &node{mode: unix.S_IFLNK, link: target}, a)
}

// hardLink makes p another name of the file at the resolved path to, which the layer has.
func (l *layer) hardLink(p, to string, a attrs) error {
	n := l.made[to]
	if n == nil || n.gone || n.isDir() {
		return errs.New(errs.Invalid, "%s: hard link to %s, which is not there", p, to)
	}
	copied := *n
	return l.header(p, &tar.Header{Typeflag: tar.TypeLink, Linkname: strings.TrimPrefix(to, "/")}, &copied, a)
}

// special makes a device or a FIFO.
func (l *layer) special(p string, mode uint32, rdev uint64, a attrs) error {
	h := &tar.Header{Devmajor: int64(unix.Major(rdev)), Devminor: int64(unix.Minor(rdev))}
	switch mode & unix.S_IFMT {
	case unix.S_IFCHR:
		h.Typeflag = tar.TypeChar
	case unix.S_IFBLK:
		h.Typeflag = tar.TypeBlock
	case unix.S_IFIFO:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeFifo, 0, 0
	default:
		return nil // a socket is of use only to the process that has it open
	}
	return l.header(p, h, &node{mode: mode & unix.S_IFMT}, a)
}

// remove removes what is at a resolved path. What the same layer made cannot be removed.
func (l *layer) remove(p string) error {
	if p == "/" {
		return errs.New(errs.Invalid, "the root of a file system cannot be removed")
	}
	for made, n := range l.made {
		if (made == p || strings.HasPrefix(made, p+"/")) && !n.gone {
			return errs.New(errs.Unimplemented, "%s: an operation that removes what it has made itself is not supported; remove it in an operation of its own", p)
		}
	}
	if err := l.parents(p); err != nil {
		return err
	}
	h := &tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(path.Join(path.Dir(p), ".wh."+path.Base(p)), "/"), Format: tar.FormatPAX, ModTime: l.now}
	if err := l.tw.WriteHeader(h); err != nil {
		return err
	}
	l.made[p] = &node{gone: true}
	return nil
}
