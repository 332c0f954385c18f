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

// base gives the layers of a chain, in the order of acquire, as overlayfs takes them: top first.
func base(mounts []*layerMount, records []*record) writable.Base {
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
	return d.place(target, chain, func(base writable.Base) error {
		return writable.View(d.fs, base, d.roots, target)
	})
}

// maxLayers leaves room for what lies on top of an image: mount points, or the attributes of the root.
const maxLayers = mount.MaxLowers - 1

// place mounts a chain's layers and lets attach make them appear at target; they are held until Unmount.
func (d *Driver) place(target string, chain oci.Chain, attach func(writable.Base) error) (err error) {
	target, err = filepath.Abs(target)
	if err != nil {
		return err
	}
	d.mu.Lock()
	_, busy := d.targets[target]
	if !busy {
		d.targets[target] = nil // ours from here on
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
		return errs.New(errs.Conflict, "mount %s: something is mounted there", target)
	}
	mounts, records, err := d.acquire(chain)
	if err != nil {
		return err
	}
	if err = attach(base(mounts, records)); err != nil {
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

// looking is a chain open for look-ups, without a place.
type looking struct {
	d      *Driver
	mounts []*layerMount
	tree   *mount.Tree
	root   *os.File
}

func (l *looking) Close() error {
	err := errors.Join(l.root.Close(), l.tree.Close())
	l.d.release(l.mounts)
	return err
}

// look opens a chain, not empty, for reading through a descriptor.
func (d *Driver) look(chain oci.Chain) (l *looking, err error) {
	mounts, records, err := d.acquire(chain)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			d.release(mounts)
		}
	}()
	// Overlayfs wants two layers when nothing is writable.
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
	return &looking{d: d, mounts: mounts, tree: tree, root: root}, nil
}
