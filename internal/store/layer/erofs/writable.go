package erofs

import (
	"context"
	"io"

	"ply/internal/oci"
	"ply/internal/store/layer"
	"ply/internal/store/layer/writable"
)

// CreateWritable implements layer.Driver.
func (d *Driver) CreateWritable(_ context.Context, dir string, chain oci.Chain) error {
	return d.with(chain, func(base writable.Base) error { return writable.Create(d.fs, dir, base) })
}

// Mount implements layer.Driver.
func (d *Driver) Mount(_ context.Context, dir string, chain oci.Chain, target string, opts layer.MountOptions) error {
	return d.mountAt(target, chain, func(base writable.Base) error {
		return writable.Mount(d.fs, d.inits, dir, chain, base, target, opts)
	})
}

// Changes implements layer.Driver.
func (d *Driver) Changes(ctx context.Context, dir string, chain oci.Chain) (changes []layer.Change, err error) {
	err = d.with(chain, func(base writable.Base) error {
		changes, err = writable.Changes(ctx, dir, base)
		return err
	})
	return changes, err
}

// Diff implements layer.Driver.
func (d *Driver) Diff(ctx context.Context, dir string, chain oci.Chain, w io.Writer) error {
	return d.with(chain, func(base writable.Base) error { return writable.Diff(ctx, dir, base, w) })
}

// Usage implements layer.Driver.
func (d *Driver) Usage(ctx context.Context, dir string, _ oci.Chain) (int64, error) {
	return writable.Usage(ctx, dir)
}

// ExamineWritable implements layer.WritableExaminer.
func (d *Driver) ExamineWritable(dir string, mend bool) error {
	return writable.Examine(d.fs, dir, mend)
}

// RemoveWritable implements layer.Driver.
func (d *Driver) RemoveWritable(_ context.Context, dir string) error {
	return writable.Remove(d.fs, d.inits, dir)
}

// with calls do while the layers of a chain are mounted.
func (d *Driver) with(chain oci.Chain, do func(writable.Base) error) error {
	mounts, records, err := d.acquire(chain)
	if err != nil {
		return err
	}
	defer d.release(mounts)
	return do(base(mounts, records))
}
