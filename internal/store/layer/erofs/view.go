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
	"ply/internal/store/layer/upper"
)

// rootOf gives the attributes of a chain's root: those of the uppermost layer that describes it. own says that
// it is the top layer, so that a stack of the layers shows them by itself.
func rootOf(records []*record) (a *attributes, own bool) {
	for i, r := range slices.Backward(records) {
		if r.Root != nil {
			return r.Root, i == len(records)-1
		}
	}
	return nil, true
}

// stack gives what a chain's mounts are to an overlay, top first.
func stack(mounts []*layerMount) []mount.Layer {
	lower := make([]mount.Layer, 0, len(mounts)+2)
	for _, m := range slices.Backward(mounts) {
		lower = append(lower, m.layer())
	}
	return lower
}

// tooDeep words the kernel's limit for people.
func tooDeep(lower []mount.Layer) error {
	if len(lower) <= mount.MaxLowers {
		return nil
	}
	return errs.New(errs.Exhausted, "image: %d layers and mount points, overlayfs takes %d", len(lower), mount.MaxLowers).
		WithHint("Build it with fewer steps, or squash it.")
}

// View implements layer.Driver.
func (d *Driver) View(ctx context.Context, chain oci.Chain, target string) error {
	return d.place(target, chain, func(mounts []*layerMount, records []*record) (*mount.Tree, error) {
		return d.viewTree(ctx, chain, mounts, records)
	})
}

func (d *Driver) viewTree(ctx context.Context, chain oci.Chain, mounts []*layerMount, records []*record) (*mount.Tree, error) {
	lower := stack(mounts)
	if _, own := rootOf(records); !own {
		dir, err := d.initDir(ctx, chain, nil, mounts, records)
		if err != nil {
			return nil, err
		}
		lower = slices.Insert(lower, 0, mount.At(dir))
	}
	for len(lower) < 2 { // overlayfs wants two when nothing is writable
		dir, err := d.emptyDir(len(lower))
		if err != nil {
			return nil, err
		}
		lower = append(lower, mount.At(dir))
	}
	if err := tooDeep(lower); err != nil {
		return nil, err
	}
	return mount.Overlay{Lower: lower}.Mount()
}

// emptyDir gives the n-th directory with nothing in it.
func (d *Driver) emptyDir(n int) (string, error) {
	dir := filepath.Join(d.inits, "empty-"+itoa(n))
	err := d.fs.Mkdir(dir, 0o755)
	if err == nil || errors.Is(err, os.ErrExist) {
		return dir, nil
	}
	return "", err
}

// place mounts a chain's layers, makes a tree of them and attaches it; the layers are held until Unmount.
func (d *Driver) place(target string, chain oci.Chain, tree func([]*layerMount, []*record) (*mount.Tree, error)) (err error) {
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
		busy, err = mount.IsMounted(target)
		if err != nil {
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
	t, err := tree(mounts, records)
	if err == nil {
		err = errors.Join(t.Attach(target), t.Close())
	}
	if err != nil {
		d.release(mounts)
		return err
	}
	d.mu.Lock()
	d.targets[target] = mounts
	d.mu.Unlock()
	return nil
}

// Unmount implements layer.Driver.
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

func (l *looking) Close() {
	l.root.Close()
	l.tree.Close()
	l.d.release(l.mounts)
}

// look opens a chain for reading through a descriptor.
func (d *Driver) look(chain oci.Chain) (*looking, error) {
	mounts, records, err := d.acquire(chain)
	if err != nil {
		return nil, err
	}
	l, err := d.lookAt(mounts, records)
	if err != nil {
		d.release(mounts)
	}
	return l, err
}

func (d *Driver) lookAt(mounts []*layerMount, _ []*record) (*looking, error) {
	lower := stack(mounts)
	for len(lower) < 2 {
		dir, err := d.emptyDir(len(lower))
		if err != nil {
			return nil, err
		}
		lower = append(lower, mount.At(dir))
	}
	if err := tooDeep(lower); err != nil {
		return nil, err
	}
	tree, err := mount.Overlay{Lower: lower}.Mount()
	if err != nil {
		return nil, err
	}
	root, err := tree.Open()
	if err != nil {
		return nil, errors.Join(err, tree.Close())
	}
	return &looking{d: d, mounts: mounts, tree: tree, root: root}, nil
}

// lower opens what lies below a writable for upper's look-ups. done must be called.
func (d *Driver) lower(ctx context.Context, dir string, chain oci.Chain) (l upper.Lower, done func(), err error) {
	mounts, records, err := d.acquire(chain)
	if err != nil {
		return nil, nil, err
	}
	var files []*os.File
	done = func() {
		for _, f := range files {
			f.Close()
		}
		d.release(mounts)
	}
	defer func() {
		if err != nil {
			done()
		}
	}()
	entries, err := d.readInit(dir)
	if err != nil {
		return nil, done, err
	}
	if len(entries) > 0 {
		path, err := d.initDir(ctx, chain, entries, mounts, records)
		if err != nil {
			return nil, done, err
		}
		f, err := os.Open(path)
		if err != nil {
			return nil, done, err
		}
		files = append(files, f)
	}
	for _, m := range slices.Backward(mounts) {
		f, err := m.tree.Open()
		if err != nil {
			return nil, done, err
		}
		files = append(files, f)
	}
	return upper.StackLower(files...), done, nil
}
