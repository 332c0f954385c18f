package erofs

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/mount"
	"ply/internal/oci"
)

func itoa(n int) string { return strconv.Itoa(n) }

// mountKey names an index of a layer.
type mountKey struct {
	id    oci.DiffID
	index string
}

// layerMount is the mount of one index of a layer. All chains and containers with the layer share it.
type layerMount struct {
	key  mountKey
	refs int // users; guarded by Driver.mu; 0 means idle

	once  sync.Once // mounts; sets the fields below
	err   error
	tree  *mount.Tree
	point string // the mount point; "" for a detached mount
}

func (m *layerMount) layer() mount.Layer {
	if m.point != "" {
		return mount.At(m.point)
	}
	return mount.Of(m.tree)
}

func (m *layerMount) close(d *Driver) error {
	var err error
	if m.point != "" {
		err = mount.Unmount(m.point, true)
		if rerr := d.fs.Remove(m.point); !os.IsNotExist(rerr) {
			err = errors.Join(err, rerr)
		}
	}
	if m.tree != nil {
		err = errors.Join(err, m.tree.Close())
	}
	return err
}

// acquire mounts the layers of a chain and returns them, bottom first, each with its record. It leaves out layers that
// others hide completely: those below an opaque root, and the lower copies of a layer that the chain has several times.
// The caller releases the mounts.
func (d *Driver) acquire(chain oci.Chain) ([]*layerMount, []*layerRecord, error) {
	var mounts []*layerMount
	var records []*layerRecord
	seen := map[mountKey]bool{}
	for i := len(chain) - 1; i >= 0; i-- {
		r, err := d.lookup(chain[i])
		if err == nil {
			key := mountKey{chain[i], r.indexName(chain[:i])}
			if seen[key] {
				continue // overlayfs refuses the same directory twice, and the upper copy shows all its names
			}
			seen[key] = true
			var m *layerMount
			if m, err = d.mountLayer(r, chain[:i]); err == nil {
				mounts, records = append(mounts, m), append(records, r)
			}
		}
		if err != nil {
			d.release(mounts)
			return nil, nil, err
		}
		if r.OpaqueRoot {
			break
		}
	}
	if len(mounts) > maxLayers {
		d.release(mounts)
		return nil, nil, errs.New(errs.Exhausted, "image: %d layers, the kernel stacks %d", len(mounts), maxLayers).
			WithHint("Build it with fewer steps, or squash it.")
	}
	slices.Reverse(mounts)
	slices.Reverse(records)
	return mounts, records, nil
}

func (d *Driver) mountLayer(r *layerRecord, parents oci.Chain) (*layerMount, error) {
	key := mountKey{r.DiffID, r.indexName(parents)}
	d.mu.Lock()
	m := d.mounts[key]
	if m == nil {
		m = &layerMount{key: key}
		d.mounts[key] = m
	}
	m.refs++
	if m.refs == 1 {
		d.idle = slices.DeleteFunc(d.idle, func(i *layerMount) bool { return i == m })
	}
	d.mu.Unlock()
	m.once.Do(func() { m.err = d.mountIndex(m) })
	if m.err != nil {
		err := m.err
		d.mu.Lock()
		if d.mounts[key] == m {
			delete(d.mounts, key) // so that the next caller tries again
		}
		d.mu.Unlock()
		return nil, err
	}
	return m, nil
}

func (d *Driver) mountIndex(m *layerMount) error {
	dir := d.layerDir(m.key.id)
	if _, err := d.readIndex(dir, m.key.index); err != nil {
		if errors.Is(err, errs.NotFound) {
			return errs.New(errs.NotFound, "layer %s: not prepared for these parents", m.key.id.Short()).
				WithHint("Pull or load the image again.")
		}
		return damage(m.key.id, err)
	}
	img := filepath.Join(dir, m.key.index+".erofs")
	devices, err := d.devices(dir, m.key.index)
	if err != nil {
		return damage(m.key.id, err)
	}
	tree, err := mount.Erofs{Image: img, Devices: devices, DirectIO: !d.opts.Buffered}.Mount()
	if err != nil {
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EUCLEAN) || errors.Is(err, unix.EIO) {
			return damage(m.key.id, err)
		}
		return errs.New(errs.Internal, "layer %s: %w", m.key.id.Short(), err)
	}
	m.tree = tree
	if !d.opts.Attached {
		return nil
	}
	point := filepath.Join(d.points, m.key.id.Hex()[:16]+"-"+strconv.FormatUint(d.pointCount.Add(1), 10))
	if err := d.fs.Mkdir(point, 0o700); err != nil && !os.IsExist(err) {
		return errors.Join(err, tree.Close())
	}
	if err := tree.Attach(point); err != nil {
		return errors.Join(err, d.fs.Remove(point), tree.Close())
	}
	m.point = point
	return nil
}

// release ends the use of mounts that acquire returned. The most recently used mounts stay mounted, up to
// Options.IdleMounts. If any may stay, the whole chain that was released last does: the next step of a build uses it again.
func (d *Driver) release(mounts []*layerMount) {
	d.mu.Lock()
	var drop []*layerMount
	for _, m := range mounts {
		if m.refs--; m.refs > 0 {
			continue
		}
		if d.mounts[m.key] != m { // forget has removed it
			drop = append(drop, m)
			continue
		}
		d.idle = append(d.idle, m)
	}
	most := max(d.opts.IdleMounts, 0)
	if most > 0 {
		most = max(most, len(mounts))
	}
	for len(d.idle) > most {
		drop = append(drop, d.idle[0])
		delete(d.mounts, d.idle[0].key)
		d.idle = d.idle[1:]
	}
	d.mu.Unlock()
	for _, m := range drop {
		_ = m.close(d) // the caller cannot act on an error; clearMountPoints tries again at the next start
	}
}

// forget removes the mounts of a layer from the table. Mounts in use stay until they are released. The caller holds mu.
func (d *Driver) forget(id oci.DiffID) {
	for k, m := range d.mounts {
		if k.id != id {
			continue
		}
		delete(d.mounts, k)
		if m.refs == 0 {
			d.idle = slices.DeleteFunc(d.idle, func(i *layerMount) bool { return i == m })
			_ = m.close(d)
		}
	}
}

// inUse reports whether a layer is part of a mounted file system. When index is not "", only this index counts. The caller
// holds mu.
func (d *Driver) inUse(id oci.DiffID, index string) bool {
	for k, m := range d.mounts {
		if k.id == id && (index == "" || k.index == index) && m.refs > 0 {
			return true
		}
	}
	return false
}

// unmountIdle unmounts an idle mount. The caller holds mu.
func (d *Driver) unmountIdle(m *layerMount) {
	delete(d.mounts, m.key)
	d.idle = slices.DeleteFunc(d.idle, func(i *layerMount) bool { return i == m })
	_ = m.close(d)
}
