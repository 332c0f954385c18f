// Package bridge is the network driver "bridge": a Linux bridge per network, a veth pair per container, and ports
// published by an nftables table and a proxy.
//
// The bridge and its table are made with the first container. Interfaces, addresses and rules live in the kernel, so
// containers keep their network while the engine restarts. What others remove of them is made again (Watch, Restored).
package bridge

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/network"
	"ply/internal/network/ipam"
	"ply/internal/network/namespace"
)

// ensureBridge makes the bridge, or takes over the one that is there, with the gateways' addresses on it, and sets it
// up. It returns those addresses, also of gateways that the bridge does not get. A bridge that has an IPv4 address keeps it:
// containers from before a restart live in that subnet.
func ensureBridge(c network.Config, owner string) (v4, v6 netip.Prefix, err error) {
	link, created, err := bridgeLink(c, owner)
	if err != nil {
		return v4, v6, err
	}
	if created {
		defer func() {
			if err != nil {
				err = errors.Join(err, netlink.LinkDel(link))
			}
		}()
	}
	v6 = c.Address6
	switch {
	case c.Isolated6 || c.Isolated && !v6.IsValid(): // no link-local address either
		if err := disableIPv6(c.Bridge); err != nil {
			return v4, v6, err
		}
	case v6.IsValid():
		if err := refuseTaken(v6, owner); err != nil {
			return v4, v6, err
		}
		if err := enableIPv6(c.Bridge); err != nil {
			return v4, v6, err
		}
		if err := setAddress(link, v6); err != nil {
			return v4, v6, err
		}
	}
	if c.NoIPv4 {
		return v4, v6, up(link)
	}
	if c.Isolated {
		return c.Address, v6, up(link)
	}
	if c.Inhibit {
		if err := refuseTaken(c.Address, owner); err != nil {
			return v4, v6, err
		}
		return c.Address, v6, up(link)
	}
	have, err := bridgeAddress(link)
	if err != nil {
		return v4, v6, err
	}
	want := c.Address
	if have.IsValid() && (!want.IsValid() || have == want) {
		return have, v6, up(link)
	}
	if have.IsValid() {
		return v4, v6, errs.New(errs.Precondition, "bridge %s has address %s, \"bip\" asks for %s", c.Bridge, have, want).
			WithHint("Remove the bridge (ip link del %s) while no container runs.", c.Bridge)
	}
	if !want.IsValid() {
		used, err := Subnets()
		if err != nil {
			return v4, v6, err
		}
		pool, err := ipam.FreePool(c.Pools, used)
		if err != nil {
			return v4, v6, err
		}
		want = netip.PrefixFrom(pool.Addr().Next(), pool.Bits())
	}
	if err := refuseTaken(want, owner); err != nil {
		return v4, v6, err
	}
	if err := setAddress(link, want); err != nil {
		return v4, v6, err
	}
	return want, v6, up(link)
}

// foreignError says that a bridge belongs to another engine.
type foreignError struct{ err error }

func (e *foreignError) Error() string { return e.err.Error() }

// Unwrap returns the error with its class.
func (e *foreignError) Unwrap() error { return e.err }

// mark is how the bridges of an engine are marked, in their aliases: the word and the engine's own words.
const mark = "ply of "

// made reports whether the engine made the bridge. A bridge of an earlier release has no mark.
func (o *Options) made(link netlink.Link) bool {
	alias := link.Attrs().Alias
	return alias == mark+o.Owner || alias == "" && link.Attrs().Name == "ply0"
}

// bridgeLink returns the bridge, and creates it when there is none. The error is a *foreignError when another engine has made it.
func bridgeLink(c network.Config, owner string) (_ netlink.Link, created bool, err error) {
	name := c.Bridge
	link, err := netlink.LinkByName(name)
	if err != nil {
		var missing netlink.LinkNotFoundError
		if !errors.As(err, &missing) {
			return nil, false, errs.New(errs.Internal, "bridge %s: %w", name, err)
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.Alias = name, c.MTU, mark+owner
		err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
		if err != nil && !errors.Is(err, syscall.EEXIST) {
			return nil, false, errs.New(errs.Internal, "bridge %s: create: %w", name, err)
		}
		created = err == nil
		if link, err = netlink.LinkByName(name); err != nil {
			return nil, false, errs.New(errs.Internal, "bridge %s: %w", name, err)
		}
		if link.Attrs().Alias == "" { // the kernel takes an alias of a new interface only from some releases on
			if err := netlink.LinkSetAlias(link, mark+owner); err != nil {
				return nil, false, errs.New(errs.Internal, "bridge %s: alias: %w", name, err)
			}
		}
	}
	if alias := link.Attrs().Alias; strings.HasPrefix(alias, mark) && alias != mark+owner {
		return nil, false, &foreignError{errs.New(errs.Conflict, "bridge %s belongs to another engine, the one of %s", name, strings.TrimPrefix(alias, mark)).
			WithHint("Give the network another bridge, with the option com.docker.network.bridge.name or with \"bridge\" in daemon.json.")}
	}
	if link.Type() != "bridge" {
		return nil, false, errs.New(errs.Precondition, "interface %s is no bridge but a %s", name, link.Type()).
			WithHint("Set \"bridge\" in daemon.json to another name.")
	}
	return link, created, nil
}

// setAddress gives the bridge an address unless it has it.
func setAddress(link netlink.Link, want netip.Prefix) error {
	addr := &netlink.Addr{IPNet: ipNet(want)}
	if want.Addr().Is4() {
		addr.Broadcast = net.IP(ipam.Broadcast(want).AsSlice())
	} else {
		addr.Flags = unix.IFA_F_NODAD // nobody else is on the bridge yet
	}
	if err := netlink.AddrAdd(link, addr); err != nil && !errors.Is(err, syscall.EEXIST) {
		return errs.New(errs.Internal, "bridge %s: address %s: %w", link.Attrs().Name, want, err)
	}
	return nil
}

// enableIPv6 lets the bridge have IPv6 addresses on a host that gives new interfaces none.
func enableIPv6(bridge string) error {
	if err := sysctl("ipv6/conf/"+bridge+"/disable_ipv6", "0"); err != nil {
		return err
	}
	return sysctl("ipv6/conf/"+bridge+"/accept_ra", "0")
}

// disableIPv6 keeps the bridge from having any IPv6 address, on a host that has such.
func disableIPv6(bridge string) error {
	name := "ipv6/conf/" + bridge + "/disable_ipv6"
	if _, err := os.Stat("/proc/sys/net/" + name); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return sysctl(name, "1")
}

func up(link netlink.Link) error {
	if err := netlink.LinkSetUp(link); err != nil {
		return errs.New(errs.Internal, "bridge %s: set up: %w", link.Attrs().Name, err)
	}
	return nil
}

// bridgeAddress returns the first IPv4 address of the bridge; invalid when it has none.
func bridgeAddress(link netlink.Link) (netip.Prefix, error) {
	all, err := addresses(link)
	for _, p := range all {
		if p.Addr().Is4() {
			return p, nil
		}
	}
	return netip.Prefix{}, err
}

// addresses returns the addresses of an interface with the lengths of their subnets.
func addresses(link netlink.Link) (all []netip.Prefix, err error) {
	list, err := namespace.Whole(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, errs.New(errs.Internal, "interface %s: addresses: %w", link.Attrs().Name, err)
	}
	for _, a := range list {
		ip, ok := netip.AddrFromSlice(a.IP)
		ones, _ := a.Mask.Size()
		if ok {
			all = append(all, netip.PrefixFrom(ip.Unmap(), ones))
		}
	}
	return all, nil
}

// Subnets returns the subnets that the host has routes to, without the default routes.
func Subnets() ([]netip.Prefix, error) {
	routes, err := namespace.Whole(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, errs.New(errs.Internal, "network: list routes: %w", err)
	}
	var subnets []netip.Prefix
	for _, r := range routes {
		if r.Dst == nil || r.Dst.IP == nil {
			continue
		}
		ip, ok := netip.AddrFromSlice(r.Dst.IP)
		if ones, _ := r.Dst.Mask.Size(); ok && ones > 0 {
			subnets = append(subnets, netip.PrefixFrom(ip.Unmap(), ones))
		}
	}
	return subnets, nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: net.IP(p.Addr().AsSlice()), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// sysctl sets a value under /proc/sys/net unless it is set already.
func sysctl(path, value string) error {
	name := "/proc/sys/net/" + path
	b, err := os.ReadFile(name)
	if err == nil && strings.TrimSpace(string(b)) == value {
		return nil
	}
	if err := os.WriteFile(name, []byte(value), 0o644); err != nil {
		return errs.New(errs.Precondition, "network: set net/%s to %s: %w", path, value, err)
	}
	return nil
}

// macFor derives a MAC address from an address of the endpoint. From an IPv4 address it is that of Docker: 02:42 and the four bytes.
func macFor(e network.Endpoint) string {
	if !e.IPv4.IsValid() {
		b := e.IPv6.Addr().As16()
		return fmt.Sprintf("02:43:%02x:%02x:%02x:%02x", b[12], b[13], b[14], b[15])
	}
	b := e.IPv4.Addr().As4()
	return fmt.Sprintf("02:42:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3])
}
