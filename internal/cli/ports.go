package cli

import (
	"fmt"
	"io"
	"net"
	"sort"
	"strconv"
	"strings"
	"text/tabwriter"

	"ply/internal/errs"
	"ply/internal/wire"
)

// displayPorts gives the PORTS column. Adjacent ports of one address are joined to a range. An IPv6 address is printed
// without brackets (":::5000->5000/tcp"): the form that users and scripts know.
func displayPorts(ports []wire.Port) string {
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

// portLines answers `port`.
func portLines(args []string, ports map[string][]wire.PortBinding) ([]string, error) {
	var lines []string
	if len(args) > 1 {
		port, proto, _ := strings.Cut(args[1], "/")
		if proto == "" {
			proto = "tcp"
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return nil, errs.New(errs.Invalid, "Error: invalid port (%s)", port)
		}
		bound, ok := ports[port+"/"+proto]
		if !ok || bound == nil {
			return nil, errs.New(errs.NotFound, "Error: No public port '%s' published for %s", args[1], args[0])
		}
		for _, b := range bound {
			lines = append(lines, net.JoinHostPort(b.HostIP, b.HostPort))
		}
	} else {
		for port, bound := range ports {
			for _, b := range bound {
				lines = append(lines, port+" -> "+net.JoinHostPort(b.HostIP, b.HostPort))
			}
		}
	}
	sort.Slice(lines, func(i, j int) bool { return naturalLess(lines[i], lines[j]) })
	return lines, nil
}

// naturalLess orders strings so that numbers in them count as numbers.
func naturalLess(a, b string) bool {
	for a != "" && b != "" {
		an, bn := digits(a), digits(b)
		if an > 0 && bn > 0 {
			x, _ := strconv.ParseUint(a[:an], 10, 64)
			y, _ := strconv.ParseUint(b[:bn], 10, 64)
			if x != y {
				return x < y
			}
			a, b = a[an:], b[bn:]
			continue
		}
		if a[0] != b[0] {
			return a[0] < b[0]
		}
		a, b = a[1:], b[1:]
	}
	return len(a) < len(b)
}

func digits(s string) int {
	n := 0
	for n < len(s) && n < 18 && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return n
}

// writeColumns aligns rows with docker's spacing.
func writeColumns(w io.Writer, minWidth int, rows [][]string) error {
	tw := tabwriter.NewWriter(w, minWidth, 1, 3, ' ', 0)
	for _, r := range rows {
		fmt.Fprintln(tw, strings.Join(r, "\t"))
	}
	return tw.Flush()
}
