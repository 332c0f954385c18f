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

const ipForward = "/proc/sys/net/ipv4/ip_forward"

// forwardingVersion is the version of the record of switched forwarding (see package record).
const forwardingVersion = 1

// maxForwarding is the longest such record that is read, in bytes.
const maxForwarding = 4096

// switchedForwarding is the record that this engine, not its host, switched forwarding on. It is true for one boot and one
// network namespace only, as the kernel's setting is. The table alone cannot say this: a reload of the host's own rules
// removes all tables.
type switchedForwarding struct {
	Boot  string `json:"boot"`
	Netns uint64 `json:"netns"` // the kernel's cookie of the namespace
}

// setUpForwarding makes the host forward packets unless the settings forbid it, and makes sure that it forwards only for
// bridges if it did not forward before.
func (d *Driver) setUpForwarding(ctx context.Context, bridge string) error {
	on, err := forwards()
	if err != nil {
		return err
	}
	switched, err := d.switchedBefore()
	if err != nil {
		return err
	}
	enable := !on && !d.opts.NoForward
	if enable && !switched {
		if err := d.rememberSwitch(); err != nil {
			return err
		}
		switched = true
	}
	if err := d.restrictForwarding(ctx, bridge, switched); err != nil {
		return err
	}
	if !enable {
		return nil
	}
	if d.opts.NoRules || d.opts.NoForwardDrop {
		d.opts.Log.Warn("this host now forwards packets between all its networks", "sysctl", "net.ipv4.ip_forward")
	} else {
		d.opts.Log.Info("this host now forwards packets of containers, and no others", "sysctl", "net.ipv4.ip_forward", "table", forwardTable)
	}
	return sysctl("ipv4/ip_forward", "1")
}

// restrictForwarding makes the table, or removes it if the settings say so, when this engine switched forwarding on. A
// table of another engine is kept and the bridge entered in it.
func (d *Driver) restrictForwarding(ctx context.Context, bridge string, switched bool) error {
	switch {
	case d.opts.NoRules:
		return nil
	case !switched && !nft.Exists(ctx, forwardTable):
		return nil
	case !switched:
		return nft.Apply(ctx, fmt.Sprintf("add element %s bridges { %q }\n", forwardTable, bridge))
	case d.opts.NoForwardDrop:
		return nft.Apply(ctx, fmt.Sprintf("table %[1]s\ndelete table %[1]s\n", forwardTable))
	}
	return nft.Apply(ctx, forwardRules(bridge))
}

// forwardRules renders the table with one more bridge. Bridges that are entered stay.
func forwardRules(bridge string) string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p("table %s {", forwardTable)
	p("\tset bridges { type ifname; }")
	p("\tchain forward { type filter hook forward priority filter; policy accept; }")
	p("}")
	p("add element %s bridges { %q }", forwardTable, bridge)
	p("flush chain %s forward", forwardTable)
	// Only IPv4 forwarding is ever switched on.
	p("add rule %s forward meta nfproto ipv4 iifname != @bridges oifname != @bridges drop", forwardTable)
	return b.String()
}

// leaveForwarding takes a bridge that is removed out of the table.
func leaveForwarding(ctx context.Context, bridge string) error {
	if !nft.Exists(ctx, forwardTable) {
		return nil
	}
	return nft.Apply(ctx, fmt.Sprintf("add element %[1]s bridges { %[2]q }\ndelete element %[1]s bridges { %[2]q }\n", forwardTable, bridge))
}

func forwards() (bool, error) {
	b, err := os.ReadFile(ipForward)
	if err != nil {
		return false, errs.New(errs.Internal, "network: %w", err)
	}
	return strings.TrimSpace(string(b)) != "0", nil
}

// switchedBefore reports whether this engine switched forwarding on in this boot and network namespace.
func (d *Driver) switchedBefore() (bool, error) {
	if d.opts.StateFile == "" {
		return false, nil
	}
	var r switchedForwarding
	err := record.ReadFile(durable.OS, d.opts.StateFile, maxForwarding, forwardingVersion, &r)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case errors.Is(err, errs.DataLoss):
		// The record is damaged, but it was written only because forwarding was switched on.
		d.opts.Log.Warn("the record of switched forwarding is damaged; it is written again", "file", d.opts.StateFile, "err", err)
		return true, d.rememberSwitch()
	case errors.Is(err, errs.Precondition): // of a later release, which switched forwarding on
		return true, nil
	case err != nil:
		return false, errs.New(errs.Internal, "network: record of forwarding: %w", err)
	}
	here, err := hereAndNow()
	return r == here, err
}

func (d *Driver) rememberSwitch() error {
	if d.opts.StateFile == "" {
		return nil
	}
	here, err := hereAndNow()
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
