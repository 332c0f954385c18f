package table

import (
	"fmt"
	"sort"
	"strconv"
	"strings"

	"ply/internal/wire"
)

// ports returns the PORTS column. Adjacent ports of one address are joined to a range. An IPv6 address is printed without
// brackets (":::5000->5000/tcp"), which is the form that users and scripts know.
func ports(ports []wire.Port) string {
	ports = append([]wire.Port(nil), ports...)
	sort.Slice(ports, func(i, j int) bool { return lessPort(ports[i], ports[j]) })
	type run struct{ first, last uint16 }
	var result, mapped []string
	groups := map[string]*run{}
	var order []string
	flush := func(key string) string {
		ip, proto, _ := strings.Cut(key, "|")
		g := groups[key]
		r := strconv.Itoa(int(g.first))
		if g.first != g.last {
			r += "-" + strconv.Itoa(int(g.last))
		}
		if ip != "" {
			return ip + ":" + r + "->" + r + "/" + proto
		}
		return r + "/" + proto
	}
	for _, p := range ports {
		key := p.IP + "|" + p.Type
		if p.IP != "" && p.PublicPort != p.PrivatePort {
			mapped = append(mapped, fmt.Sprintf("%s:%d->%d/%s", p.IP, p.PublicPort, p.PrivatePort, p.Type))
			continue
		}
		g, ok := groups[key]
		if !ok {
			groups[key] = &run{p.PrivatePort, p.PrivatePort}
			order = append(order, key)
			continue
		}
		if p.PrivatePort == g.last+1 {
			g.last = p.PrivatePort
			continue
		}
		if p.PrivatePort == g.last {
			continue
		}
		result = append(result, flush(key))
		groups[key] = &run{p.PrivatePort, p.PrivatePort}
	}
	for _, key := range order {
		result = append(result, flush(key))
	}
	return strings.Join(append(result, mapped...), ", ")
}

func lessPort(a, b wire.Port) bool {
	if a.PrivatePort != b.PrivatePort {
		return a.PrivatePort < b.PrivatePort
	}
	if a.IP != b.IP {
		return a.IP < b.IP
	}
	if a.PublicPort != b.PublicPort {
		return a.PublicPort < b.PublicPort
	}
	return a.Type < b.Type
}
