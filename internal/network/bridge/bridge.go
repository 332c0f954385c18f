// Package bridge is the network driver "bridge": a Linux bridge per network, a veth pair per container, and ports
// published by an nftables table and a proxy.
//
// The bridge and its table are made with the first container. Interfaces, addresses and rules live in the kernel, so
// containers keep their network while the engine restarts.
package bridge

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"

	"ply/internal/errs"
	"ply/internal/network"
	"ply/internal/network/ipam"
)

// ensureBridge makes the bridge, or takes over the one that is there, with the gateway's address on it, and sets it
// up. It returns that address. A bridge that has an IPv4 address keeps it: containers from before a restart live in
// that subnet.
func ensureBridge(c network.Config) (netip.Prefix, error) {
	name, want := c.Bridge, c.Address
	link, err := netlink.LinkByName(name)
	if err != nil {
		var missing netlink.LinkNotFoundError
		if !errors.As(err, &missing) {
			return netip.Prefix{}, errs.New(errs.Internal, "bridge %s: %w", name, err)
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = name, c.MTU
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil && !errors.Is(err, syscall.EEXIST) {
			return netip.Prefix{}, errs.New(errs.Internal, "bridge %s: create: %w", name, err)
		}
		if link, err = netlink.LinkByName(name); err != nil {
			return netip.Prefix{}, errs.New(errs.Internal, "bridge %s: %w", name, err)
		}
	}
	if link.Type() != "bridge" {
		return netip.Prefix{}, errs.New(errs.Precondition, "interface %s is no bridge but a %s", name, link.Type()).
			WithHint("Set \"bridge\" in daemon.json to another name.")
	}
	have, err := bridgeAddress(link)
	if err != nil {
		return netip.Prefix{}, err
	}
	if have.IsValid() && (!want.IsValid() || have == want) {
		return have, up(link)
	}
	if have.IsValid() {
		return netip.Prefix{}, errs.New(errs.Precondition, "bridge %s has address %s, \"bip\" asks for %s", name, have, want).
			WithHint("Remove the bridge (ip link del %s) while no container runs.", name)
	}
	if !want.IsValid() {
		used, err := hostSubnets()
		if err != nil {
			return netip.Prefix{}, err
		}
		pool, err := ipam.FreePool(c.Pools, used)
		if err != nil {
			return netip.Prefix{}, err
		}
		want = netip.PrefixFrom(pool.Addr().Next(), pool.Bits())
	}
	addr := &netlink.Addr{IPNet: ipNet(want), Broadcast: net.IP(ipam.Broadcast(want).AsSlice())}
	if err := netlink.AddrAdd(link, addr); err != nil && !errors.Is(err, syscall.EEXIST) {
		return netip.Prefix{}, errs.New(errs.Internal, "bridge %s: address %s: %w", name, want, err)
	}
	return want, up(link)
}

func up(link netlink.Link) error {
	if err := netlink.LinkSetUp(link); err != nil {
		return errs.New(errs.Internal, "bridge %s: set up: %w", link.Attrs().Name, err)
	}
	return nil
}

// bridgeAddress returns the first IPv4 address of the bridge; invalid when it has none.
func bridgeAddress(link netlink.Link) (netip.Prefix, error) {
	addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return netip.Prefix{}, errs.New(errs.Internal, "bridge %s: addresses: %w", link.Attrs().Name, err)
	}
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP.To4())
		ones, _ := a.Mask.Size()
		if ok {
			return netip.PrefixFrom(ip, ones), nil
		}
	}
	return netip.Prefix{}, nil
}

// hostSubnets returns the IPv4 subnets that the host has routes to, without the default route.
func hostSubnets() ([]netip.Prefix, error) {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, errs.New(errs.Internal, "network: list routes: %w", err)
	}
	var subnets []netip.Prefix
	for _, r := range routes {
		if r.Dst == nil || r.Dst.IP == nil {
			continue
		}
		ip, ok := netip.AddrFromSlice(r.Dst.IP.To4())
		if ones, _ := r.Dst.Mask.Size(); ok && ones > 0 {
			subnets = append(subnets, netip.PrefixFrom(ip, ones))
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

// macFor derives a MAC address from an IPv4 address as Docker does: 02:42 and the four bytes.
func macFor(a netip.Addr) string {
	b := a.As4()
	return fmt.Sprintf("02:42:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3])
}
