package writable

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"ply/internal/store/layer"
	"ply/internal/store/layer/upper"
)

// FDPath returns a path of an open file, for calls that need one.
func FDPath(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }

// BuildInit creates in the empty directory dir those entries that base does not have. It follows symbolic links to parents
// inside the image. An entry that the image has with another type (a link at /dev, a directory at /etc/hosts) is masked.
func BuildInit(dir string, base Base, entries []layer.InitEntry) error {
	top, err := OpenDir(dir)
	if err != nil {
		return err
	}
	dirs := []*os.File{top}
	defer func() { closeAll(dirs) }()
	if len(entries) > 0 {
		below, err := base.Open()
		if err != nil {
			return err
		}
		dirs = append(dirs, below...)
	}
	b := &initBuilder{dirs: dirs, stack: upper.StackLower(dirs...)}
	entries = slices.Clone(entries)
	slices.SortFunc(entries, func(x, y layer.InitEntry) int { return strings.Compare(x.Path, y.Path) })
	for _, e := range entries {
		if err := b.entry(e); err != nil {
			return fmt.Errorf("%s: %w", e.Path, err)
		}
	}
	// Creating what is inside changed their times.
	for _, d := range slices.Backward(b.copied) {
		if err := upper.CopyAttrs(int(top.Fd()), d.from, d.path); err != nil {
			return fmt.Errorf("%s: %w", d.path, err)
		}
	}
	return nil
}

type initBuilder struct {
	dirs   []*os.File // init/ first
	stack  *upper.Stack
	copied []copiedDir
}

type copiedDir struct {
	from int // descriptor of the layer
	path string
}

func (b *initBuilder) entry(e layer.InitEntry) error {
	p := strings.TrimPrefix(path.Clean("/"+e.Path), "/")
	if p == "" {
		return nil
	}
	parent, err := b.parent(path.Dir(p))
	if err != nil {
		return err
	}
	p = path.Join(parent, path.Base(p))
	b.stack.Forget()
	st, _, found, err := b.stack.Where(p)
	if err != nil {
		return err
	}
	kind := st.Mode & unix.S_IFMT
	switch {
	case !found:
	case e.Link != "", e.Dir && kind == unix.S_IFDIR, !e.Dir && kind == unix.S_IFREG:
		return nil
	}
	if err := b.makeAll(parent); err != nil {
		return err
	}
	top := int(b.dirs[0].Fd())
	switch {
	case e.Link != "":
		return unix.Symlinkat(e.Link, top, p)
	case e.Dir:
		if err := unix.Mkdirat(top, p, e.Mode&0o7777); err != nil {
			return err
		}
	default:
		fd, err := unix.Openat(top, p, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, e.Mode&0o7777)
		if err != nil {
			return err
		}
		unix.Close(fd)
	}
	return unix.Fchmodat(top, p, e.Mode&0o7777, 0) // independent of the umask
}

const maxLinks = 40

// parent follows the symbolic links in dir, inside the image.
func (b *initBuilder) parent(dir string) (string, error) {
	pending := strings.Split(dir, "/")
	done := "."
	for links := 0; len(pending) > 0; {
		part := pending[0]
		pending = pending[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			done = path.Dir(done)
			continue
		}
		next := path.Join(done, part)
		b.stack.Forget()
		st, l, found, err := b.stack.Where(next)
		if err != nil {
			return "", err
		}
		if !found || st.Mode&unix.S_IFMT != unix.S_IFLNK {
			done = next
			continue
		}
		if links++; links > maxLinks {
			return "", unix.ELOOP
		}
		buf := make([]byte, 4096)
		n, err := unix.Readlinkat(int(b.dirs[l].Fd()), next, buf)
		if err != nil {
			return "", err
		}
		if n > 0 && buf[0] == '/' {
			done = "."
		}
		pending = append(strings.Split(string(buf[:n]), "/"), pending...)
	}
	return done, nil
}

// makeAll creates dir and its parents in init/, with the attributes that they have below.
func (b *initBuilder) makeAll(dir string) error {
	if dir == "." {
		return nil
	}
	if err := b.makeAll(path.Dir(dir)); err != nil {
		return err
	}
	top := int(b.dirs[0].Fd())
	b.stack.Forget()
	st, l, found, err := b.stack.Where(dir)
	if err != nil {
		return err
	}
	isDir := found && st.Mode&unix.S_IFMT == unix.S_IFDIR
	if isDir && l == 0 {
		return nil
	}
	if err := unix.Mkdirat(top, dir, 0o755); err != nil {
		return err
	}
	if !isDir {
		return unix.Fchmodat(top, dir, 0o755, 0)
	}
	b.copied = append(b.copied, copiedDir{int(b.dirs[l].Fd()), dir})
	return nil
}
