package web

import (
	"archive/tar"
	"container/list"
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"ply/internal/compress"
	"ply/internal/errs"
	"ply/internal/registry/content"
	"ply/internal/registry/repository"
)

// Limits of what is read for a page.
const (
	maxEntries   = 150_000 // files of a layer
	maxNames     = 16 << 20
	maxUnpacked  = 16 << 30 // bytes of a layer
	maxKept      = 200_000  // files of all layers that are remembered
	maxAtOnce    = 2        // layers that are read at the same time
	maxText      = 256 << 10
	whiteout     = ".wh."
	opaqueMarker = ".wh..wh..opq"
)

// entry is a file in a layer.
type entry struct {
	Path string // from the root, without a leading slash
	Kind byte   // of package tar
	Mode int64
	UID  int
	GID  int
	Size int64 // bytes
	Link string
	Time time.Time
	sum  [16]byte // of the content
	nth  int      // its header in the archive, from 0
}

// same reports whether two files are the same but for their times.
func (e *entry) same(o *entry) bool {
	return e.Kind == o.Kind && e.Mode == o.Mode && e.UID == o.UID && e.GID == o.GID && e.Size == o.Size && e.Link == o.Link && e.sum == o.sum
}

// Dir reports whether the entry is a directory.
func (e *entry) Dir() bool { return e.Kind == tar.TypeDir }

// Name returns the last component.
func (e *entry) Name() string { return path.Base(e.Path) }

// Hides returns what a whiteout takes away; "" when the entry is none.
func (e *entry) Hides() string {
	if name := e.Name(); name == opaqueMarker {
		return path.Dir(e.Path) + "/"
	} else if hidden, ok := strings.CutPrefix(name, whiteout); ok {
		return path.Join(path.Dir(e.Path), hidden)
	}
	return ""
}

// tree is the files of a layer, sorted by their paths.
type tree struct {
	entries []entry
	cut     bool // there are more
}

// trees reads layers and remembers what is in the last ones. Safe for concurrent use.
type trees struct {
	slots chan struct{}

	mu    sync.Mutex
	known map[content.Digest]*list.Element
	order *list.List // of kept, the last used first
	size  int        // entries
}

type kept struct {
	digest content.Digest
	tree   *tree
}

func newTrees() *trees {
	return &trees{slots: make(chan struct{}, maxAtOnce), known: map[content.Digest]*list.Element{}, order: list.New()}
}

func (t *trees) find(d content.Digest) *tree {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.known[d]
	if e == nil {
		return nil
	}
	t.order.MoveToFront(e)
	return e.Value.(*kept).tree //nolint:forcetypeassert // the list has nothing else
}

func (t *trees) keep(d content.Digest, found *tree) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.known[d] != nil {
		return
	}
	t.known[d] = t.order.PushFront(&kept{d, found})
	t.size += len(found.entries)
	for t.size > maxKept && t.order.Len() > 1 {
		last := t.order.Back()
		old := t.order.Remove(last).(*kept) //nolint:forcetypeassert // the list has nothing else
		delete(t.known, old.digest)
		t.size -= len(old.tree.entries)
	}
}

// open begins to read a layer of a repository. The caller calls done.
func (t *trees) open(ctx context.Context, s *repository.Service, repo content.Repository, d content.Digest) (_ *tar.Reader, done func(), err error) {
	select {
	case t.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, errs.New(errs.Unavailable, "other layers are being read: %w", context.Cause(ctx))
	}
	f, _, err := s.OpenBlob(ctx, repo, d)
	if err != nil {
		<-t.slots
		return nil, nil, err
	}
	z, _, err := compress.NewReader(ctx, f)
	if err != nil {
		<-t.slots
		return nil, nil, errors.Join(err, f.Close())
	}
	return tar.NewReader(&bounded{ctx: ctx, r: z, left: maxUnpacked}), func() {
		_ = z.Close() // only read from
		_ = f.Close()
		<-t.slots
	}, nil
}

// bounded ends with an error after so many bytes, or when its context does.
type bounded struct {
	ctx  context.Context
	r    io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.ctx.Err() != nil {
		return 0, errs.New(errs.Unavailable, "reading the layer takes too long")
	}
	if b.left <= 0 {
		return 0, errs.New(errs.Invalid, "the layer has more than %d bytes", int64(maxUnpacked))
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

// read returns the files of a layer, in which the last of several entries of one path counts. The error's class is errs.NotFound when
// the layer is not here, and errs.Invalid when it is no tar archive.
func (t *trees) read(ctx context.Context, s *repository.Service, repo content.Repository, d content.Digest) (*tree, error) {
	if found := t.find(d); found != nil {
		if _, err := s.Metadata.Link(ctx, repo, d); err != nil { // another repository's layer is not this visitor's
			return nil, err
		}
		return found, nil
	}
	tr, done, err := t.open(ctx, s, repo, d)
	if err != nil {
		return nil, err
	}
	defer done()
	found := &tree{}
	at, names := map[string]int{}, 0
	sum, buf := sha256.New(), make([]byte, 128<<10)
	// The holes of a sparse file are as long as its header says, and take no bytes of the archive.
	data := &bounded{ctx: ctx, r: tr, left: maxUnpacked}
	for nth := 0; ; nth++ {
		header, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, notTar(err)
		}
		e := entry{
			Path: cleanPath(header.Name), Kind: header.Typeflag, Mode: header.Mode & 0o7777, UID: header.Uid, GID: header.Gid, Size: header.Size,
			Link: header.Linkname, Time: header.ModTime, nth: nth,
		}
		if e.Path == "" {
			continue
		}
		if names += len(e.Path) + len(e.Link); len(found.entries) >= maxEntries || names > maxNames {
			found.cut = true
			break
		}
		if e.Kind == tar.TypeReg {
			if e.sum, err = sumOf(sum, data, buf); err != nil {
				return nil, notTar(err)
			}
		}
		if i, ok := at[e.Path]; ok {
			found.entries[i] = e
			continue
		}
		at[e.Path] = len(found.entries)
		found.entries = append(found.entries, e)
	}
	slices.SortFunc(found.entries, func(a, b entry) int { return strings.Compare(a.Path, b.Path) })
	t.keep(d, found)
	return found, nil
}

func sumOf(h hash.Hash, r io.Reader, buf []byte) (sum [16]byte, err error) {
	h.Reset()
	_, err = io.CopyBuffer(h, struct{ io.Reader }{r}, buf)
	copy(sum[:], h.Sum(nil))
	return sum, err
}

func notTar(err error) error {
	if errors.Is(err, errs.Unavailable) || errors.Is(err, errs.Invalid) || errors.Is(err, errs.Exhausted) {
		return err
	}
	return errs.New(errs.Invalid, "the layer cannot be read: %w", err)
}

// cleanPath returns a path from the root of a container, without a leading slash; "" is the root.
func cleanPath(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

// below returns the entries of a directory, and the directories that the layer has files in but no entry for.
func (t *tree) below(dir string) []entry {
	prefix := dir
	if prefix != "" {
		prefix += "/"
	}
	from, _ := slices.BinarySearchFunc(t.entries, prefix, func(e entry, p string) int { return strings.Compare(e.Path, p) })
	var found []entry
	for i := from; i < len(t.entries) && strings.HasPrefix(t.entries[i].Path, prefix); {
		rest := t.entries[i].Path[len(prefix):]
		name, _, deeper := strings.Cut(rest, "/")
		if !deeper {
			if rest != "" {
				found = append(found, t.entries[i])
			}
			i++
			continue
		}
		if n := len(found); n == 0 || found[n-1].Path != prefix+name {
			if j, ok := t.index(prefix + name); !ok {
				found = append(found, entry{Path: prefix + name, Kind: tar.TypeDir})
			} else if j > i { // sorted behind what is in it: names with bytes before the slash stand between them
				found = append(found, t.entries[j])
			}
		}
		// Skip the rest of the directory: "0" is the byte behind "/".
		i, _ = slices.BinarySearchFunc(t.entries, prefix+name+"0", func(e entry, p string) int { return strings.Compare(e.Path, p) })
	}
	slices.SortFunc(found, func(a, b entry) int { return strings.Compare(a.Path, b.Path) })
	return slices.CompactFunc(found, func(a, b entry) bool { return a.Path == b.Path })
}

func (t *tree) index(p string) (int, bool) {
	return slices.BinarySearchFunc(t.entries, p, func(e entry, p string) int { return strings.Compare(e.Path, p) })
}

// text reads the beginning of a file of a layer.
func (t *trees) text(ctx context.Context, s *repository.Service, repo content.Repository, d content.Digest, e *entry) ([]byte, error) {
	tr, done, err := t.open(ctx, s, repo, d)
	if err != nil {
		return nil, err
	}
	defer done()
	for range e.nth + 1 {
		if _, err := tr.Next(); err != nil {
			return nil, notTar(err)
		}
	}
	b, err := io.ReadAll(io.LimitReader(tr, maxText))
	if err != nil {
		return nil, notTar(err)
	}
	return b, nil
}
