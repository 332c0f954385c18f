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

// install makes a finished staging directory the layer, or takes from it what the layer held already lacks.
// The staging directory is gone when there is no error.
func (d *Driver) install(ctx context.Context, staging string, r *record, parents oci.Chain, index string) error {
	unlock, err := d.installing.lock(ctx, r.DiffID)
	if err != nil {
		return err
	}
	defer unlock()
	dir := d.layerDir(r.DiffID)
	if held, err := d.record(r.DiffID); err == nil {
		err := d.verify(ctx, held, index)
		if errors.Is(err, errs.NotFound) { // sound, but for other parents
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

// adopt moves one more index into a layer that is held; its record comes last.
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
