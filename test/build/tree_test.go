package build

import (
	"archive/tar"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

func sum(b []byte) [32]byte { return sha256.Sum256(b) }

// node is a file of a tree.
type node struct {
	kind     byte // of the tar entry; hard links have that of their file
	mode     int64
	uid, gid int
	time     time.Time
	link     string // target of a symbolic link
	dev      string
	xattrs   string
	data     string
	inode    *int // the same for the names of one file
}

// tree has the files of an image by their path.
type tree map[string]*node

// apply lays the tar of a layer on the tree.
func (t tree) apply(r io.Reader) error {
	fresh := map[string]bool{} // paths that this layer made
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		p := path.Join("/", h.Name)
		if name, ok := strings.CutPrefix(path.Base(p), ".wh."); ok {
			if name == ".wh..opq" {
				t.removeBelow(path.Dir(p), fresh)
			} else {
				gone := path.Join(path.Dir(p), name)
				t.removeBelow(gone, nil)
				delete(t, gone)
			}
			continue
		}
		n := &node{kind: h.Typeflag, mode: h.Mode & 0o7777, uid: h.Uid, gid: h.Gid, time: h.ModTime.UTC(), link: h.Linkname, inode: new(int)}
		switch h.Typeflag {
		case tar.TypeLink:
			to := t[path.Join("/", h.Linkname)]
			if to == nil {
				return fmt.Errorf("%s: hard link to %s, which is not there", p, h.Linkname)
			}
			n = to
		case tar.TypeReg:
			b, err := io.ReadAll(tr)
			if err != nil {
				return err
			}
			n.data = string(b)
		case tar.TypeChar, tar.TypeBlock:
			n.dev = fmt.Sprintf("%d,%d", h.Devmajor, h.Devminor)
		}
		for _, key := range slices.Sorted(maps.Keys(h.PAXRecords)) {
			if name, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
				n.xattrs += fmt.Sprintf(" %s=%x", name, h.PAXRecords[key])
			}
		}
		if old := t[p]; old != nil && (old.kind != tar.TypeDir || h.Typeflag != tar.TypeDir) {
			t.removeBelow(p, nil)
		}
		t[p], fresh[p] = n, true
	}
}

func (t tree) removeBelow(dir string, keep map[string]bool) {
	for p := range t {
		if strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/") && !keep[p] {
			delete(t, p)
		}
	}
}

// ofContainers reports whether an engine makes p itself for containers, so that an image has it by accident only.
func ofContainers(p string) bool {
	switch p {
	case "/", "/.dockerenv", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/etc/mtab", "/dev", "/dev/null", "/proc", "/sys", "/dev/console", "/dev/pts", "/dev/shm":
		return true
	}
	return false
}

// lines returns what differs from base, one file per line, sorted.
func (t tree) lines(base tree) (out []string) {
	first := map[*int]string{}
	for _, p := range slices.Sorted(maps.Keys(t)) {
		n := t[p]
		if p == "/" {
			continue
		}
		old := base[p]
		if old != nil && n.text("") == old.text("") && n.time.Equal(old.time) {
			continue
		}
		if first[n.inode] == "" {
			first[n.inode] = p
		}
		text := n.text(first[n.inode])
		if n.kind != tar.TypeLink && first[n.inode] != p {
			text = "= " + first[n.inode]
		}
		mark := "+"
		if old != nil {
			mark = "~"
		}
		out = append(out, mark+" "+p+" "+text+" "+n.when())
	}
	for _, p := range slices.Sorted(maps.Keys(base)) {
		if t[p] == nil && p != "/" {
			out = append(out, "- "+p)
		}
	}
	return out
}

// when returns the time of a file, if the case decides about it.
func (n *node) when() string {
	if n.time.Year() > 2021 {
		return "now"
	}
	return n.time.Format(time.RFC3339)
}

func (n *node) text(string) string {
	var what string
	switch n.kind {
	case tar.TypeDir:
		what = "dir"
	case tar.TypeReg:
		what = "file"
	case tar.TypeSymlink:
		return fmt.Sprintf("link %d:%d -> %s%s", n.uid, n.gid, n.link, n.xattrs)
	case tar.TypeFifo:
		what = "fifo"
	case tar.TypeChar:
		what = "char " + n.dev
	case tar.TypeBlock:
		what = "block " + n.dev
	default:
		what = fmt.Sprintf("kind %q", n.kind)
	}
	s := fmt.Sprintf("%s %04o %d:%d%s", what, n.mode, n.uid, n.gid, n.xattrs)
	if n.kind == tar.TypeReg {
		if len(n.data) <= 80 && utf8.ValidString(n.data) {
			s += fmt.Sprintf(" %q", n.data)
		} else {
			s += fmt.Sprintf(" %d bytes %x", len(n.data), sum([]byte(n.data)))[:len(fmt.Sprintf(" %d bytes ", len(n.data)))+16]
		}
	}
	return s
}
