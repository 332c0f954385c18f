package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"sort"
	"strconv"
	"strings"

	"ply/internal/errs"
	"ply/internal/oci"
)

// Request is everything that determines what a container mounts.
type Request struct {
	Container oci.ContainerID
	Binds     []string
	Mounts    []MountSpec
	Tmpfs     map[string]string
	Inherited []Mount          // of --volumes-from, made read-only where that is asked for
	Anonymous []string         // container paths: the image's VOLUMEs and bare -v
	Images    map[string]Image // those that Mounts name, by the name there

	ReadOnlyNonRecursive bool // mounts below the source of a read-only one of Binds stay writable
}

// Image is an image whose files a container mounts.
type Image struct {
	ID    oci.ImageID
	Chain oci.Chain
}

// Resolved is the result of Resolve.
type Resolved struct {
	Mounts []Mount  // sorted so that a mount comes after those that it lies in
	Made   []string // names of the volumes that Resolve made
}

// Resolve turns a request into mounts, makes the volumes that are missing and adds the container's references to them. On an
// error nothing that it made remains. Precedence is Docker's: what a user writes, then what is inherited, then an image's
// VOLUMEs.
func (s *Service) Resolve(ctx context.Context, r Request) (_ *Resolved, err error) {
	res := &Resolved{}
	defer func() {
		if err != nil {
			s.Undo(context.WithoutCancel(ctx), r.Container, res.Made)
		}
	}()
	at := map[string]Mount{}
	for _, m := range r.Inherited {
		if m.Type == "volume" {
			if _, err := s.create(ctx, m.Name, m.Driver, nil, nil, string(r.Container)); err != nil {
				return nil, err
			}
		}
		m.CopyUp = false
		at[m.Target] = m
	}
	written := map[string]bool{}
	add := func(m Mount) error {
		if written[m.Target] {
			return errs.New(errs.Invalid, "Duplicate mount point: %s", m.Target)
		}
		written[m.Target] = true
		at[m.Target] = m
		return nil
	}
	for _, target := range slices.Sorted(maps.Keys(r.Tmpfs)) {
		m, err := parseTmpfs(target, r.Tmpfs[target])
		if err != nil {
			return nil, err
		}
		if err := add(m); err != nil {
			return nil, err
		}
	}
	for _, raw := range r.Binds {
		b, err := ParseBind(raw)
		if err != nil {
			return nil, err
		}
		if written[b.Target] {
			return nil, errs.New(errs.Invalid, "Duplicate mount point: %s", b.Target)
		}
		m, err := s.resolveBind(ctx, r.Container, b, res)
		m.ReadOnlyNonRecursive = m.Type == "bind" && !m.RW && r.ReadOnlyNonRecursive
		if err != nil {
			return nil, err
		}
		if err := add(m); err != nil {
			return nil, err
		}
	}
	for _, spec := range r.Mounts {
		m, err := s.resolveSpec(ctx, &r, spec, written, res)
		if err != nil {
			return nil, err
		}
		if err := add(m); err != nil {
			return nil, err
		}
	}
	for _, target := range r.Anonymous {
		clean, err := cleanTarget(target)
		if err != nil {
			return nil, err
		}
		if _, there := at[clean]; there {
			continue
		}
		v, err := s.make(ctx, "", "", nil, nil, r.Container, res)
		if err != nil {
			return nil, err
		}
		at[clean] = Mount{Type: "volume", Name: v.Name, Source: v.Mountpoint, Target: clean, Driver: v.Driver, RW: true, CopyUp: true, Anonymous: true}
	}
	for _, m := range at {
		res.Mounts = append(res.Mounts, m)
	}
	SortMounts(res.Mounts)
	return res, nil
}

// SortMounts sorts mounts so that each comes after those that it lies in.
func SortMounts(ms []Mount) {
	sort.Slice(ms, func(i, j int) bool {
		di, dj := strings.Count(ms[i].Target, "/"), strings.Count(ms[j].Target, "/")
		if di != dj {
			return di < dj
		}
		return ms[i].Target < ms[j].Target
	})
}

// make makes a volume for a container, or takes the one of that name, and records in res whether it is new.
func (s *Service) make(ctx context.Context, name, driver string, labels, opts map[string]string, container oci.ContainerID, res *Resolved) (*Volume, error) {
	isNew := name == ""
	if !isNew {
		_, err := s.record(name)
		isNew = errors.Is(err, errs.NotFound)
	}
	v, err := s.create(ctx, name, driver, labels, opts, string(container))
	if err == nil && isNew {
		res.Made = append(res.Made, v.Name)
	}
	return v, err
}

// Undo undoes a Resolve: it drops the references of the container and removes the volumes that were made for it unless
// another container refers to them.
func (s *Service) Undo(ctx context.Context, container oci.ContainerID, made []string) {
	s.DropReferences(container)
	for _, n := range made {
		if err := s.remove(ctx, n, false); err != nil && !errors.Is(err, errs.Conflict) && !errors.Is(err, errs.NotFound) {
			s.log.Warn("volume of a container that was not created stays", "volume", n, "err", err)
		}
	}
}

func (s *Service) resolveBind(ctx context.Context, id oci.ContainerID, b Bind, res *Resolved) (Mount, error) {
	m := Mount{Target: b.Target, Mode: b.Mode, RW: !b.ReadOnly, Propagation: b.Propagation}
	if !b.Named {
		m.Type, m.Source, m.CreateSource = "bind", b.Source, true
		if m.Propagation == "" {
			m.Propagation = "rprivate"
		}
		return m, nil
	}
	v, err := s.make(ctx, b.Source, "", nil, nil, id, res)
	if err != nil {
		return m, err
	}
	m.Type, m.Name, m.Source, m.Driver, m.CopyUp = "volume", v.Name, v.Mountpoint, v.Driver, !b.NoCopy
	if m.Mode == "" {
		m.Mode = "z" // as docker shows a named volume
	}
	return m, nil
}

func specErr(kind, format string, args ...any) error {
	return errs.New(errs.Invalid, "invalid mount config for type %q: %s", kind, fmt.Sprintf(format, args...))
}

// resolveSpec resolves one --mount.
func (s *Service) resolveSpec(ctx context.Context, r *Request, spec MountSpec, written map[string]bool, res *Resolved) (Mount, error) {
	target, err := cleanTarget(spec.Target)
	if err != nil {
		return Mount{}, specErr(spec.Type, "%s", err)
	}
	if written[target] {
		return Mount{}, errs.New(errs.Invalid, "Duplicate mount point: %s", target)
	}
	m := Mount{Type: spec.Type, Target: target, RW: !spec.ReadOnly, NonRecursive: spec.NonRecursive}
	switch spec.Type {
	case "bind":
		return s.specBind(m, spec)
	case "volume":
		return s.specVolume(ctx, r.Container, m, spec, res)
	case "tmpfs":
		return specTmpfs(m, spec)
	case "image":
		return specImage(m, spec, r)
	case "npipe", "cluster":
		return Mount{}, specErr(spec.Type, "mount type is not supported here")
	}
	return Mount{}, specErr(spec.Type, "mount type unknown")
}

func (s *Service) specBind(m Mount, spec MountSpec) (Mount, error) {
	switch {
	case spec.Source == "":
		return m, specErr("bind", "field Source must not be empty")
	case !path.IsAbs(spec.Source):
		return m, specErr("bind", "invalid mount path: '%s' mount path must be absolute", spec.Source)
	case strings.IndexByte(spec.Source, 0) >= 0:
		return m, specErr("bind", "invalid mount path: '%q'", spec.Source)
	case spec.Propagation != "" && !slices.Contains(propagations, spec.Propagation):
		return m, specErr("bind", "invalid propagation mode: %s", spec.Propagation)
	case spec.ReadOnlyNonRecursive && !spec.ReadOnly:
		return m, specErr("bind", "mount options conflict: !ReadOnly && BindOptions.ReadOnlyNonRecursive")
	case spec.ReadOnlyForceRecursive && !spec.ReadOnly:
		return m, specErr("bind", "mount options conflict: !ReadOnly && BindOptions.ReadOnlyForceRecursive")
	case spec.ReadOnlyNonRecursive && spec.ReadOnlyForceRecursive:
		return m, specErr("bind", "mount options conflict: ReadOnlyNonRecursive && BindOptions.ReadOnlyForceRecursive")
	case spec.NoCopy || spec.Driver != "" || len(spec.DriverOpts) > 0 || len(spec.Labels) > 0 || spec.Subpath != "":
		return m, specErr("bind", "field VolumeOptions must not be specified")
	case spec.TmpfsSize != 0 || spec.TmpfsMode != 0:
		return m, specErr("bind", "field TmpfsOptions must not be specified")
	}
	m.Source, m.CreateSource, m.Propagation = path.Clean(spec.Source), spec.CreateSource, spec.Propagation
	m.ReadOnlyNonRecursive, m.ReadOnlyForceRecursive = spec.ReadOnlyNonRecursive, spec.ReadOnlyForceRecursive
	if m.Propagation == "" {
		m.Propagation = "rprivate"
	}
	if _, err := os.Stat(m.Source); err != nil && !spec.CreateSource {
		if errors.Is(err, fs.ErrNotExist) {
			return m, specErr("bind", "bind source path does not exist: %s", m.Source)
		}
		return m, specErr("bind", "%v", err)
	}
	return m, nil
}

func (s *Service) specVolume(ctx context.Context, id oci.ContainerID, m Mount, spec MountSpec, res *Resolved) (Mount, error) {
	switch {
	case spec.Propagation != "" || spec.NonRecursive || spec.CreateSource:
		return m, specErr("volume", "field BindOptions must not be specified")
	case spec.TmpfsSize != 0 || spec.TmpfsMode != 0:
		return m, specErr("volume", "field TmpfsOptions must not be specified")
	case spec.Source == "" && spec.Subpath != "":
		return m, specErr("volume", "must not set Subpath when using anonymous volumes")
	case spec.Source == "" && spec.ReadOnly:
		return m, specErr("volume", "must not set ReadOnly mode when using anonymous volumes")
	}
	if err := m.setSubpath(spec.Subpath); err != nil {
		return m, err
	}
	v, err := s.make(ctx, spec.Source, spec.Driver, spec.Labels, spec.DriverOpts, id, res)
	if err != nil {
		return m, err
	}
	m.Name, m.Source, m.Driver, m.CopyUp, m.Anonymous = v.Name, v.Mountpoint, v.Driver, !spec.NoCopy, spec.Source == ""
	m.Mode = "z"
	return m, nil
}

// setSubpath sets the subpath of a mount; "" leaves it away.
func (m *Mount) setSubpath(p string) error {
	if p == "" {
		return nil
	}
	if path.IsAbs(p) || slices.Contains(strings.Split(p, "/"), "..") || len(p) > 4096 || strings.IndexByte(p, 0) >= 0 {
		return specErr(m.Type, "subpath must be a relative path within the volume")
	}
	m.Subpath = path.Clean(p)
	return nil
}

func specImage(m Mount, spec MountSpec, r *Request) (Mount, error) {
	switch {
	case spec.Source == "":
		return m, specErr("image", "field Source must not be empty")
	case spec.Propagation != "" || spec.NonRecursive || spec.CreateSource:
		return m, specErr("image", "field BindOptions must not be specified")
	case spec.NoCopy || spec.Driver != "" || len(spec.DriverOpts) > 0 || len(spec.Labels) > 0:
		return m, specErr("image", "field VolumeOptions must not be specified")
	case spec.TmpfsSize != 0 || spec.TmpfsMode != 0:
		return m, specErr("image", "field TmpfsOptions must not be specified")
	}
	if err := m.setSubpath(spec.Subpath); err != nil {
		return m, err
	}
	img, ok := r.Images[spec.Source]
	if !ok {
		return m, errs.New(errs.NotFound, "No such image: %s", spec.Source)
	}
	m.Name, m.Image, m.Chain, m.RW, m.Propagation = spec.Source, img.ID, img.Chain, false, "rprivate"
	return m, nil
}

func specTmpfs(m Mount, spec MountSpec) (Mount, error) {
	switch {
	case spec.Source != "":
		return m, specErr("tmpfs", "field Source must not be specified")
	case spec.Propagation != "" || spec.NonRecursive || spec.CreateSource:
		return m, specErr("tmpfs", "field BindOptions must not be specified")
	case spec.NoCopy || spec.Driver != "" || len(spec.DriverOpts) > 0 || len(spec.Labels) > 0 || spec.Subpath != "":
		return m, specErr("tmpfs", "field VolumeOptions must not be specified")
	case spec.TmpfsSize < 0:
		return m, specErr("tmpfs", "size must not be negative")
	case spec.TmpfsMode > 0o7777:
		return m, specErr("tmpfs", "invalid mode %#o", spec.TmpfsMode)
	}
	m.Options = []string{"noexec", "nosuid", "nodev"}
	if spec.ReadOnly {
		m.Options = append(m.Options, "ro")
	}
	if spec.TmpfsMode != 0 {
		m.Options = append(m.Options, fmt.Sprintf("mode=%o", spec.TmpfsMode))
	}
	if spec.TmpfsSize != 0 {
		m.Options = append(m.Options, "size="+strconv.FormatInt(spec.TmpfsSize, 10))
	}
	return m, nil
}
