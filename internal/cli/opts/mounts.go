package opts

import (
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/docker/go-units"

	"ply/internal/errs"
	"ply/internal/wire"
)

// Volumes splits the values of -v into binds and anonymous volumes. Binds stay as they are written, but for a source that starts with "."
// or "~/", which is made absolute.
func Volumes(list []string) (binds []string, anonymous map[string]struct{}, err error) {
	anonymous = map[string]struct{}{}
	for _, v := range list {
		parts := strings.Split(v, ":")
		switch {
		case v == "":
			return nil, nil, errs.New(errs.Invalid, "invalid empty volume spec")
		case len(parts) == 1:
			if path.Clean(v) == "/" {
				return nil, nil, errs.New(errs.Invalid, "invalid specification: destination can't be '/'")
			}
			anonymous[v] = struct{}{}
			continue
		case parts[0] == "" || parts[1] == "":
			return nil, nil, errs.New(errs.Invalid, "invalid spec: %s: empty section between colons", v)
		}
		src := parts[0]
		if src == "." || src == ".." || strings.HasPrefix(src, "./") || strings.HasPrefix(src, "../") {
			if src, err = filepath.Abs(src); err != nil {
				return nil, nil, err
			}
		} else if rest, ok := strings.CutPrefix(src, "~/"); ok {
			home, err := os.UserHomeDir()
			if err != nil {
				return nil, nil, errs.New(errs.Invalid, "%s: %w", v, err)
			}
			src = filepath.Join(home, rest)
		}
		parts[0] = src
		binds = append(binds, strings.Join(parts, ":"))
	}
	return binds, anonymous, nil
}

// Tmpfs returns the values of --tmpfs as a map from path to options.
func Tmpfs(list []string) map[string]string {
	m := map[string]string{}
	for _, t := range list {
		p, o, _ := strings.Cut(t, ":")
		m[p] = o
	}
	return m
}

// Mounts is the flag --mount.
type Mounts struct{ List []wire.Mount }

// String returns the types, sources and targets.
func (m *Mounts) String() string {
	out := make([]string, 0, len(m.List))
	for _, x := range m.List {
		out = append(out, x.Type+" "+x.Source+" "+x.Target)
	}
	return strings.Join(out, ", ")
}

// Type is the word in the help.
func (*Mounts) Type() string { return "mount" }

// Set parses one --mount value.
func (m *Mounts) Set(s string) error {
	fields, err := Fields(s)
	if err != nil {
		return err
	}
	b := mountBuilder{}
	b.m.Type = "volume"
	for _, f := range fields {
		if err := b.field(f); err != nil {
			return err
		}
	}
	out, err := b.done()
	if err != nil {
		return err
	}
	m.List = append(m.List, out)
	return nil
}

type mountBuilder struct {
	m      wire.Mount
	bind   wire.BindOptions
	volume wire.VolumeOptions
	image  wire.ImageOptions
	tmpfs  wire.TmpfsOptions
	used   map[string]string // kind of option → key that was given
}

func (b *mountBuilder) use(kind, key string) {
	if b.used == nil {
		b.used = map[string]string{}
	}
	b.used[kind] = key
}

func (b *mountBuilder) field(f string) error {
	key, val, has := strings.Cut(f, "=")
	key = strings.ToLower(key)
	if !has {
		switch key {
		case "readonly", "ro":
			b.m.ReadOnly = true
		case "volume-nocopy":
			b.use("volume", key)
			b.volume.NoCopy = true
		case "bind-nonrecursive":
			return errs.New(errs.Invalid, "bind-nonrecursive is deprecated, use bind-recursive=disabled instead")
		default:
			return errs.New(errs.Invalid, "invalid field '%s' must be a key=value pair", f)
		}
		return nil
	}
	switch key {
	case "type":
		b.m.Type = strings.ToLower(val)
	case "source", "src":
		b.m.Source = val
		if val == "." || strings.HasPrefix(val, "./") || strings.HasPrefix(val, "../") || val == ".." {
			abs, err := filepath.Abs(val)
			if err != nil {
				return err
			}
			b.m.Source = abs
		}
	case "target", "dst", "destination":
		b.m.Target = val
	case "readonly", "ro":
		v, err := parseBool(key, val)
		b.m.ReadOnly = v
		return err
	case "consistency":
		b.m.Consistency = strings.ToLower(val)
	default:
		return b.typed(key, val)
	}
	return nil
}

func (b *mountBuilder) typed(key, val string) error {
	kind, _, _ := strings.Cut(key, "-")
	b.use(kind, key)
	switch key {
	case "bind-propagation":
		b.bind.Propagation = strings.ToLower(val)
	case "bind-recursive":
		switch val {
		case "enabled":
		case "disabled":
			b.bind.NonRecursive = true
		case "writable":
			b.bind.ReadOnlyNonRecursive = true
		case "readonly":
			b.bind.ReadOnlyForceRecursive = true
		default:
			return errs.New(errs.Invalid, `invalid value for %s: %s (must be "enabled", "disabled", "writable", or "readonly")`, key, val)
		}
	case "bind-create-mountpoint", "bind-create-src":
		v, err := parseBool(key, val)
		b.bind.CreateMountpoint = v
		return err
	case "bind-nonrecursive":
		return errs.New(errs.Invalid, "bind-nonrecursive is deprecated, use bind-recursive=disabled instead")
	case "volume-subpath":
		b.volume.Subpath = val
	case "volume-nocopy":
		v, err := parseBool(key, val)
		b.volume.NoCopy = v
		return err
	case "volume-label":
		k, v, _ := strings.Cut(val, "=")
		if b.volume.Labels == nil {
			b.volume.Labels = map[string]string{}
		}
		b.volume.Labels[k] = v
	case "volume-driver":
		b.driver().Name = val
	case "volume-opt":
		k, v, _ := strings.Cut(val, "=")
		d := b.driver()
		if d.Options == nil {
			d.Options = map[string]string{}
		}
		d.Options[k] = v
	case "image-subpath":
		b.image.Subpath = val
	case "tmpfs-size":
		n, err := units.RAMInBytes(val)
		if err != nil {
			return errs.New(errs.Invalid, "invalid value for %s: %s", key, val)
		}
		b.tmpfs.SizeBytes = n
	case "tmpfs-mode":
		n, err := strconv.ParseUint(val, 8, 32)
		if err != nil {
			return errs.New(errs.Invalid, "invalid value for %s: %s", key, val)
		}
		b.tmpfs.Mode = uint32(n)
	default:
		return errs.New(errs.Invalid, "unexpected key '%s' in '%s=%s'", key, key, val)
	}
	return nil
}

func (b *mountBuilder) driver() *wire.VolumeDriver {
	if b.volume.DriverConfig == nil {
		b.volume.DriverConfig = &wire.VolumeDriver{}
	}
	return b.volume.DriverConfig
}

func (b *mountBuilder) done() (wire.Mount, error) {
	m := b.m
	if m.Type == "" {
		return m, errs.New(errs.Invalid, "type is required")
	}
	if m.Target == "" {
		return m, errs.New(errs.Invalid, "target is required")
	}
	for _, kind := range sortedKeys(b.used) {
		if kind != m.Type {
			return m, errs.New(errs.Invalid, "cannot mix '%s-*' options with mount type '%s'", kind, m.Type)
		}
	}
	if b.bind.ReadOnlyNonRecursive && !m.ReadOnly {
		return m, errs.New(errs.Invalid, "option 'bind-recursive=writable' requires 'readonly' to be specified in conjunction")
	}
	if b.bind.ReadOnlyForceRecursive {
		if !m.ReadOnly {
			return m, errs.New(errs.Invalid, "option 'bind-recursive=readonly' requires 'readonly' to be specified in conjunction")
		}
		if b.bind.Propagation != "rprivate" {
			return m, errs.New(errs.Invalid, "option 'bind-recursive=readonly' requires 'bind-propagation=rprivate' to be specified in conjunction")
		}
	}
	if _, ok := b.used[m.Type]; ok {
		switch m.Type {
		case "bind":
			m.BindOptions = &b.bind
		case "volume":
			m.VolumeOptions = &b.volume
		case "image":
			m.ImageOptions = &b.image
		case "tmpfs":
			m.TmpfsOptions = &b.tmpfs
		}
	}
	return m, nil
}
