package docker

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"ply/internal/errs"
	"ply/internal/network"
	"ply/internal/wire"
)

// portBindings returns the bindings of Docker's map, sorted by container port, so that equal requests make equal specs.
func portBindings(m map[string][]wire.PortBinding) ([]network.PortBinding, error) {
	var list []network.PortBinding
	for key, bindings := range m {
		first, last, proto, err := parsePort(key)
		if err != nil {
			return nil, err
		}
		if first != last {
			return nil, errs.New(errs.Invalid, "invalid port %q: a binding is for one container port", clip(key))
		}
		if len(bindings) == 0 { // published on any port
			bindings = []wire.PortBinding{{}}
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

// bindingOf returns a binding as it was asked for.
func bindingOf(p network.PortBinding) wire.PortBinding {
	b := wire.PortBinding{}
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

// exposedPorts returns ports in the form number/protocol, without ranges, sorted by number.
func exposedPorts(set map[string]struct{}) ([]string, error) {
	type port struct {
		num   uint16
		proto string
	}
	var ports []port
	for key := range set {
		first, last, proto, err := parsePort(key)
		if err != nil {
			return nil, err
		}
		for n := int(first); n <= int(last); n++ {
			ports = append(ports, port{uint16(n), proto})
		}
	}
	slices.SortFunc(ports, func(a, b port) int {
		if a.num != b.num {
			return int(a.num) - int(b.num)
		}
		return strings.Compare(a.proto, b.proto)
	})
	var list []string
	for _, p := range slices.Compact(ports) {
		list = append(list, portText(p.num, p.proto))
	}
	return list, nil
}

func portText(num uint16, proto string) string { return strconv.Itoa(int(num)) + "/" + proto }

// parsePort reads number[-number][/protocol].
func parsePort(s string) (first, last uint16, proto string, err error) {
	bad := func() (uint16, uint16, string, error) {
		return 0, 0, "", errs.New(errs.Invalid, "invalid port %q: want a number from 1 to 65535, perhaps a range, and /tcp, /udp or /sctp", clip(s))
	}
	numbers, proto, hasProto := strings.Cut(s, "/")
	proto = strings.ToLower(proto)
	if !hasProto {
		proto = "tcp"
	}
	if proto != "tcp" && proto != "udp" && proto != "sctp" {
		return bad()
	}
	first, last, ok := parseRange(numbers)
	if !ok || first == 0 {
		return bad()
	}
	return first, last, proto, nil
}

func parseRange(s string) (first, last uint16, ok bool) {
	from, to, isRange := strings.Cut(s, "-")
	a, err := strconv.ParseUint(from, 10, 16)
	if err != nil {
		return 0, 0, false
	}
	b := a
	if isRange {
		if b, err = strconv.ParseUint(to, 10, 16); err != nil || b < a {
			return 0, 0, false
		}
	}
	return uint16(a), uint16(b), true
}

// boundAddresses returns the host addresses of a binding. Without an address it is bound to all, in both families.
func boundAddresses(p network.PortBinding) []netip.Addr {
	switch {
	case p.Routed && p.HostIP.Is4():
		return []netip.Addr{netip.IPv4Unspecified()}
	case p.Routed:
		return []netip.Addr{netip.IPv6Unspecified()}
	case p.HostIP.IsValid():
		return []netip.Addr{p.HostIP}
	}
	return []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
}
