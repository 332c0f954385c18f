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

	"github.com/docker/go-units"

	"ply/internal/container"
	"ply/internal/network"
	"ply/internal/oci"
	"ply/internal/wire"
)

func (h containerHandlers) inspect(c *call) error {
	size := c.bool("size")
	ctr, err := h.state.Get(c.ctx(), c.vars["id"], size)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, inspectOf(ctr, c.v, size))
}

func inspectOf(ctr *container.Container, v int, size bool) wire.ContainerDetail {
	a := wire.ContainerDetail{ID: string(ctr.ID), Created: timeText(ctr.Created), Path: ctr.Path, Args: notNil(ctr.Args), State: stateOf(ctr.State),
		Image: ctr.Image.String(), ResolvConfPath: ctr.ResolvConfPath, HostnamePath: ctr.HostnamePath, HostsPath: ctr.HostsPath,
		LogPath: ctr.LogPath, Name: "/" + ctr.Name, RestartCount: ctr.State.Restarts, Driver: ctr.Driver, Platform: "linux", AppArmorProfile: ctr.AppArmor,
		ExecIDs: ctr.Execs, HostConfig: hostConfigOf(&ctr.Spec), GraphDriver: wire.GraphDriver{Name: ctr.Driver}, Mounts: mountPoints(ctr),
		Config: configOf(&ctr.Spec, v), NetworkSettings: networkSettingsOf(ctr, v)}
	h, force := &a.HostConfig, &ctr.InForce
	h.Runtime, h.ShmSize, h.CgroupnsMode = cmp.Or(h.Runtime, force.Runtime), cmp.Or(h.ShmSize, force.ShmSize), cmp.Or(h.CgroupnsMode, force.CgroupnsMode)
	if h.MaskedPaths == nil {
		h.MaskedPaths = force.MaskedPaths
	}
	if h.ReadonlyPaths == nil {
		h.ReadonlyPaths = force.ReadonlyPaths
	}
	if alive(ctr.State.Status) && ctr.NetnsPath != "" {
		a.NetworkSettings.SandboxID, a.NetworkSettings.SandboxKey = a.ID, ctr.NetnsPath
	}
	if len(a.ExecIDs) == 0 {
		a.ExecIDs = nil
	}
	if ctr.ImageName != "" {
		a.Config.Image = ctr.ImageName
	}
	if size {
		a.SizeRw, a.SizeRootFs = &ctr.SizeRw, &ctr.SizeRootFs
	}
	return a
}

// timeText returns a time in the form of inspect. The zero time is in the year 1.
func timeText(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

func stateOf(st container.State) wire.State {
	a := wire.State{Status: string(st.Status), Pid: st.PID, ExitCode: st.ExitCode, Error: st.Error, OOMKilled: st.OOMKilled,
		StartedAt: timeText(st.Started), FinishedAt: timeText(st.Finished)}
	switch st.Status {
	case container.StatusRunning:
		a.Running = true
	case container.StatusPaused:
		a.Running, a.Paused = true, true
	case container.StatusRestarting:
		a.Running, a.Restarting = true, true
	case container.StatusDead:
		a.Dead = true
	}
	if st.Health != nil {
		a.Health = &wire.Health{Status: st.Health.Status, FailingStreak: st.Health.FailingStreak, Log: []wire.HealthResult{}}
		for _, r := range st.Health.Log {
			a.Health.Log = append(a.Health.Log, wire.HealthResult{Start: r.Start, End: r.End, ExitCode: r.ExitCode, Output: r.Output})
		}
	}
	return a
}

// mountPoints returns the mounts of a container, without those of --tmpfs, which are in HostConfig.Tmpfs.
func mountPoints(ctr *container.Container) []wire.MountPoint {
	list := make([]wire.MountPoint, 0, len(ctr.Mounts))
	for _, m := range ctr.Mounts {
		if _, ok := ctr.Spec.Tmpfs[m.Target]; ok && m.Type == "tmpfs" {
			continue
		}
		p := wire.MountPoint{Type: m.Type, Name: m.Name, Source: m.Source, Destination: m.Target, Driver: m.Driver, Mode: m.Mode, RW: m.RW, Propagation: m.Propagation}
		list = append(list, p)
	}
	return list
}

// hostPortText returns the host's port of a binding; "" when the network leads to the container without one.
func hostPortText(p network.PortBinding) string {
	if p.Routed {
		return ""
	}
	return strconv.Itoa(int(p.HostPort))
}

func networkSettingsOf(ctr *container.Container, v int) wire.NetworkSettings {
	ns := wire.NetworkSettings{Ports: map[string][]wire.PortBinding{}, Networks: map[string]*wire.EndpointSettings{}}
	if alive(ctr.State.Status) {
		for _, p := range ctr.Spec.ExposedPorts {
			ns.Ports[p] = nil
		}
		for _, p := range ctr.Ports {
			key := portText(p.ContainerPort, p.Proto)
			for _, addr := range boundAddresses(p) {
				ns.Ports[key] = append(ns.Ports[key], wire.PortBinding{HostIP: addr.String(), HostPort: hostPortText(p)})
			}
		}
	}
	for name, ep := range ctr.Networks {
		e := endpointOf(ep, ctr.Spec.Endpoints[name], v)
		ns.Networks[name] = e
		if name == "bridge" {
			ns.EndpointID, ns.Gateway, ns.IPAddress, ns.IPPrefixLen = e.EndpointID, e.Gateway, e.IPAddress, e.IPPrefixLen
			ns.IPv6Gateway, ns.GlobalIPv6Address, ns.GlobalIPv6PrefixLen, ns.MacAddress = e.IPv6Gateway, e.GlobalIPv6Address, e.GlobalIPv6PrefixLen, e.MacAddress
		}
	}
	return ns
}

func alive(st container.Status) bool {
	return st == container.StatusRunning || st == container.StatusPaused || st == container.StatusRestarting
}

// endpointOf returns the connection to a network: what was asked for, and what came of it. Only user-defined networks resolve names.
func endpointOf(ep network.Endpoint, asked network.EndpointSpec, v int) *wire.EndpointSettings {
	e := &wire.EndpointSettings{Links: asked.Links, Aliases: asked.Aliases, MacAddress: ep.MAC, NetworkID: ep.NetworkID, EndpointID: ep.ID,
		Gateway: addrText(ep.Gateway), IPv6Gateway: addrText(ep.Gateway6)}
	if asked.IPv4.IsValid() || asked.IPv6.IsValid() || len(asked.LinkLocal) > 0 {
		e.IPAMConfig = &wire.EndpointIPAM{IPv4Address: addrText(asked.IPv4), IPv6Address: addrText(asked.IPv6)}
		for _, a := range asked.LinkLocal {
			e.IPAMConfig.LinkLocalIPs = append(e.IPAMConfig.LinkLocalIPs, a.String())
		}
	}
	e.DriverOpts = asked.DriverOpts
	if ep.IPv4.IsValid() {
		e.IPAddress, e.IPPrefixLen = ep.IPv4.Addr().String(), ep.IPv4.Bits()
	}
	if ep.IPv6.IsValid() {
		e.GlobalIPv6Address, e.GlobalIPv6PrefixLen = ep.IPv6.Addr().String(), ep.IPv6.Bits()
	}
	switch {
	case isBuiltIn(ep.Network):
	case v >= 45:
		e.DNSNames = ep.Aliases
	default: // older clients look for the names among the aliases
		e.Aliases = ep.Aliases
	}
	if v >= 48 {
		e.GwPriority = &asked.Priority
	}
	return e
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func (h containerHandlers) list(c *call) error {
	filters, err := c.filters()
	if err != nil {
		return err
	}
	limit, _, err := c.int("limit")
	if err != nil {
		return err
	}
	size := c.bool("size")
	list, err := h.state.List(c.ctx(), container.ListOptions{All: c.bool("all"), Limit: max(limit, 0), Size: size, Filters: filters})
	if err != nil {
		return err
	}
	answer := make([]wire.Container, 0, len(list))
	names := map[string]oci.ImageID{} // the image of each name; "" when there is none
	now := h.now()
	for _, ctr := range list {
		sum := containerSummaryOf(ctr, c.v, size, now)
		id, known := names[ctr.ImageName]
		if !known {
			if img, err := h.images.Get(c.ctx(), ctr.ImageName); err == nil {
				id = img.ID
			}
			names[ctr.ImageName] = id
		}
		if id != ctr.Image && !h.lists(ctr.ImageName, ctr.Image) { // the name points at another image now
			sum.Image = ctr.Image.String()
		}
		answer = append(answer, sum)
	}
	return c.json(http.StatusOK, answer)
}

func containerSummaryOf(ctr *container.Container, v int, size bool, now time.Time) wire.Container {
	a := wire.Container{ID: string(ctr.ID), Names: namesOf(ctr), Image: ctr.ImageName, ImageID: ctr.Image.String(), Command: commandText(ctr),
		Created: ctr.Created.Unix(), Ports: portSummaries(ctr), Labels: ctr.Spec.Labels, State: string(ctr.State.Status), Status: statusText(ctr.State, now),
		Mounts: mountPoints(ctr)}
	if ctr.Damaged != nil {
		a.Status = "Damaged record"
	}
	if a.Labels == nil {
		a.Labels = map[string]string{}
	}
	if size {
		a.SizeRw, a.SizeRootFs = ctr.SizeRw, ctr.SizeRootFs
	}
	a.HostConfig.NetworkMode = ctr.Spec.NetworkMode
	if a.HostConfig.NetworkMode == "" {
		a.HostConfig.NetworkMode = "default"
	}
	if v >= 46 {
		a.HostConfig.Annotations = ctr.Spec.Annotations
	}
	a.NetworkSettings.Networks = map[string]*wire.EndpointSettings{}
	for name, ep := range ctr.Networks {
		a.NetworkSettings.Networks[name] = endpointOf(ep, ctr.Spec.Endpoints[name], v)
	}
	return a
}

// commandText returns the command line of a container. Arguments with spaces are quoted.
func commandText(ctr *container.Container) string {
	text := ctr.Path
	for _, arg := range ctr.Args {
		if strings.Contains(arg, " ") {
			arg = "'" + arg + "'"
		}
		text += " " + arg
	}
	return text
}

// portSummaries returns the ports of a running container, one per host address, sorted.
func portSummaries(ctr *container.Container) []wire.Port {
	list := []wire.Port{}
	if !alive(ctr.State.Status) {
		return list
	}
	bound := map[string]bool{}
	for _, p := range ctr.Ports {
		bound[portText(p.ContainerPort, p.Proto)] = true
		for _, addr := range boundAddresses(p) {
			public := p.HostPort
			if p.Routed {
				public = 0
			}
			list = append(list, wire.Port{IP: addr.String(), PrivatePort: p.ContainerPort, PublicPort: public, Type: p.Proto})
		}
	}
	for _, key := range ctr.Spec.ExposedPorts {
		if num, _, proto, err := parsePort(key); err == nil && !bound[key] {
			list = append(list, wire.Port{PrivatePort: num, Type: proto})
		}
	}
	slices.SortStableFunc(list, func(a, b wire.Port) int {
		if a.PrivatePort != b.PrivatePort {
			return int(a.PrivatePort) - int(b.PrivatePort)
		}
		return strings.Compare(a.Type, b.Type)
	})
	return list
}

// statusText describes a state: "Up 36 seconds (healthy)", "Exited (0) 2 minutes ago".
func statusText(st container.State, now time.Time) string {
	since := func(t time.Time) string { return units.HumanDuration(max(now.Sub(t), 0)) }
	switch st.Status {
	case container.StatusPaused:
		return fmt.Sprintf("Up %s (Paused)", since(st.Started))
	case container.StatusRestarting:
		return fmt.Sprintf("Restarting (%d) %s ago", st.ExitCode, since(st.Finished))
	case container.StatusRunning:
		text := "Up " + since(st.Started)
		if st.Health != nil && st.Health.Status != "" && st.Health.Status != "none" {
			health := st.Health.Status
			if health == "starting" {
				health = "health: starting"
			}
			text += " (" + health + ")"
		}
		return text
	case container.StatusRemoving:
		return "Removal In Progress"
	case container.StatusDead:
		return "Dead"
	}
	switch {
	case st.Started.IsZero() && st.Status == container.StatusCreated:
		return "Created"
	case st.Finished.IsZero():
		return ""
	}
	return fmt.Sprintf("Exited (%d) %s ago", st.ExitCode, since(st.Finished))
}

// lists reports whether a name means an index that lists an image.
func (h containerHandlers) lists(name string, id oci.ImageID) bool {
	x, err := h.images.Index(name)
	return err == nil && x != nil && slices.Contains(x.Images, id)
}

// namesOf returns the name of a container, and those that it has in others by their links.
func namesOf(ctr *container.Container) []string {
	names := []string{"/" + ctr.Name}
	for _, n := range ctr.LinkedAs {
		names = append(names, "/"+n)
	}
	return names
}
