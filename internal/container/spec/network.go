package spec

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"ply/internal/errs"
	"ply/internal/network"
)

var errPublished = invalid("conflicting options: port publishing and the container type network mode")

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
			return errPublished
		}
	}
	if len(s.Links) > 0 && s.NetworkMode == "host" {
		return invalid("conflicting options: host type networking can't be used with links. This would result in undefined behavior")
	}
	if s.NetworkMode == "host" && s.MacAddress != "" || isContainer && s.MacAddress != "" {
		return invalid("conflicting options: mac-address and the network mode")
	}
	return nil
}

// IsUserDefined reports whether a network mode names a network that a user created.
func IsUserDefined(mode string) bool {
	switch mode {
	case "", "default", "bridge", "host", "none":
		return false
	}
	return !strings.HasPrefix(mode, "container:")
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

// CutHost splits a value of --add-host, name:ip or name=ip.
func CutHost(h string) (name, ip string, ok bool) {
	if name, ip, ok = strings.Cut(h, "="); ok {
		return name, ip, true
	}
	return strings.Cut(h, ":")
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

// ParsePort parses a port or a range of ports, such as "80", "80/tcp" and "7000-7010/udp".
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

// Publish replaces the published ports. The new ones are exposed too, as with -p.
func (s *Spec) Publish(ports []network.PortBinding) error {
	next := *s
	next.Ports, next.ExposedPorts = ports, slices.Clone(s.ExposedPorts)
	for _, p := range ports {
		next.ExposedPorts = append(next.ExposedPorts, fmt.Sprintf("%d/%s", p.ContainerPort, p.Proto))
	}
	slices.Sort(next.ExposedPorts)
	next.ExposedPorts = slices.Compact(next.ExposedPorts)
	if len(ports) > 0 && s.NetworkMode == "host" {
		return invalid("the container uses the network of the host, which publishes no ports")
	}
	for _, check := range []func(*Spec) error{checkNamespaces, checkPorts} {
		if err := check(&next); err != nil {
			return err
		}
	}
	*s = next
	return nil
}

// PublishedPorts returns the ports of -p and, with -P, the exposed ports that no -p names.
func (s *Spec) PublishedPorts() ([]network.PortBinding, error) {
	ports := append([]network.PortBinding(nil), s.Ports...)
	if !s.PublishAll {
		return ports, nil
	}
	for _, e := range s.ExposedPorts {
		first, last, proto, err := ParsePort(e)
		if err != nil {
			return nil, err
		}
		for n := int(first); n <= int(last); n++ {
			have := false
			for _, b := range s.Ports {
				have = have || b.Proto == proto && int(b.ContainerPort) == n
			}
			if !have {
				ports = append(ports, network.PortBinding{Proto: proto, ContainerPort: uint16(n)})
			}
		}
	}
	return ports, nil
}
