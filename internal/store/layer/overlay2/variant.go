package overlay2

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/layer/tree"
	"ply/internal/store/layer/upper"
	"ply/internal/store/layer/writable"
)

const variantName = "variant.json"

// variantMeta describes a variant.
type variantMeta struct {
	Version int  `json:"version"`
	Empty   bool `json:"empty"` // the layer is right as it is on this chain
}

const variantVersion = 1

// variant finds the variant of the top layer of chain, making it when everything for it is there. has is false when there is
// nothing to mount. Errors: errs.NotFound when a layer below is not held, errs.Invalid when the layer links to files
// that the chain does not have.
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
	base, paths, err := d.base(ctx, parents) // before the lock: it locks the variants below
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
	data, err := durable.ReadFile(d.fsys, filepath.Join(dir, variantName), 4096)
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal(data, &v); err != nil || v.Version != variantVersion {
		return v, fs.ErrNotExist // made again
	}
	return v, nil
}

// makeVariant builds the variant beside and renames it to dir.
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
	if m.OpaqueRoot { // nothing of the chain is seen, but links into it are still links to it
		r.all = upper.StackLower(own)
	}
	if err := r.run(); err != nil {
		return false, fmt.Errorf("layer %s on %s: %w", m.DiffID, base0(paths), err)
	}
	data, err := json.Marshal(variantMeta{Version: variantVersion, Empty: !r.made})
	if err != nil {
		return false, err
	}
	if err := durable.WriteFile(d.fsys, filepath.Join(tmp, variantName), data, 0o600); err != nil {
		return false, err
	}
	if err := d.fsys.SyncFS(tmp); err != nil {
		return false, err
	}
	if err := d.fsys.RemoveAll(dir); err != nil { // one that could not be read
		return false, err
	}
	return r.made, durable.Rename(d.fsys, tmp, dir)
}

func base0(paths []string) string {
	if len(paths) == 0 {
		return "nothing"
	}
	return filepath.Base(filepath.Dir(paths[0]))
}
