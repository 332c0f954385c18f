package erofs

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/mount"
	"ply/internal/oci"
	"ply/internal/store/layer"
	"ply/internal/store/layer/upper"
)

// What a writable consists of, below the container's directory.
const (
	upperName = "upper"
	workName  = "work"
	initName  = "init.json" // the mount points of its last Mount
)

// CreateWritable implements layer.Driver.
func (d *Driver) CreateWritable(_ context.Context, dir string, chain oci.Chain) error {
	var root *attributes
	for _, id := range slices.Backward(chain) {
		r, err := d.record(id)
		if err != nil {
			return err
		}
		if root = r.Root; root != nil || r.OpaqueRoot {
			break
		}
	}
	for _, name := range []string{upperName, workName} {
		if err := d.fs.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			return err
		}
	}
	if root != nil {
		if err := root.apply(filepath.Join(dir, upperName)); err != nil {
			return err
		}
	}
	return d.fs.SyncDir(dir)
}

// Mount implements layer.Driver.
func (d *Driver) Mount(ctx context.Context, dir string, chain oci.Chain, target string, opts layer.MountOptions) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	entries := slices.Clone(opts.Init)
	slices.SortFunc(entries, compareInit)
	if err := checkInit(entries); err != nil {
		return err
	}
	if err := d.writeInit(dir, entries); err != nil {
		return err
	}
	if opts.Volatile {
		// The kernel's mark that an earlier volatile mount was not synced: nobody needs that here.
		if err := d.fs.RemoveAll(filepath.Join(dir, workName, "work", "incompat")); err != nil {
			return err
		}
	}
	return d.place(target, chain, func(mounts []*layerMount, records []*record) (*mount.Tree, error) {
		lower := stack(mounts)
		if len(entries) > 0 {
			init, err := d.initDir(ctx, chain, entries, mounts, records)
			if err != nil {
				return nil, err
			}
			lower = slices.Insert(lower, 0, mount.At(init))
		}
		if len(lower) == 0 {
			empty, err := d.emptyDir(0)
			if err != nil {
				return nil, err
			}
			lower = append(lower, mount.At(empty))
		}
		if err := tooDeep(lower); err != nil {
			return nil, err
		}
		return mount.Overlay{
			Lower: lower, Upper: filepath.Join(dir, upperName), Work: filepath.Join(dir, workName), Volatile: opts.Volatile,
		}.Mount()
	})
}

func (d *Driver) writeInit(dir string, entries []layer.InitEntry) error {
	old, err := d.readInit(dir)
	if err == nil && slices.Equal(old, entries) {
		return nil
	}
	data, err := json.Marshal(entries)
	if err != nil {
		return err
	}
	return durable.WriteFile(d.fs, filepath.Join(dir, initName), data, 0o600)
}

func (d *Driver) readInit(dir string) ([]layer.InitEntry, error) {
	data, err := durable.ReadFile(d.fs, filepath.Join(dir, initName), maxRecord)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var entries []layer.InitEntry
	if err := json.Unmarshal(data, &entries); err != nil {
		return nil, errs.New(errs.DataLoss, "%s: %w", filepath.Join(dir, initName), err)
	}
	return entries, nil
}

// Changes implements layer.Driver.
func (d *Driver) Changes(ctx context.Context, dir string, chain oci.Chain) ([]layer.Change, error) {
	lower, done, err := d.lower(ctx, dir, chain)
	if err != nil {
		return nil, err
	}
	defer done()
	return upper.Changes(ctx, filepath.Join(dir, upperName), lower)
}

// Diff implements layer.Driver.
func (d *Driver) Diff(ctx context.Context, dir string, chain oci.Chain, w io.Writer) error {
	lower, done, err := d.lower(ctx, dir, chain)
	if err != nil {
		return err
	}
	defer done()
	return upper.Diff(ctx, filepath.Join(dir, upperName), lower, w)
}

// Usage implements layer.Driver.
func (d *Driver) Usage(ctx context.Context, dir string, _ oci.Chain) (int64, error) {
	return upper.Usage(ctx, filepath.Join(dir, upperName))
}

// RemoveWritable implements layer.Driver.
func (d *Driver) RemoveWritable(_ context.Context, dir string) error {
	var all error
	for _, name := range []string{upperName, workName, initName} {
		if err := d.fs.RemoveAll(filepath.Join(dir, name)); err != nil && !os.IsNotExist(err) {
			all = errors.Join(all, err)
		}
	}
	return all
}
