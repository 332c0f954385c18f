package docker

import (
	"cmp"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"ply/internal/config"
	"ply/internal/container/logfile"
	"ply/internal/errs"
	"ply/internal/host"
	"ply/internal/version"
	"ply/internal/wire"
)

// systemHandlers describes the engine.
type systemHandlers struct {
	system System
	oldest int // version of the API that is answered

	experimental bool
}

func (h systemHandlers) routes(add adder) {
	add(get, "/_ping", h.ping)
	add(head, "/_ping", h.ping)
	add(get, "/version", h.version)
	add(get, "/info", h.info)
}

func (h systemHandlers) ping(c *call) error {
	header := c.w.Header()
	header.Set("Builder-Version", "2")
	header.Set("Swarm", "inactive")
	header.Set("Cache-Control", "no-cache, no-store, must-revalidate")
	header.Set("Pragma", "no-cache")
	header.Set("Content-Type", "text/plain; charset=utf-8")
	if c.r.Method == head {
		header.Set("Content-Length", "0")
		return c.none(http.StatusOK)
	}
	_, err := c.w.Write([]byte("OK"))
	return err
}

func (h systemHandlers) version(c *call) error {
	v := h.system.Version()
	v.Commit, v.Time = cmp.Or(v.Commit, "unknown"), cmp.Or(v.Time, "unknown") // no empty lines in what clients print
	a := wire.Version{
		Version: version.Docker, APIVersion: versionText(maxVersion), MinAPIVersion: versionText(h.oldest),
		GitCommit: v.Commit, GoVersion: v.Go, Os: v.OS, Arch: v.Arch, KernelVersion: v.Kernel, BuildTime: v.Time,
	}
	a.Platform.Name = "ply"
	// Docker's release is what tools compare; the engine's own is that of the component ply.
	a.Components = []wire.Component{{Name: "Engine", Version: a.Version, Details: map[string]string{
		"ApiVersion": a.APIVersion, "MinAPIVersion": a.MinAPIVersion, "GitCommit": v.Commit, "GoVersion": v.Go,
		"Os": v.OS, "Arch": v.Arch, "KernelVersion": v.Kernel, "BuildTime": v.Time, "Experimental": strconv.FormatBool(h.experimental),
	}}, {Name: "ply", Version: v.Version, Details: map[string]string{"GitCommit": v.Commit}}}
	return c.json(http.StatusOK, a)
}

// hubName is the registry of image names without a host.
const hubName = "docker.io"

func (h systemHandlers) info(c *call) error {
	in, err := h.system.Info(c.ctx())
	if err != nil {
		return err
	}
	cfg, machine, can := in.Config, in.Host, in.Host.Limits
	a := wire.Info{
		ID: in.ID, Containers: in.Containers.All, ContainersRunning: in.Containers.Running, ContainersPaused: in.Containers.Paused,
		ContainersStopped: in.Containers.Stopped, Images: in.Images, Driver: in.Driver, DriverStatus: in.DriverStatus,
		MemoryLimit: can.Memory, SwapLimit: can.Swap, CPUCfsPeriod: can.CPUQuota, CPUCfsQuota: can.CPUQuota,
		CPUShares: can.CPUShares, CPUSet: can.CPUSet, PidsLimit: can.Pids, OomKillDisable: can.OOMKillDisable,
		IPv4Forwarding: machine.IPv4Forwarding, Debug: cfg.Debug, NFd: in.OpenFiles, NGoroutines: in.Goroutines,
		SystemTime: in.Time.Format(time.RFC3339Nano), LoggingDriver: cfg.LogDriver, CgroupDriver: "cgroupfs", CgroupVersion: machine.CgroupVersion,
		KernelVersion: machine.Kernel, OperatingSystem: machine.OperatingSystem, OSVersion: machine.OSVersion, OSType: "linux",
		Architecture: machine.Architecture, IndexServerAddress: "https://index." + hubName + "/v1/", RegistryConfig: registriesOf(cfg),
		NCPU: machine.CPUs, MemTotal: machine.Memory, DockerRootDir: cfg.DataRoot, Name: machine.Name, Labels: notNil(cfg.Labels),
		HTTPProxy: hideUser(cfg.Proxies.HTTP), HTTPSProxy: hideUser(cfg.Proxies.HTTPS), NoProxy: cfg.Proxies.No,
		ServerVersion: version.Docker, Runtimes: map[string]wire.Runtime{}, DefaultRuntime: cfg.DefaultRuntime,
		LiveRestoreEnabled: in.LiveRestore, InitBinary: in.InitBinary, SecurityOptions: securityOptions(cfg, &machine),
		CDISpecDirs: notNil(cfg.CDIDirs()),
	}
	if !cfg.IPTables {
		a.Warnings = append(a.Warnings, "WARNING: packet filter rules are switched off (iptables=false)")
	}
	for _, w := range in.Warnings {
		a.Warnings = append(a.Warnings, "WARNING: "+w)
	}
	for _, w := range cfg.Warnings {
		a.Warnings = append(a.Warnings, "WARNING: "+w.String())
	}
	a.ExperimentalBuild = h.experimental
	a.Plugins.Volume, a.Plugins.Network, a.Plugins.Log = []string{"local"}, []string{"bridge", "host", "ipvlan", "macvlan", "null"}, logfile.Drivers()
	own := h.system.Version().Version
	a.ContainerdCommit.ID, a.RuncCommit.ID, a.InitCommit.ID = "N/A", "ply "+own, "ply "+own // the engine has no containerd, and is the others itself
	if c.v < 49 {
		a.ContainerdCommit.Expected, a.RuncCommit.Expected, a.InitCommit.Expected = a.ContainerdCommit.ID, a.RuncCommit.ID, a.InitCommit.ID
	}
	if c.v < 50 { // bridged packets do not pass the filter for the engine's sake; its rules isolate networks without it
		no := false
		a.BridgeNfIptables, a.BridgeNfIp6tables = &no, &no
	}
	if c.v >= 50 {
		found := []wire.DiscoveredDevice{}
		for _, id := range in.Devices.Names() {
			found = append(found, wire.DiscoveredDevice{Source: "cdi", ID: id})
		}
		a.DiscoveredDevices = &found
	}
	for _, p := range in.Devices.Problems() {
		a.Warnings = append(a.Warnings, fmt.Sprintf("WARNING: CDI: Error associated with spec file %s: %v", p.Path, p.Err))
	}
	for name, path := range in.Runtimes {
		a.Runtimes[name] = wire.Runtime{Path: path}
	}
	for _, pool := range cfg.DefaultAddressPools {
		a.DefaultAddressPools = append(a.DefaultAddressPools, wire.AddressPool{Base: pool.Base, Size: pool.Size})
	}
	a.Swarm.LocalNodeState = "inactive"
	return c.json(http.StatusOK, a)
}

// securityOptions returns what confines containers by default.
func securityOptions(cfg *config.Config, machine *host.Facts) (list []string) {
	if machine.AppArmor {
		list = append(list, "name=apparmor")
	}
	list = append(list, "name=seccomp,profile="+cfg.SeccompProfile)
	if mode := cfg.DefaultCgroupnsMode; mode == "private" || mode == "" && machine.CgroupVersion == "2" {
		list = append(list, "name=cgroupns")
	}
	if cfg.NoNewPrivileges {
		list = append(list, "name=no-new-privileges")
	}
	return list
}

// registriesOf returns mirrors and insecure registries in Docker's two groups: address ranges and hosts.
func registriesOf(cfg *config.Config) wire.RegistryConfig {
	rc := wire.RegistryConfig{InsecureRegistryCIDRs: []string{}, IndexConfigs: map[string]wire.IndexConfig{}, Mirrors: notNil(cfg.RegistryMirrors)}
	rc.IndexConfigs[hubName] = wire.IndexConfig{Name: hubName, Mirrors: notNil(cfg.RegistryMirrors), Secure: true, Official: true}
	// Loopback addresses are always insecure registries.
	for _, r := range append([]string{"127.0.0.0/8", "::1/128"}, cfg.InsecureRegistries...) {
		if slices.Contains(rc.InsecureRegistryCIDRs, r) {
			continue
		}
		if _, err := netip.ParsePrefix(r); err == nil {
			rc.InsecureRegistryCIDRs = append(rc.InsecureRegistryCIDRs, r)
		} else {
			rc.IndexConfigs[r] = wire.IndexConfig{Name: r, Mirrors: []string{}}
		}
	}
	return rc
}

// hideUser replaces the credentials in the URL of a proxy.
func hideUser(url string) string {
	scheme, rest, ok := strings.Cut(url, "://")
	if !ok {
		return url
	}
	authority, path, _ := strings.Cut(rest, "/")
	if i := strings.LastIndex(authority, "@"); i >= 0 {
		authority = "xxxxx:xxxxx@" + authority[i+1:]
	}
	if path != "" {
		path = "/" + path
	}
	return scheme + "://" + authority + path
}

// notNil returns an empty list for nil, so that JSON has [] and not null.
func notNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

func unavailable(what, why string) error {
	return errs.New(errs.Unimplemented, "%s is not supported: %s", what, why)
}
