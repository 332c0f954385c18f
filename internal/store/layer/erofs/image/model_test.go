package image_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/store/layer/tarscan"
)

// file is one inode of the model.
type file struct {
	mode    uint32
	uid     uint32
	gid     uint32
	mtime   time.Time
	size    int64
	sum     [32]byte
	link    string
	rdev    uint32
	xattrs  map[string]string
	nlink   int
	implied bool
}

// Debian's fsck.erofs (1.5) does not accept blocks of 512 bytes, so the oracles are the reader used here and, in the tests
// of the driver, the kernel.

// model flattens one layer with plain maps into what overlayfs must see. It shares only tarscan with the writer.
type model struct {
	names        map[string]*file
	white, blind map[string]bool
	copies       map[string]*file // lower files to which links point
}

func flatten(data []byte, lim tarscan.Limits) (map[string]*file, error) {
	m := &model{map[string]*file{}, map[string]bool{}, map[string]bool{}, map[string]*file{}}
	m.names["."] = impliedDir()
	err := tarscan.Scan(bytes.NewReader(data), lim, m.visit)
	if err != nil {
		return nil, err
	}
	for p := range m.copies {
		for q := range m.copies {
			if strings.HasPrefix(q, p+"/") {
				return nil, errImpossible
			}
		}
	}
	for p, f := range m.copies {
		if m.shows(p) {
			m.parents(p)
			m.names[p] = f
		}
	}
	for p := range m.blind {
		if m.isDir(p) {
			m.names[p].xattrs["trusted.overlay.opaque"] = "y"
		}
	}
	white := &file{mode: unix.S_IFCHR, mtime: time.Unix(0, 0), xattrs: map[string]string{}}
	for p := range m.white {
		switch f := m.names[p]; {
		case f == nil && m.isDir(path.Dir(p)):
			m.names[p] = white
			m.names[path.Dir(p)].xattrs["trusted.overlay.origin"] = ""
		case f != nil && f.mode&unix.S_IFMT == unix.S_IFDIR:
			f.xattrs["trusted.overlay.opaque"] = "y"
		}
	}
	for p, f := range m.names {
		f.nlink++
		if f.mode&unix.S_IFMT == unix.S_IFDIR {
			f.nlink++
			if p != "." {
				m.names[path.Dir(p)].nlink++
			}
		}
	}
	return m.names, nil
}

func impliedDir() *file {
	return &file{mode: unix.S_IFDIR | 0o755, mtime: time.Unix(0, 0), implied: true, xattrs: map[string]string{}}
}

func (m *model) isDir(p string) bool {
	return m.names[p] != nil && m.names[p].mode&unix.S_IFMT == unix.S_IFDIR
}

// errImpossible means that no stack of layers can have the files to which a layer links.
var errImpossible = errors.New("a lower file is a directory too")

// shows reports whether a lower file at p is seen.
func (m *model) shows(p string) bool {
	if m.names[p] != nil || m.white[p] {
		return false
	}
	for d := path.Dir(p); ; d = path.Dir(d) {
		if m.names[d] != nil && !m.isDir(d) || m.white[d] || m.blind[d] {
			return false
		}
		if d == "." {
			return true
		}
	}
}

func (m *model) parents(p string) {
	for d := path.Dir(p); d != "."; d = path.Dir(d) {
		if !m.isDir(d) {
			m.names[d] = impliedDir()
		}
	}
}

// drop removes p and everything below it, with the marks there. Marks on p itself stay.
func (m *model) drop(p string) {
	for q := range m.names {
		if strings.HasPrefix(q, p+"/") || q == p {
			delete(m.names, q)
		}
	}
	for _, marks := range []map[string]bool{m.white, m.blind} {
		for q := range marks {
			if strings.HasPrefix(q, p+"/") {
				delete(marks, q)
			}
		}
	}
}

// through follows the layer's own links in p, except in the last component.
func (m *model) through(p string) (string, error) {
	rest, done := strings.Split(path.Dir(p), "/"), "."
	for links := 0; len(rest) > 0; {
		next := path.Join("/", done, rest[0])[1:]
		if next == "" {
			next = "."
		}
		f := m.names[next]
		if f == nil || f.mode&unix.S_IFMT != unix.S_IFDIR && f.mode&unix.S_IFMT != unix.S_IFLNK {
			break
		}
		rest = rest[1:]
		if f.mode&unix.S_IFMT == unix.S_IFDIR {
			done = next
			continue
		}
		if links++; links > 40 {
			return "", errs.New(errs.Invalid, "loop")
		}
		if strings.HasPrefix(f.link, "/") {
			done = "."
		}
		rest = append(strings.Split(f.link, "/"), rest...)
	}
	p = path.Join("/", done, path.Join(rest...), path.Base(p))[1:]
	if len(p) > 4096 {
		return "", errs.New(errs.Invalid, "long")
	}
	for _, part := range strings.Split(p, "/") {
		if len(part) > 255 {
			return "", errs.New(errs.Invalid, "long")
		}
	}
	return p, nil
}

func (m *model) visit(raw *tarscan.Entry, r io.Reader) error {
	resolved := *raw
	e := &resolved
	var err error
	switch {
	case e.Path == ".":
	case e.Kind == tarscan.Opaque:
		if e.Path, err = m.through(e.Path + "/x"); err == nil {
			e.Path = path.Dir(e.Path)
		}
	default:
		e.Path, err = m.through(e.Path)
	}
	if err == nil && e.Kind == tarscan.Hardlink {
		e.Link, err = m.through(e.Link)
	}
	if err != nil {
		return err
	}
	f := &file{mode: e.Mode, uid: e.UID, gid: e.GID, mtime: e.Mtime, size: e.Size, xattrs: map[string]string{}}
	for _, x := range e.Xattrs {
		f.xattrs[x.Name] = x.Value
	}
	switch e.Kind {
	case tarscan.Whiteout:
		m.parents(e.Path)
		m.white[e.Path] = true
		return nil
	case tarscan.Opaque:
		m.parents(e.Path + "/x")
		m.blind[e.Path] = true
		return nil
	case tarscan.Hardlink:
		if m.isDir(e.Link) || strings.HasPrefix(e.Link, e.Path+"/") || strings.HasPrefix(e.Path, e.Link+"/") {
			return errs.New(errs.Invalid, "link to a directory, or within itself")
		}
		for d := path.Dir(e.Link); d != "."; d = path.Dir(d) {
			if m.names[d] != nil && !m.isDir(d) {
				return errs.New(errs.Invalid, "link to what is hidden")
			}
		}
		f = m.names[e.Link]
		if f == nil && e.Link == e.Path {
			return errs.New(errs.Invalid, "link to itself")
		}
		if f == nil {
			if f = m.copies[e.Link]; f == nil {
				f = &file{mode: lowerFile.Mode, uid: lowerFile.UID, mtime: lowerFile.Mtime, xattrs: map[string]string{}, sum: sha256.Sum256(nil)}
				m.copies[e.Link] = f
			}
		}
	case tarscan.Regular:
		content, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		f.mode, f.sum = f.mode|unix.S_IFREG, sha256.Sum256(content)
	case tarscan.Dir:
		f.mode |= unix.S_IFDIR
		if m.isDir(e.Path) {
			m.names[e.Path] = f
			return nil
		}
	case tarscan.Symlink:
		f.mode, f.link, f.size = f.mode|unix.S_IFLNK, e.Link, int64(len(e.Link))
	case tarscan.CharDev:
		f.mode, f.rdev = f.mode|unix.S_IFCHR, uint32(unix.Mkdev(e.Major, e.Minor))
	case tarscan.BlockDev:
		f.mode, f.rdev = f.mode|unix.S_IFBLK, uint32(unix.Mkdev(e.Major, e.Minor))
	case tarscan.Fifo:
		f.mode |= unix.S_IFIFO
	}
	if m.isDir(e.Path) {
		m.drop(e.Path)
	}
	m.parents(e.Path)
	m.names[e.Path] = f
	return nil
}

func (f *file) String() string {
	return fmt.Sprintf("%o %d:%d %v size %d sum %x link %q rdev %x xattrs %q nlink %d",
		f.mode, f.uid, f.gid, f.mtime.UTC(), f.size, f.sum[:4], f.link, f.rdev, f.xattrs, f.nlink)
}
