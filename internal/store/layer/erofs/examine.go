package erofs

import (
	"context"
	"io"
	"os"
	"path/filepath"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/layer"
)

var _ layer.Examiner = (*Driver)(nil)

// Examine implements layer.Examiner.
func (d *Driver) Examine(ctx context.Context, chain oci.Chain, full bool) error {
	if len(chain) == 0 {
		return errs.New(errs.Invalid, "layer: an empty chain has no top")
	}
	r, err := d.lookup(chain.Top())
	if err != nil {
		return err
	}
	index := r.indexName(chain.Parent())
	if full {
		return d.verify(ctx, r, index)
	}
	return d.glance(r, index)
}

// Salvage implements layer.Examiner. A layer in the quarantine is read too.
func (d *Driver) Salvage(_ context.Context, chain oci.Chain) (io.ReadCloser, error) {
	if len(chain) == 0 {
		return nil, errs.New(errs.Invalid, "layer: an empty chain has no tar")
	}
	id := chain.Top()
	for _, dir := range []string{d.layerDir(id), filepath.Join(d.quar, id.Hex())} {
		f, err := d.fs.OpenFile(filepath.Join(dir, tarName), os.O_RDONLY, 0)
		if err == nil {
			return f, nil
		}
	}
	return nil, errs.New(errs.NotFound, "layer %s: its tar is gone", id.Short())
}

var _ layer.WritableExaminer = (*Driver)(nil)
