package erofs

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/oci"
)

// install renames a complete staging directory to the layer's name. When the layer exists already, it only moves the index
// that the existing one lacks. The staging directory does not exist any more when install returns nil.
func (d *Driver) install(ctx context.Context, staging string, r *layerRecord, parents oci.Chain, index string) error {
	unlock, err := d.installing.lock(ctx, r.DiffID)
	if err != nil {
		return err
	}
	defer unlock()
	dir := d.layerDir(r.DiffID)
	if existing, err := d.lookup(r.DiffID); err == nil {
		err := d.verify(ctx, existing, index)
		if errors.Is(err, errs.NotFound) { // the layer is whole, but has no index for these parents
			if err = d.adopt(staging, dir, index); err != nil {
				return err
			}
		}
		if err == nil {
			return d.fs.RemoveAll(staging)
		}
		if !errors.Is(err, errs.DataLoss) {
			return err
		}
	}
	if _, err := d.fs.Lstat(dir); err == nil {
		if err := d.quarantine(r.DiffID, "replaced by a new copy"); err != nil {
			return err
		}
	} else if !os.IsNotExist(err) {
		return err
	}
	if err := durable.Rename(d.fs, staging, dir); err != nil {
		return err
	}
	st, err := d.fs.Lstat(filepath.Join(dir, recordName))
	if err != nil {
		return err
	}
	r.made = st.ModTime()
	d.mu.Lock()
	d.records[r.DiffID] = r
	delete(d.damaged, r.DiffID)
	d.mu.Unlock()
	return d.fs.RemoveAll(filepath.Join(d.quar, r.DiffID.Hex()))
}

// adopt moves one more index into the directory of an existing layer. The index's record is moved last, after the names of
// its files are durable.
func (d *Driver) adopt(staging, dir, index string) error {
	for _, name := range []string{chainFile(index), index + ".erofs"} {
		err := d.fs.Rename(filepath.Join(staging, name), filepath.Join(dir, name))
		if err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	if err := d.fs.SyncDir(dir); err != nil {
		return err
	}
	return durable.Rename(d.fs, filepath.Join(staging, index+".json"), filepath.Join(dir, index+".json"))
}
