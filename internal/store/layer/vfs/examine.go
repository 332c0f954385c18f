package vfs

import (
	"context"
	"io"
	"path/filepath"

	"ply/internal/errs"
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

var _ layer.WritableExaminer = (*Driver)(nil)

// ExamineWritable implements layer.WritableExaminer.
func (d *Driver) ExamineWritable(dir string, _ bool) error {
	if fi, err := d.fsys.Lstat(treeOf(dir)); err != nil || !fi.IsDir() {
		return errs.New(errs.DataLoss, "%s is missing", filepath.Join(filepath.Base(dir), tree.FS))
	}
	if _, err := loadCopied(d.fsys, dir); err != nil {
		return errs.New(errs.DataLoss, "%s: %w", copiedName, err)
	}
	return nil
}
