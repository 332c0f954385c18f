package docker

import (
	"fmt"

	"ply/internal/errs"
	"ply/internal/volume"
	"ply/internal/wire"
)

// mountSpec checks a --mount and returns it in the engine's form.
func mountSpec(m *wire.Mount) (volume.MountSpec, error) {
	s := volume.MountSpec{Type: m.Type, Source: m.Source, Target: m.Target, ReadOnly: m.ReadOnly}
	bad := func(format string, args ...any) (volume.MountSpec, error) {
		return volume.MountSpec{}, errs.New(errs.Invalid, "invalid mount config for type %q: %s", clip(m.Type), fmt.Sprintf(format, args...))
	}
	if m.Target == "" {
		return bad("field Target must not be empty")
	}
	switch m.Consistency {
	case "", "default", "consistent", "cached", "delegated": // there is no difference when host and container share a kernel
	default:
		return bad("unknown Consistency %q", clip(m.Consistency))
	}
	for _, o := range []struct {
		set        bool
		name, kind string
	}{{m.BindOptions != nil, "BindOptions", "bind"}, {m.VolumeOptions != nil, "VolumeOptions", "volume"}, {m.TmpfsOptions != nil, "TmpfsOptions", "tmpfs"},
		{m.ImageOptions != nil, "ImageOptions", "image"}} {
		if o.set && m.Type != o.kind {
			return bad("field %s must not be specified", o.name)
		}
	}
	switch m.Type {
	case "bind":
		if m.Source == "" {
			return bad("field Source must not be empty")
		}
		if o := m.BindOptions; o != nil {
			s.Propagation, s.NonRecursive, s.CreateSource = o.Propagation, o.NonRecursive, o.CreateMountpoint
			s.ReadOnlyNonRecursive, s.ReadOnlyForceRecursive = o.ReadOnlyNonRecursive, o.ReadOnlyForceRecursive
		}
	case "volume":
		if o := m.VolumeOptions; o != nil {
			s.NoCopy, s.Labels, s.Subpath = o.NoCopy, o.Labels, o.Subpath
			if o.DriverConfig != nil {
				s.Driver, s.DriverOpts = o.DriverConfig.Name, o.DriverConfig.Options
			}
		}
	case "tmpfs":
		if m.Source != "" {
			return bad("field Source must not be specified")
		}
		if o := m.TmpfsOptions; o != nil {
			if len(o.Options) > 0 {
				return bad("TmpfsOptions.Options is not supported: use --tmpfs")
			}
			s.TmpfsSize, s.TmpfsMode = o.SizeBytes, o.Mode
		}
	case "image":
		if m.Source == "" {
			return bad("field Source must not be empty")
		}
		if o := m.ImageOptions; o != nil {
			s.Subpath = o.Subpath
		}
	default:
		return bad("mount type unknown: want bind, volume, tmpfs or image")
	}
	return s, nil
}

// mountsSince refuses mounts that the version of the API does not have.
func mountsSince(version int, mounts []wire.Mount) error {
	for _, m := range mounts {
		switch {
		case version < 44 && m.BindOptions != nil && m.BindOptions.ReadOnlyForceRecursive:
			return errs.New(errs.Invalid, "BindOptions.ReadOnlyForceRecursive needs API v1.44 or newer")
		case version < 45 && m.VolumeOptions != nil && m.VolumeOptions.Subpath != "":
			return errs.New(errs.Invalid, "VolumeOptions.Subpath needs API v1.45 or newer")
		case version < 48 && m.Type == "image":
			return errs.New(errs.Invalid, `Mount type "Image" needs API v1.48 or newer`)
		}
	}
	return nil
}

// mountOf returns a mount as it was asked for.
func mountOf(m volume.MountSpec) wire.Mount {
	c := wire.Mount{Type: m.Type, Source: m.Source, Target: m.Target, ReadOnly: m.ReadOnly}
	switch {
	case m.Type == "bind" && (m.Propagation != "" || m.NonRecursive || m.CreateSource || m.ReadOnlyNonRecursive || m.ReadOnlyForceRecursive):
		c.BindOptions = &wire.BindOptions{Propagation: m.Propagation, NonRecursive: m.NonRecursive, CreateMountpoint: m.CreateSource,
			ReadOnlyNonRecursive: m.ReadOnlyNonRecursive, ReadOnlyForceRecursive: m.ReadOnlyForceRecursive}
	case m.Type == "volume" && (m.NoCopy || len(m.Labels) > 0 || m.Subpath != "" || m.Driver != "" || len(m.DriverOpts) > 0):
		c.VolumeOptions = &wire.VolumeOptions{NoCopy: m.NoCopy, Labels: m.Labels, Subpath: m.Subpath}
		if m.Driver != "" || len(m.DriverOpts) > 0 {
			c.VolumeOptions.DriverConfig = &wire.VolumeDriver{Name: m.Driver, Options: m.DriverOpts}
		}
	case m.Type == "image" && m.Subpath != "":
		c.ImageOptions = &wire.ImageOptions{Subpath: m.Subpath}
	case m.Type == "tmpfs" && (m.TmpfsSize != 0 || m.TmpfsMode != 0):
		c.TmpfsOptions = &wire.TmpfsOptions{SizeBytes: m.TmpfsSize, Mode: m.TmpfsMode}
	}
	return c
}
