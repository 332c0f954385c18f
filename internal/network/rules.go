package network

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"

	"ply/internal/errs"
)

// rules is one nftables table, made at start and never touched by a container without published ports; a published
// port is one element of a map. Rendered as text and applied by nft in one transaction.
type rules struct {
	table  string
	bridge string
	subnet netip.Prefix
	masq   bool
	icc    bool
}

// render gives the whole table, empty of ports.
func (r rules) render() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p("table inet %s", r.table)
	p("delete table inet %s", r.table)
	p("table inet %s {", r.table)
	p("\tmap ports_any { type inet_proto . inet_service : ipv4_addr . inet_service; }")
	p("\tmap ports_addr { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }")
	p("\tchain martians {")
	p("\t\ttype filter hook prerouting priority raw; policy accept;")
	// route_localnet lets a published port answer on 127.0.0.1; it must not let containers reach the host's loopback.
	p("\t\tiifname %q ip daddr 127.0.0.0/8 drop", r.bridge)
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
	if r.masq {
		p("\t\tip saddr %s oifname != %q masquerade", r.subnet.Masked(), r.bridge)
	}
	p("\t\tip saddr 127.0.0.0/8 oifname %q masquerade", r.bridge)
	// A container that reaches another's, or its own, published port must get the answer by the way it came.
	p("\t\toifname %q ip saddr %s ct status dnat masquerade", r.bridge, r.subnet.Masked())
	p("\t}")
	p("\tchain forward {")
	p("\t\ttype filter hook forward priority filter; policy accept;")
	p("\t\toifname %q ct state established,related accept", r.bridge)
	p("\t\toifname %q ct status dnat accept", r.bridge)
	if r.icc {
		p("\t\tiifname %q oifname %q accept", r.bridge, r.bridge)
	}
	p("\t\toifname %q drop", r.bridge)
	p("\t}")
	p("}")
	return b.String()
}

// elements renders the addition ("add") or removal ("delete") of published ports; "" when there is nothing to do.
func (r rules) elements(verb string, to netip.Addr, ports []PortBinding) string {
	var b strings.Builder
	for _, p := range ports {
		if !p.HostIP.Is4() {
			continue // IPv6 is the proxy's
		}
		target := ""
		if verb == "add" {
			target = fmt.Sprintf(" : %s . %d", to, p.ContainerPort)
		}
		if p.HostIP.IsUnspecified() {
			fmt.Fprintf(&b, "%s element inet %s ports_any { %s . %d%s }\n", verb, r.table, p.Proto, p.HostPort, target)
		} else {
			fmt.Fprintf(&b, "%s element inet %s ports_addr { %s . %s . %d%s }\n", verb, r.table, p.HostIP, p.Proto, p.HostPort, target)
		}
	}
	return b.String()
}

// nft applies a script as one transaction.
func nft(ctx context.Context, script string) error {
	if script == "" {
		return nil
	}
	path, err := exec.LookPath("nft")
	if err != nil {
		return errs.New(errs.Precondition, "network: the program nft is not installed").
			WithHint("Install the package nftables, or start plyd with --iptables=false.")
	}
	cmd := exec.CommandContext(ctx, path, "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		msg := strings.TrimSpace(out.String())
		if len(msg) > 500 {
			msg = msg[:500] + "…"
		}
		return errs.New(errs.Internal, "network: nft: %w: %s", err, msg)
	}
	return nil
}
