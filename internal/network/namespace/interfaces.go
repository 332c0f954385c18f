package namespace

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/network/ipam"
)

// Interface says how SetUp configures an interface.
type Interface struct {
	Name  string
	Addrs []netip.Prefix
	Via   []netip.Addr // gateways of the default routes, at most one of each family; one that is unspecified = a route without a gateway

	Sysctls map[string]string // below /proc/sys/net, with IFNAME for the interface
}

// SetUp gives an interface of the namespace at path its addresses, sets it up, and makes the default routes. h is a handle in the namespace. An interface
// without an IPv6 address has not even a link-local one.
func SetUp(path string, h *netlink.Handle, i Interface) error {
	fail := func(step string, err error) error {
		return errs.New(errs.Internal, "interface %s: %s: %w", i.Name, step, err)
	}
	link, err := h.LinkByName(i.Name)
	if err != nil {
		return fail("find", err)
	}
	for _, a := range i.Addrs {
		if a.Addr().Is6() {
			if err := enableIPv6(path, i.Name); err != nil {
				return fail("switch IPv6 on", err)
			}
			break
		}
	}
	for _, a := range i.Addrs {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen())}}
		if a.Addr().Is4() {
			addr.Broadcast = net.IP(ipam.Broadcast(a).AsSlice())
		} else {
			addr.Flags = unix.IFA_F_NODAD // the addresses of a network are allocated once
		}
		if err := h.AddrAdd(link, addr); err != nil {
			return fail("address", err)
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return fail("set up", err)
	}
	if err := setSysctls(path, i); err != nil {
		return errs.New(errs.Invalid, "interface %s: %w", i.Name, err)
	}
	return addRoutes(h, link, i.Via)
}

func setSysctls(path string, i Interface) error {
	if len(i.Sysctls) == 0 {
		return nil
	}
	return Do(path, func() error {
		for _, name := range slices.Sorted(maps.Keys(i.Sysctls)) {
			file := filepath.Join("/proc/sys/net", strings.Replace(name, "IFNAME", i.Name, 1))
			if err := os.WriteFile(file, []byte(i.Sysctls[name]), 0o644); err != nil {
				return err
			}
		}
		return nil
	})
}

// Addresses returns the addresses of an interface. Either of the first two may be the zero value.
func Addresses(v4, v6 netip.Prefix, linkLocal []netip.Addr) (all []netip.Prefix) {
	for _, p := range []netip.Prefix{v4, v6} {
		if p.IsValid() {
			all = append(all, p)
		}
	}
	for _, a := range linkLocal {
		all = append(all, linkLocalPrefix(a))
	}
	return all
}

// linkLocalPrefix returns a link-local address with the length of its subnet.
func linkLocalPrefix(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(a, 16)
	}
	return netip.PrefixFrom(a, 64)
}

func addRoutes(h *netlink.Handle, link netlink.Link, via []netip.Addr) error {
	for _, gw := range via {
		route := netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.IP(gw.AsSlice())}
		if gw.IsUnspecified() {
			route.Gw, route.Scope = nil, netlink.SCOPE_LINK
			route.Dst = &net.IPNet{IP: net.IP(gw.AsSlice()), Mask: net.CIDRMask(0, gw.BitLen())}
		}
		if err := h.RouteAdd(&route); err != nil && !errors.Is(err, syscall.EEXIST) {
			return errs.New(errs.Internal, "interface %s: default route: %w", link.Attrs().Name, err)
		}
	}
	return nil
}

// enableIPv6 undoes for one interface what Make says for all.
func enableIPv6(path, name string) error {
	return Do(path, func() error {
		for file, value := range map[string]string{"accept_ra": "0", "disable_ipv6": "0"} {
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/"+file, []byte(value), 0o644); err != nil {
				return err
			}
		}
		return nil
	})
}

// AddRoutes makes the default routes of the namespace at path lead through an interface to the gateways.
func AddRoutes(path, name string, via ...netip.Addr) error {
	return withLink(path, name, func(h *netlink.Handle, link netlink.Link) error { return addRoutes(h, link, via) })
}

// RemoveRoutes removes the default routes through an interface.
func RemoveRoutes(path, name string) error {
	return withLink(path, name, func(h *netlink.Handle, link netlink.Link) error {
		routes, err := Whole(func() ([]netlink.Route, error) { return h.RouteList(link, netlink.FAMILY_ALL) })
		if err != nil {
			return fmt.Errorf("interface %s: routes: %w", name, err)
		}
		for _, r := range routes {
			if r.Gw == nil && r.Dst == nil || r.Dst != nil && !isDefault(r.Dst) {
				continue
			}
			if err := h.RouteDel(&r); err != nil && !errors.Is(err, syscall.ESRCH) {
				return errs.New(errs.Internal, "interface %s: default route: %w", name, err)
			}
		}
		return nil
	})
}

// RemoveLink removes an interface of the namespace at path. One that does not exist is no error.
func RemoveLink(path, name string) error {
	ns, h, err := Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	defer h.Close()
	link, err := h.LinkByName(name)
	if err == nil {
		err = h.LinkDel(link)
	}
	var missing netlink.LinkNotFoundError
	if err != nil && !errors.As(err, &missing) && !errors.Is(err, syscall.ENODEV) {
		return errs.New(errs.Internal, "interface %s: remove: %w", name, err)
	}
	return nil
}

func isDefault(n *net.IPNet) bool {
	ones, _ := n.Mask.Size()
	return ones == 0
}

func withLink(path, name string, f func(*netlink.Handle, netlink.Link) error) error {
	ns, h, err := Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	defer h.Close()
	link, err := h.LinkByName(name)
	if err != nil {
		return errs.New(errs.Internal, "interface %s: find: %w", name, err)
	}
	return f(h, link)
}

// maxLists bounds how often Whole asks again.
const maxLists = 50

// Whole returns what list returns of a table of the kernel. The kernel does not keep such a table from being changed while it is read: a list that was
// interrupted may lack entries that were there all the time, and is asked for again.
func Whole[T any](list func() ([]T, error)) (all []T, err error) {
	for range maxLists {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

// HasLink reports whether this thread's namespace has an interface. It asks for this one, which no change of others interrupts.
func HasLink(name string) (bool, error) {
	_, err := netlink.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return false, nil
	}
	if err != nil {
		return false, errs.New(errs.Internal, "interface %s: find: %w", name, err)
	}
	return true, nil
}
