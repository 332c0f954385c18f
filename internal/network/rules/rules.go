// Package rules keeps the nftables table of an engine: what passes between its bridges, the host and other networks, and
// which ports of the host lead to which container.
//
// An engine has one table, whatever the number of its networks and containers. Bridges, subnets and published ports are
// elements of sets and maps in it, so a packet passes the same few rules on every host. Each change is one transaction of
// the kernel. The package knows all elements, so it can make a table anew that someone else deleted.
package rules

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"ply/internal/network"
	"ply/internal/network/nft"
)

// Bridge is what the rules know of a bridge.
type Bridge struct {
	Name        string
	Subnets     []netip.Prefix // at most one of each family
	Masquerade  bool           // IPv4 connections to other networks leave with the host's address
	Masquerade6 bool           // as Masquerade, for IPv6
	Source      netip.Addr     // with Masquerade, the address with which they leave instead; invalid = that of the interface by which they leave
	Source6     netip.Addr     // as Source, with Masquerade6
	ICC         bool           // containers may connect to each other
	Internal    bool           // nothing passes between the bridge and other networks
	Open        bool           // other networks may connect to every port of the containers by IPv4, not only to published ones
	Open6       bool           // as Open, for IPv6
	Isolated    bool           // the host takes no IPv4 packets from the bridge
	Isolated6   bool           // as Isolated, for IPv6
	Trusted     []string       // interfaces of the host through which others may connect to what Target.Trusted opens
}

// Target is a container to which host ports lead.
type Target struct {
	IPv4, IPv6       netip.Addr // invalid = the container has no such address
	Direct4, Direct6 bool       // other networks may connect to the published ports at the container's own address, too
	Trusted          bool       // the same for those that come through an interface that the bridge trusts
}

// Link opens ports of a container to another one of the same bridge, which keeps its containers apart.
type Link struct {
	From, To netip.Addr          // IPv4
	Ports    []network.PortRange // of To; they do not overlap
}

// Table is the table of one engine. Safe for concurrent use.
type Table struct {
	name string

	// Ports are added and removed at the same time. What writes the whole table excludes them, so that it writes what is true.
	applying sync.RWMutex

	mu      sync.Mutex // not held while the kernel is asked
	bridges map[string]Bridge
	ports   map[string]string            // elements of the maps of ports, with what they lead to
	links   map[string]map[string]string // elements of the set of links, by their bridges
}

// New returns the table without elements. It does not make it in the kernel.
func New(name string) *Table {
	return &Table{name: name, bridges: map[string]Bridge{}, ports: map[string]string{}, links: map[string]map[string]string{}}
}

// Name returns the name of the table in the kernel, with its family.
func (t *Table) Name() string { return "inet " + t.name }

// AddBridge adds a bridge. With adopt the kernel is not asked: an earlier engine added the bridge, and Restore follows.
func (t *Table) AddBridge(ctx context.Context, b Bridge, adopt bool) error {
	t.applying.Lock() // no port is added before its table is made
	defer t.applying.Unlock()
	first := t.set(b)
	if adopt {
		return nil
	}
	script := t.elements("add", b.elements())
	if first {
		script = t.script(nil)
	}
	err := nft.Apply(ctx, script)
	if err != nil && !first {
		err = t.anew(ctx, err)
	}
	if err != nil {
		t.unset(b.Name)
	}
	return err
}

// anew writes the whole table after a change of it failed with err: someone else may have removed the table, or sets of it, a moment ago. The caller holds
// applying.
func (t *Table) anew(ctx context.Context, err error) error {
	t.mu.Lock()
	empty := len(t.bridges) == 0
	t.mu.Unlock()
	if empty || ctx.Err() != nil {
		return err
	}
	if again := nft.Apply(ctx, t.script(nil)); again != nil {
		return errors.Join(err, again)
	}
	return nil
}

// RemoveBridge removes a bridge, and the table with the last one.
func (t *Table) RemoveBridge(ctx context.Context, name string) error {
	t.applying.Lock()
	defer t.applying.Unlock()
	b, ok, last := t.unset(name)
	switch {
	case !ok:
		return nil
	case last:
		return nft.Apply(ctx, fmt.Sprintf("table inet %[1]s\ndelete table inet %[1]s\n", t.name))
	}
	if err := nft.Apply(ctx, t.elements("delete", b.elements())); err != nil {
		return t.anew(ctx, err)
	}
	return nil
}

// set reports whether the bridge is the first one.
func (t *Table) set(b Bridge) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.bridges[b.Name] = b
	return len(t.bridges) == 1
}

// unset returns the bridge, if it was there, and reports whether it was the last one.
func (t *Table) unset(name string) (b Bridge, ok, last bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	b, ok = t.bridges[name]
	delete(t.bridges, name)
	delete(t.links, name) // it has no containers
	return b, ok, len(t.bridges) == 0
}

// AddPorts makes the host ports of the bindings lead to a container. With adopt the kernel is not asked, as with AddBridge.
func (t *Table) AddPorts(ctx context.Context, to Target, bindings []network.PortBinding, adopt bool) error {
	els := portElements(to, bindings)
	t.mu.Lock()
	for _, b := range bindings {
		if b.Proto != "sctp" { // a port of another protocol is kept by its socket
			continue
		}
		for e := range portElements(to, []network.PortBinding{b}) {
			if _, taken := t.ports[e]; taken {
				t.mu.Unlock()
				return &network.PortInUseError{Binding: b}
			}
		}
	}
	maps.Copy(t.ports, els)
	t.mu.Unlock()
	if adopt || len(els) == 0 {
		return nil
	}
	if err := t.apply(ctx, t.elements("add", els)); err != nil {
		t.forget(els)
		return err
	}
	return nil
}

// RemovePorts undoes AddPorts.
func (t *Table) RemovePorts(ctx context.Context, to Target, bindings []network.PortBinding) error {
	els := portElements(to, bindings)
	t.forget(els)
	if len(els) == 0 {
		return nil
	}
	for e := range els {
		els[e] = "" // a map's element is deleted by its key
	}
	return t.apply(ctx, t.elements("delete", els))
}

func (t *Table) forget(els map[string]string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for e := range els {
		delete(t.ports, e)
	}
}

// SetLinks makes the links of a bridge those that list returns. list is called while no other links change, so the last call leaves what is true. With adopt the
// kernel is not asked, as with AddBridge.
func (t *Table) SetLinks(ctx context.Context, bridge string, list func() []Link, adopt bool) error {
	t.applying.Lock()
	defer t.applying.Unlock()
	want := linkElements(bridge, list())
	have := t.swapLinks(bridge, want)
	if adopt {
		return nil
	}
	script := t.elements("delete", without(have, want)) + t.elements("add", without(want, have))
	err := nft.Apply(ctx, script)
	if err != nil {
		err = t.anew(ctx, err)
	}
	if err != nil {
		t.swapLinks(bridge, have) // what the kernel has
	}
	return err
}

// swapLinks sets the elements of a bridge's links and returns those that it had.
func (t *Table) swapLinks(bridge string, els map[string]string) (before map[string]string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	before = t.links[bridge]
	if t.links[bridge] = els; len(els) == 0 {
		delete(t.links, bridge)
	}
	return before
}

// without returns the elements of all that are not in others.
func without(all, others map[string]string) map[string]string {
	out := map[string]string{}
	for e, to := range all {
		if _, in := others[e]; !in {
			out[e] = to
		}
	}
	return out
}

// Exists reports whether the kernel has the table.
func (t *Table) Exists(ctx context.Context) bool { return nft.Exists(ctx, t.Name()) }

// Restore makes the table anew with everything that is in it, in one transaction. Connections that are open stay open.
// obsolete are names of tables that are removed in the same transaction.
func (t *Table) Restore(ctx context.Context, obsolete ...string) error {
	t.applying.Lock()
	defer t.applying.Unlock()
	return nft.Apply(ctx, t.script(obsolete))
}

// Mend writes the table anew if someone removed it, or chains, sets or rules of it, and reports whether it did.
func (t *Table) Mend(ctx context.Context) (bool, error) {
	t.applying.Lock()
	defer t.applying.Unlock()
	t.mu.Lock()
	empty, want := len(t.bridges) == 0, nft.Shape(t.rules())
	t.mu.Unlock()
	if empty || maps.Equal(nft.Shape(nft.List(ctx, t.Name())), want) {
		return false, nil
	}
	return true, nft.Apply(ctx, t.script(nil))
}

func (t *Table) apply(ctx context.Context, script string) error {
	t.applying.RLock()
	err := nft.Apply(ctx, script)
	t.applying.RUnlock()
	if err == nil {
		return nil
	}
	t.applying.Lock()
	defer t.applying.Unlock()
	return t.anew(ctx, err)
}

func (t *Table) script(obsolete []string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var b strings.Builder
	for _, name := range append(slices.Clone(obsolete), t.name) {
		fmt.Fprintf(&b, "table inet %[1]s\ndelete table inet %[1]s\n", name)
	}
	b.WriteString(t.rules())
	for _, name := range slices.Sorted(maps.Keys(t.bridges)) {
		b.WriteString(t.elements("add", t.bridges[name].elements()))
	}
	b.WriteString(t.elements("add", t.ports))
	for _, name := range slices.Sorted(maps.Keys(t.links)) {
		b.WriteString(t.elements("add", t.links[name]))
	}
	return b.String()
}

// rules renders the table without elements.
func (t *Table) rules() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p("table inet %s {", t.name)
	for _, s := range []string{"bridges", "internal", "open4", "open6", "isolated4", "isolated6"} {
		p("\tset %s { type ifname; }", s)
	}
	for _, s := range []string{"icc", "trusted"} {
		p("\tset %s { type ifname . ifname; }", s)
	}
	p("\tset links4 { type ifname . ipv4_addr . ipv4_addr . inet_proto . inet_service; flags interval; }")
	for _, f := range families {
		p("\tset own%s { type ifname . ipv%[1]s_addr; flags interval; }", f.digit)
		p("\tset masq%s { type ipv%[1]s_addr; flags interval; }", f.digit)
		p("\tmap source%s { type ipv%[1]s_addr : ipv%[1]s_addr; flags interval; }", f.digit)
		for _, s := range []string{"direct", "published"} {
			p("\tset %s%s { type ipv%[2]s_addr . inet_proto . inet_service; }", s, f.digit)
		}
		p("\tmap ports%s_any { type inet_proto . inet_service : ipv%[1]s_addr . inet_service; }", f.digit)
		p("\tmap ports%s_addr { type ipv%[1]s_addr . inet_proto . inet_service : ipv%[1]s_addr . inet_service; }", f.digit)
	}
	p("\tchain martians {")
	p("\t\ttype filter hook prerouting priority raw; policy accept;")
	// route_localnet makes a published port answer on 127.0.0.1. It must not let containers reach the host's loopback.
	p("\t\tiifname @bridges ip daddr 127.0.0.0/8 drop")
	p("\t}")
	for _, hook := range []string{"prerouting", "output"} {
		p("\tchain %s {", hook)
		p("\t\ttype nat hook %s priority -100; policy accept;", hook)
		for _, f := range families {
			match := fmt.Sprintf("meta nfproto ipv%s fib daddr type local", f.digit)
			if f.ip == "ip6" { // the kernel sends nothing from ::1 to another host, so the proxy carries it
				match += " ip6 daddr != ::1"
			}
			p("\t\t%s dnat %s to %[2]s daddr . meta l4proto . th dport map @ports%[3]s_addr", match, f.ip, f.digit)
			p("\t\t%s dnat %s to meta l4proto . th dport map @ports%[3]s_any", match, f.ip, f.digit)
		}
		p("\t}")
	}
	p("\tchain postrouting {")
	p("\t\ttype nat hook postrouting priority srcnat; policy accept;")
	p("\t\tip saddr 127.0.0.0/8 oifname @bridges masquerade")
	for _, f := range families {
		// When a container connects to a published port of its own or of another container, the answer must come back
		// through the host, which translates the addresses.
		p("\t\toifname . %s saddr @own%s ct status dnat masquerade", f.ip, f.digit)
		p("\t\toifname . %s saddr @own%s accept", f.ip, f.digit)
		p("\t\tsnat %s to %[1]s saddr map @source%s", f.ip, f.digit)
		p("\t\t%s saddr @masq%s masquerade", f.ip, f.digit)
	}
	p("\t}")
	p("\tchain input {")
	p("\t\ttype filter hook input priority filter; policy accept;")
	for _, f := range families {
		// The host has no address in such a network, but a container may send to any other of its addresses.
		p("\t\tmeta nfproto ipv%s iifname @isolated%[1]s drop", f.digit)
	}
	p("\t}")
	p("\tchain forward {")
	p("\t\ttype filter hook forward priority filter; policy accept;")
	p("\t\toifname @bridges ct state established,related accept")
	p("\t\tiifname @internal oifname != @internal drop")
	p("\t\toifname @bridges ct status dnat accept")
	p("\t\tiifname . oifname @icc accept")
	// The answers belong to established connections. Links are of the default network, which has IPv4 only.
	p("\t\toifname @bridges iifname . ip saddr . ip daddr . meta l4proto . th dport @links4 accept")
	for _, f := range families {
		// Containers of the same bridge are neighbours, about which icc alone decides.
		p("\t\toifname @bridges oifname . %s saddr != @own%s %[1]s daddr . meta l4proto . th dport @direct%[2]s accept", f.ip, f.digit)
		p("\t\tiifname . oifname @trusted %s daddr . meta l4proto . th dport @published%s accept", f.ip, f.digit)
		p("\t\tmeta nfproto ipv%s oifname @open%[1]s iifname != @bridges accept", f.digit)
	}
	p("\t\toifname @bridges drop")
	p("\t}")
	p("}")
	return b.String()
}

var families = []struct{ digit, ip string }{{"4", "ip"}, {"6", "ip6"}}

// elements renders the addition ("add") or removal ("delete") of elements, which have the form "set { key". The value is what a key of
// a map leads to; "" for a set.
func (t *Table) elements(verb string, els map[string]string) string {
	var b strings.Builder
	for _, e := range slices.Sorted(maps.Keys(els)) {
		to := els[e]
		if to != "" {
			to = " : " + to
		}
		fmt.Fprintf(&b, "%s element inet %s %s%s }\n", verb, t.name, e, to)
	}
	return b.String()
}

func (b Bridge) elements() map[string]string {
	els := map[string]string{fmt.Sprintf("bridges { %q", b.Name): ""}
	if b.Internal {
		els[fmt.Sprintf("internal { %q", b.Name)] = ""
	}
	if b.Open {
		els[fmt.Sprintf("open4 { %q", b.Name)] = ""
	}
	if b.Open6 {
		els[fmt.Sprintf("open6 { %q", b.Name)] = ""
	}
	if b.Isolated {
		els[fmt.Sprintf("isolated4 { %q", b.Name)] = ""
	}
	if b.Isolated6 {
		els[fmt.Sprintf("isolated6 { %q", b.Name)] = ""
	}
	for _, name := range b.Trusted {
		els[fmt.Sprintf("trusted { %q . %q", name, b.Name)] = ""
	}
	if b.ICC {
		els[fmt.Sprintf("icc { %q . %[1]q", b.Name)] = ""
	}
	for _, s := range b.Subnets {
		d := digit(s.Addr())
		els[fmt.Sprintf("own%s { %q . %s", d, b.Name, s.Masked())] = ""
		masq, source := b.Masquerade, b.Source
		if s.Addr().Is6() {
			masq, source = b.Masquerade6, b.Source6
		}
		switch {
		case !masq || b.Internal:
		case source.IsValid():
			els[fmt.Sprintf("source%s { %s", d, s.Masked())] = source.String()
		default:
			els[fmt.Sprintf("masq%s { %s", d, s.Masked())] = ""
		}
	}
	return els
}

func portElements(to Target, bindings []network.PortBinding) map[string]string {
	els := map[string]string{}
	for _, p := range bindings {
		target, direct := to.IPv4, to.Direct4
		if p.HostIP.Is6() {
			target, direct = to.IPv6, to.Direct6
		}
		if !p.HostIP.IsValid() || !target.IsValid() {
			continue // the proxy carries it
		}
		key := fmt.Sprintf("%s . %d", p.Proto, p.HostPort)
		if p.HostIP.IsUnspecified() {
			key = fmt.Sprintf("ports%s_any { %s", digit(p.HostIP), key)
		} else {
			key = fmt.Sprintf("ports%s_addr { %s . %s", digit(p.HostIP), p.HostIP, key)
		}
		if !p.Routed {
			els[key] = fmt.Sprintf("%s . %d", target, p.ContainerPort)
		}
		own := fmt.Sprintf("%s { %s . %s . %d", digit(target), target, p.Proto, p.ContainerPort)
		if direct {
			els["direct"+own] = ""
		}
		if to.Trusted {
			els["published"+own] = ""
		}
	}
	return els
}

func linkElements(bridge string, list []Link) map[string]string {
	els := map[string]string{}
	for _, l := range list {
		for _, p := range l.Ports {
			els[fmt.Sprintf("links4 { %q . %s . %s . %s . %d-%d", bridge, l.From, l.To, p.Proto, p.First, p.Last)] = ""
		}
	}
	return els
}

func digit(a netip.Addr) string {
	if a.Is4() {
		return "4"
	}
	return "6"
}
