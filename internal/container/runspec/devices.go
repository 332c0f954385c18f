package runspec

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"ply/internal/errs"
)

func rule(allow bool, kind string, major, minor int64, access string) specs.LinuxDeviceCgroup {
	r := specs.LinuxDeviceCgroup{Allow: allow, Type: kind, Access: access}
	if major >= 0 {
		r.Major = &major
	}
	if minor >= 0 {
		r.Minor = &minor
	}
	return r
}

// devices sets the rules of the device cgroup, and the device nodes that the runtime does not make by itself (it makes null, zero,
// full, random, urandom and tty).
func (b *builder) devices() error {
	r := &specs.LinuxResources{}
	b.spec.Linux.Resources = r
	if b.in.Spec.Privileged {
		r.Devices = []specs.LinuxDeviceCgroup{rule(true, "", -1, -1, "rwm")}
		nodes, err := hostDevices(b.host.DevDir, b.host.DevDir, "/dev")
		if err != nil {
			return err
		}
		b.spec.Linux.Devices = nodes
		return b.userDevices(false)
	}
	r.Devices = []specs.LinuxDeviceCgroup{
		rule(false, "", -1, -1, "rwm"),
		rule(true, "c", 1, 5, "rwm"), rule(true, "c", 1, 3, "rwm"), rule(true, "c", 1, 9, "rwm"),
		rule(true, "c", 1, 8, "rwm"), rule(true, "c", 5, 0, "rwm"), rule(true, "c", 5, 1, "rwm"),
		rule(false, "c", 10, 229, "rwm"),
	}
	if err := b.userDevices(true); err != nil {
		return err
	}
	for _, s := range b.in.Spec.DeviceRules {
		parsed, err := parseRule(s)
		if err != nil {
			return err
		}
		r.Devices = append(r.Devices, parsed)
	}
	return nil
}

func (b *builder) userDevices(rules bool) error {
	for _, d := range b.in.Spec.Devices {
		access := d.Permissions
		if access == "" {
			access = "rwm"
		}
		if strings.Trim(access, "rwm") != "" {
			return errs.New(errs.Invalid, "invalid device mode: %s", d.Permissions)
		}
		target := d.ContainerPath
		if target == "" {
			target = d.HostPath
		}
		if !path.IsAbs(target) || strings.IndexByte(target, 0) >= 0 {
			return errs.New(errs.Invalid, "device %q: container path %q is not absolute", d.HostPath, target)
		}
		nodes, err := userDevice(d.HostPath, target)
		if err != nil {
			return err
		}
		for _, n := range nodes {
			b.spec.Linux.Devices = append(b.spec.Linux.Devices, n)
			if rules {
				r := b.spec.Linux.Resources
				r.Devices = append(r.Devices, rule(true, n.Type, n.Major, n.Minor, access))
			}
		}
	}
	return nil
}

// userDevice returns the node of a device, or all nodes below a directory. Links are followed, because the path is one of the host.
func userDevice(host, target string) ([]specs.LinuxDevice, error) {
	real, err := filepath.EvalSymlinks(host)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errs.New(errs.NotFound, "error gathering device information while adding custom device %q: no such file or directory", host)
	}
	if err != nil {
		return nil, errs.New(errs.Invalid, "device %q: %w", host, err)
	}
	st, err := os.Stat(real)
	if err != nil {
		return nil, errs.New(errs.NotFound, "device %q: %w", host, err)
	}
	var nodes []specs.LinuxDevice
	if st.IsDir() {
		if nodes, err = hostDevices(real, real, target); err != nil {
			return nil, err
		}
	} else if node, ok := deviceNode(st, target); ok {
		nodes = append(nodes, node)
	}
	if len(nodes) == 0 {
		return nil, errs.New(errs.Invalid, "error gathering device information while adding custom device %q: not a device node", host)
	}
	return nodes, nil
}

// hostDevices returns the device nodes below a directory, without those that every container has of its own.
func hostDevices(root, dir, target string) ([]specs.LinuxDevice, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, errs.New(errs.NotFound, "devices of %s: %w", dir, err)
	}
	var out []specs.LinuxDevice
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		rel, _ := filepath.Rel(root, name) // both absolute and clean
		switch {
		case e.IsDir():
			switch e.Name() {
			case "pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev":
				continue
			}
			below, err := hostDevices(root, name, target)
			if err != nil {
				return nil, err
			}
			out = append(out, below...)
		case e.Name() == "console" || e.Name() == "ptmx" || e.Type()&fs.ModeDevice == 0:
		default:
			st, err := os.Lstat(name)
			if errors.Is(err, fs.ErrNotExist) {
				continue // removed since ReadDir
			}
			if err != nil {
				return nil, errs.New(errs.NotFound, "device %s: %w", name, err)
			}
			if node, ok := deviceNode(st, path.Join(target, rel)); ok {
				out = append(out, node)
			}
		}
	}
	return out, nil
}

func deviceNode(st fs.FileInfo, target string) (specs.LinuxDevice, bool) {
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok || st.Mode()&fs.ModeDevice == 0 || sys.Rdev == 0 {
		return specs.LinuxDevice{}, false
	}
	kind := "b"
	if st.Mode()&fs.ModeCharDevice != 0 {
		kind = "c"
	}
	mode := st.Mode().Perm()
	uid, gid := sys.Uid, sys.Gid
	return specs.LinuxDevice{
		Path: target, Type: kind, FileMode: &mode, UID: &uid, GID: &gid,
		Major: int64(unix.Major(sys.Rdev)), Minor: int64(unix.Minor(sys.Rdev)),
	}, true
}

// parseRule reads a rule of --device-cgroup-rule, such as "c 1:3 rwm".
func parseRule(s string) (specs.LinuxDeviceCgroup, error) {
	bad := errs.New(errs.Invalid, "invalid device cgroup rule format: '%s'", s)
	var r specs.LinuxDeviceCgroup
	f := strings.Split(s, " ")
	if len(f) != 3 || len(f[0]) != 1 || !strings.Contains("acb", f[0]) || f[2] == "" || len(f[2]) > 3 || strings.Trim(f[2], "rwm") != "" {
		return r, bad
	}
	major, minor, ok := strings.Cut(f[1], ":")
	if !ok {
		return r, bad
	}
	r = specs.LinuxDeviceCgroup{Allow: true, Type: f[0], Access: f[2]}
	for word, to := range map[string]**int64{"major " + major: &r.Major, "minor " + minor: &r.Minor} {
		word = word[len("major "):]
		if word == "*" {
			continue
		}
		n, err := strconv.ParseUint(word, 10, 32)
		if err != nil {
			return r, bad
		}
		v := int64(n)
		*to = &v
	}
	return r, nil
}
