package bridge

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/network/nft"
	"ply/internal/procid"
	"ply/internal/record"
)

// Containers reach other networks only when the host forwards packets. A host that starts to forward for the containers
// would forward for everyone: every network that it is connected to could reach every other one through it. So the host
// gets a table that drops what is forwarded neither from nor to a bridge of ply, before forwarding is switched on. The table
// stays as long as the host forwards, which is until the next boot, whether plyd runs or not.
//
// A host that forwarded before ply is a router on purpose, and gets no such table.

// forwardTable is the table, one per host: all engines of a host enter their bridges in it.
const forwardTable = "inet ply-forward"

const (
	ipForward  = "/proc/sys/net/ipv4/ip_forward"
	ip6Forward = "/proc/sys/net/ipv6/conf/all/forwarding"
)

// forwardingVersion is the version of the record of switched forwarding (see package record).
const forwardingVersion = 1

// maxForwarding is the longest such record that is read, in bytes.
const maxForwarding = 4096

// switchedForwarding is the record that this engine, not its host, switched forwarding on. It is true for one boot and one
// network namespace only, as the kernel's setting is. The table alone cannot say this: a reload of the host's own rules
// removes all tables.
type switchedForwarding struct {
	Boot  string `json:"boot"`
	Netns uint64 `json:"netns"`          // the kernel's cookie of the namespace
	No4   bool   `json:"no4,omitempty"`  // that of IPv4 was on before
	IPv6  bool   `json:"ipv6,omitempty"` // that of IPv6 was switched on
}

// families says for IPv4 and IPv6 whether something holds.
type families struct{ v4, v6 bool }

func (f families) any() bool { return f.v4 || f.v6 }

// setUpForwarding makes the host forward packets unless the settings forbid it, IPv6 ones if the bridge has IPv6 addresses. It makes sure that
// the host forwards only for bridges if it did not forward before. An internal bridge is only entered in the table: where net.bridge.bridge-nf-call-iptables
// is set, packets between two containers on one bridge pass the table too.
func (d *Driver) setUpForwarding(ctx context.Context, bridge string, v6, internal bool) error {
	d.forwarding.Lock()
	defer d.forwarding.Unlock()
	if internal {
		if d.opts.NoRules || !nft.Exists(ctx, forwardTable) {
			return nil
		}
		return nft.Apply(ctx, fmt.Sprintf("add element %s bridges { %q }\n", forwardTable, bridge))
	}
	on, err := forwards(v6)
	if err != nil {
		return err
	}
	switched, err := d.switchedBefore()
	if err != nil {
		return err
	}
	enable := families{!on.v4 && !d.opts.NoForward, v6 && !on.v6 && !d.opts.NoForward}
	if now := (families{switched.v4 || enable.v4, switched.v6 || enable.v6}); now != switched {
		if err := d.rememberSwitch(now); err != nil {
			return err
		}
		switched = now
	}
	if err := d.restrictForwarding(ctx, bridge, switched); err != nil {
		return err
	}
	if !enable.any() {
		return nil
	}
	if d.opts.NoRules || d.opts.NoForwardDrop {
		d.opts.Log.Warn("this host now forwards packets between all its networks", "ipv4", enable.v4, "ipv6", enable.v6)
	} else {
		d.opts.Log.Info("this host now forwards packets of containers, and no others", "ipv4", enable.v4, "ipv6", enable.v6, "table", forwardTable)
	}
	if enable.v6 {
		if err := forwardIPv6(); err != nil {
			return err
		}
	}
	if enable.v4 {
		return sysctl("ipv4/ip_forward", "1")
	}
	return nil
}

// forwardIPv6 switches the forwarding of IPv6 on. A host that forwards ignores the advertisements of routers unless it is told otherwise, and
// would lose its own routes.
func forwardIPv6() error {
	list, err := filepath.Glob("/proc/sys/net/ipv6/conf/*/accept_ra")
	if err != nil {
		return err
	}
	for _, name := range list {
		b, err := os.ReadFile(name)
		if err == nil && strings.TrimSpace(string(b)) == "1" {
			if err := os.WriteFile(name, []byte("2"), 0o644); err != nil {
				return errs.New(errs.Precondition, "network: %w", err)
			}
		}
	}
	return sysctl("ipv6/conf/all/forwarding", "1")
}

// restrictForwarding makes the table, or removes it if the settings say so, when this engine switched forwarding on. A
// table of another engine is kept and the bridge entered in it.
func (d *Driver) restrictForwarding(ctx context.Context, bridge string, switched families) error {
	switch {
	case d.opts.NoRules:
		return nil
	case !switched.any() && !nft.Exists(ctx, forwardTable):
		return nil
	case !switched.any():
		return nft.Apply(ctx, fmt.Sprintf("add element %s bridges { %q }\n", forwardTable, bridge))
	case d.opts.NoForwardDrop:
		return nft.Apply(ctx, fmt.Sprintf("table %[1]s\ndelete table %[1]s\n", forwardTable))
	}
	names := []string{bridge}
	for _, s := range d.all() {
		names = append(names, s.cfg.Bridge) // an internal one was made before there was a table
	}
	return nft.Apply(ctx, forwardRules(switched, names...))
}

// mendForwarding writes the table again, with the bridges of this engine, if someone removed it or what is in it.
func (d *Driver) mendForwarding(ctx context.Context) (bool, error) {
	d.forwarding.Lock()
	defer d.forwarding.Unlock()
	if d.opts.NoRules || d.opts.NoForwardDrop {
		return false, nil
	}
	switched, err := d.switchedBefore()
	if err != nil || !switched.any() {
		return false, err
	}
	var names []string
	for _, s := range d.all() {
		names = append(names, s.cfg.Bridge)
	}
	drops := strings.Count(nft.List(ctx, forwardTable), " drop\n")
	if len(names) == 0 || switched.v4 && switched.v6 && drops == 2 || switched.v4 != switched.v6 && drops > 0 {
		return false, nil
	}
	return true, nft.Apply(ctx, forwardRules(switched, names...))
}

// forwardRules renders the table with further bridges. Bridges that are entered stay.
func forwardRules(switched families, bridges ...string) string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p("table %s {", forwardTable)
	p("\tset bridges { type ifname; }")
	p("\tchain forward { type filter hook forward priority filter; policy accept; }")
	p("\tchain forward6 { type filter hook forward priority filter; policy accept; }")
	p("}")
	for _, bridge := range bridges {
		p("add element %s bridges { %q }", forwardTable, bridge)
	}
	// Each family has a chain, because another engine may have switched the other one on.
	for _, f := range []struct {
		on           bool
		chain, proto string
	}{{switched.v4, "forward", "ipv4"}, {switched.v6, "forward6", "ipv6"}} {
		if f.on {
			p("flush chain %s %s", forwardTable, f.chain)
			p("add rule %s %s meta nfproto %s iifname != @bridges oifname != @bridges drop", forwardTable, f.chain, f.proto)
		}
	}
	return b.String()
}

// leaveForwarding takes a bridge that is removed out of the table.
func leaveForwarding(ctx context.Context, bridge string) error {
	if !nft.Exists(ctx, forwardTable) {
		return nil
	}
	return nft.Apply(ctx, fmt.Sprintf("add element %[1]s bridges { %[2]q }\ndelete element %[1]s bridges { %[2]q }\n", forwardTable, bridge))
}

// forwards reports what the host forwards. Without v6, the answer for IPv6 means nothing.
func forwards(v6 bool) (f families, err error) {
	read := func(name string) bool {
		b, rerr := os.ReadFile(name)
		if rerr != nil {
			err = errs.New(errs.Internal, "network: %w", rerr)
		}
		return strings.TrimSpace(string(b)) != "0"
	}
	f.v4 = read(ipForward)
	if v6 {
		f.v6 = read(ip6Forward)
	}
	return f, err
}

// switchedBefore reports what forwarding this engine switched on in this boot and network namespace.
func (d *Driver) switchedBefore() (families, error) {
	if d.opts.StateFile == "" {
		return families{}, nil
	}
	var r switchedForwarding
	err := record.ReadFile(durable.OS, d.opts.StateFile, maxForwarding, forwardingVersion, &r)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return families{}, nil
	case errors.Is(err, errs.DataLoss):
		// The record is damaged, but it was written only because forwarding was switched on.
		d.opts.Log.Warn("the record of switched forwarding is damaged; it is written again", "file", d.opts.StateFile, "err", err)
		return families{v4: true}, d.rememberSwitch(families{v4: true})
	case errors.Is(err, errs.Precondition): // of a later release, which switched forwarding on
		return families{v4: true}, nil
	case err != nil:
		return families{}, errs.New(errs.Internal, "network: record of forwarding: %w", err)
	}
	here, err := hereAndNow()
	if r.Boot != here.Boot || r.Netns != here.Netns {
		return families{}, err
	}
	return families{!r.No4, r.IPv6}, err
}

func (d *Driver) rememberSwitch(f families) error {
	if d.opts.StateFile == "" {
		return nil
	}
	here, err := hereAndNow()
	here.No4, here.IPv6 = !f.v4, f.v6
	if err == nil {
		err = os.MkdirAll(filepath.Dir(d.opts.StateFile), 0o700)
	}
	if err == nil {
		err = record.WriteFile(durable.OS, d.opts.StateFile, forwardingVersion, here, 0o600)
	}
	if err != nil {
		return errs.New(errs.Internal, "network: record of forwarding: %w", err)
	}
	return nil
}

// hereAndNow identifies this boot and this network namespace.
func hereAndNow() (switchedForwarding, error) {
	boot, err := procid.Boot()
	if err != nil {
		return switchedForwarding{}, err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return switchedForwarding{}, err
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil && !errors.Is(err, unix.ENOPROTOOPT) { // a kernel before 5.14 has no cookies
		return switchedForwarding{}, fmt.Errorf("cookie of the network namespace: %w", err)
	}
	return switchedForwarding{Boot: boot, Netns: cookie}, nil
}
