package tree

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/safepath"
)

// WalkOptions of Walk.
type WalkOptions struct {
	Follow  bool     // follow a link at the start
	Include []string // patterns relative to the start
	Exclude []string
	Depth   int // levels below the start; 0 = all
	Bare    bool
	Context context.Context // ends the walk; nil = never

	known bool // a regular file whose digest is remembered is not opened; its Entry cannot be either
}

// Entry is a file that a walk found. It is valid until the visitor returns.
type Entry struct {
	Rel  string // path below the start; "" for the start
	Info Info
	node *os.File // nil for a directory, and for a file with a digest
	tree *Tree
	seen time.Time // no later than Info
	sum  *[sha256.Size]byte
}

// Open opens the regular file for reading. Other kinds are ENXIO.
func (e *Entry) Open() (*os.File, error) { return safepath.Reopen(e.node, unix.O_RDONLY) }

// maxDirEntries is how many names a directory may have. They are held in memory to be sorted.
const maxDirEntries = 4 << 20

// Walk visits the file at start and, if it is a directory, what is below it: a directory before its content, names in order. A directory that patterns
// leave out is visited when something in it is visited. Errors: fs.ErrNotExist when start does not exist or is hidden.
func (t *Tree) Walk(start string, o WalkOptions, visit func(*Entry) error) (err error) {
	w := walker{t: t, o: o, visit: visit, rules: rules{t: t}}
	if w.rules.include, err = newMatcher(o.Include); err != nil {
		return err
	}
	if w.rules.exclude, err = newMatcher(o.Exclude); err != nil {
		return err
	}
	node, real, err := t.open(start, o.Follow)
	if err != nil {
		return err
	}
	defer node.Close()
	m, err := w.rules.above(real)
	if err != nil {
		return err
	}
	seen := time.Now()
	info, err := t.info(node)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		if !m.taken {
			return absent(start)
		}
		return visit(&Entry{Info: info, node: node, tree: t, seen: seen})
	}
	return w.dir(node, real, info, m)
}

type walker struct {
	t     *Tree
	o     WalkOptions
	visit func(*Entry) error
	rules rules
	stack []level
}

// level is a directory on the way down.
type level struct {
	rel, real string
	info      Info
	match     match
	names     []string // still to be visited
	visited   bool
}

// dir walks the directory node. It uses a stack of its own: the tree may be as deep as its author likes.
func (w *walker) dir(node *os.File, real string, info Info, m match) error {
	top, err := w.t.reopenDir(node)
	if err != nil {
		return err
	}
	defer top.Close()
	dirs, err := safepath.NewDirs(top)
	if err != nil {
		return err
	}
	defer dirs.Close()
	if err := w.push(dirs.Dir(), level{real: real, info: info, match: m}); err != nil {
		return err
	}
	for {
		l := &w.stack[len(w.stack)-1]
		if len(l.names) == 0 {
			if w.stack = w.stack[:len(w.stack)-1]; len(w.stack) == 0 {
				return nil
			}
			if err := dirs.Leave(); err != nil {
				return err
			}
			continue
		}
		name := l.names[0]
		l.names = l.names[1:]
		if err := w.child(dirs, l, name); err != nil {
			return err
		}
	}
}

// child visits one name of the lowest directory and enters it if it is a directory.
func (w *walker) child(dirs *safepath.Dirs, l *level, name string) error {
	if w.o.Context != nil && w.o.Context.Err() != nil {
		return context.Cause(w.o.Context)
	}
	next := level{rel: path.Join(l.rel, name), real: path.Join(l.real, name)}
	var err error
	if next.match, err = w.rules.next(l.match, next.real, next.rel); err != nil {
		return errs.New(errs.Invalid, "%s: %v", next.rel, err)
	}
	if !next.match.taken && !next.match.descend {
		return nil
	}
	seen := time.Now()
	if w.o.known && next.match.taken {
		if e := w.remembered(int(dirs.Dir().Fd()), name, next.rel); e != nil {
			if err := w.visitDirs(); err != nil {
				return err
			}
			e.seen = seen
			return w.visit(e)
		}
	}
	fd, err := unix.Openat(int(dirs.Dir().Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil // removed meanwhile
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: next.rel, Err: err}
	}
	node := os.NewFile(uintptr(fd), next.rel)
	defer node.Close()
	if next.info, err = w.t.info(node); err != nil {
		return err
	}
	if !next.info.IsDir() {
		if !next.match.taken {
			return nil
		}
		if err := w.visitDirs(); err != nil {
			return err
		}
		return w.visit(&Entry{Rel: next.rel, Info: next.info, node: node, tree: w.t, seen: seen})
	}
	if w.o.Depth > 0 && len(w.stack) >= w.o.Depth {
		if !next.match.taken {
			return nil
		}
		next.names = nil
		w.stack = append(w.stack, next)
		err := w.visitDirs()
		w.stack = w.stack[:len(w.stack)-1]
		return err
	}
	if !next.match.descend {
		return nil
	}
	f, err := w.t.reopenDir(node)
	if err != nil {
		return err
	}
	if err := dirs.Push(f); err != nil {
		return err
	}
	return w.push(f, next)
}

// remembered returns a regular file of the directory dir whose digest is known; nil for any other.
func (w *walker) remembered(dir int, name, rel string) *Entry {
	var st unix.Stat_t
	if unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil
	}
	k, ok := w.t.digest.get(&st)
	if !ok {
		return nil
	}
	e := &Entry{Rel: rel, Info: w.t.infoOf(&st), tree: w.t, sum: &k.digest}
	e.Info.Xattrs = k.xattrs
	return e
}

// push reads the names of a directory and makes it the lowest one.
func (w *walker) push(f *os.File, l level) error {
	names, err := readNames(f)
	if err != nil {
		return err
	}
	l.names = names
	w.stack = append(w.stack, l)
	if !l.match.taken {
		return nil
	}
	return w.visitDirs()
}

// visitDirs visits the directories on the way that were not visited yet.
func (w *walker) visitDirs() error {
	for i := range w.stack {
		l := &w.stack[i]
		if l.visited {
			continue
		}
		l.visited = true
		if err := w.visit(&Entry{Rel: l.rel, Info: l.info, tree: w.t}); err != nil {
			return err
		}
	}
	return nil
}

func readNames(f *os.File) ([]string, error) {
	var names []string
	for {
		some, err := f.Readdirnames(1024)
		names = append(names, some...)
		if len(names) > maxDirEntries {
			return nil, errs.New(errs.Exhausted, "%s: more than %d files in one directory", f.Name(), maxDirEntries)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	slices.SortFunc(names, strings.Compare)
	return names, nil
}

// reopenDir opens the directory behind node for reading.
func (t *Tree) reopenDir(node *os.File) (*os.File, error) {
	fd, err := unix.Openat(int(node.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: node.Name(), Err: err}
	}
	return os.NewFile(uintptr(fd), node.Name()), nil
}
