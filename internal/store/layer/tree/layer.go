package tree

import (
	"context"
	"errors"
	"io/fs"
	"sync"
	"time"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/layer"
	"ply/internal/store/layer/tarscan"
)

// NewLayer starts a layer in a temporary directory tmp below layers. At Commit it calls publish with the complete
// directory. Publish makes it durable and renames it. What publish leaves of tmp is removed.
func NewLayer(ctx context.Context, fsys durable.FS, layers string, lim tarscan.Limits,
	publish func(ctx context.Context, tmp string, parents oci.Chain, m *Meta) error) (layer.Writer, error) {
	w, err := Create(ctx, fsys, durable.TempName(layers), lim)
	if err != nil {
		return nil, err
	}
	return &layerWriter{Writer: w, publish: publish}, nil
}

type layerWriter struct {
	*Writer
	publish func(ctx context.Context, tmp string, parents oci.Chain, m *Meta) error
	ended   bool
}

// Commit implements layer.Writer.
func (w *layerWriter) Commit(ctx context.Context, parents oci.Chain, want oci.DiffID) (info layer.Info, err error) {
	if w.ended {
		return layer.Info{}, errs.New(errs.Precondition, "layer: already committed or aborted")
	}
	defer func() { err = errors.Join(err, w.Abort()) }()
	m, err := w.Finish(want)
	if err != nil {
		return layer.Info{}, err
	}
	if err := w.publish(ctx, w.dir, parents, m); err != nil {
		return layer.Info{}, err
	}
	return m.Info(), nil
}

// Abort implements layer.Writer.
func (w *layerWriter) Abort() error {
	if w.ended {
		return nil
	}
	w.ended = true
	return w.Writer.Abort()
}

// Walk calls visit for each object in the directory layers. Key returns the key for the name of a directory, or false when
// it is not an object.
func Walk(ctx context.Context, fsys durable.FS, layers string, key func(name string) (layer.Key, bool), visit func(key layer.Key, made time.Time) error) error {
	entries, err := fsys.ReadDir(layers)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		k, ok := key(e.Name())
		if !ok {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return err
		}
		if err := visit(k, info.ModTime()); err != nil {
			return err
		}
	}
	return nil
}

// Damaged returns the error for a layer that could not be read or is not what it should be. An examination that ended before it
// knew, because memory was short or it was cancelled, has found no damage.
func Damaged(id oci.DiffID, err error) error {
	if errors.Is(err, errs.Exhausted) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return errs.New(errs.DataLoss, "layer %s: %w", id, err).WithHint("Pull or load an image with it again.")
}

// Locks is a set of locks, one per object. The zero value works.
type Locks struct {
	mu   sync.Mutex // no other lock is taken while it is held
	held map[string]*lock
}

type lock struct {
	mu    sync.Mutex
	users int
}

// Lock takes the lock of an object, and waits for it if necessary; unlock releases it.
func (l *Locks) Lock(object string) (unlock func()) {
	l.mu.Lock()
	if l.held == nil {
		l.held = map[string]*lock{}
	}
	k := l.held[object]
	if k == nil {
		k = &lock{}
		l.held[object] = k
	}
	k.users++
	l.mu.Unlock()
	k.mu.Lock()
	return func() {
		k.mu.Unlock()
		l.mu.Lock()
		defer l.mu.Unlock()
		if k.users--; k.users == 0 {
			delete(l.held, object)
		}
	}
}
