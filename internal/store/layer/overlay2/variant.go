package overlay2

import (
	"context"

	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/record"
	"ply/internal/store/layer/tree"
	"ply/internal/store/layer/upper"
	"ply/internal/store/layer/writable"
)

const variantName = "variant.json"

// variantMeta is variant.json. Builds before the first release wrote it with a version and without a writer.
type variantMeta struct {
	Empty bool `json:"empty"` // the layer needs no changes on this chain, so fs/ is empty
}

const variantVersion = 1

// variant returns the directory of the variant of the chain's top layer, and makes it if necessary. Has is false when there
// is nothing to mount. The error's class is errs.NotFound when a layer below does not exist here, and errs.Invalid when the
// layer links to files that the chain does not have.
func (d *Driver) variant(ctx context.Context, chain oci.Chain) (dir string, has bool, err error) {
	m, err := d.meta(chain.Top())
	if err != nil {
		return "", false, err
	}
	if m.Alone() {
		return "", false, nil
	}
	parents := chain.Parent()
	if len(parents) == 0 && len(m.Links) == 0 && len(m.Wiped) == 0 {
		return "", false, nil
	}
	key := variantKey(m.DiffID, parents)
	dir = d.dir(key)
	if v, err := d.variantMeta(dir); err == nil {
		return dir, !v.Empty, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", false, err
	}
	base, paths, err := d.base(ctx, parents) // not under the lock, because it locks the variants below
	if err != nil {
		return "", false, err
	}
	defer d.locks.Lock(string(key))()
	if v, err := d.variantMeta(dir); err == nil {
		return dir, !v.Empty, nil
	}
	has, err = d.makeVariant(ctx, m, dir, base, paths)
	return dir, has, err
}

func noTarget(m *tree.Meta, l tree.Link) error {
	return errs.New(errs.Invalid, "layer %s: entry %q: hard link to %q, which neither it nor a layer below has", m.DiffID, l.Name, l.Target)
}

func (d *Driver) variantMeta(dir string) (v variantMeta, err error) {
	err = record.ReadFile(d.fsys, filepath.Join(dir, variantName), 4096, variantVersion, &v)
	if errors.Is(err, errs.DataLoss) {
		return v, fs.ErrNotExist // a variant can be made again
	}
	return v, err
}

// makeVariant builds the variant in a temporary directory and renames that to dir.
func (d *Driver) makeVariant(ctx context.Context, m *tree.Meta, dir string, base writable.Base, paths []string) (has bool, err error) {
	dirs, err := openAll(paths)
	if err != nil {
		return false, err
	}
	defer func() {
		for _, f := range dirs {
			f.Close()
		}
	}()
	own, err := writable.OpenDir(filepath.Join(d.dir(baseKey(m.DiffID)), tree.FS))
	if err != nil {
		return false, tree.Damaged(m.DiffID, err)
	}
	defer own.Close()
	tmp := durable.TempName(d.layers)
	if err := d.fsys.Mkdir(tmp, 0o700); err != nil {
		return false, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.fsys.RemoveAll(tmp))
		}
	}()
	if err := d.fsys.Mkdir(filepath.Join(tmp, tree.FS), 0o755); err != nil {
		return false, err
	}
	top, err := writable.OpenDir(filepath.Join(tmp, tree.FS))
	if err != nil {
		return false, err
	}
	defer top.Close()
	r := &resolver{
		ctx: ctx, meta: m, top: top, own: own, lower: upper.StackLower(dirs...), lowerDirs: dirs,
		all: upper.StackLower(append([]*os.File{own}, dirs...)...),
	}
	if m.OpaqueRoot { // the layers below are hidden, but hard links into them are still valid
		r.all = upper.StackLower(own)
	}
	if err := r.run(); err != nil {
		return false, fmt.Errorf("layer %s on %s: %w", m.DiffID, topOf(paths), err)
	}
	if err := record.WriteFile(d.fsys, filepath.Join(tmp, variantName), variantVersion, variantMeta{Empty: !r.made}, 0o600); err != nil {
		return false, err
	}
	if err := d.fsys.SyncFS(tmp); err != nil {
		return false, err
	}
	if err := d.fsys.RemoveAll(dir); err != nil { // a damaged variant
		return false, err
	}
	return r.made, durable.Rename(d.fsys, tmp, dir)
}

// topOf names the uppermost object directory of a chain, for errors.
func topOf(paths []string) string {
	if len(paths) == 0 {
		return "nothing"
	}
	return filepath.Base(filepath.Dir(paths[0]))
}
