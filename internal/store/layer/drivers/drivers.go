// Package drivers lists the storage drivers and chooses one for a data root. It is the only list: the configuration
// checks names against it, and a new driver is one entry of it.
package drivers

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/mount"
	"ply/internal/store/layer"
	"ply/internal/store/layer/erofs"
	"ply/internal/store/layer/overlay2"
	"ply/internal/store/layer/vfs"
)

// driver is one storage driver.
type driver struct {
	name  string
	probe func(root string) (ok bool, why string)
	open  func(fsys durable.FS, root string) (layer.Driver, error)
}

// all lists the drivers, best first.
var all = []driver{
	{"erofs", erofs.Probe, func(f durable.FS, r string) (layer.Driver, error) { return erofs.Open(f, r, erofs.Options{}) }},
	{"overlay2", overlay2.Probe, func(f durable.FS, r string) (layer.Driver, error) { return overlay2.Open(f, r, overlay2.Options{}) }},
	{"vfs", vfs.Probe, func(f durable.FS, r string) (layer.Driver, error) { return vfs.Open(f, r, vfs.Options{}) }},
}

// absent are drivers of Docker that users ask for, with the reason why they do not exist here.
var absent = map[string]string{
	"aufs":           "it was never part of the mainline kernel",
	"devicemapper":   "Docker removed it in 2025, and overlayfs replaces it",
	"zfs":            "it is not built in; overlay2 works on a zfs data root of OpenZFS 2.2 or later",
	"btrfs":          "it is not built in; erofs and overlay2 work on a btrfs data root",
	"overlay":        "overlay2 replaced it",
	"fuse-overlayfs": "this engine reads no layer through FUSE",
	"windowsfilter":  "this is Linux",
}

// Names returns the names of all drivers, best first.
func Names() []string {
	names := make([]string, len(all))
	for i, d := range all {
		names[i] = d.name
	}
	return names
}

// List returns the names as a phrase: "erofs, overlay2 or vfs".
func List() string {
	names := Names()
	last := len(names) - 1
	return strings.Join(names[:last], ", ") + " or " + names[last]
}

// Check refuses the name of a driver that does not exist. "" is allowed: Open chooses.
func Check(name string) error {
	if name == "" || slices.Contains(Names(), name) {
		return nil
	}
	if why, ok := absent[name]; ok {
		return fmt.Errorf("there is no %s: %s; use %s, or leave it to the probe", name, why, List())
	}
	return fmt.Errorf("%q is none of %s", name, strings.Join(Names(), ", "))
}

// file is the name of the file in which a data root records its driver. A driver cannot read the layers of another one.
const file = "driver"

// Open opens the driver named want; without one, the driver that the data root was made with; without either, the best
// driver whose probe succeeds. It makes root when it does not exist. Notes are pairs for `info` that say why better
// drivers were not taken.
//
// Open returns errs.Invalid for an unknown name, and errs.Precondition when the driver does not work on root or is not
// the one that root was made with.
func Open(fsys durable.FS, root, want string) (_ layer.Driver, notes [][2]string, err error) {
	if err := durable.MkdirPrivate(fsys, root); err != nil {
		return nil, nil, err
	}
	removeTemps(fsys, root)
	have, err := recorded(fsys, root)
	if err != nil {
		return nil, nil, err
	}
	if have != "" && !slices.Contains(Names(), have) {
		return nil, nil, errs.New(errs.Precondition, "data root %s was made with storage driver %q, which this version does not have", root, have).
			WithHint("Use the version that made it, or another --data-root.")
	}
	if want != "" && have != "" && want != have {
		return nil, nil, errs.New(errs.Precondition, "data root %s was made with storage driver %s, not %s", root, have, want).
			WithHint("Use another --data-root, or save the images and load them there.")
	}
	chosen := want
	if chosen == "" {
		chosen = have
	}
	d, notes, err := choose(all, root, chosen)
	if err != nil {
		return nil, nil, err
	}
	open, err := d.open(fsys, root)
	if err != nil {
		return nil, nil, err
	}
	if have == "" {
		if err := durable.WriteFile(fsys, filepath.Join(root, file), []byte(d.name+"\n"), 0o600); err != nil {
			return nil, nil, errors.Join(err, open.Close())
		}
	}
	return open, notes, nil
}

// removeTemps removes what an interrupted start has left directly below root: probes of drivers, which may have something mounted,
// and unfinished files. What cannot be removed does no harm.
func removeTemps(fsys durable.FS, root string) {
	entries, err := fsys.ReadDir(root)
	if err != nil {
		return
	}
	for _, e := range entries {
		temp := filepath.Join(root, e.Name())
		if !durable.IsTemp(e.Name()) || e.IsDir() && mount.Unmount(filepath.Join(temp, "mount"), true) != nil { // the probe of erofs mounts there
			continue
		}
		_ = fsys.RemoveAll(temp)
	}
}

// recorded returns the name of the driver that root was made with, or "" for a new root.
func recorded(fsys durable.FS, root string) (string, error) {
	b, err := durable.ReadFile(fsys, filepath.Join(root, file), 100)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", errs.New(errs.Internal, "data root %s: %w", root, err)
	}
	return strings.TrimSpace(string(b)), nil
}

// choose probes the named driver, or all of them until one works.
func choose(list []driver, root, name string) (*driver, [][2]string, error) {
	var notes [][2]string
	for i, d := range list {
		if name != "" && d.name != name {
			continue
		}
		ok, why := d.probe(root)
		if ok {
			return &list[i], notes, nil
		}
		if name != "" {
			return nil, nil, errs.New(errs.Precondition, "storage driver %s does not work on %s: %s", name, root, why)
		}
		notes = append(notes, [2]string{d.name + " not used", why})
	}
	if name != "" {
		return nil, nil, errs.New(errs.Invalid, "storage driver %q: unknown", name).WithHint("Use %s.", List())
	}
	return nil, nil, errs.New(errs.Precondition, "no storage driver works on %s: %v", root, notes)
}
