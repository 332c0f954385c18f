// Package cdi finds the devices that vendors describe in files of the Container Device Interface, and adds them to runtime specs.
//
// Invariants: the files are read each time that they are needed, so that a device that was added or removed counts at once. What is read is bounded, and nothing but
// regular files is read. A file that is invalid, or too large, takes no devices of other files with it. Of two files that describe one device, that in the later
// directory counts; when both are in one directory, there is no such device.
package cdi

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	runtime "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"
	format "tags.cncf.io/container-device-interface/specs-go"

	"ply/internal/errs"
)

// DefaultDirs returns the directories in which vendors leave their files, in the order of precedence: the last one counts most.
func DefaultDirs() []string { return slices.Clone(cdi.DefaultSpecDirs) }

const (
	maxFile  = 4 << 20 // bytes of a file; that of a machine with many GPUs has some 100 KiB
	maxFiles = 1000    // of a directory
)

// Devices are the devices that are described in some directories. Names and Problems of nil are empty.
type Devices struct {
	known    map[string]*device
	problems []Problem
}

// Problem says why devices of a file are not known.
type Problem struct {
	Path string // of the file, or of a directory that cannot be read
	Err  error
}

// device is one device of a file.
type device struct {
	file  *file
	edits *format.ContainerEdits
	shown bool // false: two files of one directory describe it
}

// file is a file with devices.
type file struct {
	path  string
	dir   int                    // index of its directory
	edits *format.ContainerEdits // of every container that has one of its devices
}

// Read reads the files in directories, which may be absent.
func Read(dirs []string) *Devices {
	d := &Devices{known: map[string]*device{}}
	for i, dir := range dirs {
		names, err := list(dir)
		if err != nil {
			d.problem(dir, err)
			continue
		}
		for _, name := range names {
			if err := d.add(name, i); err != nil {
				d.problem(name, err)
			}
		}
	}
	return d
}

func (d *Devices) problem(path string, err error) {
	d.problems = append(d.problems, Problem{path, err})
}

// list returns the paths of the files in a directory that may have devices, sorted.
func list(dir string) (names []string, err error) {
	f, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read from
	entries, err := f.ReadDir(maxFiles + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if len(entries) > maxFiles {
		return nil, fmt.Errorf("more than %d files", maxFiles)
	}
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); !e.IsDir() && (ext == ".json" || ext == ".yaml") {
			names = append(names, filepath.Join(dir, e.Name()))
		}
	}
	slices.Sort(names)
	return names, nil
}

// add adds the devices of a file.
func (d *Devices) add(name string, dir int) error {
	data, err := read(name)
	if err != nil {
		return err
	}
	spec, err := cdi.ParseSpec(data)
	if err != nil {
		return err
	}
	if err := check(spec); err != nil {
		return err
	}
	f := &file{path: name, dir: dir, edits: &spec.ContainerEdits}
	for i := range spec.Devices {
		full := spec.Kind + "=" + spec.Devices[i].Name
		other := d.known[full]
		switch {
		case other == nil || other.file.dir < dir:
			d.known[full] = &device{file: f, edits: &spec.Devices[i].ContainerEdits, shown: true}
		default:
			other.shown = false
			d.problem(name, fmt.Errorf("conflicting device %q (specs %q, %q)", full, name, other.file.path))
		}
	}
	return nil
}

// read reads a regular file. It does not wait for the writer of a pipe.
func read(name string) (_ []byte, err error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read from
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("larger than %d bytes", maxFile)
	}
	return data, err
}

// check refuses a file of which nothing can be used. Absent entries of lists come first: the library does not expect them.
func check(spec *format.Spec) error {
	if spec == nil {
		return errors.New("empty")
	}
	for _, e := range append([]*format.ContainerEdits{&spec.ContainerEdits}, editsOf(spec.Devices)...) {
		if slices.Contains(e.DeviceNodes, nil) || slices.Contains(e.NetDevices, nil) || slices.Contains(e.Hooks, nil) || slices.Contains(e.Mounts, nil) {
			return errors.New("an entry of a list is null")
		}
	}
	if err := format.ValidateVersion(spec); err != nil {
		return err
	}
	vendor, class := parser.ParseQualifier(spec.Kind)
	if err := errors.Join(parser.ValidateVendorName(vendor), parser.ValidateClassName(class)); err != nil {
		return err
	}
	if err := checkEdits(&spec.ContainerEdits); err != nil {
		return err
	}
	if len(spec.Devices) == 0 {
		return errors.New("no devices")
	}
	seen := map[string]bool{}
	for i := range spec.Devices {
		dev := &spec.Devices[i]
		err := parser.ValidateDeviceName(dev.Name)
		if err == nil && seen[dev.Name] {
			err = errors.New("described twice")
		}
		if err == nil {
			err = checkEdits(&dev.ContainerEdits)
		}
		if err != nil {
			return fmt.Errorf("device %q: %w", dev.Name, err)
		}
		seen[dev.Name] = true
	}
	return nil
}

func editsOf(devices []format.Device) []*format.ContainerEdits {
	list := make([]*format.ContainerEdits, len(devices))
	for i := range devices {
		list[i] = &devices[i].ContainerEdits
	}
	return list
}

// checkEdits refuses what the library refuses, and paths that mean nothing in another directory.
func checkEdits(e *format.ContainerEdits) error {
	if err := (&cdi.ContainerEdits{ContainerEdits: e}).Validate(); err != nil {
		return err
	}
	var paths []string
	for _, n := range e.DeviceNodes {
		paths = append(paths, n.Path)
		if n.HostPath != "" {
			paths = append(paths, n.HostPath)
		}
	}
	for _, m := range e.Mounts {
		paths = append(paths, m.ContainerPath)
		if path.Clean(m.ContainerPath) == "/" {
			return errors.New("a mount at /")
		}
	}
	for _, h := range e.Hooks {
		paths = append(paths, h.Path)
	}
	for _, p := range paths {
		if !path.IsAbs(p) || strings.IndexByte(p, 0) >= 0 {
			return fmt.Errorf("%q is not an absolute path", p)
		}
	}
	return nil
}

// Problems returns why devices of some files are not known.
func (d *Devices) Problems() []Problem {
	if d == nil {
		return nil
	}
	return d.problems
}

// Names returns the full names of the devices, such as vendor.com/class=name, sorted.
func (d *Devices) Names() []string {
	if d == nil {
		return nil
	}
	return slices.Sorted(func(yield func(string) bool) {
		for name, dev := range d.known {
			if dev.shown && !yield(name) {
				return
			}
		}
	})
}

// Has reports whether there is a device of a kind, such as vendor.com/class.
func (d *Devices) Has(kind string) bool {
	for name := range d.known {
		if k, _, _ := strings.Cut(name, "="); k == kind {
			return true
		}
	}
	return false
}

// Inject adds devices to a runtime spec: their nodes, mounts, hooks, variables and groups. Mounts at a path for which taken returns true are left out. The class of
// an error is errs.Invalid when there is no such device.
func (d *Devices) Inject(spec *runtime.Spec, names []string, taken func(path string) bool) error {
	var unknown []string
	all := &cdi.ContainerEdits{}
	files := map[*file]bool{}
	for _, name := range names {
		dev := d.known[name]
		if dev == nil || !dev.shown {
			unknown = append(unknown, name)
			continue
		}
		if !files[dev.file] {
			files[dev.file] = true
			all = all.Append(&cdi.ContainerEdits{ContainerEdits: dev.file.edits})
		}
		all = all.Append(&cdi.ContainerEdits{ContainerEdits: dev.edits})
	}
	if len(unknown) > 0 {
		return errs.New(errs.Invalid, "CDI device injection failed: unresolvable CDI devices %s", strings.Join(unknown, ", "))
	}
	if len(files) == 0 {
		return nil
	}
	all.Mounts = slices.DeleteFunc(slices.Clone(all.Mounts), func(m *format.Mount) bool { return taken(path.Clean(m.ContainerPath)) })
	if err := all.Apply(spec); err != nil {
		return errs.New(errs.Invalid, "CDI device injection failed: failed to inject devices: %w", err)
	}
	return nil
}
