package migrate

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"ply/internal/errs"
	"ply/internal/registry/content"
)

// Distribution is the directory of a reference registry, such as Debian's docker-registry has: what its file system driver stores
// below its root directory. No name in it leads out of it.
type Distribution struct {
	root *os.Root
	// problem is told about files that are damaged; an error that it returns ends the list. nil = each ends it.
	problem func(error) error
}

var _ Source = (*Distribution)(nil)

const (
	layout     = "docker/registry/v2"
	maxLink    = 256 // bytes of a file that names a digest
	readAtOnce = 1000
	maxDepth   = 128 // components of a repository's name, of which 255 bytes can have no more
)

// OpenDistribution opens the root directory of a reference registry. The error's class is errs.Invalid when it is none.
func OpenDistribution(dir string) (*Distribution, error) {
	root, err := os.OpenRoot(filepath.Join(dir, layout))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errs.New(errs.Invalid, "%s is not the root directory of a docker-registry: it has no %s", dir, layout)
	}
	if err != nil {
		return nil, err
	}
	return &Distribution{root: root}, nil
}

// Close closes the directory.
func (s *Distribution) Close() error { return s.root.Close() }

// list visits the names in a directory, none when it does not exist.
func (s *Distribution) list(ctx context.Context, dir string, visit func(fs.DirEntry) error) (err error) {
	d, err := s.root.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer errs.Close(&err, d)
	for {
		entries, err := d.ReadDir(readAtOnce)
		for _, e := range entries {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := visit(e); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// Repositories visits the directories that have manifests or layers.
func (s *Distribution) Repositories(ctx context.Context, visit func(content.Repository) error) error {
	return s.walk(ctx, "", 0, visit)
}

func (s *Distribution) walk(ctx context.Context, name string, depth int, visit func(content.Repository) error) error {
	if depth > maxDepth {
		return nil
	}
	found := false
	var below []string
	err := s.list(ctx, path.Join("repositories", name), func(e fs.DirEntry) error {
		switch {
		case !e.IsDir():
		case e.Name() == "_manifests" || e.Name() == "_layers":
			found = true
		case !strings.HasPrefix(e.Name(), "_"):
			below = append(below, e.Name())
		}
		return nil
	})
	if err != nil {
		return err
	}
	if repo, err := content.ParseRepository(name); found && err == nil {
		if err := visit(repo); err != nil {
			return err
		}
	}
	for _, n := range below {
		if err := s.walk(ctx, path.Join(name, n), depth+1, visit); err != nil {
			return err
		}
	}
	return nil
}

// digests visits the digests that a directory has as <algorithm>/<digits>/link.
func (s *Distribution) digests(ctx context.Context, dir string, visit func(content.Digest) error) error {
	for _, a := range content.Algorithms {
		err := s.list(ctx, path.Join(dir, string(a)), func(e fs.DirEntry) error {
			d, err := content.ParseDigest(string(a) + ":" + e.Name())
			if err != nil {
				return nil //nolint:nilerr // not one of its names
			}
			linked, err := s.link(path.Join(dir, string(a), e.Name(), "link"))
			if errors.Is(err, errs.NotFound) {
				return nil // deleted
			}
			if err == nil && linked != d {
				err = errs.New(errs.DataLoss, "%s: names %s", path.Join(dir, string(a), e.Name()), linked)
			}
			if err != nil {
				return s.damaged(err)
			}
			return visit(d)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *Distribution) damaged(err error) error {
	if s.problem == nil {
		return err
	}
	return s.problem(err)
}

// read reads a small file.
func (s *Distribution) read(name string, limit int64) (b []byte, err error) {
	f, _, err := s.open(name)
	if err != nil {
		return nil, err
	}
	defer errs.Close(&err, f)
	b, err = io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = errs.New(errs.DataLoss, "%s: has more than %d bytes", name, limit)
	}
	return b, err
}

// open opens a regular file.
func (s *Distribution) open(name string) (*os.File, int64, error) {
	f, err := s.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, errs.New(errs.NotFound, "%s: does not exist", name)
	}
	if err != nil {
		return nil, 0, errs.New(errs.DataLoss, "%s: %w", name, err)
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = errs.New(errs.DataLoss, "%s: is not a file", name)
	}
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, fi.Size(), nil
}

// link reads a file that names a digest.
func (s *Distribution) link(name string) (content.Digest, error) {
	b, err := s.read(name, maxLink)
	if err != nil {
		return "", err
	}
	d, err := content.ParseDigest(strings.TrimSpace(string(b)))
	if err != nil {
		return "", errs.New(errs.DataLoss, "%s: %w", name, err)
	}
	return d, nil
}

func repository(repo content.Repository, name string) string {
	return path.Join("repositories", string(repo), name)
}

// Blobs visits the layers and configs of a repository.
func (s *Distribution) Blobs(ctx context.Context, repo content.Repository, visit func(content.Digest) error) error {
	return s.digests(ctx, repository(repo, "_layers"), visit)
}

// Manifests visits the manifests of a repository. Their media types are in the documents.
func (s *Distribution) Manifests(ctx context.Context, repo content.Repository, visit func(content.Digest, string) error) error {
	return s.digests(ctx, repository(repo, "_manifests/revisions"), func(d content.Digest) error { return visit(d, "") })
}

// Manifest returns a manifest.
func (s *Distribution) Manifest(_ context.Context, _ content.Repository, d content.Digest) ([]byte, error) {
	return s.read(data(d), content.MaxManifest)
}

// Tags visits the tags of a repository.
func (s *Distribution) Tags(ctx context.Context, repo content.Repository, visit func(content.Tag, content.Digest) error) error {
	dir := repository(repo, "_manifests/tags")
	return s.list(ctx, dir, func(e fs.DirEntry) error {
		tag, err := content.ParseTag(e.Name())
		if err != nil {
			return nil //nolint:nilerr // not one of its names
		}
		d, err := s.link(path.Join(dir, e.Name(), "current/link"))
		if errors.Is(err, errs.NotFound) {
			return nil // deleted
		}
		if err != nil {
			return s.damaged(err)
		}
		return visit(tag, d)
	})
}

func data(d content.Digest) string {
	return path.Join("blobs", string(d.Algorithm()), d.Hex()[:2], d.Hex(), "data")
}

// Open opens a blob.
func (s *Distribution) Open(_ context.Context, d content.Digest) (io.ReadCloser, int64, error) {
	f, size, err := s.open(data(d))
	if err != nil {
		return nil, 0, err
	}
	return f, size, nil
}
