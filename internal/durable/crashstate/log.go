// Package crashstate computes the states in which a crash can leave a directory. Tests record what a program does to the directory,
// put each state into a fresh directory, and open it.
//
// A Log has the operations in their order. Of the first n operations, a crash after them keeps
//
//   - every change of a file's content that a later sync of the file, or of the whole file system, covers; of the others any
//     subset, and of each one perhaps only a part;
//   - every change of names that a later sync of the directory, or of the whole file system, covers; of the others any subset
//     that has, of each directory, the changes up to some moment. A rename between two directories is atomic and belongs to both.
//
// So content and names, the contents of two files, and the names in two directories have no order among them but that of the syncs.
// That is less than ext4, xfs and btrfs promise: a program that survives all these states depends on no habit of a file system.
// Modes, owners, times and extended attributes are not subject to loss.
package crashstate

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// node is a file or a directory. The nodes of the log have the state after all operations; those of a State have another one.
type node struct {
	id       int
	mode     uint32 // with the type, as in stat
	uid, gid uint32
	rdev     uint64
	target   string // of a symbolic link
	xattrs   map[string]string
	mtime    unix.Timespec
	data     []byte
	names    map[string]*node // of a directory
}

func (n *node) isDir() bool { return n.mode&unix.S_IFMT == unix.S_IFDIR }

// op is one operation. It changes content or names.
type op struct {
	what    string
	file    *node                   // whose content is changed, or nil
	content func(n *node, part int) // changes the content; of a write, only the first part bytes unless part < 0
	size    int                     // of a write
	dirs    []*node                 // in which names are changed
	names   func(find func(*node) *node)
	durable int // the operation is durable from this length of the log on; 0 = never so far
}

// Log is the record of what a program does to a directory. Paths are relative to the directory.
type Log struct {
	base *node // before the first operation
	now  *node
	ids  int
	ops  []op
}

// Scan starts a log for a directory. Everything in it counts as durable.
func Scan(dir string) (*Log, error) {
	l := &Log{}
	var err error
	if l.now, err = l.scan(dir); err != nil {
		return nil, err
	}
	l.base = copyTree(l.now, map[int]*node{})
	return l, nil
}

func (l *Log) node(mode uint32) *node {
	l.ids++
	n := &node{id: l.ids, mode: mode}
	if n.isDir() {
		n.names = map[string]*node{}
	}
	return n
}

func (l *Log) scan(path string) (*node, error) {
	seen := map[uint64]*node{}
	var visit func(path string) (*node, error)
	visit = func(path string) (*node, error) {
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return nil, &fs.PathError{Op: "lstat", Path: path, Err: err}
		}
		if n := seen[st.Ino]; n != nil {
			return n, nil
		}
		n := l.node(st.Mode)
		seen[st.Ino] = n
		if err := n.attributes(path, &st); err != nil {
			return nil, err
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(path)
			if err != nil {
				return nil, err
			}
			n.data = b
		case unix.S_IFDIR:
			entries, err := os.ReadDir(path)
			if err != nil {
				return nil, err
			}
			for _, e := range entries {
				if n.names[e.Name()], err = visit(filepath.Join(path, e.Name())); err != nil {
					return nil, err
				}
			}
		}
		return n, nil
	}
	return visit(path)
}

// inherit takes over what is not subject to loss.
func (n *node) inherit(from *node) {
	n.mode, n.uid, n.gid, n.rdev, n.target, n.xattrs, n.mtime = from.mode, from.uid, from.gid, from.rdev, from.target, from.xattrs, from.mtime
}

// attributes reads what is not subject to loss.
func (n *node) attributes(path string, st *unix.Stat_t) (err error) {
	n.mode, n.uid, n.gid, n.rdev, n.mtime = st.Mode, st.Uid, st.Gid, st.Rdev, st.Mtim
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		if n.target, err = os.Readlink(path); err != nil {
			return err
		}
	}
	list := make([]byte, 4096)
	size, err := unix.Llistxattr(path, list)
	if err != nil {
		if errors.Is(err, unix.ENOTSUP) {
			return nil
		}
		return err
	}
	n.xattrs = map[string]string{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:size]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 4096)
		size, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return err
		}
		n.xattrs[name] = string(value[:size])
	}
	return nil
}

func copyTree(n *node, done map[int]*node) *node {
	if c := done[n.id]; c != nil {
		return c
	}
	c := *n
	done[n.id] = &c
	c.data = bytes.Clone(n.data)
	if n.names != nil {
		c.names = make(map[string]*node, len(n.names))
		for name, child := range n.names {
			c.names[name] = copyTree(child, done)
		}
	}
	return &c
}

// Len returns the number of operations so far.
func (l *Log) Len() int { return len(l.ops) }

// What describes an operation, for messages.
func (l *Log) What(i int) string { return l.ops[i].what }

func (l *Log) at(path string) *node {
	n := l.now
	for part := range strings.SplitSeq(filepath.Clean(path), "/") {
		if part == "." || part == "" {
			continue
		}
		if n == nil || n.names == nil {
			return nil
		}
		n = n.names[part]
	}
	return n
}

// Has reports whether there is something at path.
func (l *Log) Has(path string) bool { return l.at(path) != nil }

// Size returns the length of the file at path, and 0 when there is none.
func (l *Log) Size(path string) int64 {
	if n := l.at(path); n != nil {
		return int64(len(n.data))
	}
	return 0
}

func (l *Log) parent(path string) (*node, string, error) {
	dir := l.at(filepath.Dir(path))
	if dir == nil || !dir.isDir() {
		return nil, "", fmt.Errorf("%s: the log has no directory for it", path)
	}
	return dir, filepath.Base(path), nil
}

func (l *Log) changeNames(what string, names func(find func(*node) *node), dirs ...*node) {
	names(func(n *node) *node { return n })
	l.ops = append(l.ops, op{what: what, dirs: dirs, names: names})
}

// Make records that path was made. mode has the type, as in stat.
func (l *Log) Make(path string, mode uint32, rdev uint64, target string) error {
	dir, name, err := l.parent(path)
	if err != nil {
		return err
	}
	made := l.node(mode)
	made.rdev, made.target = rdev, target
	l.changeNames("make "+path, func(find func(*node) *node) { find(dir).names[name] = find(made) }, dir)
	return nil
}

// Link records another name of a file.
func (l *Log) Link(from, to string) error {
	n := l.at(from)
	dir, name, err := l.parent(to)
	if err != nil || n == nil {
		return fmt.Errorf("link %s to %s: %w", from, to, err)
	}
	l.changeNames("link "+to, func(find func(*node) *node) { find(dir).names[name] = find(n) }, dir)
	return nil
}

// Rename records that from was renamed to to, or exchanged with it.
func (l *Log) Rename(from, to string, exchange bool) error {
	n := l.at(from)
	dir1, name1, err1 := l.parent(from)
	dir2, name2, err2 := l.parent(to)
	if n == nil || err1 != nil || err2 != nil {
		return fmt.Errorf("rename %s to %s: the log does not have it: %w", from, to, errors.Join(err1, err2))
	}
	other := l.at(to)
	dirs := []*node{dir1}
	if dir2 != dir1 {
		dirs = append(dirs, dir2)
	}
	l.changeNames("rename "+from+" to "+to, func(find func(*node) *node) {
		delete(find(dir1).names, name1)
		find(dir2).names[name2] = find(n)
		if exchange {
			find(dir1).names[name1] = find(other)
		}
	}, dirs...)
	return nil
}

// Remove records that a name was removed.
func (l *Log) Remove(path string) error {
	dir, name, err := l.parent(path)
	if err != nil {
		return err
	}
	l.changeNames("remove "+path, func(find func(*node) *node) { delete(find(dir).names, name) }, dir)
	return nil
}

// Write records a write to the file at path.
func (l *Log) Write(path string, off int64, data []byte) error {
	n := l.at(path)
	if n == nil {
		return fmt.Errorf("write %s: the log does not have it", path)
	}
	data = bytes.Clone(data)
	l.changeContent(fmt.Sprintf("write %s %d+%d", path, off, len(data)), n, len(data), func(n *node, part int) {
		b := data
		if part >= 0 {
			b = b[:part]
		}
		if end := int(off) + len(b); end > len(n.data) {
			n.data = append(n.data, make([]byte, end-len(n.data))...)
		}
		copy(n.data[off:], b)
	})
	return nil
}

// Truncate records a change of the length of the file at path.
func (l *Log) Truncate(path string, size int64) error {
	n := l.at(path)
	if n == nil {
		return fmt.Errorf("truncate %s: the log does not have it", path)
	}
	l.changeContent(fmt.Sprintf("truncate %s %d", path, size), n, 0, func(n *node, _ int) {
		if int(size) <= len(n.data) {
			n.data = n.data[:size:size]
		} else {
			n.data = append(n.data, make([]byte, int(size)-len(n.data))...)
		}
	})
	return nil
}

func (l *Log) changeContent(what string, n *node, size int, content func(*node, int)) {
	content(n, -1)
	l.ops = append(l.ops, op{what: what, file: n, size: size, content: content})
}

// Sync records a sync of the file or directory at path. It covers the first n operations: those that were complete when the sync
// began.
func (l *Log) Sync(path string, n int) {
	if synced := l.at(path); synced != nil {
		l.cover(n, func(o *op) bool { return o.file == synced || slices.Contains(o.dirs, synced) })
	}
}

// SyncAll records a sync of the whole file system. It covers the first n operations.
func (l *Log) SyncAll(n int) { l.cover(n, func(*op) bool { return true }) }

// cover makes operations durable. The change of a name is durable when each directory of it is: what is durable of one directory
// has the change, and then so has the other.
func (l *Log) cover(n int, covers func(*op) bool) {
	for i := range l.ops[:n] {
		if o := &l.ops[i]; o.durable == 0 && covers(o) {
			o.durable = max(len(l.ops), 1)
		}
	}
}

// Adopt reads the attributes, which are not subject to loss, of everything that is still in the directory. It fails when the directory
// has other names or other content than the log: then something was not recorded. Names for which skip returns true may differ.
func (l *Log) Adopt(dir string, skip func(path string) bool) error {
	other := &Log{}
	real, err := other.scan(dir)
	if err != nil {
		return err
	}
	var all error
	var visit func(path string, n, r *node)
	visit = func(path string, n, r *node) {
		if skip(path) {
			return
		}
		n.inherit(r)
		if !bytes.Equal(n.data, r.data) {
			all = errors.Join(all, fmt.Errorf("%s: the log has %d bytes, the directory has other %d", path, len(n.data), len(r.data)))
		}
		for _, name := range slices.Sorted(maps.Keys(r.names)) {
			at := filepath.Join(path, name)
			if n.names[name] == nil && !skip(at) {
				all = errors.Join(all, fmt.Errorf("%s: the log does not have it", at))
			} else if n.names[name] != nil {
				visit(at, n.names[name], r.names[name])
			}
		}
		for _, name := range slices.Sorted(maps.Keys(n.names)) {
			if at := filepath.Join(path, name); r.names[name] == nil && !skip(at) {
				all = errors.Join(all, fmt.Errorf("%s: the directory does not have it", at))
			}
		}
	}
	visit(".", l.now, real)
	return all
}
