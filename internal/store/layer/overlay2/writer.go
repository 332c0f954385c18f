package overlay2

import (
	"context"
	"errors"
	"io/fs"

	"ply/internal/durable"
	"ply/internal/oci"
	"ply/internal/store/layer"
	"ply/internal/store/layer/tree"
)

// Create implements layer.Driver.
func (d *Driver) Create(ctx context.Context) (layer.Writer, error) {
	return tree.NewLayer(ctx, d.fsys, d.layers, d.opts.Limits, func(ctx context.Context, tmp string, parents oci.Chain, m *tree.Meta) error {
		if err := d.publish(ctx, tmp, m); err != nil {
			return err
		}
		_, _, err := d.variant(ctx, append(parents[:len(parents):len(parents)], m.DiffID))
		return err
	})
}

// publish gives the layer directory tmp its final name and makes it durable, unless an undamaged one exists. The caller
// removes what is left of tmp.
func (d *Driver) publish(ctx context.Context, tmp string, m *tree.Meta) error {
	key := baseKey(m.DiffID)
	defer d.locks.Lock(string(key))()
	dir := d.dir(key)
	if _, err := d.fsys.Lstat(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	} else if err == nil {
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
		// The damaged one is renamed first. A crash in between leaves no layer, which is right.
		trash := durable.TempName(d.layers)
		if err := d.fsys.Rename(dir, trash); err != nil {
			return err
		}
		if err := durable.Rename(d.fsys, tmp, dir); err != nil {
			return err
		}
		used, err := d.mounted(dir)
		if err == nil && used {
			return nil // mounts of the damaged layer keep it until the next start
		}
		return errors.Join(err, d.fsys.RemoveAll(trash))
	}
	if err := d.fsys.SyncFS(tmp); err != nil {
		return err
	}
	return durable.Rename(d.fsys, tmp, dir)
}
