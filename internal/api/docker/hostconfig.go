package docker

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/network"
	"ply/internal/volume"
)

// hostConfig is docker's HostConfig: what create takes and inspect gives back. Options that this engine does not have
// stand in refusedConfig, so that setting one can be refused by name.
type hostConfig struct {
	Binds           []string
	ContainerIDFile string
	LogConfig       logConfig
	NetworkMode     string
	PortBindings    map[string][]portBinding
	RestartPolicy   restartPolicy
	AutoRemove      bool
	VolumeDriver    string
	VolumesFrom     []string
	ConsoleSize     [2]uint
	Annotations     map[string]string `json:",omitempty"`
	CapAdd          words
	CapDrop         words
	CgroupnsMode    string
	DNS             []string `json:"Dns"`
	DNSOptions      []string `json:"DnsOptions"`
	DNSSearch       []string `json:"DnsSearch"`
	ExtraHosts      []string
	GroupAdd        []string
	IpcMode         string
	Cgroup          string
	Links           []string
	OomScoreAdj     int
	PidMode         string
	Privileged      bool
	PublishAllPorts bool
	ReadonlyRootfs  bool
	SecurityOpt     []string
	StorageOpt      map[string]string `json:",omitempty"`
	Tmpfs           map[string]string `json:",omitempty"`
	UTSMode         string
	UsernsMode      string
	ShmSize         int64
	Sysctls         map[string]string `json:",omitempty"`
	Runtime         string            `json:",omitempty"`
	Isolation       string
	resources
	Mounts        []mountConfig `json:",omitempty"`
	MaskedPaths   []string
	ReadonlyPaths []string
	Init          *bool   `json:",omitempty"`
	Umask         *uint32 `json:",omitempty"`
}

// resources are docker's limits, in HostConfig and in update.
type resources struct {
	CPUShares            int64 `json:"CpuShares"`
	Memory               int64
	NanoCPUs             int64 `json:"NanoCpus"`
	CgroupParent         string
	BlkioWeight          uint16
	BlkioWeightDevice    []weightDevice
	BlkioDeviceReadBps   []rateDevice
	BlkioDeviceWriteBps  []rateDevice
	BlkioDeviceReadIOps  []rateDevice
	BlkioDeviceWriteIOps []rateDevice
	CPUPeriod            int64 `json:"CpuPeriod"`
	CPUQuota             int64 `json:"CpuQuota"`
	CPURealtimePeriod    int64 `json:"CpuRealtimePeriod"`
	CPURealtimeRuntime   int64 `json:"CpuRealtimeRuntime"`
	CpusetCpus           string
	CpusetMems           string
	Devices              []deviceMapping
	DeviceCgroupRules    []string
	DeviceRequests       []deviceRequest
	KernelMemory         int64 `json:",omitempty"`
	KernelMemoryTCP      int64 `json:",omitempty"`
	MemoryReservation    int64
	MemorySwap           int64
	MemorySwappiness     *int64
	OomKillDisable       *bool
	PidsLimit            *int64
	Ulimits              []ulimit
	CPUCount             int64 `json:"CpuCount"`
	CPUPercent           int64 `json:"CpuPercent"`
	IOMaximumIOps        uint64
	IOMaximumBandwidth   uint64
}

type logConfig struct {
	Type   string
	Config map[string]string
}

type portBinding struct {
	HostIP   string `json:"HostIp"`
	HostPort string
}

type restartPolicy struct {
	Name              string
	MaximumRetryCount int
}

type weightDevice struct {
	Path   string
	Weight uint16
}

type rateDevice struct {
	Path string
	Rate uint64
}

type deviceMapping struct {
	PathOnHost, PathInContainer, CgroupPermissions string
}

type deviceRequest struct {
	Driver       string
	Count        int
	DeviceIDs    []string
	Capabilities [][]string
	Options      map[string]string
}

type ulimit struct {
	Name string
	Hard int64
	Soft int64
}

// mountConfig is docker's --mount.
type mountConfig struct {
	Type          string         `json:",omitempty"`
	Source        string         `json:",omitempty"`
	Target        string         `json:",omitempty"`
	ReadOnly      bool           `json:",omitempty"`
	Consistency   string         `json:",omitempty"`
	BindOptions   *bindOptions   `json:",omitempty"`
	VolumeOptions *volumeOptions `json:",omitempty"`
	ImageOptions  *struct{}      `json:",omitempty"`
	TmpfsOptions  *tmpfsOptions  `json:",omitempty"`
}

type bindOptions struct {
	Propagation            string `json:",omitempty"`
	NonRecursive           bool   `json:",omitempty"`
	CreateMountpoint       bool   `json:",omitempty"`
	ReadOnlyNonRecursive   bool   `json:",omitempty"`
	ReadOnlyForceRecursive bool   `json:",omitempty"`
}

type volumeOptions struct {
	NoCopy       bool              `json:",omitempty"`
	Labels       map[string]string `json:",omitempty"`
	Subpath      string            `json:",omitempty"`
	DriverConfig *volumeDriver     `json:",omitempty"`
}

type volumeDriver struct {
	Name    string            `json:",omitempty"`
	Options map[string]string `json:",omitempty"`
}

type tmpfsOptions struct {
	SizeBytes int64      `json:",omitempty"`
	Mode      uint32     `json:",omitempty"`
	Options   [][]string `json:",omitempty"`
}

// refuse names the first option that a client set and this engine does not have.
func (h *hostConfig) refuse() error {
	for _, o := range []struct {
		set  bool
		name string
		why  string
	}{
		{h.VolumeDriver != "" && h.VolumeDriver != "local", "HostConfig.VolumeDriver " + clip(h.VolumeDriver), "the only volume driver is local"},
		{h.Cgroup != "", "HostConfig.Cgroup", "use CgroupParent or CgroupnsMode"},
		{len(h.StorageOpt) > 0, "HostConfig.StorageOpt", "storage drivers take no options a container"},
		{h.Isolation != "" && h.Isolation != "default", "HostConfig.Isolation " + clip(h.Isolation), "on Linux it is default"},
		{h.Umask != nil, "HostConfig.Umask", "set it in the container's command"},
		{len(h.Annotations) > 1000, "HostConfig.Annotations", "more than 1000"},
	} {
		if o.set {
			return unsupported(o.name, o.why)
		}
	}
	return h.resources.refuse("HostConfig.")
}

func (r *resources) refuse(prefix string) error {
	if len(r.DeviceRequests) > 0 {
		d := r.DeviceRequests[0]
		return errs.New(errs.Invalid, "could not select device driver %q with capabilities: %v: %sDeviceRequests (--gpus) is not supported", clip(d.Driver), d.Capabilities, prefix)
	}
	for _, o := range []struct {
		set  bool
		name string
		why  string
	}{
		{len(r.BlkioWeightDevice) > 0, "BlkioWeightDevice", "only BlkioWeight is"},
		{len(r.BlkioDeviceReadBps) > 0, "BlkioDeviceReadBps", "block devices cannot be throttled one by one"},
		{len(r.BlkioDeviceWriteBps) > 0, "BlkioDeviceWriteBps", "block devices cannot be throttled one by one"},
		{len(r.BlkioDeviceReadIOps) > 0, "BlkioDeviceReadIOps", "block devices cannot be throttled one by one"},
		{len(r.BlkioDeviceWriteIOps) > 0, "BlkioDeviceWriteIOps", "block devices cannot be throttled one by one"},
		{r.KernelMemoryTCP != 0, "KernelMemoryTCP", "the kernel no longer has it"},
		{r.CPUCount != 0, "CpuCount", "it belongs to Windows; use NanoCpus"},
		{r.CPUPercent != 0, "CpuPercent", "it belongs to Windows; use NanoCpus"},
		{r.IOMaximumIOps != 0, "IOMaximumIOps", "it belongs to Windows"},
		{r.IOMaximumBandwidth != 0, "IOMaximumBandwidth", "it belongs to Windows"},
	} {
		if o.set {
			return unsupported(prefix+o.name, o.why)
		}
	}
	return nil
}

// apply puts the host config into a spec.
func (h *hostConfig) apply(sp *spec.Spec) (err error) {
	if err := h.refuse(); err != nil {
		return err
	}
	if h.ShmSize < 0 {
		return errs.New(errs.Invalid, "SHM size can not be less than 0")
	}
	if sp.RestartPolicy, err = h.RestartPolicy.policy(); err != nil {
		return err
	}
	if h.AutoRemove && sp.RestartPolicy.Name != "" && sp.RestartPolicy.Name != "no" {
		return errs.New(errs.Invalid, "can't create 'AutoRemove' container with restart policy")
	}
	if sp.Ports, err = portBindings(h.PortBindings); err != nil {
		return err
	}
	for i := range h.Mounts {
		m, err := h.Mounts[i].spec()
		if err != nil {
			return err
		}
		sp.Mounts = append(sp.Mounts, m)
	}
	for _, d := range h.DNS {
		if _, err := netip.ParseAddr(d); err != nil {
			return errs.New(errs.Invalid, "HostConfig.Dns: %q is not an IP address", clip(d))
		}
	}
	for _, b := range h.Binds {
		if filepath.IsAbs(b) && !strings.Contains(b, ":") { // no source: an anonymous volume
			sp.Volumes = append(sp.Volumes, b)
		} else {
			sp.Binds = append(sp.Binds, b)
		}
	}
	sp.VolumesFrom, sp.Tmpfs = h.VolumesFrom, h.Tmpfs
	sp.ContainerIDFile, sp.LogDriver, sp.LogOpts = h.ContainerIDFile, h.LogConfig.Type, h.LogConfig.Config
	sp.NetworkMode, sp.PublishAll, sp.Links = h.NetworkMode, h.PublishAllPorts, h.Links
	sp.DNS, sp.DNSOptions, sp.DNSSearch, sp.ExtraHosts = h.DNS, h.DNSOptions, h.DNSSearch, h.ExtraHosts
	sp.AutoRemove, sp.ConsoleSize, sp.Annotations = h.AutoRemove, h.ConsoleSize, h.Annotations
	sp.Privileged, sp.CapAdd, sp.CapDrop, sp.SecurityOpt = h.Privileged, h.CapAdd, h.CapDrop, h.SecurityOpt
	sp.ReadonlyRootfs, sp.MaskedPaths, sp.ReadonlyPaths = h.ReadonlyRootfs, h.MaskedPaths, h.ReadonlyPaths
	sp.PidMode, sp.IpcMode, sp.UTSMode, sp.UsernsMode, sp.CgroupnsMode = h.PidMode, h.IpcMode, h.UTSMode, h.UsernsMode, h.CgroupnsMode
	sp.GroupAdd, sp.Sysctls, sp.ShmSize, sp.OomScoreAdj = h.GroupAdd, h.Sysctls, h.ShmSize, h.OomScoreAdj
	sp.Init, sp.Runtime = h.Init, h.Runtime
	return h.resources.apply(sp)
}

// apply puts the limits, devices and ulimits into a spec.
func (r *resources) apply(sp *spec.Spec) error {
	sp.CgroupParent, sp.DeviceRules = r.CgroupParent, r.DeviceCgroupRules
	sp.OomKillDisable = r.OomKillDisable != nil && *r.OomKillDisable
	for _, d := range r.Devices {
		sp.Devices = append(sp.Devices, spec.Device{HostPath: d.PathOnHost, ContainerPath: d.PathInContainer, Permissions: d.CgroupPermissions})
	}
	for _, u := range r.Ulimits {
		if u.Name == "" {
			return errs.New(errs.Invalid, "HostConfig.Ulimits: a limit has no name")
		}
		sp.Ulimits = append(sp.Ulimits, spec.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
	}
	var err error
	sp.Resources, err = r.limits()
	return err
}

// limits checks the numbers that no kernel takes.
func (r *resources) limits() (spec.Resources, error) {
	swappiness := r.MemorySwappiness
	if swappiness != nil && *swappiness == -1 { // clients say "not set" so
		swappiness = nil
	}
	pids := r.PidsLimit
	if pids != nil && *pids <= 0 {
		none := int64(-1)
		pids = &none
		if *r.PidsLimit == 0 {
			pids = nil
		}
	}
	switch {
	case r.Memory < 0, r.MemoryReservation < 0, r.KernelMemory < 0:
		return spec.Resources{}, errs.New(errs.Invalid, "memory limits cannot be negative")
	case r.MemorySwap < -1:
		return spec.Resources{}, errs.New(errs.Invalid, "MemorySwap: %d is neither bytes nor -1", r.MemorySwap)
	case swappiness != nil && (*swappiness < 0 || *swappiness > 100):
		return spec.Resources{}, errs.New(errs.Invalid, "invalid value: %d, valid memory swappiness range is 0-100", *swappiness)
	case r.NanoCPUs < 0:
		return spec.Resources{}, errs.New(errs.Invalid, "NanoCpus cannot be negative")
	case r.NanoCPUs > 0 && (r.CPUPeriod > 0 || r.CPUQuota > 0):
		return spec.Resources{}, errs.New(errs.Invalid, "conflicting options: Nano CPUs and CPU Period or Quota cannot both be set")
	case r.BlkioWeight != 0 && (r.BlkioWeight < 10 || r.BlkioWeight > 1000):
		return spec.Resources{}, errs.New(errs.Invalid, "range of blkio weight is from 10 to 1000")
	}
	return spec.Resources{Memory: r.Memory, MemoryReservation: r.MemoryReservation, MemorySwap: r.MemorySwap, KernelMemory: r.KernelMemory,
		MemorySwappiness: swappiness, NanoCPUs: r.NanoCPUs, CPUShares: r.CPUShares, CPUPeriod: r.CPUPeriod, CPUQuota: r.CPUQuota,
		CPURealtimePeriod: r.CPURealtimePeriod, CPURealtimeRuntime: r.CPURealtimeRuntime, CpusetCpus: r.CpusetCpus, CpusetMems: r.CpusetMems,
		PidsLimit: pids, BlkioWeight: r.BlkioWeight}, nil
}

// policy checks a restart policy; the words are docker's.
func (p restartPolicy) policy() (spec.RestartPolicy, error) {
	switch p.Name {
	case "":
	case "no", "always", "unless-stopped":
		if p.MaximumRetryCount != 0 {
			return spec.RestartPolicy{}, errs.New(errs.Invalid, "invalid restart policy: maximum retry count can only be used with 'on-failure'")
		}
	case "on-failure":
		if p.MaximumRetryCount < 0 {
			return spec.RestartPolicy{}, errs.New(errs.Invalid, "invalid restart policy: maximum retry count cannot be negative")
		}
	default:
		return spec.RestartPolicy{}, errs.New(errs.Invalid, "invalid restart policy: unknown policy '%s'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'", clip(p.Name))
	}
	return spec.RestartPolicy{Name: p.Name, MaxRetries: p.MaximumRetryCount}, nil
}

// portBindings flattens docker's map, sorted by container port, so that the same request gives the same spec.
func portBindings(m map[string][]portBinding) ([]network.PortBinding, error) {
	var list []network.PortBinding
	for key, bindings := range m {
		first, last, proto, err := parsePort(key)
		if err != nil {
			return nil, err
		}
		if first != last {
			return nil, errs.New(errs.Invalid, "invalid port %q: a binding is for one container port", clip(key))
		}
		if len(bindings) == 0 { // published, wherever
			bindings = []portBinding{{}}
		}
		for _, b := range bindings {
			p := network.PortBinding{Proto: proto, ContainerPort: first}
			if b.HostIP != "" {
				if p.HostIP, err = netip.ParseAddr(b.HostIP); err != nil {
					return nil, errs.New(errs.Invalid, "port %s: invalid host address %q", clip(key), clip(b.HostIP))
				}
			}
			if b.HostPort != "" {
				from, to, ok := parseRange(b.HostPort)
				if !ok || isRange(b.HostPort) && from == 0 {
					return nil, errs.New(errs.Invalid, "port %s: invalid host port %q", clip(key), clip(b.HostPort))
				}
				p.HostPort = from
				if to != from {
					p.HostPortEnd = to
				}
			}
			list = append(list, p)
		}
	}
	slices.SortStableFunc(list, func(a, b network.PortBinding) int {
		if a.ContainerPort != b.ContainerPort {
			return int(a.ContainerPort) - int(b.ContainerPort)
		}
		return strings.Compare(a.Proto, b.Proto)
	})
	return list, nil
}

func isRange(s string) bool { return strings.Contains(s, "-") }

// spec checks a --mount and turns it into the engine's.
func (m *mountConfig) spec() (volume.MountSpec, error) {
	s := volume.MountSpec{Type: m.Type, Source: m.Source, Target: m.Target, ReadOnly: m.ReadOnly}
	bad := func(format string, args ...any) (volume.MountSpec, error) {
		return volume.MountSpec{}, errs.New(errs.Invalid, "invalid mount config for type %q: %s", clip(m.Type), fmt.Sprintf(format, args...))
	}
	if m.Target == "" {
		return bad("field Target must not be empty")
	}
	switch m.Consistency {
	case "", "default", "consistent", "cached", "delegated": // all the same where host and container share a kernel
	default:
		return bad("unknown Consistency %q", clip(m.Consistency))
	}
	for _, o := range []struct {
		set        bool
		name, kind string
	}{{m.BindOptions != nil, "BindOptions", "bind"}, {m.VolumeOptions != nil, "VolumeOptions", "volume"}, {m.TmpfsOptions != nil, "TmpfsOptions", "tmpfs"}} {
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
			if o.ReadOnlyNonRecursive || o.ReadOnlyForceRecursive {
				return bad("ReadOnlyNonRecursive and ReadOnlyForceRecursive are not supported")
			}
			s.Propagation, s.NonRecursive, s.CreateSource = o.Propagation, o.NonRecursive, o.CreateMountpoint
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
	default:
		return bad("mount type unknown: want bind, volume or tmpfs")
	}
	return s, nil
}
