package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/registry/blobs"
	"ply/internal/registry/blobs/directory"
	"ply/internal/registry/content"
	"ply/internal/registry/metadata"
	"ply/internal/registry/metadata/bolt"
)

// BackupReport says what a backup copied, beyond what an earlier one had.
type BackupReport struct {
	Blobs int
	Bytes int64
}

// Backup copies the registry of a root into another directory, which is a root then. The registry may serve meanwhile: blobs are copied
// first, then the metadata as it is at one moment, and at last the blobs that came meanwhile. A second backup into the same directory
// copies what is new. Every byte is hashed. The error's class is errs.Precondition when the registry is not in its root.
func Backup(ctx context.Context, o Options, to string) (r BackupReport, err error) {
	if o.Database != "" || o.S3 != nil {
		return r, errs.New(errs.Precondition, "the registry is not in its root").WithHint("See docs/registry.md for backups of PostgreSQL and S3.")
	}
	if _, err := os.Stat(filepath.Join(o.Root, "metadata.db")); err != nil {
		return r, errs.New(errs.NotFound, "%s is not the root of a registry: %w", o.Root, err)
	}
	if err := durable.MkdirPrivate(durable.OS, to); err != nil {
		return r, err
	}
	if err := apart(o.Root, to); err != nil {
		return r, err
	}
	from, target := directory.OpenServed(durable.OS, o.Root), blobs.Store(nil)
	if target, err = directory.Open(durable.OS, to); err != nil {
		return r, err
	}
	defer errs.Close(&err, target)
	copyBlob := func(d content.Digest) error {
		n, err := copyBlob(ctx, from, target, d)
		if n >= 0 && err == nil {
			r.Blobs, r.Bytes = r.Blobs+1, r.Bytes+n
		}
		return err
	}
	err = from.Walk(ctx, func(d content.Digest, _ int64, _ time.Time) error {
		err := copyBlob(d)
		if errors.Is(err, errs.NotFound) || errors.Is(err, errs.Invalid) { // removed meanwhile; or damaged, which is found out below
			return nil
		}
		return err
	})
	if err != nil {
		return r, err
	}
	for _, name := range []string{"users.json", "token-keys.json"} {
		if err := copyFile(o.Root, to, name); err != nil {
			return r, err
		}
	}
	if err := copyMetadata(ctx, o, to); err != nil {
		return r, err
	}
	meta, err := bolt.Open(filepath.Join(to, "metadata.db"))
	if err != nil {
		return r, err
	}
	defer errs.Close(&err, meta)
	return r, eachLink(ctx, meta, func(l metadata.Link) error {
		if err := copyBlob(l.Digest); err != nil {
			return fmt.Errorf("repository %s: %w", l.Repository, err)
		}
		return nil
	})
}

// apart refuses directories of which one contains the other.
func apart(a, b string) error {
	var resolved [2]string
	for i, p := range []string{a, b} {
		abs, err := filepath.Abs(p)
		if err != nil {
			return err
		}
		if resolved[i], err = filepath.EvalSymlinks(abs); err != nil {
			return err
		}
	}
	for i := range resolved {
		if rel, err := filepath.Rel(resolved[i], resolved[1-i]); err == nil && (rel == "." || filepath.IsLocal(rel)) {
			return errs.New(errs.Invalid, "%s and %s contain each other", a, b)
		}
	}
	return nil
}

// copyBlob copies a blob and returns its size, -1 when it is there already.
func copyBlob(ctx context.Context, from, to blobs.Store, d content.Digest) (n int64, err error) {
	r, size, err := from.Open(ctx, d)
	if err != nil {
		return -1, err
	}
	defer errs.Close(&err, r)
	if have, err := to.Stat(ctx, d); err == nil && have == size {
		return -1, nil
	}
	u, err := to.Begin(ctx, blobs.Session{ID: blobs.NewID(), Algorithm: d.Algorithm()})
	if err != nil {
		return -1, err
	}
	if err := u.Append(ctx, r, size); err != nil {
		return -1, errors.Join(err, u.Cancel(context.WithoutCancel(ctx)), u.Close())
	}
	n, err = u.Store(ctx, d)
	return n, errors.Join(err, u.Close())
}

const maxCopied = 64 << 20 // bytes of a file of users

func copyFile(from, to, name string) error {
	b, err := durable.ReadFile(durable.OS, filepath.Join(from, name), maxCopied)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return durable.WriteFile(durable.OS, filepath.Join(to, name), b, 0o600)
}

// copyMetadata replaces the metadata of a backup by that of the registry, whether it is served or not.
func copyMetadata(ctx context.Context, o Options, to string) (err error) {
	name := durable.TempName(to)
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(name))
		}
	}()
	defer errs.Close(&err, f)
	file, err := bolt.Open(filepath.Join(o.Root, "metadata.db"))
	switch {
	case errors.Is(err, errs.Unavailable):
		err = Snapshot(ctx, o.Root, f)
	case err == nil:
		err = errors.Join(bolt.Snapshot(file, f), file.Close(), f.Sync())
	}
	if err != nil {
		return err
	}
	if err := os.Rename(name, filepath.Join(to, "metadata.db")); err != nil {
		return err
	}
	return durable.OS.SyncDir(to)
}

// eachLink visits all links.
func eachLink(ctx context.Context, meta metadata.Store, visit func(metadata.Link) error) error {
	const page = 500
	for after := (metadata.Link{}); ; {
		links, err := meta.Links(ctx, after, page)
		if err != nil {
			return err
		}
		for _, l := range links {
			if err := visit(l.Link); err != nil {
				return err
			}
		}
		if len(links) < page {
			return nil
		}
		after = links[len(links)-1].Link
	}
}
