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

// NewLayer starts a layer in a temporary directory below layers. At Commit the directory is complete, and publish makes it durable
// and the layer's on parents; whatever publish leaves of tmp is removed.
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
		return layer.Info{}, errs.New(errs.Precondition, "layer: was committed or given up already")
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

// Walk visits the objects in the directory layers: key makes an object's key of its name, or says that it is none.
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

// Damaged says that what is held of a layer is not what it should be, and the way out.
func Damaged(id oci.DiffID, err error) error {
	return errs.New(errs.DataLoss, "layer %s: %w", id, err).WithHint("Pull or load an image with it again.")
}

// Locks keeps two from changing one object at once. The zero value works.
type Locks struct {
	mu   sync.Mutex // innermost
	held map[string]*lock
}

type lock struct {
	mu    sync.Mutex
	users int
}

// Lock waits until nobody else has the object, and keeps it until unlock is called.
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
