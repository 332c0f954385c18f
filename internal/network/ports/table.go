// Package ports publishes the ports of containers on the host.
//
// Reserve chooses the host ports and keeps them with sockets. A Table is the nftables table of one bridge: the kernel
// redirects IPv4 connections by its maps, in which a published port is one element. The sockets of Reserve carry the
// rest in user space.
package ports

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"ply/internal/network"
	"ply/internal/network/nft"
)

// Table is the nftables table of one bridge. It is made once per bridge. A container without published ports does not
// change it; a published port is one element of a map in it. Every change is one transaction.
type Table struct {
	Name       string
	Bridge     string       // the interface
	Subnet     netip.Prefix // of the bridge; the address may be the gateway's
	Masquerade bool         // connections to other networks leave with the host's address
	ICC        bool         // containers on the bridge may connect to each other
}

// Create makes the table without ports. A table that is there is replaced.
func (t Table) Create(ctx context.Context) error { return nft.Apply(ctx, t.rules()) }

// Exists reports whether the kernel has the table.
func (t Table) Exists(ctx context.Context) bool {
	return nft.Exists(ctx, "inet "+t.Name)
}

// Delete removes the table.
func (t Table) Delete(ctx context.Context) error {
	return nft.Apply(ctx, "delete table inet "+t.Name+"\n")
}

// Add redirects the IPv4 host ports of the bindings to the container at address to.
func (t Table) Add(ctx context.Context, to netip.Addr, bindings []network.PortBinding) error {
	return nft.Apply(ctx, t.elements("add", to, bindings))
}

// Remove undoes Add.
func (t Table) Remove(ctx context.Context, to netip.Addr, bindings []network.PortBinding) error {
	return nft.Apply(ctx, t.elements("delete", to, bindings))
}

// rules renders the whole table without ports.
func (t Table) rules() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p("table inet %s", t.Name)
	p("delete table inet %s", t.Name)
	p("table inet %s {", t.Name)
	p("\tmap ports_any { type inet_proto . inet_service : ipv4_addr . inet_service; }")
	p("\tmap ports_addr { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }")
	p("\tchain martians {")
	p("\t\ttype filter hook prerouting priority raw; policy accept;")
	// route_localnet makes a published port answer on 127.0.0.1. It must not let containers reach the host's loopback.
	p("\t\tiifname %q ip daddr 127.0.0.0/8 drop", t.Bridge)
	p("\t}")
	for _, hook := range []string{"prerouting", "output"} {
		p("\tchain %s {", hook)
		p("\t\ttype nat hook %s priority -100; policy accept;", hook)
		p("\t\tmeta nfproto ipv4 fib daddr type local dnat ip to ip daddr . meta l4proto . th dport map @ports_addr")
		p("\t\tmeta nfproto ipv4 fib daddr type local dnat ip to meta l4proto . th dport map @ports_any")
		p("\t}")
	}
	p("\tchain postrouting {")
	p("\t\ttype nat hook postrouting priority srcnat; policy accept;")
	if t.Masquerade {
		p("\t\tip saddr %s oifname != %q masquerade", t.Subnet.Masked(), t.Bridge)
	}
	p("\t\tip saddr 127.0.0.0/8 oifname %q masquerade", t.Bridge)
	// When a container connects to a published port of its own or of another container, the answer must come back
	// through the host, which translates the addresses.
	p("\t\toifname %q ip saddr %s ct status dnat masquerade", t.Bridge, t.Subnet.Masked())
	p("\t}")
	p("\tchain forward {")
	p("\t\ttype filter hook forward priority filter; policy accept;")
	p("\t\toifname %q ct state established,related accept", t.Bridge)
	p("\t\toifname %q ct status dnat accept", t.Bridge)
	if t.ICC {
		p("\t\tiifname %q oifname %q accept", t.Bridge, t.Bridge)
	}
	p("\t\toifname %q drop", t.Bridge)
	p("\t}")
	p("}")
	return b.String()
}

// elements renders the addition ("add") or removal ("delete") of published ports. It returns "" when none is IPv4.
func (t Table) elements(verb string, to netip.Addr, bindings []network.PortBinding) string {
	var b strings.Builder
	for _, p := range bindings {
		if !p.HostIP.Is4() {
			continue // IPv6 goes through the proxy
		}
		target := ""
		if verb == "add" {
			target = fmt.Sprintf(" : %s . %d", to, p.ContainerPort)
		}
		if p.HostIP.IsUnspecified() {
			fmt.Fprintf(&b, "%s element inet %s ports_any { %s . %d%s }\n", verb, t.Name, p.Proto, p.HostPort, target)
		} else {
			fmt.Fprintf(&b, "%s element inet %s ports_addr { %s . %s . %d%s }\n", verb, t.Name, p.HostIP, p.Proto, p.HostPort, target)
		}
	}
	return b.String()
}
