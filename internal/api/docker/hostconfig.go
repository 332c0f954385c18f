package docker

import (
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/wire"
)

// refuseHost names the first option that a client set and this engine does not have.
func refuseHost(h *wire.HostConfig) error {
	for _, o := range []struct {
		set  bool
		name string
		why  string
	}{
		{h.Cgroup != "", "HostConfig.Cgroup", "use CgroupParent or CgroupnsMode"},
		{h.Isolation != "" && h.Isolation != "default", "HostConfig.Isolation " + clip(h.Isolation), "on Linux it is default"},
		{len(h.Annotations) > 1000, "HostConfig.Annotations", "more than 1000"},
	} {
		if o.set {
			return unsupported(o.name, o.why)
		}
	}
	return refuseResources(&h.Resources, "HostConfig.")
}

// applyHost puts the host config into a spec.
func applyHost(h *wire.HostConfig, sp *spec.Spec) (err error) {
	if err := refuseHost(h); err != nil {
		return err
	}
	if sp.Ports, err = portBindings(h.PortBindings); err != nil {
		return err
	}
	for i := range h.Mounts {
		m, err := mountSpec(&h.Mounts[i])
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
	if err := checkVolumeDriver(h.VolumeDriver, sp); err != nil {
		return err
	}
	sp.VolumesFrom, sp.Tmpfs, sp.StorageOpt = h.VolumesFrom, h.Tmpfs, h.StorageOpt
	sp.ContainerIDFile, sp.LogDriver, sp.LogOpts = h.ContainerIDFile, h.LogConfig.Type, h.LogConfig.Config
	sp.NetworkMode, sp.PublishAll, sp.Links = h.NetworkMode, h.PublishAllPorts, h.Links
	sp.DNS, sp.DNSOptions, sp.DNSSearch, sp.ExtraHosts = h.DNS, h.DNSOptions, h.DNSSearch, h.ExtraHosts
	sp.AutoRemove, sp.ConsoleSize, sp.Annotations = h.AutoRemove, h.ConsoleSize, h.Annotations
	sp.Privileged, sp.CapAdd, sp.CapDrop, sp.SecurityOpt = h.Privileged, h.CapAdd, h.CapDrop, h.SecurityOpt
	sp.ReadonlyRootfs, sp.MaskedPaths, sp.ReadonlyPaths = h.ReadonlyRootfs, h.MaskedPaths, h.ReadonlyPaths
	sp.PidMode, sp.IpcMode, sp.UTSMode, sp.UsernsMode, sp.CgroupnsMode = h.PidMode, h.IpcMode, h.UTSMode, h.UsernsMode, h.CgroupnsMode
	sp.GroupAdd, sp.Sysctls, sp.ShmSize, sp.OomScoreAdj = h.GroupAdd, h.Sysctls, h.ShmSize, h.OomScoreAdj
	sp.Init, sp.Runtime, sp.Umask, sp.RestartPolicy = h.Init, h.Runtime, h.Umask, restartPolicy(h.RestartPolicy)
	return applyResources(&h.Resources, sp)
}

const localDriver = "local"

// checkVolumeDriver refuses a driver that there is not, as docker does when a volume is to be made with it.
func checkVolumeDriver(driver string, sp *spec.Spec) error {
	if driver == "" || driver == localDriver {
		return nil
	}
	for _, b := range append(slices.Clone(sp.Volumes), sp.Binds...) {
		source, _, named := strings.Cut(b, ":")
		if filepath.IsAbs(b) && named {
			continue // a path of the host
		}
		if !named {
			source = b
		}
		return errs.New(errs.Invalid, "create %s: error looking up volume plugin %s: plugin %q not found", clip(source), clip(driver), clip(driver)).
			WithHint("Only the driver local is built in.")
	}
	return nil
}

func restartPolicy(p wire.RestartPolicy) spec.RestartPolicy {
	return spec.RestartPolicy{Name: p.Name, MaxRetries: p.MaximumRetryCount}
}

// hostConfigOf returns a spec as docker's HostConfig.
func hostConfigOf(sp *spec.Spec) wire.HostConfig {
	h := wire.HostConfig{Binds: sp.Binds, ContainerIDFile: sp.ContainerIDFile, LogConfig: wire.LogConfig{Type: sp.LogDriver, Config: sp.LogOpts},
		NetworkMode: sp.NetworkMode, PortBindings: map[string][]wire.PortBinding{},
		RestartPolicy: wire.RestartPolicy{Name: sp.RestartPolicy.Name, MaximumRetryCount: sp.RestartPolicy.MaxRetries}, AutoRemove: sp.AutoRemove, VolumesFrom: sp.VolumesFrom,
		ConsoleSize: sp.ConsoleSize, Annotations: sp.Annotations, CapAdd: sp.CapAdd, CapDrop: sp.CapDrop, CgroupnsMode: sp.CgroupnsMode,
		DNS: notNil(sp.DNS), DNSOptions: notNil(sp.DNSOptions), DNSSearch: notNil(sp.DNSSearch), ExtraHosts: sp.ExtraHosts, GroupAdd: sp.GroupAdd,
		IpcMode: sp.IpcMode, Links: sp.Links, OomScoreAdj: sp.OomScoreAdj, PidMode: sp.PidMode, Privileged: sp.Privileged,
		PublishAllPorts: sp.PublishAll, ReadonlyRootfs: sp.ReadonlyRootfs, SecurityOpt: sp.SecurityOpt, Tmpfs: sp.Tmpfs, UTSMode: sp.UTSMode,
		UsernsMode: sp.UsernsMode, ShmSize: sp.ShmSize, Sysctls: sp.Sysctls, Runtime: sp.Runtime, MaskedPaths: sp.MaskedPaths,
		ReadonlyPaths: sp.ReadonlyPaths, Init: sp.Init, Umask: sp.Umask, StorageOpt: sp.StorageOpt}
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
		h.Mounts = append(h.Mounts, mountOf(m))
	}
	h.Resources = resourcesOf(sp)
	return h
}
