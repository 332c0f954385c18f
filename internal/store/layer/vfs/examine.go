package vfs

import (
	"context"
	"io"

	"ply/internal/oci"
	"ply/internal/store/layer"
	"ply/internal/store/layer/tree"
)

var _ layer.Examiner = (*Driver)(nil)

// Examine implements layer.Examiner.
func (d *Driver) Examine(ctx context.Context, chain oci.Chain, full bool) error {
	if err := notEmpty(chain); err != nil {
		return err
	}
	m, err := d.meta(chain)
	if err != nil {
		return err
	}
	if err := tree.Examine(d.fsys, d.dir(chain), m); err != nil {
		return tree.Damaged(m.DiffID, err)
	}
	if !full {
		return nil
	}
	err = d.Verify(ctx, chain)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// Salvage implements layer.Examiner.
func (d *Driver) Salvage(_ context.Context, chain oci.Chain) (io.ReadCloser, error) {
	if err := notEmpty(chain); err != nil {
		return nil, err
	}
	return tree.Salvage(d.fsys, d.dir(chain), d.tree(chain))
}
