package docker

import (
	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/wire"
)

// refuseResources is refuseHost for the limits. prefix is the path of the limits in the body.
func refuseResources(r *wire.Resources, prefix string) error {
	for _, o := range []struct {
		set  bool
		name string
		why  string
	}{
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

// applyResources sets the limits, devices and ulimits of a spec.
func applyResources(r *wire.Resources, sp *spec.Spec) error {
	sp.CgroupParent, sp.DeviceRules = r.CgroupParent, r.DeviceCgroupRules
	sp.OomKillDisable = r.OomKillDisable != nil && *r.OomKillDisable
	for _, d := range r.Devices {
		sp.Devices = append(sp.Devices, spec.Device{HostPath: d.PathOnHost, ContainerPath: d.PathInContainer, Permissions: d.CgroupPermissions})
	}
	for _, d := range r.DeviceRequests {
		sp.DeviceRequests = append(sp.DeviceRequests, spec.DeviceRequest{Driver: d.Driver, Count: d.Count, IDs: d.DeviceIDs, Capabilities: d.Capabilities, Options: d.Options})
	}
	for _, u := range r.Ulimits {
		if u.Name == "" {
			return errs.New(errs.Invalid, "HostConfig.Ulimits: a limit has no name")
		}
		sp.Ulimits = append(sp.Ulimits, spec.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
	}
	sp.Resources = limits(r)
	return nil
}

// limits returns the limits of a request.
func limits(r *wire.Resources) spec.Resources {
	swappiness := r.MemorySwappiness
	if swappiness != nil && *swappiness == -1 { // clients mean "not set" by this
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
	return spec.Resources{Memory: r.Memory, MemoryReservation: r.MemoryReservation, MemorySwap: r.MemorySwap, KernelMemory: r.KernelMemory,
		MemorySwappiness: swappiness, NanoCPUs: r.NanoCPUs, CPUShares: r.CPUShares, CPUPeriod: r.CPUPeriod, CPUQuota: r.CPUQuota,
		CPURealtimePeriod: r.CPURealtimePeriod, CPURealtimeRuntime: r.CPURealtimeRuntime, CpusetCpus: r.CpusetCpus, CpusetMems: r.CpusetMems,
		PidsLimit: pids, BlkioWeight: r.BlkioWeight, DeviceReadBps: deviceRates(r.BlkioDeviceReadBps), DeviceWriteBps: deviceRates(r.BlkioDeviceWriteBps),
		DeviceReadIOps: deviceRates(r.BlkioDeviceReadIOps), DeviceWriteIOps: deviceRates(r.BlkioDeviceWriteIOps),
		DeviceWeights: deviceWeights(r.BlkioWeightDevice)}
}

func deviceWeights(list []wire.WeightDevice) (weights []spec.DeviceWeight) {
	for _, d := range list {
		weights = append(weights, spec.DeviceWeight(d))
	}
	return weights
}

func weightDevices(weights []spec.DeviceWeight) []wire.WeightDevice {
	list := []wire.WeightDevice{}
	for _, w := range weights {
		list = append(list, wire.WeightDevice(w))
	}
	return list
}

// updatedLimits returns the limits of a request to change a container. version is the minor version of the API.
func updatedLimits(r *wire.Resources, version int) spec.Resources {
	out := limits(r)
	switch {
	case version < 40: // such clients always send 0
		out.PidsLimit = nil
	case r.PidsLimit != nil && *r.PidsLimit <= 0:
		none := int64(-1)
		out.PidsLimit = &none
	}
	return out
}

func deviceRates(list []wire.ThrottleDevice) (rates []spec.DeviceRate) {
	for _, d := range list {
		rates = append(rates, spec.DeviceRate(d))
	}
	return rates
}

func throttleDevices(rates []spec.DeviceRate) []wire.ThrottleDevice {
	list := []wire.ThrottleDevice{}
	for _, r := range rates {
		list = append(list, wire.ThrottleDevice(r))
	}
	return list
}

// resourcesOf returns the limits, devices and ulimits of a spec.
func resourcesOf(sp *spec.Spec) wire.Resources {
	r := sp.Resources
	out := wire.Resources{CPUShares: r.CPUShares, Memory: r.Memory, NanoCPUs: r.NanoCPUs, CgroupParent: sp.CgroupParent, BlkioWeight: r.BlkioWeight,
		BlkioWeightDevice: weightDevices(r.DeviceWeights), BlkioDeviceReadBps: throttleDevices(r.DeviceReadBps), BlkioDeviceWriteBps: throttleDevices(r.DeviceWriteBps), BlkioDeviceReadIOps: throttleDevices(r.DeviceReadIOps),
		BlkioDeviceWriteIOps: throttleDevices(r.DeviceWriteIOps), CPUPeriod: r.CPUPeriod, CPUQuota: r.CPUQuota, CPURealtimePeriod: r.CPURealtimePeriod,
		CPURealtimeRuntime: r.CPURealtimeRuntime, CpusetCpus: r.CpusetCpus, CpusetMems: r.CpusetMems, Devices: []wire.DeviceMapping{},
		DeviceCgroupRules: sp.DeviceRules, KernelMemory: r.KernelMemory, MemoryReservation: r.MemoryReservation, MemorySwap: r.MemorySwap,
		MemorySwappiness: r.MemorySwappiness, OomKillDisable: &sp.OomKillDisable, PidsLimit: r.PidsLimit, Ulimits: []wire.Ulimit{}}
	if r.PidsLimit != nil && *r.PidsLimit < 0 { // unlimited
		out.PidsLimit = new(int64)
	}
	for _, d := range sp.Devices {
		out.Devices = append(out.Devices, wire.DeviceMapping{PathOnHost: d.HostPath, PathInContainer: d.ContainerPath, CgroupPermissions: d.Permissions})
	}
	for _, d := range sp.DeviceRequests {
		out.DeviceRequests = append(out.DeviceRequests, wire.DeviceRequest{Driver: d.Driver, Count: d.Count, DeviceIDs: d.IDs, Capabilities: d.Capabilities, Options: d.Options})
	}
	for _, u := range sp.Ulimits {
		out.Ulimits = append(out.Ulimits, wire.Ulimit{Name: u.Name, Hard: u.Hard, Soft: u.Soft})
	}
	return out
}
