package container

import (
	"slices"
	"strings"
	"time"

	"ply/internal/container/spec"
	"ply/internal/filter"
	"ply/internal/volume"
)

// ListFilters are the conditions of List.
var ListFilters = filter.Table[*Container]{
	"id":     filter.Text(func(c *Container) []string { return []string{string(c.ID)} }),
	"name":   filter.Text(func(c *Container) []string { return []string{c.Name, "/" + c.Name} }),
	"label":  filter.Labels(labelsOf),
	"status": filter.Any(func(c *Container, v string) bool { return v == string(c.State.Status) }, statusNames...),
	"exited": filter.Parsed(filter.Number, func(c *Container, code int) bool {
		return c.State.Status == StatusExited && c.State.ExitCode == code
	}),
	"health":    filter.Any(func(c *Container, v string) bool { return v == healthOf(c) }, "none", "starting", "healthy", "unhealthy"),
	"volume":    filter.Any(hasMount),
	"network":   filter.Any(isAttached),
	"publish":   filter.Parsed(parsePorts, publishes),
	"expose":    filter.Parsed(parsePorts, exposes),
	"isolation": filter.Any(func(_ *Container, v string) bool { return v == "" || v == "default" }),
	"is-task":   filter.Bool(func(_ *Container, task bool) bool { return !task }), // no container is a task of a swarm

	"ancestor": filter.ByCaller[*Container](nil), // an image
	"before":   filter.ByCaller[*Container](nil), // a container
	"since":    filter.ByCaller[*Container](nil), // a container
}

// PruneFilters are the conditions of Prune.
var PruneFilters = filter.Table[*Container]{
	"until":  filter.Until(func(c *Container) time.Time { return c.Created }),
	"label":  filter.Labels(labelsOf),
	"label!": filter.NotAllLabels(labelsOf),
}

// statusNames are the values of the filter status.
var statusNames = []string{
	string(StatusCreated), string(StatusRunning), string(StatusPaused), string(StatusRestarting), string(StatusRemoving),
	string(StatusExited), string(StatusDead),
}

func labelsOf(c *Container) map[string]string { return c.Spec.Labels }

func healthOf(c *Container) string {
	if c.State.Health == nil {
		return "none"
	}
	return c.State.Health.Status
}

// hasMount reports whether v names a volume, the source or the target of one of the container's mounts.
func hasMount(c *Container, v string) bool {
	return slices.ContainsFunc(c.Mounts, func(m volume.Mount) bool { return m.Name == v || m.Source == v || m.Target == v })
}

// isAttached reports whether v names a network of the container, or is the prefix of the ID of one.
func isAttached(c *Container, v string) bool {
	if v == c.Spec.NetworkMode {
		return true
	}
	for n, e := range c.Networks {
		if n == v || strings.HasPrefix(e.NetworkID, v) {
			return true
		}
	}
	return false
}

// ports is a range of container ports of one protocol.
type ports struct {
	first, last uint16
	proto       string
}

func parsePorts(v string) (p ports, err error) {
	p.first, p.last, p.proto, err = spec.ParsePort(v)
	return p, err
}

func (p ports) contains(port uint16) bool { return port >= p.first && port <= p.last }

// publishes reports whether the range has a port of the host at which a port of the container is published.
func publishes(c *Container, want ports) bool {
	for _, p := range c.Ports {
		if p.Proto == want.proto && p.HostPort != 0 && !p.Routed && want.contains(p.HostPort) {
			return true
		}
	}
	return false
}

func exposes(c *Container, want ports) bool {
	return slices.ContainsFunc(c.Spec.ExposedPorts, func(e string) bool {
		p, err := parsePorts(e)
		return err == nil && p.proto == want.proto && p.first <= want.last && want.first <= p.last
	})
}
