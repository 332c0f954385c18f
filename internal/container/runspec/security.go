package runspec

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"ply/internal/container/apparmor"
	"ply/internal/container/spec"
	"ply/internal/errs"
)

// maxSeccomp is the largest seccomp profile that a user can pass, in bytes.
const maxSeccomp = 4 << 20

type security struct {
	seccomp         string // "" = built in, "unconfined", or a profile's JSON
	apparmor        string // "" = the default
	noNewPrivileges bool
	systemPaths     bool  // unconfined
	writableCgroups *bool // nil = as the container is privileged or not
}

func parseSecurity(opts []string, host *Host) (s security, err error) {
	for _, opt := range opts {
		name, value, ok := strings.Cut(opt, "=")
		if !ok {
			name, value, _ = strings.Cut(opt, ":") // docker's old separator
		}
		switch name {
		case "no-new-privileges":
			s.noNewPrivileges = true
			if value != "" {
				if s.noNewPrivileges, err = strconv.ParseBool(value); err != nil {
					return s, errs.New(errs.Invalid, "invalid --security-opt: %q", opt)
				}
			}
		case "writable-cgroups":
			writable := true
			if ok || value != "" {
				if writable, err = strconv.ParseBool(value); err != nil {
					return s, errs.New(errs.Invalid, "invalid --security-opt: %q", opt)
				}
			}
			s.writableCgroups = &writable
		case "seccomp":
			if len(value) > maxSeccomp {
				return s, errs.New(errs.Invalid, "security option seccomp: profile larger than %d bytes", maxSeccomp)
			}
			s.seccomp = value
			if value == "builtin" {
				s.seccomp = ""
			} else if value == "" {
				return s, errs.New(errs.Invalid, "invalid --security-opt: %q", opt)
			}
		case "apparmor":
			if value == "" || strings.ContainsFunc(value, unicode.IsSpace) {
				return s, errs.New(errs.Invalid, "invalid --security-opt: %q", opt)
			}
			if value != apparmor.Unconfined && !host.AppArmor {
				return s, errs.New(errs.Invalid, "security option %q: AppArmor is not enabled on this host", opt)
			}
			s.apparmor = value
		case "disable": // docker's oldest form of label=disable
			if ok || value != "" {
				return s, errs.New(errs.Invalid, "invalid --security-opt: %q", opt)
			}
		case "label":
			if value != "disable" {
				return s, errs.New(errs.Unimplemented, "security option %q: SELinux labels are not supported, only label=disable", opt)
			}
		case "systempaths":
			if value != "unconfined" {
				return s, errs.New(errs.Invalid, "invalid --security-opt: %q", opt)
			}
			s.systemPaths = true
		default:
			return s, errs.New(errs.Invalid, "invalid --security-opt: %q", opt)
		}
	}
	return s, nil
}

// AppArmorProfile returns the profile of a container on a host: that of its options, none for a privileged container, else the
// default one. It is "" on a host without AppArmor and for options that Check refuses.
func AppArmorProfile(sp *spec.Spec, host *Host) string {
	s, err := parseSecurity(sp.SecurityOpt, host)
	if err != nil {
		return ""
	}
	return s.profile(sp.Privileged, host)
}

func (s *security) profile(privileged bool, host *Host) string {
	switch {
	case !host.AppArmor:
		return ""
	case s.apparmor != "":
		return s.apparmor
	case privileged:
		return apparmor.Unconfined
	}
	return apparmor.Default
}

// Check reports at create what Build reports at start on this host: an error for a security option or limit that it refuses, and a
// warning for each limit that it leaves out. It unsets those limits. Memory that is limited gets the limit of swap that docker gives it.
func Check(sp *spec.Spec) (warnings []string, err error) {
	host, err := ProbeHost()
	if err != nil {
		return nil, err
	}
	if _, err := parseSecurity(sp.SecurityOpt, &host); err != nil {
		return nil, err
	}
	if err := checkCaps("CapAdd", sp.CapAdd); err != nil {
		return nil, err
	}
	if err := checkCaps("CapDrop", sp.CapDrop); err != nil {
		return nil, err
	}
	if warnings, err = FitLimits(&sp.Resources, &host); err != nil {
		return nil, err
	}
	if host.SwapLimit {
		sp.Resources.LimitSwap()
	}
	return warnings, nil
}

func (b *builder) seccomp() error {
	var err error
	switch {
	case b.in.Spec.Privileged && b.sec.seccomp == "", b.sec.seccomp == "unconfined":
	case b.sec.seccomp == "":
		if b.spec.Linux.Seccomp, err = seccomp.GetDefaultProfile(b.spec); err == nil {
			// Nearly every kernel is built without x32. Its rules are a third of the profile, and compiling them takes a tenth of the
			// time that a container needs to start. Without them, a system call of x32 kills its caller.
			b.spec.Linux.Seccomp.Architectures = slices.DeleteFunc(b.spec.Linux.Seccomp.Architectures,
				func(a specs.Arch) bool { return a == specs.ArchX32 })
		}
	default:
		b.spec.Linux.Seccomp, err = seccomp.LoadProfile(b.sec.seccomp, b.spec)
		if err != nil {
			return errs.New(errs.Invalid, "security option seccomp: %w", err)
		}
	}
	if err != nil {
		return fmt.Errorf("seccomp profile: %w", err)
	}
	if b.in.Limited && b.spec.Linux.Seccomp != nil {
		keepProjects(b.spec.Linux.Seccomp)
	}
	return nil
}

// projectRequests are the requests of ioctl(2) that take a file out of its project, or what will be made in a directory: FS_IOC_FSSETXATTR, FS_IOC_SETFLAGS and
// FS_IOC32_SETFLAGS. Who owns a file may do that: root in a container is enough.
var projectRequests = []uint64{0x401c5820, 0x40086602, 0x40046602}

// keepProjects takes out of a profile what changes the project of files.
func keepProjects(p *specs.LinuxSeccomp) {
	const ioctl, newer = "ioctl", "file_setattr"
	allows := func(a specs.LinuxSeccompAction) bool {
		return a == specs.ActAllow || a == specs.ActLog || a == specs.ActTrace
	}
	all := []specs.LinuxSyscall{}
	for _, s := range p.Syscalls {
		if !allows(s.Action) {
			all = append(all, s)
			continue
		}
		every := slices.Contains(s.Names, ioctl) && len(s.Args) == 0 // a rule for some requests only is the user's own
		s.Names = slices.DeleteFunc(slices.Clone(s.Names), func(n string) bool { return n == newer || n == ioctl && every })
		if len(s.Names) > 0 {
			all = append(all, s)
		}
		if !every {
			continue
		}
		for _, arg := range otherThan(projectRequests) {
			s.Names, s.Args = []string{ioctl}, []specs.LinuxSeccompArg{arg}
			all = append(all, s)
		}
	}
	if allows(p.DefaultAction) {
		all = append(all, specs.LinuxSyscall{Names: []string{newer}, Action: specs.ActErrno})
		for _, r := range projectRequests {
			all = append(all, specs.LinuxSyscall{Names: []string{ioctl}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{
				{Index: 1, Value: math.MaxUint32, ValueTwo: r, Op: specs.OpMaskedEqual},
			}})
		}
	}
	p.Syscalls = all
}

// otherThan returns conditions of which one holds when the second argument is none of these values. A filter cannot say that of the 32 bits that the kernel looks at, so
// each condition is about the first bits, which are as in one of the values, but for the last of them, and as in no other.
func otherThan(values []uint64) (conditions []specs.LinuxSeccompArg) {
	for bit := 31; bit >= 0; bit-- {
		mask := uint64(math.MaxUint32) >> bit << bit
		seen := map[uint64]bool{}
		for _, v := range values {
			seen[v&mask] = true
		}
		for _, v := range values {
			if other := v&mask ^ 1<<bit; !seen[other] {
				seen[other] = true
				conditions = append(conditions, specs.LinuxSeccompArg{Index: 1, Value: mask, ValueTwo: other, Op: specs.OpMaskedEqual})
			}
		}
	}
	return conditions
}

// DefaultMaskedPaths returns the files that are hidden because they reveal facts about the host.
func DefaultMaskedPaths(cpus int) []string {
	out := []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
		"/sys/devices/virtual/powercap", "/sys/firmware",
	}
	for i := range cpus {
		// Each path costs a mount, so only those that exist are listed.
		if p := "/sys/devices/system/cpu/cpu" + strconv.Itoa(i) + "/thermal_throttle"; exists(p) {
			out = append(out, p)
		}
	}
	return out
}

// DefaultReadonlyPaths returns the paths that are read-only because writing to them would change the host.
func DefaultReadonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}

func (b *builder) paths() {
	b.spec.Linux.MaskedPaths, b.spec.Linux.ReadonlyPaths = paths(&b.in.Spec, b.sec.systemPaths, b.host)
}

// Paths returns the paths that are hidden from a container with these options, and those that are read-only.
func Paths(sp *spec.Spec, host *Host) (masked, readOnly []string) {
	sec, err := parseSecurity(sp.SecurityOpt, host)
	return paths(sp, err == nil && sec.systemPaths, host)
}

func paths(sp *spec.Spec, unconfined bool, host *Host) (masked, readOnly []string) {
	if sp.Privileged || unconfined {
		return nil, nil
	}
	masked, readOnly = sp.MaskedPaths, sp.ReadonlyPaths
	if masked == nil {
		masked = DefaultMaskedPaths(host.CPUs)
	}
	if readOnly == nil {
		readOnly = DefaultReadonlyPaths()
	}
	return masked, readOnly
}

func (b *builder) sysctls() error {
	out := map[string]string{}
	if !b.in.Net.Host && !b.in.Net.Joined && b.host.UnprivilegedPing {
		// As docker does: in a network namespace of its own, a container needs no capability for ping and for low ports.
		out["net.ipv4.ip_unprivileged_port_start"] = "0"
		out["net.ipv4.ping_group_range"] = "0 2147483647"
	}
	for _, k := range slices.Sorted(maps.Keys(b.in.Spec.Sysctls)) {
		if strings.ContainsAny(k, " \x00") || strings.Contains(k, "..") || k == "" {
			return errs.New(errs.Invalid, "sysctl %q: not a sysctl's name", k)
		}
		switch {
		case strings.HasPrefix(k, "net."):
			if b.in.Net.Host {
				return errs.New(errs.Invalid, "sysctl %q not allowed in host network namespace", k)
			}
		case strings.HasPrefix(k, "kernel.msg"), strings.HasPrefix(k, "kernel.shm"), k == "kernel.sem",
			strings.HasPrefix(k, "fs.mqueue."):
			if b.in.IPC.Host {
				return errs.New(errs.Invalid, "sysctl %q not allowed in host ipc namespace", k)
			}
		case k == "kernel.domainname":
			if b.in.UTS.Host {
				return errs.New(errs.Invalid, "sysctl %q not allowed in host uts namespace", k)
			}
		default:
			return errs.New(errs.Invalid, "sysctl %q is not in a separate kernel namespace", k)
		}
		out[k] = b.in.Spec.Sysctls[k]
	}
	if len(out) > 0 {
		b.spec.Linux.Sysctl = out
	}
	return nil
}
