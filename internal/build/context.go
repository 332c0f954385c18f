package build

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"

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

// Root returns the descriptor of the directory.
func (d *Directory) Root() *os.File { return d.root }

// Close closes the directory, and removes it when it was unpacked.
func (d *Directory) Close() error {
	err := d.root.Close()
	if d.remove != "" {
		err = errors.Join(err, d.s.o.Store.FS.RemoveAll(d.remove))
	}
	return err
}
