package system

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"ply/internal/cli/format"
	"ply/internal/wire"
)

// engineInfo is the answer of /info, which info prints as text.
type engineInfo wire.Info

// write prints the lines below "Server:".
func (i *engineInfo) write(w io.Writer) {
	p := func(f string, args ...any) { fmt.Fprintf(w, f+"\n", args...) }
	some := func(label, v string) {
		if v != "" {
			p("%s %s", label, v)
		}
	}
	p(" Containers: %d\n  Running: %d\n  Paused: %d\n  Stopped: %d\n Images: %d", i.Containers, i.ContainersRunning, i.ContainersPaused, i.ContainersStopped, i.Images)
	some(" Server Version:", i.ServerVersion)
	some(" Storage Driver:", i.Driver)
	for _, s := range i.DriverStatus {
		p("  %s: %s", s[0], s[1])
	}
	some(" Logging Driver:", i.LoggingDriver)
	some(" Cgroup Driver:", i.CgroupDriver)
	some(" Cgroup Version:", i.CgroupVersion)
	p(" Plugins:\n  Volume: %s\n  Network: %s", strings.Join(i.Plugins.Volume, " "), strings.Join(i.Plugins.Network, " "))
	if len(i.Plugins.Authorization) > 0 {
		p("  Authorization: %s", strings.Join(i.Plugins.Authorization, " "))
	}
	p("  Log: %s", strings.Join(i.Plugins.Log, " "))
	if len(i.CDISpecDirs) > 0 {
		p(" CDI spec directories:")
		for _, d := range i.CDISpecDirs {
			p("  %s", d)
		}
	}
	if i.DiscoveredDevices != nil && len(*i.DiscoveredDevices) > 0 {
		p(" Discovered Devices:")
		for _, d := range *i.DiscoveredDevices {
			p("  %s: %s", d.Source, d.ID)
		}
	}
	some(" Swarm:", i.Swarm.LocalNodeState)
	i.writeRuntime(p, some)
	i.writeHost(p, some)
	i.writeRegistry(p)
}

func (i *engineInfo) writeRuntime(p func(string, ...any), some func(string, string)) {
	if len(i.Runtimes) > 0 {
		names := make([]string, 0, len(i.Runtimes))
		for n := range i.Runtimes {
			names = append(names, n)
		}
		slices.Sort(names)
		p(" Runtimes: %s\n Default Runtime: %s", strings.Join(names, " "), i.DefaultRuntime)
	}
	if i.OSType == "linux" {
		p(" Init Binary: %s\n containerd version: %s\n runc version: %s\n init version: %s", i.InitBinary, i.ContainerdCommit.ID, i.RuncCommit.ID, i.InitCommit.ID)
	}
	if len(i.SecurityOptions) > 0 {
		p(" Security Options:")
	}
	for _, o := range i.SecurityOptions {
		parts := strings.Split(o, ",")
		for n, kv := range parts {
			k, v, ok := strings.Cut(kv, "=")
			switch {
			case n == 0 && ok:
				p("  %s", v)
			case n == 0:
				p("  %s", k)
			case k == "profile":
				p("   Profile: %s", v)
			default:
				p("   %s: %s", k, v)
			}
		}
	}
}

func (i *engineInfo) writeHost(p func(string, ...any), some func(string, string)) {
	some(" Kernel Version:", i.KernelVersion)
	some(" Operating System:", i.OperatingSystem)
	some(" OSType:", i.OSType)
	some(" Architecture:", i.Architecture)
	p(" CPUs: %d\n Total Memory: %s", i.NCPU, format.IEC(float64(i.MemTotal)))
	some(" Name:", i.Name)
	some(" ID:", i.ID)
	p(" Docker Root Dir: %s\n Debug Mode: %t", i.DockerRootDir, i.Debug)
	if i.Debug {
		p("  File Descriptors: %d\n  Goroutines: %d\n  System Time: %s\n  EventsListeners: %d", i.NFd, i.NGoroutines, i.SystemTime, i.NEventsListener)
	}
	some(" HTTP Proxy:", i.HTTPProxy)
	some(" HTTPS Proxy:", i.HTTPSProxy)
	some(" No Proxy:", i.NoProxy)
	if len(i.Labels) > 0 {
		p(" Labels:")
		for _, l := range i.Labels {
			p("  %s", l)
		}
	}
	p(" Experimental: %t", i.ExperimentalBuild)
}

func (i *engineInfo) writeRegistry(p func(string, ...any)) {
	r := i.RegistryConfig
	var insecure []string
	for name, c := range r.IndexConfigs {
		if !c.Secure {
			insecure = append(insecure, name)
		}
	}
	slices.Sort(insecure)
	insecure = append(insecure, r.InsecureRegistryCIDRs...)
	if len(insecure) > 0 {
		p(" Insecure Registries:")
		for _, s := range insecure {
			p("  %s", s)
		}
	}
	if len(r.Mirrors) > 0 {
		p(" Registry Mirrors:")
		for _, m := range r.Mirrors {
			p("  %s", m)
		}
	}
	p(" Live Restore Enabled: %t", i.LiveRestoreEnabled)
	if len(i.DefaultAddressPools) > 0 {
		p(" Default Address Pools:")
		for _, a := range i.DefaultAddressPools {
			p("   Base: %s, Size: %d", a.Base, a.Size)
		}
	}
	p("")
}
