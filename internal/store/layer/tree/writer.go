package tree

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/memory"
	"ply/internal/oci"
	"ply/internal/store/layer/tarscan"
)

// Writer unpacks the tar that is written to it. It is not safe for concurrent use.
type Writer struct {
	fsys durable.FS
	dir  string
	sum  hash.Hash
	size int64
	pipe *io.PipeWriter
	done chan struct{} // closed when the unpacker has ended
	un   *unpacker     // nil after the end
	meta *Meta         // nil before the end
	err  error         // of the unpacker
}

// Create starts a layer directory at dir, which must not exist.
func Create(ctx context.Context, fsys durable.FS, dir string, lim tarscan.Limits) (w *Writer, err error) {
	if err := fsys.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, fsys.RemoveAll(dir))
		}
	}()
	if err := fsys.Mkdir(filepath.Join(dir, FS), 0o755); err != nil {
		return nil, err
	}
	root, err := unix.Open(filepath.Join(dir, FS), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: filepath.Join(dir, FS), Err: err}
	}
	rec, err := newRecipe(fsys, dir)
	if err != nil {
		unix.Close(root)
		return nil, err
	}
	pr, pw := io.Pipe()
	w = &Writer{
		fsys: fsys, dir: dir, sum: sha256.New(), pipe: pw, done: make(chan struct{}),
		un: newUnpacker(fsys, dir, os.NewFile(uintptr(root), FS), rec, memory.Process()),
	}
	go func() {
		defer close(w.done)
		w.err = w.un.run(ctx, pr, lim)
		// The next Write returns the reason.
		_ = pr.CloseWithError(w.err)
	}()
	return w, nil
}

// Write receives the next bytes of the tar. The error's class is errs.Invalid when the tar is the cause.
func (w *Writer) Write(p []byte) (int, error) {
	n, err := w.pipe.Write(p)
	w.sum.Write(p[:n])
	w.size += int64(n)
	return n, err
}

// End ends the tar, waits for the unpacker, and drops what only it needs. It returns false: only Finish tells what the tree needs of
// the layers below.
func (w *Writer) End() (alone bool) {
	w.end(nil)
	return false
}

// DiffID returns the digest of the tar, after its end.
func (w *Writer) DiffID() oci.DiffID { return oci.DiffID(oci.DigestOfHash(w.sum)) }

// end is End with a reason that the unpacker gets as an error of the tar; nil is the proper end.
func (w *Writer) end(reason error) {
	if w.meta != nil {
		return
	}
	_ = w.pipe.CloseWithError(reason)
	<-w.done
	meta := w.un.meta // a copy: a pointer into the unpacker would keep all of it
	w.un.share.Close()
	w.meta, w.un = &meta, nil
}

// Finish ends the tar. When it returns without an error, the directory is complete and its digest is want (or want is ""),
// but it is not durable yet.
func (w *Writer) Finish(want oci.DiffID) (*Meta, error) {
	w.End()
	if w.err != nil {
		return nil, w.err
	}
	m := w.meta
	m.TarSize = w.size
	m.DiffID = w.DiffID()
	if want != "" && want != m.DiffID {
		return nil, errs.New(errs.Invalid, "layer %s: its tar has the digest %s", want, m.DiffID)
	}
	if err := m.save(w.fsys, w.dir); err != nil {
		return nil, fmt.Errorf("layer %s: %w", m.DiffID, err)
	}
	return m, nil
}

// Abort ends the unpacker, if it still runs, and removes the directory unless it was renamed.
func (w *Writer) Abort() error {
	w.end(errAborted)
	return w.fsys.RemoveAll(w.dir)
}

var errAborted = errors.New("aborted")
