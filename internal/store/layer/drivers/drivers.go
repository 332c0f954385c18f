package engine

import (
	"os"
	"path/filepath"
	"strings"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/store/layer"
	"ply/internal/store/layer/erofs"
	"ply/internal/store/layer/overlay2"
	"ply/internal/store/layer/vfs"
)

// candidate is one storage driver, best first.
type candidate struct {
	name  string
	probe func(root string) (bool, string)
	open  func(fsys durable.FS, root string) (layer.Driver, error)
}

var candidates = []candidate{
	{"erofs", erofs.Probe, func(f durable.FS, r string) (layer.Driver, error) { return erofs.Open(f, r, erofs.Options{}) }},
	{"overlay2", overlay2.Probe, func(f durable.FS, r string) (layer.Driver, error) { return overlay2.Open(f, r, overlay2.Options{}) }},
	{"vfs", vfs.Probe, func(f durable.FS, r string) (layer.Driver, error) { return vfs.Open(f, r, vfs.Options{}) }},
}

// driverFile remembers which driver a data root was made with: layers of one are nothing to another.
const driverFile = "driver"

// openDriver opens the driver that is asked for, that the data root was made with, or that the probes find best, in this
// order. Notes tell why better ones were not taken.
func openDriver(fsys durable.FS, root, want string) (_ layer.Driver, notes [][2]string, err error) {
	if err := fsys.MkdirAll(root, 0o711); err != nil {
		return nil, nil, err
	}
	made, err := os.ReadFile(filepath.Join(root, driverFile))
	if err != nil && !os.IsNotExist(err) {
		return nil, nil, errs.New(errs.Internal, "data root %s: %w", root, err)
	}
	have := strings.TrimSpace(string(made))
	if want != "" && have != "" && want != have {
		return nil, nil, errs.New(errs.Precondition, "data root %s was made with storage driver %s, not %s", root, have, want).
			WithHint("Use another --data-root, or save the images and load them there.")
	}
	forced := want
	if forced == "" {
		forced = have
	}
	for _, c := range candidates {
		if forced != "" && c.name != forced {
			continue
		}
		ok, why := c.probe(root)
		if !ok {
			if forced != "" {
				return nil, nil, errs.New(errs.Precondition, "storage driver %s does not work on %s: %s", c.name, root, why)
			}
			notes = append(notes, [2]string{c.name + " not used", why})
			continue
		}
		d, err := c.open(fsys, root)
		if err != nil {
			return nil, nil, err
		}
		if have == "" {
			if err := durable.WriteFile(fsys, filepath.Join(root, driverFile), []byte(c.name+"\n"), 0o600); err != nil {
				return nil, nil, err
			}
		}
		return d, notes, nil
	}
	if forced != "" {
		return nil, nil, errs.New(errs.Invalid, "storage driver %q: unknown", forced).WithHint("Use erofs, overlay2 or vfs.")
	}
	return nil, nil, errs.New(errs.Precondition, "no storage driver works on %s: %v", root, notes)
}
