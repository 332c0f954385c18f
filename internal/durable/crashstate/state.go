package crashstate

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// State is one state in which a crash can leave the directory.
type State struct {
	root *node
	lost []string
}

// Choice decides about an operation that a crash may lose.
type Choice interface {
	// Keep reports whether the operation is kept.
	Keep() bool
	// Part returns how many of size bytes of a write are kept, or a negative number for all of them.
	Part(size int) int
}

type all bool

func (a all) Keep() bool { return bool(a) }
func (all) Part(int) int { return -1 }

// The choices that lose the least and the most.
var (
	KeepAll Choice = all(true)
	LoseAll Choice = all(false)
)

// Random decides at random. Share is how many of 100 operations it keeps.
type Random struct {
	*rand.Rand
	Share int
}

// Keep implements Choice.
func (r Random) Keep() bool { return r.IntN(100) < r.Share }

// Part implements Choice.
func (r Random) Part(size int) int {
	const sector = 512
	if size <= sector || r.IntN(4) > 0 {
		return -1
	}
	return r.IntN(size/sector) * sector
}

// State returns a state after the first n operations.
func (l *Log) State(n int, c Choice) *State {
	kept, parts := l.choose(n, c)
	nodes := map[int]*node{}
	s := &State{root: copyTree(l.base, nodes)}
	find := func(o *node) *node { // the state's node for one of the log
		f := nodes[o.id]
		if f == nil { // made by an operation
			f = &node{id: o.id}
			if o.isDir() {
				f.names = map[string]*node{}
			}
			nodes[o.id] = f
		}
		f.inherit(o)
		return f
	}
	for i := range l.ops[:n] {
		o := &l.ops[i]
		switch {
		case !kept[i]:
			s.lost = append(s.lost, o.what)
		case o.file != nil:
			if parts[i] >= 0 {
				s.lost = append(s.lost, fmt.Sprintf("all but %d bytes of %s", parts[i], o.what))
			}
			o.content(find(o.file), parts[i])
		default:
			o.names(find)
		}
	}
	return s
}

// choose decides which of the first n operations are kept, and how many bytes of each write.
func (l *Log) choose(n int, c Choice) (kept []bool, parts []int) {
	kept, parts = make([]bool, n), make([]int, n)
	// What a durable change of names depends on is durable too: the earlier changes in the same directories.
	needed := map[*node]bool{}
	for i := n - 1; i >= 0; i-- {
		o := &l.ops[i]
		parts[i] = -1
		kept[i] = o.durable > 0 && o.durable <= n
		for _, d := range o.dirs {
			kept[i] = kept[i] || needed[d]
		}
		if kept[i] {
			for _, d := range o.dirs {
				needed[d] = true
			}
		}
	}
	stopped := map[*node]bool{} // directories of which a change is lost, and so are all later ones
	for i := range n {
		o := &l.ops[i]
		if kept[i] {
			continue
		}
		kept[i] = c.Keep() && !slices.ContainsFunc(o.dirs, func(d *node) bool { return stopped[d] })
		if kept[i] && o.size > 0 {
			parts[i] = c.Part(o.size)
		}
		if !kept[i] {
			for _, d := range o.dirs {
				stopped[d] = true
			}
		}
	}
	return kept, parts
}

// Lost describes what the crash lost.
func (s *State) Lost() string {
	const most = 40
	if len(s.lost) > most {
		return strings.Join(s.lost[:most], "; ") + fmt.Sprintf("; and %d more", len(s.lost)-most)
	}
	return strings.Join(s.lost, "; ")
}

// Sum identifies the names and content of a state.
func (s *State) Sum() [32]byte {
	var b bytes.Buffer
	s.walk(func(path string, n *node) error {
		fmt.Fprintf(&b, "%q %o %d %x\n", path, n.mode, len(n.data), sha256.Sum256(n.data))
		return nil
	})
	return sha256.Sum256(b.Bytes())
}

func (s *State) walk(visit func(path string, n *node) error) error {
	var walk func(path string, n *node) error
	walk = func(path string, n *node) error {
		if err := visit(path, n); err != nil {
			return err
		}
		for _, name := range slices.Sorted(maps.Keys(n.names)) {
			if err := walk(filepath.Join(path, name), n.names[name]); err != nil {
				return err
			}
		}
		return nil
	}
	return walk(".", s.root)
}

// Write makes the state at dir, which must not exist.
func (s *State) Write(dir string) error {
	first := map[*node]string{}
	err := s.walk(func(path string, n *node) error {
		at := filepath.Join(dir, path)
		if other, ok := first[n]; ok {
			return os.Link(other, at)
		}
		first[n] = at
		if err := n.write(at); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		return nil
	})
	for n, at := range first { // at the end, because what is made in a directory changes its time
		if err == nil {
			err = unix.UtimesNanoAt(unix.AT_FDCWD, at, []unix.Timespec{n.mtime, n.mtime}, unix.AT_SYMLINK_NOFOLLOW)
		}
	}
	return err
}

func (n *node) write(at string) error {
	var err error
	switch n.mode & unix.S_IFMT {
	case unix.S_IFDIR:
		err = os.Mkdir(at, 0o700)
	case unix.S_IFREG:
		err = os.WriteFile(at, n.data, 0o600)
	case unix.S_IFLNK:
		err = os.Symlink(n.target, at)
	default:
		err = unix.Mknod(at, n.mode, int(n.rdev))
	}
	if err == nil {
		err = os.Lchown(at, int(n.uid), int(n.gid))
	}
	if err == nil && n.mode&unix.S_IFMT != unix.S_IFLNK {
		err = unix.Chmod(at, n.mode&0o7777)
	}
	for name, value := range n.xattrs {
		if err == nil {
			err = unix.Lsetxattr(at, name, []byte(value), 0)
		}
	}
	return err
}
