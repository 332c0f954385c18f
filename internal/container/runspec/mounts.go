package runspec

import (
	"path"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"ply/internal/errs"
	"ply/internal/volume"
)

const defaultShm = 64 << 20

func (b *builder) defaultMounts() []specs.Mount {
	in := &b.in
	ro := func(opts ...string) []string { return append(opts, "ro") }
	m := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: ro("nosuid", "noexec", "nodev")},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: ro("nosuid", "noexec", "nodev")},
		// The mount shows the queues of the container's IPC namespace, which may be the host's. The host's own /dev/mqueue may not exist.
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
	}
	switch {
	case in.Spec.IpcMode == "none":
	case in.IPC.Host && in.ShmPath == "":
		m = append(m, specs.Mount{Destination: "/dev/shm", Type: "bind", Source: "/dev/shm", Options: []string{"rbind", "rprivate"}})
	case in.ShmPath != "":
		m = append(m, specs.Mount{Destination: "/dev/shm", Type: "bind", Source: in.ShmPath, Options: []string{"rbind", "rprivate"}})
	default:
		size := in.Spec.ShmSize
		if size == 0 {
			size = defaultShm
		}
		m = append(m, specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm",
			Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=" + strconv.FormatInt(size, 10)}})
	}
	return m
}

func (b *builder) mounts() error {
	in := &b.in
	if in.Spec.ShmSize < 0 {
		return errs.New(errs.Invalid, "SHM size can not be less than 0")
	}
	user, err := b.userMounts()
	if err != nil {
		return err
	}
	taken := map[string]bool{}
	for _, m := range user {
		taken[m.Destination] = true
	}
	var all []specs.Mount
	for _, m := range b.defaultMounts() {
		if taken[m.Destination] || taken["/dev"] && strings.HasPrefix(m.Destination, "/dev/") ||
			taken["/sys"] && strings.HasPrefix(m.Destination, "/sys/") {
			continue
		}
		writable := m.Destination == "/sys" && in.Spec.Privileged && !in.Spec.ReadonlyRootfs
		if m.Type == "cgroup" {
			if writable = in.Spec.Privileged; b.sec.writableCgroups != nil {
				writable = *b.sec.writableCgroups
			}
		}
		if writable {
			m.Options = slices.DeleteFunc(m.Options, func(o string) bool { return o == "ro" })
		}
		all = append(all, m)
	}
	for _, f := range []struct{ source, target string }{
		{in.ResolvConfPath, "/etc/resolv.conf"}, {in.HostnamePath, "/etc/hostname"}, {in.HostsPath, "/etc/hosts"},
	} {
		if f.source == "" || taken[f.target] {
			continue
		}
		opts := []string{"rbind", "rprivate"}
		if in.Spec.ReadonlyRootfs {
			opts = append(opts, "ro")
		}
		user = append(user, specs.Mount{Destination: f.target, Type: "bind", Source: f.source, Options: opts})
	}
	if in.InitBinary != "" && in.PID.private() {
		user = append(user, specs.Mount{Destination: InitTarget, Type: "bind", Source: in.InitBinary, Options: []string{"bind", "ro"}})
	}
	// A mount at a parent directory must come before those below it, in whatever order the user gave them: a volume at
	// /etc must not hide /etc/hosts.
	slices.SortStableFunc(user, func(a, b specs.Mount) int {
		return strings.Count(a.Destination, "/") - strings.Count(b.Destination, "/")
	})
	b.spec.Mounts = append(all, user...)
	return nil
}

func (b *builder) userMounts() ([]specs.Mount, error) {
	var out []specs.Mount
	seen := map[string]bool{}
	for _, m := range b.in.Mounts {
		target := path.Clean(m.Target)
		switch {
		case !path.IsAbs(m.Target) || strings.IndexByte(m.Target+m.Source, 0) >= 0:
			return nil, errs.New(errs.Invalid, "invalid mount path: '%s' mount path must be absolute", m.Target)
		case target == "/":
			return nil, errs.New(errs.Invalid, "invalid specification: destination can't be '/'")
		case seen[target]:
			return nil, errs.New(errs.Invalid, "Duplicate mount point: %s", target)
		}
		seen[target] = true
		var sm specs.Mount
		var err error
		switch m.Type {
		case "tmpfs":
			sm, err = tmpfsMount(m)
		case "bind", "volume", "image":
			sm, err = b.bindMount(m)
		default:
			return nil, errs.New(errs.Invalid, "mount %s: unknown type %q", target, m.Type)
		}
		if err != nil {
			return nil, err
		}
		sm.Destination = target
		out = append(out, sm)
	}
	return out, nil
}

func (b *builder) bindMount(m volume.Mount) (specs.Mount, error) {
	if !path.IsAbs(m.Source) {
		return specs.Mount{}, errs.New(errs.Invalid, "mount %s: source %q is not an absolute path", m.Target, m.Source)
	}
	opts := []string{"rbind"}
	if m.NonRecursive {
		opts = []string{"bind"}
	}
	switch {
	case !m.RW && m.ReadOnlyForceRecursive && !b.host.RecursiveRO:
		return specs.Mount{}, errs.New(errs.Unimplemented, "mount %s: bind-recursive=readonly needs Linux 5.12 or newer", m.Target)
	case !m.RW && b.host.RecursiveRO && !m.NonRecursive && !m.ReadOnlyNonRecursive:
		opts = append(opts, "rro")
	case !m.RW:
		opts = append(opts, "ro")
	}
	prop := m.Propagation
	if prop == "" {
		prop = "rprivate"
	}
	switch prop {
	case "shared", "rshared":
		b.spec.Linux.RootfsPropagation = "shared"
	case "slave", "rslave":
		if b.spec.Linux.RootfsPropagation == "" {
			b.spec.Linux.RootfsPropagation = "rslave"
		}
	case "private", "rprivate":
	default:
		return specs.Mount{}, errs.New(errs.Invalid, "mount %s: invalid propagation mode: %s", m.Target, prop)
	}
	return specs.Mount{Type: "bind", Source: m.Source, Options: append(opts, prop)}, nil
}

// opposites maps a mount flag to the one that it replaces in the default options.
var opposites = map[string]string{
	"exec": "noexec", "suid": "nosuid", "dev": "nodev", "ro": "rw", "rw": "ro",
	"noexec": "exec", "nosuid": "suid", "nodev": "dev",
}

func tmpfsMount(m volume.Mount) (specs.Mount, error) {
	opts := []string{"noexec", "nosuid", "nodev"}
	for _, o := range m.Options {
		name, value, valued := strings.Cut(o, "=")
		switch name {
		case "size", "nr_inodes", "nr_blocks", "mode", "uid", "gid", "mpol", "huge":
			if !valued || value == "" || strings.ContainsAny(value, ",\x00") {
				return specs.Mount{}, errs.New(errs.Invalid, "tmpfs %s: invalid option %q", m.Target, o)
			}
		case "exec", "noexec", "suid", "nosuid", "dev", "nodev", "ro", "rw", "atime", "noatime", "diratime", "nodiratime",
			"relatime", "norelatime", "strictatime", "nostrictatime", "sync", "async", "dirsync", "mand", "nomand",
			"private", "rprivate", "shared", "rshared", "slave", "rslave", "unbindable", "runbindable":
			if valued {
				return specs.Mount{}, errs.New(errs.Invalid, "tmpfs %s: invalid option %q", m.Target, o)
			}
		default:
			return specs.Mount{}, errs.New(errs.Invalid, "tmpfs %s: invalid option %q", m.Target, o)
		}
		opts = slices.DeleteFunc(opts, func(have string) bool {
			haveName, _, _ := strings.Cut(have, "=")
			return have == opposites[name] || haveName == name
		})
		opts = append(opts, o)
	}
	if !m.RW {
		opts = append(opts, "ro")
	}
	return specs.Mount{Type: "tmpfs", Source: "tmpfs", Options: opts}, nil
}
