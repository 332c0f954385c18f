package overlay2

import (
	"context"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"ply/internal/mount"
	"ply/internal/oci"
	"ply/internal/store/layer"
	"ply/internal/store/layer/tree"
	"ply/internal/store/layer/writable"
)

// stack returns the base of a chain with its layers open for a mount. The caller calls done after the mount.
func (d *Driver) stack(ctx context.Context, chain oci.Chain) (b writable.Base, done func(), err error) {
	b, paths, err := d.base(ctx, chain)
	if err != nil {
		return b, nil, err
	}
	var long []*os.File
	done = func() {
		for _, f := range long {
			f.Close()
		}
	}
	for _, p := range paths {
		if len(p) > writable.MaxPath {
			f, err := writable.OpenDir(p)
			if err != nil {
				done()
				return b, nil, err
			}
			long = append(long, f)
			p = writable.FDPath(f)
		}
		b.Layers = append(b.Layers, mount.At(p))
	}
	return b, done, nil
}

// use records the objects below the mount at target, so that Remove does not remove them.
func (d *Driver) use(target string, chain oci.Chain) {
	dirs := map[string]bool{}
	for _, k := range d.Keys(chain) {
		dirs[d.dir(k)] = true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.targets[filepath.Clean(target)] = slices.Collect(maps.Keys(dirs))
}

// mounted reports whether a mount uses the object in dir, whether this or an earlier process mounted it.
func (d *Driver) mounted(dir string) (bool, error) {
	d.mu.Lock()
	for target, dirs := range d.targets {
		if !slices.Contains(dirs, dir) {
			continue
		}
		if on, err := mount.IsMounted(target); err != nil || on {
			d.mu.Unlock()
			return on, err
		}
	}
	d.mu.Unlock()
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	root := filepath.Join(dir, tree.FS)
	return strings.Contains(string(info), escape(root)) || strings.Contains(string(info), mount.ShortName(root)), nil
}

// escape escapes a path as mountinfo does among options.
func escape(path string) string {
	return strings.NewReplacer(`\`, `\134`, " ", `\040`, "\t", `\011`, "\n", `\012`, ",", `\054`).Replace(path)
}

// View implements layer.Driver.
func (d *Driver) View(ctx context.Context, chain oci.Chain, target string) error {
	b, done, err := d.stack(ctx, chain)
	if err != nil {
		return err
	}
	defer done()
	d.use(target, chain)
	return writable.View(d.fsys, b, d.roots(), target)
}

// CreateWritable implements layer.Driver.
func (d *Driver) CreateWritable(ctx context.Context, dir string, chain oci.Chain) error {
	b, _, err := d.base(ctx, chain)
	if err != nil {
		return err
	}
	return writable.Create(d.fsys, dir, b)
}

// Mount implements layer.Driver.
func (d *Driver) Mount(ctx context.Context, dir string, chain oci.Chain, target string, opts layer.MountOptions) error {
	b, done, err := d.stack(ctx, chain)
	if err != nil {
		return err
	}
	defer done()
	d.use(target, chain)
	return writable.Mount(d.fsys, d.inits, dir, chain, b, target, opts)
}

// Unmount implements layer.Driver.
func (d *Driver) Unmount(ctx context.Context, target string) error {
	if err := mount.Unmount(target, true); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.targets, filepath.Clean(target))
	return nil
}

// Changes implements layer.Driver.
func (d *Driver) Changes(ctx context.Context, dir string, chain oci.Chain) ([]layer.Change, error) {
	b, _, err := d.base(ctx, chain)
	if err != nil {
		return nil, err
	}
	return writable.Changes(ctx, dir, b)
}

// Diff implements layer.Driver.
func (d *Driver) Diff(ctx context.Context, dir string, chain oci.Chain, w io.Writer) error {
	b, _, err := d.base(ctx, chain)
	if err != nil {
		return err
	}
	return writable.Diff(ctx, dir, b, w)
}

// Usage implements layer.Driver.
func (d *Driver) Usage(ctx context.Context, dir string, _ oci.Chain) (int64, error) {
	return writable.Usage(ctx, dir)
}

// RemoveWritable implements layer.Driver.
func (d *Driver) RemoveWritable(ctx context.Context, dir string) error {
	return writable.Remove(d.fsys, d.inits, dir)
}
