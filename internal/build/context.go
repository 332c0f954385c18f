package build

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"ply/internal/build/ops"
	"ply/internal/build/tree"
	"ply/internal/container/rootfs"
	"ply/internal/durable"
	"ply/internal/errs"
)

// Directory is a build context: a directory that was unpacked from a tar, or one of a client.
type Directory struct {
	s      *Service
	root   *os.File
	remove string // removed by Close
	keep   *received
}

// Unpack stores a build context that a client sends as a tar stream, compressed or not. The caller closes it.
func (s *Service) Unpack(ctx context.Context, r io.Reader) (_ *Directory, err error) {
	dir := durable.TempName(s.contexts())
	fsys := s.o.Store.FS
	if err := errors.Join(fsys.MkdirAll(s.contexts(), 0o700), fsys.Mkdir(dir, 0o700)); err != nil {
		return nil, errs.New(errs.Internal, "build context: %w", err)
	}
	d := &Directory{s: s, remove: dir}
	if d.root, err = os.Open(dir); err != nil {
		return nil, errors.Join(err, fsys.RemoveAll(dir))
	}
	if err := rootfs.CopyIn(ctx, d.root, "/", r, rootfs.CopyInOptions{}); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// Open returns a directory of a client as a build context. It takes root over.
func (s *Service) Open(root *os.File) *Directory { return &Directory{s: s, root: root} }

func (s *Service) contexts() string { return filepath.Join(s.o.DataRoot, "build", "contexts") }

// Local returns the directory as a source of a build.
func (d *Directory) Local(l *ops.Local) (*tree.Tree, error) {
	return tree.New(d.root, tree.Options{Include: l.Include, Exclude: l.Exclude, RootOwned: true, Digests: d.s.digests})
}

// received is a directory that a client sent, and that its next build can start from.
type received struct {
	key   string
	path  string
	since time.Time // when its last transfer began
	bytes int64
}

// Limits of the directories that are kept for the next builds of their clients.
const (
	maxReceived      = 16
	maxReceivedBytes = 4 << 30
)

// Receive returns a directory of a client. fill makes the content of root what the client has and returns its size. What an earlier transfer with the same
// key left is there when since is not zero, the time when that transfer began. Nobody else uses the directory until it is closed.
func (s *Service) Receive(key string, fill func(root *os.File, since time.Time) (bytes int64, err error)) (_ *Directory, err error) {
	fsys := s.o.Store.FS
	k := s.takeReceived(key)
	if k == nil {
		k = &received{key: key, path: durable.TempName(s.contexts())}
		if err := errors.Join(fsys.MkdirAll(s.contexts(), 0o700), fsys.Mkdir(k.path, 0o700)); err != nil {
			return nil, errs.New(errs.Internal, "build context: %w", err)
		}
	}
	d := &Directory{s: s, remove: k.path}
	if d.root, err = os.Open(k.path); err != nil {
		return nil, errors.Join(err, fsys.RemoveAll(k.path))
	}
	began := time.Now()
	if k.bytes, err = fill(d.root, k.since); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	k.since, d.keep, d.remove = began, k, ""
	return d, nil
}

func (s *Service) takeReceived(key string) *received {
	s.receivedMu.Lock()
	defer s.receivedMu.Unlock()
	i := slices.IndexFunc(s.received, func(k *received) bool { return k.key == key })
	if key == "" || i < 0 {
		return nil
	}
	k := s.received[i]
	s.received = slices.Delete(s.received, i, i+1)
	return k
}

// putReceived keeps a directory and returns those that have to go for it.
func (s *Service) putReceived(k *received) (gone []*received) {
	s.receivedMu.Lock()
	defer s.receivedMu.Unlock()
	total := int64(0)
	kept := s.received[:0:0]
	for i, o := range append([]*received{k}, s.received...) { // the last used first
		total += o.bytes
		if i >= maxReceived || total > maxReceivedBytes || i > 0 && o.key == k.key || o.key == "" {
			gone = append(gone, o)
			total -= o.bytes
			continue
		}
		kept = append(kept, o)
	}
	s.received = kept
	return gone
}

// Root returns the descriptor of the directory.
func (d *Directory) Root() *os.File { return d.root }

// Close closes the directory, and removes it when it was unpacked. One that was received may stay for the next build.
func (d *Directory) Close() error {
	err := d.root.Close()
	if d.remove != "" {
		err = errors.Join(err, d.s.o.Store.FS.RemoveAll(d.remove))
	}
	if d.keep != nil {
		for _, k := range d.s.putReceived(d.keep) {
			err = errors.Join(err, d.s.o.Store.FS.RemoveAll(k.path))
		}
		d.keep = nil
	}
	return err
}
