package docker

import (
	"net/netip"
	"strconv"

	"ply/internal/container/spec"
	"ply/internal/network"
	"ply/internal/volume"
)

// hostConfigOf gives a spec back as docker's HostConfig.
func hostConfigOf(sp *spec.Spec) hostConfig {
	h := hostConfig{Binds: sp.Binds, ContainerIDFile: sp.ContainerIDFile, LogConfig: logConfig{sp.LogDriver, sp.LogOpts},
		NetworkMode: sp.NetworkMode, PortBindings: map[string][]portBinding{},
		RestartPolicy: restartPolicy{sp.RestartPolicy.Name, sp.RestartPolicy.MaxRetries}, AutoRemove: sp.AutoRemove, VolumesFrom: sp.VolumesFrom,
		ConsoleSize: sp.ConsoleSize, Annotations: sp.Annotations, CapAdd: sp.CapAdd, CapDrop: sp.CapDrop, CgroupnsMode: sp.CgroupnsMode,
		DNS: notNil(sp.DNS), DNSOptions: notNil(sp.DNSOptions), DNSSearch: notNil(sp.DNSSearch), ExtraHosts: sp.ExtraHosts, GroupAdd: sp.GroupAdd,
		IpcMode: sp.IpcMode, Links: sp.Links, OomScoreAdj: sp.OomScoreAdj, PidMode: sp.PidMode, Privileged: sp.Privileged,
		PublishAllPorts: sp.PublishAll, ReadonlyRootfs: sp.ReadonlyRootfs, SecurityOpt: sp.SecurityOpt, Tmpfs: sp.Tmpfs, UTSMode: sp.UTSMode,
		UsernsMode: sp.UsernsMode, ShmSize: sp.ShmSize, Sysctls: sp.Sysctls, Runtime: sp.Runtime, MaskedPaths: sp.MaskedPaths,
		ReadonlyPaths: sp.ReadonlyPaths, Init: sp.Init}
	if h.LogConfig.Config == nil {
		h.LogConfig.Config = map[string]string{}
	}
	if h.NetworkMode == "" {
		h.NetworkMode = "default"
	}
	if h.RestartPolicy.Name == "" {
		h.RestartPolicy.Name = "no"
	}
	for _, p := range sp.Ports {
		key := portText(p.ContainerPort, p.Proto)
		h.PortBindings[key] = append(h.PortBindings[key], bindingOf(p))
	}
	for _, m := range sp.Mounts {
		h.Mounts = append(h.Mounts, mountConfigOf(m))
	}
	r := sp.Resources
	h.resources = resources{CPUShares: r.CPUShares, Memory: r.Memory, NanoCPUs: r.NanoCPUs, CgroupParent: sp.CgroupParent, BlkioWeight: r.BlkioWeight,
		BlkioWeightDevice: []weightDevice{}, BlkioDeviceReadBps: []rateDevice{}, BlkioDeviceWriteBps: []rateDevice{}, BlkioDeviceReadIOps: []rateDevice{},
		BlkioDeviceWriteIOps: []rateDevice{}, CPUPeriod: r.CPUPeriod, CPUQuota: r.CPUQuota, CPURealtimePeriod: r.CPURealtimePeriod,
		CPURealtimeRuntime: r.CPURealtimeRuntime, CpusetCpus: r.CpusetCpus, CpusetMems: r.CpusetMems, Devices: []deviceMapping{},
		DeviceCgroupRules: sp.DeviceRules, KernelMemory: r.KernelMemory, MemoryReservation: r.MemoryReservation, MemorySwap: r.MemorySwap,
		MemorySwappiness: r.MemorySwappiness, OomKillDisable: &sp.OomKillDisable, PidsLimit: r.PidsLimit, Ulimits: []ulimit{}}
	for _, d := range sp.Devices {
		h.Devices = append(h.Devices, deviceMapping{d.HostPath, d.ContainerPath, d.Permissions})
	}
	for _, u := range sp.Ulimits {
		h.Ulimits = append(h.Ulimits, ulimit{u.Name, u.Hard, u.Soft})
	}
	return h
}

// bindingOf is the binding as it was asked for.
func bindingOf(p network.PortBinding) portBinding {
	b := portBinding{}
	if p.HostIP.IsValid() {
		b.HostIP = p.HostIP.String()
	}
	if p.HostPort != 0 {
		b.HostPort = strconv.Itoa(int(p.HostPort))
		if p.HostPortEnd != 0 {
			b.HostPort += "-" + strconv.Itoa(int(p.HostPortEnd))
		}
	}
	return b
}

func mountConfigOf(m volume.MountSpec) mountConfig {
	c := mountConfig{Type: m.Type, Source: m.Source, Target: m.Target, ReadOnly: m.ReadOnly}
	switch {
	case m.Type == "bind" && (m.Propagation != "" || m.NonRecursive || m.CreateSource):
		c.BindOptions = &bindOptions{Propagation: m.Propagation, NonRecursive: m.NonRecursive, CreateMountpoint: m.CreateSource}
	case m.Type == "volume" && (m.NoCopy || len(m.Labels) > 0 || m.Subpath != "" || m.Driver != "" || len(m.DriverOpts) > 0):
		c.VolumeOptions = &volumeOptions{NoCopy: m.NoCopy, Labels: m.Labels, Subpath: m.Subpath}
		if m.Driver != "" || len(m.DriverOpts) > 0 {
			c.VolumeOptions.DriverConfig = &volumeDriver{m.Driver, m.DriverOpts}
		}
	case m.Type == "tmpfs" && (m.TmpfsSize != 0 || m.TmpfsMode != 0):
		c.TmpfsOptions = &tmpfsOptions{SizeBytes: m.TmpfsSize, Mode: m.TmpfsMode}
	}
	return c
}

// boundAddresses are the host addresses that a binding listens on: one that names none means all, in both families.
func boundAddresses(p network.PortBinding) []netip.Addr {
	if p.HostIP.IsValid() {
		return []netip.Addr{p.HostIP}
	}
	return []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
}
