package overlay2

import (
	"context"
	"io"
	"path/filepath"

	"ply/internal/oci"
	"ply/internal/store/layer"
	"ply/internal/store/layer/tree"
	"ply/internal/store/layer/writable"
)

var _ layer.Examiner = (*Driver)(nil)

// Examine implements layer.Examiner. What a layer takes from those below is not compared: the driver makes it again when it is
// missing or damaged.
func (d *Driver) Examine(ctx context.Context, chain oci.Chain, full bool) error {
	if err := checkChain(chain); err != nil {
		return err
	}
	d.forget(chain.Top())
	m, err := d.meta(chain.Top())
	if err != nil {
		return err
	}
	if err := tree.Examine(d.fsys, d.dir(baseKey(m.DiffID)), m); err != nil {
		return tree.Damaged(m.DiffID, err)
	}
	if !full {
		return nil
	}
	if err := d.verify(ctx, m); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return tree.Damaged(m.DiffID, err)
	}
	return nil
}

// Salvage implements layer.Examiner.
func (d *Driver) Salvage(_ context.Context, chain oci.Chain) (io.ReadCloser, error) {
	if err := checkChain(chain); err != nil {
		return nil, err
	}
	dir := d.dir(baseKey(chain.Top()))
	return tree.Salvage(d.fsys, dir, filepath.Join(dir, tree.FS))
}

var _ layer.WritableExaminer = (*Driver)(nil)

// ExamineWritable implements layer.WritableExaminer.
func (d *Driver) ExamineWritable(dir string, mend bool) error {
	return writable.Examine(d.fsys, dir, mend)
}
