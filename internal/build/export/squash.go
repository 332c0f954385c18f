package export

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/build/tree"
	"ply/internal/errs"
)

// maxSquashed bounds the names in the layers that become one. They are held in memory.
const maxSquashed = 2_000_000

// Squash writes the tar of one layer that does to below what several layers did, the lowest first; above is the result. below is nil for an empty tree.
// No file is younger than latest, unless that is zero.
func Squash(ctx context.Context, below, above *tree.Tree, layers []io.Reader, latest time.Time, w io.Writer) error {
	s := &squash{below: below, above: above, names: map[string]bool{}, replaced: map[string]bool{}, latest: latest, entries: entries{tw: tar.NewWriter(w), links: map[any]string{}, buf: make([]byte, 256<<10)}, ctx: ctx}
	for _, l := range layers {
		if err := s.note(l); err != nil {
			return err
		}
	}
	if s.replaced[""] && below != nil {
		if err := s.mark(".wh..wh..opq"); err != nil {
			return err
		}
	}
	names := slices.SortedFunc(maps.Keys(s.names), comparePaths)
	for _, n := range names {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := s.name(n); err != nil {
			return err
		}
	}
	return s.tw.Close()
}

// comparePaths orders a directory right before its content.
func comparePaths(a, b string) int {
	return strings.Compare(strings.ReplaceAll(a, "/", "\x00"), strings.ReplaceAll(b, "/", "\x00"))
}

type squash struct {
	ctx          context.Context //nolint:containedctx // exists during one call
	below, above *tree.Tree
	names        map[string]bool // paths that a layer has or removes
	replaced     map[string]bool // directories of which nothing of below may be seen
	latest       time.Time
	entries
}

// note reads the names in a layer.
func (s *squash) note(r io.Reader) error {
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			_, err := io.Copy(io.Discard, r) // its reader verifies the layer at the end
			return err
		}
		if err != nil {
			return err
		}
		if s.ctx.Err() != nil {
			return context.Cause(s.ctx)
		}
		name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		dir, base := path.Split(name)
		dir = strings.TrimSuffix(dir, "/")
		switch {
		case name == "":
			continue
		case base == ".wh..wh..opq":
			s.replaced[dir] = true
			if name = dir; name == "" {
				continue
			}
		case strings.HasPrefix(base, ".wh..wh."):
			continue // of a storage driver
		case strings.HasPrefix(base, ".wh."):
			name = path.Join(dir, strings.TrimPrefix(base, ".wh."))
			s.replaced[name] = true
		case h.Typeflag != tar.TypeDir:
			s.replaced[name] = true // a directory that comes later is a new one
		}
		s.names[name] = true
		if len(s.names) > maxSquashed {
			return errs.New(errs.Exhausted, "the layers have more than %d names", maxSquashed).WithHint("Build without --squash.")
		}
	}
}

// stat returns what is at a path of a tree; false when nothing is.
func stat(t *tree.Tree, name string) (tree.Info, bool, error) {
	if t == nil {
		return tree.Info{}, false, nil
	}
	i, err := t.Stat(name, false)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return i, false, nil
	}
	return i, err == nil, err
}

// name writes what the result has at a path, or that it has nothing there.
func (s *squash) name(name string) error {
	info, ok, err := stat(s.above, name)
	if err != nil {
		return err
	}
	old, had, err := stat(s.below, name)
	if err != nil {
		return err
	}
	if !ok {
		if !had || s.coveredAbove(name) {
			return nil
		}
		return s.mark(path.Join(path.Dir(name), ".wh."+path.Base(name)))
	}
	info.Time = s.clamp(info.Time)
	if err := s.write(s.ctx, name, info, func() (io.ReadCloser, error) { return openIn(s.above, name) }); err != nil {
		return err
	}
	if info.IsDir() && had && old.IsDir() && s.replaced[name] && !s.coveredAbove(name) {
		return s.mark(path.Join(name, ".wh..wh..opq"))
	}
	return nil
}

// coveredAbove reports whether a directory on the way to a path is not that of below, or not there, so that nothing of below is seen there.
func (s *squash) coveredAbove(name string) bool {
	for up := path.Dir(name); up != "."; up = path.Dir(up) {
		if s.replaced[up] {
			return true
		}
	}
	return s.replaced[""]
}

// mark writes an empty file that removes something.
func (s *squash) mark(name string) error {
	return s.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, ModTime: s.clamp(time.Unix(0, 0)), Format: tar.FormatPAX})
}

func (s *squash) clamp(t time.Time) time.Time {
	if !s.latest.IsZero() && t.After(s.latest) {
		return s.latest
	}
	return t
}

// Clamp writes the tar of a layer with no file younger than latest.
func Clamp(ctx context.Context, r io.Reader, latest time.Time, w io.Writer) error {
	in, out := tar.NewReader(&interruptible{ctx: ctx, r: r}), tar.NewWriter(w)
	buf := make([]byte, 256<<10)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if h.ModTime.After(latest) {
			h.ModTime = latest
		}
		h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
		if err := out.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.CopyBuffer(struct{ io.Writer }{out}, struct{ io.Reader }{in}, buf); err != nil {
			return err
		}
	}
	if err := out.Close(); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, r) // its reader verifies the layer at the end
	return err
}

// Younger reports whether the tar of a layer has a file that is younger than latest.
func Younger(ctx context.Context, r io.Reader, latest time.Time) (younger bool, err error) {
	for in := tar.NewReader(&interruptible{ctx: ctx, r: r}); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return younger, nil
		}
		if err != nil {
			return false, err
		}
		if h.ModTime.After(latest) {
			return true, nil
		}
	}
}
