package layertest

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// flatten is the reference: the rules of the image-spec on maps, written to be obvious and slow. It shares no code with the
// drivers.
//
//   - A layer is first made a tree of its own. The last entry of a name wins. A directory over a directory replaces its
//     attributes and keeps its content; any other clash removes the older name first.
//   - Whiteouts and opaque markers hide only names of lower layers, wherever they stand in the tar.
//   - Parents that no entry describes have the attributes of the directory below, or mode 0755 and owner root.
//   - Symbolic links of the layer itself in the path of a name are followed inside the root, as when unpacking.
//   - A hard link points to a name of this layer or else of a lower one. In the second case the lower file is copied up,
//     and both names are the copy.
func flatten(tars ...[]byte) (tree, error) {
	t := tree{".": impliedDir()}
	for i, data := range tars {
		if err := t.apply(data); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
	}
	if len(tars) > 1 {
		for _, n := range t {
			n.nlink = 0 // differs between drivers in stacks
		}
	}
	return t, nil
}

func impliedDir() *inode {
	return &inode{kind: unix.S_IFDIR, mode: 0o755, anyTime: true, implied: true, xattrs: map[string]string{}}
}

func (t tree) apply(data []byte) error {
	own, copies := tree{".": impliedDir()}, tree{} // copies are lower files to which the layer links
	hidden, opaque := map[string]bool{}, map[string]bool{}
	r := tar.NewReader(bytes.NewReader(data))
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		p, err := own.through(path.Clean(strings.TrimLeft(h.Name, "/")))
		if err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
		base := path.Base(p)
		switch {
		case base == ".wh..wh..opq":
			own.parents(p)
			opaque[path.Dir(p)] = true
		case strings.HasPrefix(base, ".wh."):
			own.parents(p)
			hidden[path.Join(path.Dir(p), base[len(".wh."):])] = true
		default:
			if err := own.entry(p, h, r, t, copies); err != nil {
				return fmt.Errorf("%s: %w", h.Name, err)
			}
		}
	}
	for p := range hidden {
		t.drop(p)
	}
	for p := range opaque {
		for q := range t {
			if q != p && below(q, p) {
				delete(t, q)
			}
		}
	}
	for p, n := range copies {
		if t[p] != nil { // it is not hidden, and is replaced now
			t[p] = n
		}
	}
	for _, p := range slices.Sorted(maps.Keys(own)) {
		n, was := own[p], t[p]
		if was != nil && was.kind == unix.S_IFDIR && n.kind == unix.S_IFDIR {
			if !n.implied {
				t[p] = n
			}
			continue
		}
		t.drop(p)
		t[p] = n
	}
	return nil
}

// entry adds one entry to a layer's own tree; lower is the tree of the layers below.
func (t tree) entry(p string, h *tar.Header, body io.Reader, lower, copies tree) error {
	n := &inode{
		mode: uint32(h.Mode & 0o7777), uid: uint32(h.Uid), gid: uint32(h.Gid), mtime: h.ModTime,
		xattrs: map[string]string{}, nlink: 1,
	}
	for k, v := range h.PAXRecords {
		if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok &&
			!strings.HasPrefix(name, "trusted.overlay.") && !strings.HasPrefix(name, "user.overlay.") {
			n.xattrs[name] = v
		}
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		content, err := io.ReadAll(body)
		if err != nil {
			return err
		}
		n.kind, n.size, n.hash = unix.S_IFREG, int64(len(content)), sha256.Sum256(content)
	case tar.TypeDir:
		n.kind = unix.S_IFDIR
	case tar.TypeSymlink:
		n.kind, n.link, n.mode = unix.S_IFLNK, h.Linkname, 0o777
	case tar.TypeChar:
		n.kind, n.rdev = unix.S_IFCHR, unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	case tar.TypeBlock:
		n.kind, n.rdev = unix.S_IFBLK, unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	case tar.TypeFifo:
		n.kind = unix.S_IFIFO
	case tar.TypeLink:
		target, err := t.through(path.Clean(strings.TrimLeft(h.Linkname, "/")))
		if err != nil {
			return err
		}
		if p != target && (below(p, target) || below(target, p)) || p == target && t[p] == nil {
			return fmt.Errorf("hard link to itself, its own parent or child")
		}
		if n, err = t.linkTarget(target, lower, copies); err != nil {
			return err
		}
		n.nlink++
	default:
		return fmt.Errorf("type %q", h.Typeflag)
	}
	if was := t[p]; was != nil && was.kind == unix.S_IFDIR && n.kind == unix.S_IFDIR {
		t[p] = n
		return nil
	}
	if t[p] != n {
		t.drop(p)
	} else {
		n.nlink-- // the link points to itself
	}
	t.parents(p)
	t[p] = n
	return nil
}

// through follows the symbolic links of t in p, except in the last component, inside the root.
func (t tree) through(p string) (string, error) {
	rest, done := strings.Split(path.Dir(p), "/"), "."
	for links := 0; len(rest) > 0; {
		next := path.Join("/", done, rest[0])[1:]
		if next == "" {
			next = "."
		}
		n := t[next]
		if n == nil || n.kind != unix.S_IFDIR && n.kind != unix.S_IFLNK {
			break
		}
		rest = rest[1:]
		if n.kind == unix.S_IFDIR {
			done = next
			continue
		}
		if links++; links > 40 {
			return "", fmt.Errorf("too many links")
		}
		if strings.HasPrefix(n.link, "/") {
			done = "."
		}
		rest = append(strings.Split(n.link, "/"), rest...)
	}
	if p = path.Join("/", done, path.Join(rest...), path.Base(p))[1:]; p == "" {
		p = "."
	}
	return p, nil
}

func (t tree) linkTarget(target string, lower, copies tree) (*inode, error) {
	if n := t[target]; n != nil {
		if n.kind == unix.S_IFDIR {
			return nil, fmt.Errorf("hard link to a directory")
		}
		return n, nil
	}
	for d := path.Dir(target); d != "."; d = path.Dir(d) {
		if n := t[d]; n != nil && n.kind != unix.S_IFDIR {
			return nil, fmt.Errorf("hard link to %s, which this layer has hidden", target)
		}
	}
	was := lower[target]
	if was == nil || was.kind == unix.S_IFDIR {
		return nil, fmt.Errorf("hard link to %s, which is not there", target)
	}
	if copies[target] == nil {
		up := *was
		up.nlink = 0
		copies[target] = &up
	}
	return copies[target], nil
}

func (t tree) parents(p string) {
	for d := path.Dir(p); d != "."; d = path.Dir(d) {
		if n := t[d]; n == nil || n.kind != unix.S_IFDIR {
			t[d] = impliedDir()
		}
	}
}

func (t tree) drop(p string) {
	for q := range t {
		if below(q, p) {
			if t[q].nlink > 0 {
				t[q].nlink--
			}
			delete(t, q)
		}
	}
}

// below reports whether q is p or is below it.
func below(q, p string) bool { return q == p || p == "." || strings.HasPrefix(q, p+"/") }
