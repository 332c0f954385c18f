package layertest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// inode is what can be seen of a file. Names that share an *inode are hard links.
type inode struct {
	kind    uint32 // S_IF…
	mode    uint32 // permission bits, with set-ids and sticky
	uid     uint32
	gid     uint32
	mtime   time.Time
	anyTime bool // the time is not specified
	size    int64
	hash    [32]byte // of a regular file's content
	link    string   // of a symbolic link
	rdev    uint64
	xattrs  map[string]string
	implied bool // a directory that no entry described; only in the model
	nlink   int  // number of names in its own layer; compared only for single layers
}

// tree maps relative paths to inodes; "." is the root.
type tree map[string]*inode

// readTree reads the tree below root, which must exist.
func readTree(tb testing.TB, root string) tree {
	tb.Helper()
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		tb.Fatalf("read tree %s: %v", root, err)
	}
	f := os.NewFile(uintptr(fd), root)
	defer f.Close()
	r := &treeReader{tree: tree{}, seen: map[[2]uint64]*inode{}}
	if err := r.read(f, "."); err != nil {
		tb.Fatalf("read tree %s: %v", root, err)
	}
	return r.tree
}

type treeReader struct {
	tree tree
	seen map[[2]uint64]*inode
}

func (r *treeReader) read(d *os.File, path string) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(d.Fd()), &st); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	n, err := readInode(int(d.Fd()), ".", &st)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	r.tree[path] = n
	names, err := d.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	slices.Sort(names)
	for _, name := range names {
		p := name
		if path != "." {
			p = path + "/" + name
		}
		if err := r.child(d, name, p); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	return nil
}

func (r *treeReader) child(d *os.File, name, path string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(int(d.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		fd, err := unix.Openat(int(d.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		sub := os.NewFile(uintptr(fd), name)
		defer sub.Close()
		return r.read(sub, path)
	}
	id := [2]uint64{st.Dev, st.Ino}
	if n := r.seen[id]; n != nil && st.Nlink > 1 {
		r.tree[path] = n
		return nil
	}
	n, err := readInode(int(d.Fd()), name, &st)
	if err != nil {
		return err
	}
	r.seen[id], r.tree[path] = n, n
	return nil
}

func readInode(dirfd int, name string, st *unix.Stat_t) (*inode, error) {
	n := &inode{
		kind: st.Mode & unix.S_IFMT, mode: st.Mode & 0o7777, uid: st.Uid, gid: st.Gid,
		mtime: time.Unix(st.Mtim.Sec, st.Mtim.Nsec), nlink: int(st.Nlink),
	}
	switch n.kind {
	case unix.S_IFREG:
		n.size = st.Size
		fd, err := unix.Openat(dirfd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		f := os.NewFile(uintptr(fd), name)
		defer f.Close()
		h := sha256.New()
		if _, err := f.WriteTo(h); err != nil {
			return nil, err
		}
		h.Sum(n.hash[:0])
	case unix.S_IFLNK:
		buf := make([]byte, 8192)
		l, err := unix.Readlinkat(dirfd, name, buf)
		if err != nil {
			return nil, err
		}
		n.link, n.size = string(buf[:l]), 0
	case unix.S_IFCHR, unix.S_IFBLK:
		n.rdev = st.Rdev
	}
	var err error
	n.xattrs, err = readXattrs(fmt.Sprintf("/proc/self/fd/%d/%s", dirfd, name))
	return n, err
}

// readXattrs returns the xattrs of a name without those that the host adds.
func readXattrs(path string) (map[string]string, error) {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if errors.Is(err, unix.ENOTSUP) || n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	all := map[string]string{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if name == "security.selinux" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		all[name] = string(value[:n])
	}
	return all, nil
}

func (n *inode) String() string {
	s := fmt.Sprintf("%06o %d:%d %s", n.kind|n.mode, n.uid, n.gid, n.mtime.UTC().Format(time.RFC3339Nano))
	switch n.kind {
	case unix.S_IFREG:
		s += fmt.Sprintf(" %d bytes %x", n.size, n.hash[:4])
	case unix.S_IFLNK:
		s += fmt.Sprintf(" -> %q", n.link)
	case unix.S_IFCHR, unix.S_IFBLK:
		s += fmt.Sprintf(" dev %d:%d", unix.Major(n.rdev), unix.Minor(n.rdev))
	}
	for _, k := range slices.Sorted(maps.Keys(n.xattrs)) {
		s += fmt.Sprintf(" %s=%q", k, n.xattrs[k])
	}
	return s
}

func (n *inode) same(o *inode) bool {
	return n.kind == o.kind && n.mode == o.mode && n.uid == o.uid && n.gid == o.gid && n.size == o.size &&
		(n.anyTime || o.anyTime || n.mtime.Equal(o.mtime)) && n.hash == o.hash && n.link == o.link && n.rdev == o.rdev &&
		maps.Equal(n.xattrs, o.xattrs)
}

// compareTrees returns one line per difference, at most 20.
func compareTrees(got, want tree) []string {
	var lines []string
	paths := slices.Collect(maps.Keys(want))
	for p := range got {
		if want[p] == nil {
			paths = append(paths, p)
		}
	}
	slices.Sort(paths)
	toGot, toWant := map[*inode]*inode{}, map[*inode]*inode{}
	for _, p := range paths {
		g, w := got[p], want[p]
		switch {
		case g == nil:
			lines = append(lines, fmt.Sprintf("%q: missing, want %v", p, w))
		case w == nil:
			lines = append(lines, fmt.Sprintf("%q: unexpected %v", p, g))
		case !g.same(w):
			lines = append(lines, fmt.Sprintf("%q:\n\t got %v\n\twant %v", p, g, w))
		case toGot[w] != nil && toGot[w] != g, toWant[g] != nil && toWant[g] != w:
			lines = append(lines, fmt.Sprintf("%q: linked to other names than wanted", p))
		default:
			toGot[w], toWant[g] = g, w
		}
		if len(lines) == 20 {
			return append(lines, "…")
		}
	}
	return lines
}

// checkTree compares the tree at root with want.
func checkTree(tb testing.TB, what, root string, want tree) {
	tb.Helper()
	if lines := compareTrees(readTree(tb, root), want); len(lines) > 0 {
		tb.Errorf("%s differs:\n%s", what, strings.Join(lines, "\n"))
	}
}
