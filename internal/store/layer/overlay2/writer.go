package overlay2

import (
	"context"
	"errors"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/layer"
	"ply/internal/store/layer/tree"
)

// Create implements layer.Driver.
func (d *Driver) Create(ctx context.Context) (layer.Writer, error) {
	tmp := durable.TempName(d.layers)
	w, err := tree.Create(ctx, d.fsys, tmp, d.opts.Limits)
	if err != nil {
		return nil, err
	}
	return &writer{Writer: w, d: d, tmp: tmp}, nil
}

type writer struct {
	*tree.Writer
	d    *Driver
	tmp  string
	over bool
}

// Commit implements layer.Writer.
func (w *writer) Commit(ctx context.Context, parents oci.Chain, want oci.DiffID) (info layer.Info, err error) {
	if w.over {
		return layer.Info{}, errs.New(errs.Precondition, "layer: was committed or given up already")
	}
	defer func() { err = errors.Join(err, w.Abort()) }()
	m, err := w.Finish(want)
	if err != nil {
		return layer.Info{}, err
	}
	if err := w.d.publish(ctx, w.tmp, m); err != nil {
		return layer.Info{}, err
	}
	chain := append(parents[:len(parents):len(parents)], m.DiffID)
	if _, _, err := w.d.variant(ctx, chain); err != nil {
		return layer.Info{}, err
	}
	return m.Info(), nil
}

// Abort implements layer.Writer.
func (w *writer) Abort() error {
	if w.over {
		return nil
	}
	w.over = true
	return w.Writer.Abort()
}

// publish makes the layer directory at tmp the one of its digest, unless a sound one is there. On a good end tmp is
// gone or will be removed by the caller.
func (d *Driver) publish(ctx context.Context, tmp string, m *tree.Meta) error {
	key := baseKey(m.DiffID)
	defer d.lock(key)()
	dir := d.dir(key)
	if _, err := d.fsys.Lstat(dir); err == nil {
		held, err := d.meta(m.DiffID)
		if err == nil {
			err = d.verify(ctx, held)
		}
		if err == nil {
			return nil
		}
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		d.forget(m.DiffID)
		if err := d.fsys.SyncFS(tmp); err != nil {
			return err
		}
		// The damaged one moves aside first; a crash in between leaves no layer, which is the truth.
		trash := durable.TempName(d.layers)
		if err := d.fsys.Rename(dir, trash); err != nil {
			return err
		}
		if err := durable.Rename(d.fsys, tmp, dir); err != nil {
			return err
		}
		used, err := d.mounted(dir)
		if err == nil && used {
			return nil // who has it mounted keeps what there is of it until the next start
		}
		return errors.Join(err, d.fsys.RemoveAll(trash))
	}
	if err := d.fsys.SyncFS(tmp); err != nil {
		return err
	}
	return durable.Rename(d.fsys, tmp, dir)
}
