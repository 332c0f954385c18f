package erofs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"

	"ply/internal/errs"
	"ply/internal/mount"
	"ply/internal/oci"
	"ply/internal/store/layer/writable"
)

// base converts the layers of a chain from the order of acquire to that of overlayfs, top first.
func base(mounts []*layerMount, records []*layerRecord) writable.Base {
	b := writable.Base{Root: -1}
	for i, m := range slices.Backward(mounts) {
		if b.Root < 0 && records[i].Root {
			b.Root = len(b.Layers)
		}
		b.Layers = append(b.Layers, m.layer())
	}
	b.Open = func() ([]*os.File, error) {
		var files []*os.File
		for _, m := range slices.Backward(mounts) {
			f, err := m.tree.Open()
			if err != nil {
				for _, f := range files {
					f.Close()
				}
				return nil, err
			}
			files = append(files, f)
		}
		return files, nil
	}
	return b
}

// View implements layer.Driver.
func (d *Driver) View(_ context.Context, chain oci.Chain, target string) error {
	return d.mountAt(target, chain, func(base writable.Base) error {
		return writable.View(d.fs, base, d.roots, target)
	})
}

// maxLayers is how many layers an image may have. One more overlay layer is needed for mount points, or for the attributes
// of the root directory.
const maxLayers = mount.MaxLowers - 1

// mountAt mounts the layers of a chain and calls stack, which mounts an overlay of them at target. The layers stay in use
// until Unmount.
func (d *Driver) mountAt(target string, chain oci.Chain, stack func(writable.Base) error) (err error) {
	target, err = filepath.Abs(target)
	if err != nil {
		return err
	}
	d.mu.Lock()
	_, busy := d.targets[target]
	if !busy {
		d.targets[target] = nil // reserves the target
	}
	d.mu.Unlock()
	if !busy {
		defer func() {
			if err != nil {
				d.mu.Lock()
				delete(d.targets, target)
				d.mu.Unlock()
			}
		}()
		if busy, err = mount.IsMounted(target); err != nil {
			return err
		}
	}
	if busy {
		return errs.New(errs.Conflict, "mount %s: something is mounted there already", target)
	}
	mounts, records, err := d.acquire(chain)
	if err != nil {
		return err
	}
	if err = stack(base(mounts, records)); err != nil {
		d.release(mounts)
		return err
	}
	d.mu.Lock()
	d.targets[target] = mounts
	d.mu.Unlock()
	return nil
}

// Unmount implements layer.Driver. A target that an earlier process mounted is unmounted too.
func (d *Driver) Unmount(_ context.Context, target string) error {
	target, err := filepath.Abs(target)
	if err != nil {
		return err
	}
	if err := mount.Unmount(target, true); err != nil {
		return err
	}
	d.mu.Lock()
	mounts := d.targets[target]
	delete(d.targets, target)
	d.mu.Unlock()
	d.release(mounts)
	return nil
}

// chainReader is a chain that is open for reading through a descriptor, and mounted nowhere.
type chainReader struct {
	d      *Driver
	mounts []*layerMount
	tree   *mount.Tree
	root   *os.File
}

func (l *chainReader) Close() error {
	err := errors.Join(l.root.Close(), l.tree.Close())
	l.d.release(l.mounts)
	return err
}

// openChain opens a chain of at least one layer for reading. The caller closes it.
func (d *Driver) openChain(chain oci.Chain) (l *chainReader, err error) {
	mounts, records, err := d.acquire(chain)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			d.release(mounts)
		}
	}()
	// Overlayfs needs at least two layers when it has no upper directory.
	empty := filepath.Join(d.roots, "empty")
	if err := d.makeDir(empty); err != nil {
		return nil, err
	}
	tree, err := mount.Overlay{Lower: append([]mount.Layer{mount.At(empty)}, base(mounts, records).Layers...)}.Mount()
	if err != nil {
		return nil, err
	}
	root, err := tree.Open()
	if err != nil {
		return nil, errors.Join(err, tree.Close())
	}
	return &chainReader{d: d, mounts: mounts, tree: tree, root: root}, nil
}
