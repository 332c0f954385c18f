package spec

import (
	"errors"
	"fmt"
	"net/netip"
	"path"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"ply/internal/errs"
)

const (
	minMemory = 6 << 20
	maxEnv    = 4 << 20 // bytes of all variables together
)

func invalid(format string, args ...any) error { return errs.New(errs.Invalid, format, args...) }

// Check refuses what cannot run, in docker's words, and cleans what can. It returns warnings for the user. Log driver, runtime and
// security options are checked by those who know them.
func (s *Spec) Check() (warnings []string, err error) {
	for _, f := range []func(*Spec) error{
		checkProcess, checkPolicy, checkNamespaces, checkHosts, checkHealth, checkPorts, checkUlimits,
	} {
		if err := f(s); err != nil {
			return nil, err
		}
	}
	warnings, err = s.Resources.Check()
	if err != nil {
		return nil, err
	}
	if s.OomScoreAdj < -1000 || s.OomScoreAdj > 1000 {
		return nil, invalid("Invalid value %d, range for oom score adj is [-1000, 1000]", s.OomScoreAdj)
	}
	if s.ShmSize < 0 {
		return nil, invalid("SHM size can not be less than 0")
	}
	if s.OomKillDisable && s.Resources.Memory == 0 {
		warnings = append(warnings, "OOM killer is disabled for the container, but no memory limit is set, this can result in the system running out of resources.")
	}
	return warnings, nil
}

// Check refuses an exec that cannot run.
func (e *ExecSpec) Check() error {
	if len(e.Cmd) == 0 {
		return invalid("No exec command specified")
	}
	return errors.Join(checkDir(e.WorkingDir), checkEnv(e.Env))
}

var procSelf = regexp.MustCompile(`^/proc/(self|thread-self|[0-9]+)(/|$)`)

// checkDir refuses working directories that name descriptors of the runtime instead of a directory of the container.
func checkDir(dir string) error {
	switch {
	case dir == "":
		return nil
	case strings.IndexByte(dir, 0) >= 0 || len(dir) > 4096:
		return invalid("the working directory '%q' is invalid", clip(dir))
	case !path.IsAbs(dir):
		return invalid("the working directory '%s' is invalid, it needs to be an absolute path", dir)
	case procSelf.MatchString(path.Clean(dir)):
		return invalid("the working directory '%s' is invalid, it names a process of the runtime", dir)
	}
	return nil
}

func checkEnv(env []string) error {
	total := 0
	for _, e := range env {
		total += len(e)
		if strings.HasPrefix(e, "=") || e == "" {
			return invalid("invalid environment variable: %s", clip(e))
		}
		if strings.IndexByte(e, 0) >= 0 {
			return invalid("invalid environment variable: %q", clip(e))
		}
	}
	if total > maxEnv {
		return invalid("environment of %d bytes is larger than the %d allowed", total, maxEnv)
	}
	return nil
}

func checkProcess(s *Spec) error {
	if err := checkDir(s.WorkingDir); err != nil {
		return err
	}
	if s.WorkingDir != "" {
		s.WorkingDir = path.Clean(s.WorkingDir)
	}
	if err := checkEnv(s.Env); err != nil {
		return err
	}
	if s.StopSignal != "" {
		if _, err := ParseSignal(s.StopSignal); err != nil {
			return err
		}
	}
	if s.StopTimeout != nil && *s.StopTimeout < -1 {
		return invalid("stop timeout %d is negative; -1 waits for ever", *s.StopTimeout)
	}
	if len(s.Hostname) > 64 || strings.ContainsAny(s.Hostname, "\x00\n /") {
		return invalid("invalid hostname %q", clip(s.Hostname))
	}
	if strings.ContainsAny(s.Domainname, "\x00\n /") {
		return invalid("invalid domain name %q", clip(s.Domainname))
	}
	for k, v := range s.Labels {
		if strings.IndexByte(k+v, 0) >= 0 {
			return invalid("label %q holds a NUL", clip(k))
		}
	}
	return nil
}

func checkPolicy(s *Spec) error {
	if err := s.RestartPolicy.Check(); err != nil {
		return err
	}
	if s.AutoRemove && s.RestartPolicy.Restarts() {
		return invalid("can't create 'AutoRemove' container with restart policy")
	}
	return nil
}

// Check refuses a policy that docker does not have.
func (p RestartPolicy) Check() error {
	switch p.Name {
	case "", "no", "always", "unless-stopped":
		if p.MaxRetries != 0 {
			return invalid("invalid restart policy: maximum retry count can only be used with 'on-failure'")
		}
	case "on-failure":
		if p.MaxRetries < 0 {
			return invalid("invalid restart policy: maximum retry count cannot be negative")
		}
	default:
		return invalid("invalid restart policy: unknown policy '%s'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'", p.Name)
	}
	return nil
}

// Restarts reports whether the policy ever starts a container again.
func (p RestartPolicy) Restarts() bool { return p.Name != "" && p.Name != "no" }

func checkNamespaces(s *Spec) error {
	oneOf := func(what, v string, allowed ...string) error {
		if slices.Contains(allowed, v) {
			return nil
		}
		if name, ok := strings.CutPrefix(v, "container:"); ok && name != "" && slices.Contains(allowed, "container:") {
			return nil
		}
		return invalid("invalid %s mode: %s", what, v)
	}
	for _, c := range []error{
		oneOf("PID", s.PidMode, "", "host", "private", "container:"),
		oneOf("IPC", s.IpcMode, "", "none", "private", "shareable", "host", "container:"),
		oneOf("UTS", s.UTSMode, "", "host", "private"),
		oneOf("CGROUP", s.CgroupnsMode, "", "host", "private"),
	} {
		if c != nil {
			return c
		}
	}
	if s.UsernsMode != "" && s.UsernsMode != "host" {
		return errs.New(errs.Unimplemented, "--userns=%s: user namespaces of containers are not supported yet", s.UsernsMode)
	}
	if s.UTSMode == "host" && s.Hostname != "" {
		return invalid("conflicting options: hostname and the UTS mode")
	}
	isContainer := strings.HasPrefix(s.NetworkMode, "container:")
	if isContainer {
		switch {
		case s.Hostname != "":
			return invalid("conflicting options: hostname and the network mode")
		case len(s.Links) > 0:
			return invalid("conflicting options: container type network can't be used with links. This would result in undefined behavior")
		case len(s.DNS) > 0:
			return invalid("conflicting options: dns and the network mode")
		case len(s.ExtraHosts) > 0:
			return invalid("conflicting options: custom host-to-IP mapping and the network mode")
		case len(s.Ports) > 0 || s.PublishAll:
			return invalid("conflicting options: port publishing and the container type network mode")
		}
	}
	if len(s.Links) > 0 {
		return errs.New(errs.Unimplemented, "--link: legacy links are not supported").WithHint("Use a network and --add-host.")
	}
	if s.NetworkMode == "host" && s.MacAddress != "" || isContainer && s.MacAddress != "" {
		return invalid("conflicting options: mac-address and the network mode")
	}
	return nil
}

func checkHosts(s *Spec) error {
	for _, h := range s.ExtraHosts {
		name, ip, ok := CutHost(h)
		if !ok || name == "" || strings.ContainsAny(name, " \t\n\x00") {
			return invalid("bad format for add-host: %q", clip(h))
		}
		if ip == "host-gateway" {
			continue
		}
		if _, err := netip.ParseAddr(strings.Trim(ip, "[]")); err != nil {
			return invalid("invalid IP address in add-host: %q", ip)
		}
	}
	for _, d := range s.DNS {
		if _, err := netip.ParseAddr(d); err != nil {
			return invalid("bad nameserver address %s", clip(d))
		}
	}
	for _, d := range append(slices.Clone(s.DNSSearch), s.DNSOptions...) {
		if strings.ContainsAny(d, " \t\n\x00") || d == "" {
			return invalid("bad DNS search domain or option %q", clip(d))
		}
	}
	return nil
}

// CutHost splits name:ip and name=ip.
func CutHost(h string) (name, ip string, ok bool) {
	if name, ip, ok = strings.Cut(h, "="); ok {
		return name, ip, true
	}
	return strings.Cut(h, ":")
}

func checkHealth(s *Spec) error {
	h := s.Healthcheck
	if h == nil {
		return nil
	}
	for name, d := range map[string]time.Duration{"Interval": h.Interval, "Timeout": h.Timeout, "StartPeriod": h.StartPeriod, "StartInterval": h.StartInterval} {
		if d != 0 && d < time.Millisecond {
			return invalid("%s in Healthcheck cannot be less than %s", name, time.Millisecond)
		}
	}
	if h.Retries < 0 {
		return invalid("Retries in Healthcheck cannot be negative")
	}
	if len(h.Test) > 0 {
		switch h.Test[0] {
		case "NONE", "CMD", "CMD-SHELL", "":
		default:
			return invalid("unknown type %q in Healthcheck test", clip(h.Test[0]))
		}
	}
	return nil
}

func checkPorts(s *Spec) error {
	for _, p := range s.ExposedPorts {
		if _, _, _, err := ParsePort(p); err != nil {
			return err
		}
	}
	for _, p := range s.Ports {
		switch p.Proto {
		case "tcp", "udp", "sctp":
		default:
			return invalid("invalid proto: %s", clip(p.Proto))
		}
		if p.ContainerPort == 0 {
			return invalid("invalid containerPort: 0")
		}
		if p.HostPortEnd != 0 && p.HostPortEnd < p.HostPort {
			return invalid("invalid port range: %d-%d", p.HostPort, p.HostPortEnd)
		}
	}
	return nil
}

// ParsePort reads "80", "80/tcp" and "7000-7010/udp".
func ParsePort(p string) (first, last uint16, proto string, err error) {
	ports, proto, ok := strings.Cut(p, "/")
	if !ok || proto == "" {
		proto = "tcp"
	}
	proto = strings.ToLower(proto)
	a, b, isRange := strings.Cut(ports, "-")
	if !isRange {
		b = a
	}
	lo, err1 := strconv.ParseUint(a, 10, 16)
	hi, err2 := strconv.ParseUint(b, 10, 16)
	if err1 != nil || err2 != nil || lo == 0 || hi < lo || (proto != "tcp" && proto != "udp" && proto != "sctp") {
		return 0, 0, "", invalid("invalid port specification: %q", clip(p))
	}
	return uint16(lo), uint16(hi), proto, nil
}

var ulimitNames = []string{
	"core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack", "as",
}

func checkUlimits(s *Spec) error {
	for _, u := range s.Ulimits {
		if !slices.Contains(ulimitNames, u.Name) {
			return invalid("invalid ulimit type: %s", clip(u.Name))
		}
		if u.Hard != -1 && (u.Soft > u.Hard || u.Soft == -1) {
			return invalid("ulimit soft limit must be less than or equal to hard limit: %d > %d", u.Soft, u.Hard)
		}
	}
	return nil
}

// Check holds the limits to docker's minimums and discards what the kernel no longer has.
func (r *Resources) Check() (warnings []string, err error) {
	switch {
	case r.Memory < 0 || r.MemoryReservation < 0 || r.KernelMemory < 0:
		return nil, invalid("memory limits can not be negative")
	case r.Memory > 0 && r.Memory < minMemory:
		return nil, invalid("Minimum memory limit allowed is 6MB")
	case r.Memory > 0 && r.MemorySwap > 0 && r.MemorySwap < r.Memory:
		return nil, invalid("Minimum memoryswap limit should be larger than memory limit, see usage")
	case r.Memory == 0 && r.MemorySwap > 0:
		return nil, invalid("You should always set the Memory limit when using Memoryswap limit, see usage")
	case r.MemorySwap < -1:
		return nil, invalid("memoryswap %d: -1 means no limit", r.MemorySwap)
	case r.MemorySwappiness != nil && (*r.MemorySwappiness < -1 || *r.MemorySwappiness > 100):
		return nil, invalid("Invalid value: %d, valid memory swappiness range is 0-100", *r.MemorySwappiness)
	case r.MemoryReservation > 0 && r.MemoryReservation < minMemory:
		return nil, invalid("Minimum memory reservation allowed is 6MB")
	case r.Memory > 0 && r.MemoryReservation > 0 && r.Memory < r.MemoryReservation:
		return nil, invalid("Minimum memory limit can not be less than memory reservation limit, see usage")
	case r.NanoCPUs > 0 && r.CPUPeriod > 0:
		return nil, invalid("Conflicting options: Nano CPUs and CPU Period cannot both be set")
	case r.NanoCPUs > 0 && r.CPUQuota > 0:
		return nil, invalid("Conflicting options: Nano CPUs and CPU Quota cannot both be set")
	case r.NanoCPUs < 0 || r.NanoCPUs > int64(runtime.NumCPU())*1e9:
		return nil, invalid("Range of CPUs is from 0.01 to %d.00, as there are only %d CPUs available", runtime.NumCPU(), runtime.NumCPU())
	case r.CPUPeriod != 0 && (r.CPUPeriod < 1000 || r.CPUPeriod > 1000000):
		return nil, invalid("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
	case r.CPUQuota > 0 && r.CPUQuota < 1000:
		return nil, invalid("CPU cfs quota can not be less than 1ms (i.e. 1000)")
	case r.CPUShares < 0:
		return nil, invalid("invalid CPU shares (%d): value must be a positive integer", r.CPUShares)
	case r.BlkioWeight > 0 && (r.BlkioWeight < 10 || r.BlkioWeight > 1000):
		return nil, invalid("Range of blkio weight is from 10 to 1000")
	}
	for what, v := range map[string]string{"cpuset cpus": r.CpusetCpus, "cpuset mems": r.CpusetMems} {
		if err := checkSet(what, v); err != nil {
			return nil, err
		}
	}
	if r.KernelMemory > 0 {
		warnings = append(warnings, "Kernel memory limits are gone from the kernel. Limitation discarded.")
		r.KernelMemory = 0
	}
	return warnings, nil
}

// checkSet takes lists such as "0-2,4".
func checkSet(what, v string) error {
	if v == "" {
		return nil
	}
	for part := range strings.SplitSeq(v, ",") {
		a, b, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			b = a
		}
		lo, err1 := strconv.ParseUint(a, 10, 13)
		hi, err2 := strconv.ParseUint(b, 10, 13)
		if err1 != nil || err2 != nil || hi < lo {
			return invalid("Invalid value %s for %s", clip(v), what)
		}
		if what == "cpuset cpus" && hi >= uint64(runtime.NumCPU()) {
			return invalid("Requested CPUs are not available - requested %s, available: %s", v, fmt.Sprintf("0-%d", runtime.NumCPU()-1))
		}
	}
	return nil
}

func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}
