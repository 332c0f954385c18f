// Package tree reads file trees that a build step uses: a directory of a client, a checkout, or the mounted layers of an earlier
// step. It selects files by the patterns of COPY and .dockerignore, and computes digests of what was selected.
//
// Invariants: the content of a tree is hostile, and anyone may change it meanwhile. Every path is resolved by the kernel below the root's
// descriptor (package safepath), files are read through the descriptor whose kind was checked, and no special file is opened. A file that
// the patterns of the tree hide does not exist for any function.
package tree

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/patternmatcher"
	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/safepath"
)

// Tree is a directory and what of it is visible. Safe for concurrent use.
type Tree struct {
	root   *os.File
	opts   Options
	hide   *patternmatcher.PatternMatcher
	show   *patternmatcher.PatternMatcher
	digest *Digests
}

// Options of New.
type Options struct {
	Include   []string // only files that one of these patterns matches; nil = all
	Exclude   []string // the lines of .dockerignore
	RootOwned bool     // every file belongs to 0:0, whoever owns it, as files of a client do
	Digests   *Digests // remembers digests of files; nil = nothing is remembered
}

// New returns the tree below root, which it does not close. Errors: errs.Invalid for a malformed pattern.
func New(root *os.File, o Options) (*Tree, error) {
	t := &Tree{root: root, opts: o, digest: o.Digests}
	var err error
	if t.hide, err = newMatcher(o.Exclude); err != nil {
		return nil, err
	}
	t.show, err = newMatcher(o.Include)
	return t, err
}

func newMatcher(patterns []string) (*patternmatcher.PatternMatcher, error) {
	if len(patterns) == 0 {
		return nil, nil
	}
	m, err := patternmatcher.New(patterns)
	if err != nil {
		return nil, errs.New(errs.Invalid, "pattern: %v", err)
	}
	return m, nil
}

// Root returns the descriptor of the root. It shows files that patterns hide.
func (t *Tree) Root() *os.File { return t.root }

// Info describes a file.
type Info struct {
	Mode     uint32 // type and permissions, as in stat(2)
	UID, GID uint32
	Size     int64
	Time     time.Time
	Rdev     uint64
	Link     string            // target of a symbolic link
	Xattrs   map[string]string // those that a layer keeps

	id    FileID
	links uint64
	ctime unix.Timespec
}

// FileID says which file an Info is of.
type FileID struct{ Dev, Ino uint64 }

// IsDir reports whether the file is a directory.
func (i *Info) IsDir() bool { return i.Mode&unix.S_IFMT == unix.S_IFDIR }

// IsRegular reports whether it is a regular file.
func (i *Info) IsRegular() bool { return i.Mode&unix.S_IFMT == unix.S_IFREG }

// IsLink reports whether it is a symbolic link.
func (i *Info) IsLink() bool { return i.Mode&unix.S_IFMT == unix.S_IFLNK }

// HardLink returns what other names of the same file have in common; false when the file has one name.
func (i *Info) HardLink() (FileID, bool) { return i.id, i.links > 1 && !i.IsDir() }

// info describes an open node, which may have been opened with O_PATH.
func (t *Tree) info(f *os.File) (i Info, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return i, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	i = t.infoOf(&st)
	if i.IsLink() {
		if i.Link, err = safepath.Readlinkat(f, ""); err != nil {
			return i, err
		}
	}
	i.Xattrs, err = xattrs(f)
	return i, err
}

// infoOf returns what a stat says, which is all but the target of a link and the extended attributes.
func (t *Tree) infoOf(st *unix.Stat_t) Info {
	i := Info{
		Mode: st.Mode, UID: st.Uid, GID: st.Gid, Size: st.Size, Time: time.Unix(st.Mtim.Unix()).UTC(), Rdev: st.Rdev,
		id: FileID{st.Dev, st.Ino}, links: uint64(st.Nlink), ctime: st.Ctim,
	}
	if t.opts.RootOwned {
		i.UID, i.GID = 0, 0
	}
	return i
}

// kept reports whether a layer keeps an extended attribute.
func kept(name string) bool {
	return name == "security.capability" || strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "system.posix_acl_")
}

const maxXattrs = 1 << 20 // bytes of all values of one file

// xattrs reads the attributes of an open node. A file system without them has none.
func xattrs(f *os.File) (map[string]string, error) {
	name := "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
	var buf [4096]byte
	list := buf[:]
	n, err := unix.Listxattr(name, list)
	if errors.Is(err, unix.ERANGE) {
		list = make([]byte, 1<<16)
		n, err = unix.Listxattr(name, list)
	}
	switch {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM), errors.Is(err, unix.ENOENT), n == 0 && err == nil:
		return nil, nil // links and special files have none that a layer keeps
	case err != nil:
		return nil, &os.PathError{Op: "listxattr", Path: f.Name(), Err: err}
	}
	var out map[string]string
	total := 0
	for _, key := range strings.Split(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		if !kept(key) {
			continue
		}
		value := make([]byte, 1<<16)
		n, err := unix.Getxattr(name, key, value)
		if errors.Is(err, unix.ENODATA) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, &os.PathError{Op: "getxattr", Path: f.Name(), Err: err}
		}
		if total += n; total > maxXattrs {
			return nil, errs.New(errs.Invalid, "%s: extended attributes have more than %d bytes", f.Name(), maxXattrs)
		}
		if out == nil {
			out = map[string]string{}
		}
		out[key] = string(value[:n])
	}
	return out, nil
}

// errHidden is the error for what patterns hide: it does not exist.
func absent(p string) error { return &os.PathError{Op: "open", Path: p, Err: fs.ErrNotExist} }

// open opens the node at p, a path in the tree, with O_PATH. It also returns the real path, without links, which patterns judge.
func (t *Tree) open(p string, follow bool) (*os.File, string, error) {
	flags := unix.O_PATH
	if !follow {
		flags |= unix.O_NOFOLLOW
	}
	f, err := safepath.Open(t.root, p, flags, 0)
	if err != nil {
		return nil, "", err
	}
	real := relative(p)
	if t.hide != nil || t.show != nil {
		// The place of the file decides, not the links on the way to it.
		if real, err = t.realPath(f); err == nil && !t.reachable(real) {
			err = absent(p)
		}
		if err != nil {
			return nil, "", errors.Join(err, f.Close())
		}
	}
	return f, real, nil
}

// relative returns p as a clean path without a leading slash; the root is ".".
func relative(p string) string {
	p = strings.TrimPrefix(path.Clean("/"+p), "/")
	if p == "" {
		return "."
	}
	return p
}

// realPath returns where f is below the root.
func (t *Tree) realPath(f *os.File) (string, error) {
	top, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(t.root.Fd())))
	if err != nil {
		return "", err
	}
	at, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(f.Fd())))
	if err != nil {
		return "", err
	}
	if at == top {
		return ".", nil
	}
	rest, ok := strings.CutPrefix(at, strings.TrimSuffix(top, "/")+"/")
	if !ok {
		return "", errs.New(errs.Conflict, "%s was moved while it was read", f.Name())
	}
	return rest, nil
}

// rules are the patterns that decide about a walk: those of the tree and those of one copy. Results for a directory speed up those for
// what is in it.
type rules struct {
	t                *Tree
	include, exclude *patternmatcher.PatternMatcher
}

// match is what the rules say about one path.
type match struct {
	hide, show, include, exclude patternmatcher.MatchInfo
	taken                        bool // the file itself is selected
	descend                      bool // something below it may be
}

func (r *rules) root() match { return match{taken: true, descend: true} }

// next judges a path whose directory was judged as up. real is the path in the tree, rel the path in the copied directory; "" leaves
// the rules of the copy out.
func (r *rules) next(up match, real, rel string) (m match, err error) {
	m.taken, m.descend = true, true
	test := func(p *patternmatcher.PatternMatcher, name string, up patternmatcher.MatchInfo, def bool) (bool, patternmatcher.MatchInfo) {
		if p == nil || err != nil || name == "" || name == "." {
			return def, up
		}
		ok, info, failed := p.MatchesUsingParentResults(name, up)
		err = failed
		return ok, info
	}
	var hidden, shown, included, excluded bool
	hidden, m.hide = test(r.t.hide, real, up.hide, false)
	shown, m.show = test(r.t.show, real, up.show, true)
	included, m.include = test(r.include, rel, up.include, true)
	excluded, m.exclude = test(r.exclude, rel, up.exclude, false)
	m.taken = !hidden && shown && included && !excluded
	m.descend = (!hidden || r.t.hide.Exclusions()) && (!excluded || r.exclude.Exclusions())
	return m, err
}

// above judges the directories on the way to a path, and the path, by the rules of the tree.
func (r *rules) above(real string) (m match, err error) {
	m = r.root()
	if real == "." {
		return m, nil
	}
	parts := strings.Split(real, "/")
	for i := range parts {
		if m, err = r.next(m, strings.Join(parts[:i+1], "/"), ""); err != nil {
			return m, err
		}
	}
	return m, nil
}

// reachable reports whether a path is visible, or is a directory that may have something visible in it.
func (t *Tree) reachable(real string) bool {
	m, err := (&rules{t: t}).above(real)
	return err == nil && (m.taken || m.descend)
}

// Stat describes the file at p. It follows a link at the end if follow is set. Errors: fs.ErrNotExist also for a hidden file.
func (t *Tree) Stat(p string, follow bool) (Info, error) {
	f, _, err := t.open(p, follow)
	if err != nil {
		return Info{}, err
	}
	defer f.Close()
	return t.info(f)
}

// ReadFile reads at most limit bytes from offset of the regular file at p, following links. Errors: fs.ErrNotExist.
func (t *Tree) ReadFile(p string, offset, limit int64) ([]byte, error) {
	node, real, err := t.open(p, true)
	if err != nil {
		return nil, err
	}
	defer node.Close()
	if m, err := (&rules{t: t}).above(real); err != nil || !m.taken {
		return nil, errors.Join(err, absent(p))
	}
	f, err := safepath.Reopen(node, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.NewSectionReader(f, offset, limit))
}

// ReadDir returns the visible names in the directory at p in order, with what they are. Errors: fs.ErrNotExist.
func (t *Tree) ReadDir(p string) (names []string, infos []Info, err error) {
	err = t.Walk(p, WalkOptions{Depth: 1}, func(e *Entry) error {
		if e.Rel == "" {
			if !e.Info.IsDir() {
				return &os.PathError{Op: "readdir", Path: p, Err: unix.ENOTDIR}
			}
			return nil
		}
		names, infos = append(names, e.Rel), append(infos, e.Info)
		return nil
	})
	return names, infos, err
}

// Match returns the paths that src names, in order: src itself without wildcards, or else what matches. A directory that matches is not searched.
func (t *Tree) Match(src string, follow bool) ([]string, error) {
	fixed, pattern := splitWildcards(src)
	if pattern == "" {
		return []string{fixed}, nil
	}
	if _, err := path.Match(pattern, ""); err != nil {
		return nil, errs.New(errs.Invalid, "%s: %v", src, err)
	}
	var out []string
	levels := strings.Count(pattern, "/") + 1
	err := t.Walk(fixed, WalkOptions{Follow: follow, Depth: levels, Bare: true}, func(e *Entry) error {
		if e.Rel == "" {
			return nil
		}
		if ok, _ := path.Match(pattern, e.Rel); ok {
			out = append(out, path.Join("/", fixed, e.Rel))
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	slices.Sort(out)
	return out, err
}

// splitWildcards splits a path before the first component with a wildcard.
func splitWildcards(p string) (fixed, pattern string) {
	parts := strings.Split(strings.TrimPrefix(path.Clean("/"+p), "/"), "/")
	at := slices.IndexFunc(parts, hasWildcard)
	if at < 0 {
		return "/" + strings.Join(parts, "/"), ""
	}
	return "/" + strings.Join(parts[:at], "/"), strings.Join(parts[at:], "/")
}

func hasWildcard(s string) bool {
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '*', '?', '[':
			return true
		}
	}
	return false
}
