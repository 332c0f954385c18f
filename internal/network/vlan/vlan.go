// Package vlan has the network drivers "macvlan" and "ipvlan": the interfaces of containers stand beside those of the host on a parent interface, with addresses of
// their own in its network, or with one MAC address for all.
//
// The driver translates no addresses and publishes no ports: other hosts of the network reach the containers directly. The host itself does not reach them
// through the parent, which is how the kernel's interfaces of these kinds work. The driver makes the parent where its name asks for that: eth0.5 is the VLAN 5 of eth0,
// and a network without a parent gets an interface that leads nowhere.
package vlan

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"

	"ply/internal/errs"
	"ply/internal/network"
	"ply/internal/network/namespace"
)

// Kind is the kind of a Driver's interfaces.
type Kind string

// The kinds, as networks name their drivers.
const (
	MACVLAN Kind = "macvlan"
	IPVLAN  Kind = "ipvlan"
)

// Options of New.
type Options struct {
	Owner string // the engine, in words: it is written at the parents that it makes
	Log   *slog.Logger
}

// Driver makes networks of one kind. Safe for concurrent use.
type Driver struct {
	kind Kind
	opts Options

	making sync.Mutex // held while parents are made or removed; comes before mu

	mu       sync.Mutex        // not held during I/O
	segments map[string]string // IDs of networks, by their parents
}

var _ network.Driver = (*Driver)(nil)

// New returns a driver. It changes nothing on the host.
func New(kind Kind, o Options) *Driver {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Driver{kind: kind, opts: o, segments: map[string]string{}}
}

// mark is how the parents that an engine makes are marked, in their aliases: the word and the engine's own words.
const mark = "ply of "

// ownPrefix begins the names of parents that lead nowhere.
const ownPrefix = "dm-"

var modes = map[Kind][]string{MACVLAN: {"bridge", "private", "vepa", "passthru"}, IPVLAN: {"l2", "l3", "l3s"}}

// Configure implements network.Driver. The options are those of Docker's drivers.
func (d *Driver) Configure(c *network.Config, options map[string]string) error {
	c.Mode = modes[d.kind][0]
	for name, value := range options {
		if err := d.option(c, name, value); err != nil {
			return err
		}
	}
	if c.Parent == "" {
		c.Parent = ownPrefix + c.ID[:12]
	}
	if strings.HasPrefix(c.Parent, ownPrefix) {
		c.Internal = true
	}
	return nil
}

func (d *Driver) option(c *network.Config, name, value string) (err error) {
	bad := func(why string) error {
		return errs.New(errs.Invalid, "invalid value for option %s: %.64q: %s", name, value, why)
	}
	oneOf := func(allowed []string) error {
		for _, a := range allowed {
			if a == value {
				return nil
			}
		}
		return bad("it is one of " + strings.Join(allowed, ", "))
	}
	switch name {
	case "parent", "-o parent":
		if value == "" || len(value) > 15 || strings.ContainsAny(value, "/ \t\n:%") || value == "." || value == ".." {
			return bad("it is no name of an interface")
		}
		if value == "lo" {
			return bad("the loopback interface cannot be a parent")
		}
		c.Parent = value
	case string(d.kind) + "_mode":
		c.Mode = value
		return oneOf(modes[d.kind])
	case "ipvlan_flag":
		if d.kind != IPVLAN {
			return bad("only ipvlan has it")
		}
		c.Flag = value
		return oneOf([]string{"bridge", "private", "vepa"})
	case "com.docker.network.driver.mtu":
		if c.MTU, err = strconv.Atoi(value); err != nil || c.MTU < 68 || c.MTU > 65535 {
			return bad("it is a number from 68 to 65535")
		}
	default:
		return errs.New(errs.Invalid, "unknown option %.128q of the %s driver", name, d.kind).
			WithHint("There are parent, %s_mode%s and com.docker.network.driver.mtu.", d.kind, map[Kind]string{IPVLAN: ", ipvlan_flag"}[d.kind])
	}
	return nil
}

// Up finds the parent, or makes it.
func (d *Driver) Up(_ context.Context, c network.Config, _ bool) (network.Segment, error) {
	d.making.Lock()
	defer d.making.Unlock()
	d.mu.Lock()
	other, used := d.segments[c.Parent]
	d.mu.Unlock()
	if used && other != c.ID {
		return nil, errs.New(errs.Forbidden, "network %.12s is already using parent interface %s", other, c.Parent).WithHint("Give the network another parent, such as a VLAN: -o parent=eth0.10.")
	}
	if err := d.ensureParent(c); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.segments[c.Parent] = c.ID
	return &segment{driver: d, cfg: c}, nil
}

// Restored implements network.Driver: the interfaces of containers are in their namespaces.
func (d *Driver) Restored(context.Context) error { return nil }

var _ network.Sweeper = (*Driver)(nil)

// Sweep implements network.Sweeper for the parents that this engine made. The interfaces of containers are in their namespaces, and the Service finds them.
func (d *Driver) Sweep(_ context.Context, _ func(network, hostIf string) bool, orphan func(hostIf string) bool) error {
	all, err := namespace.Whole(netlink.LinkList)
	if err != nil {
		return errs.New(errs.Internal, "network: interfaces: %w", err)
	}
	used := map[int]bool{}
	for _, link := range all {
		if a := link.Attrs(); a.NetNsID < 0 { // else its parent is in another namespace
			used[a.ParentIndex] = true
		}
	}
	var failed error
	for _, link := range all {
		a := link.Attrs()
		if link.Type() == "bridge" || !d.made(link) || used[a.Index] || a.MasterIndex != 0 || !orphan(a.Name) {
			continue
		}
		d.opts.Log.Warn("a parent interface that an earlier engine has not recorded is removed", "interface", a.Name)
		var gone netlink.LinkNotFoundError
		if err := netlink.LinkDel(link); err != nil && !errors.As(err, &gone) && !errors.Is(err, syscall.ENODEV) {
			failed = errors.Join(failed, errs.New(errs.Internal, "interface %s: remove: %w", a.Name, err))
		}
	}
	return failed
}

func (d *Driver) ensureParent(c network.Config) error {
	link, err := netlink.LinkByName(c.Parent)
	var missing netlink.LinkNotFoundError
	if err == nil {
		if d.made(link) {
			return setUp(link)
		}
		return nil
	}
	if !errors.As(err, &missing) {
		return errs.New(errs.Internal, "interface %s: %w", c.Parent, err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = c.Parent
	base, id, isVLAN := strings.Cut(c.Parent, ".")
	switch {
	case strings.HasPrefix(c.Parent, ownPrefix):
		err = netlink.LinkAdd(&netlink.Dummy{LinkAttrs: attrs})
	case isVLAN:
		var n int
		if n, err = strconv.Atoi(id); err != nil || n < 1 || n > 4094 {
			return errs.New(errs.Invalid, "parent interface %s: a VLAN has a number from 1 to 4094, such as eth0.10", c.Parent)
		}
		below, lerr := netlink.LinkByName(base)
		if lerr != nil {
			return errs.New(errs.Invalid, "parent interface %s: the host has no interface %s", c.Parent, base)
		}
		attrs.ParentIndex = below.Attrs().Index
		err = netlink.LinkAdd(&netlink.Vlan{LinkAttrs: attrs, VlanId: n, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q})
	default:
		return errs.New(errs.Invalid, "parent interface %s was not found on the host", c.Parent).WithHint("Name one of the host's interfaces (ip link), or a VLAN of one, such as eth0.10.")
	}
	if err != nil {
		return unsupported(c.Parent, err)
	}
	if link, err = netlink.LinkByName(c.Parent); err == nil {
		err = netlink.LinkSetAlias(link, mark+d.opts.Owner)
	}
	if err != nil {
		return errs.New(errs.Internal, "interface %s: %w", c.Parent, err)
	}
	return setUp(link)
}

// unsupported says why an interface could not be made.
func unsupported(name string, err error) error {
	if errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.EPROTONOSUPPORT) {
		return errs.New(errs.Precondition, "interface %s: the kernel of this host has no interfaces of this kind: %w", name, err)
	}
	return errs.New(errs.Internal, "interface %s: create: %w", name, err)
}

// made reports whether this engine made a parent.
func (d *Driver) made(link netlink.Link) bool { return link.Attrs().Alias == mark+d.opts.Owner }

func setUp(link netlink.Link) error {
	if err := netlink.LinkSetUp(link); err != nil {
		return errs.New(errs.Internal, "interface %s: set up: %w", link.Attrs().Name, err)
	}
	return nil
}

// segment is one network.
type segment struct {
	driver *Driver
	cfg    network.Config
}

func (s *segment) Name() string { return s.cfg.Parent }

func (s *segment) Gateways() (v4, v6 netip.Prefix) {
	if !s.cfg.NoIPv4 {
		v4 = s.cfg.Address
	}
	return v4, s.cfg.Address6
}

// routed reports whether the kernel routes between containers and the parent, so that there is no gateway.
func (s *segment) routed() bool { return s.cfg.Mode == "l3" || s.cfg.Mode == "l3s" }

// via returns where containers send what is for other networks.
func (s *segment) via() (gateways []netip.Addr) {
	v4, v6 := s.Gateways()
	for _, p := range []netip.Prefix{v4, v6} {
		switch {
		case !p.IsValid():
		case s.routed() && p.Addr().Is4():
			gateways = append(gateways, netip.IPv4Unspecified())
		case s.routed():
			gateways = append(gateways, netip.IPv6Unspecified())
		default:
			gateways = append(gateways, p.Addr())
		}
	}
	return gateways
}

// Connect makes the container's interface.
func (s *segment) Connect(_ context.Context, c *network.Connection) error {
	c.Ports = nil // other hosts reach the container itself
	e := &c.Endpoint
	link, err := s.link(e)
	if err != nil {
		return err
	}
	ns, h, err := namespace.Open(c.Netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	defer h.Close()
	link.Attrs().Namespace = netlink.NsFd(ns)
	if err := netlink.LinkAdd(link); err != nil {
		if errors.Is(err, syscall.EBUSY) || errors.Is(err, syscall.EINVAL) {
			return errs.New(errs.Conflict, "interface %s: %s in mode %s on parent %s: %w", e.Interface, s.driver.kind, s.cfg.Mode, s.cfg.Parent, err).
				WithHint("An interface is the parent of one kind only, and in mode passthru of one container.")
		}
		return unsupported(e.Interface, err)
	}
	i := namespace.Interface{Name: e.Interface, Sysctls: c.Sysctls, Addrs: namespace.Addresses(e.IPv4, e.IPv6, e.LinkLocal)}
	if c.Default {
		i.Via = s.via()
	}
	if err := namespace.SetUp(c.Netns, h, i); err != nil {
		return err
	}
	if made, err := h.LinkByName(e.Interface); err == nil {
		e.MAC = made.Attrs().HardwareAddr.String()
	}
	return nil
}

// link returns the interface of an endpoint, which is not made yet.
func (s *segment) link(e *network.Endpoint) (netlink.Link, error) {
	parent, err := netlink.LinkByName(s.cfg.Parent)
	if err != nil {
		return nil, errs.New(errs.Precondition, "parent interface %s: %w", s.cfg.Parent, err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex, attrs.MTU = e.Interface, parent.Attrs().Index, min(s.cfg.MTU, parent.Attrs().MTU)
	if s.driver.kind == IPVLAN {
		if e.MAC != "" {
			return nil, errs.New(errs.Invalid, "ipvlan interfaces do not support custom mac address assignment")
		}
		mode := map[string]netlink.IPVlanMode{"l2": netlink.IPVLAN_MODE_L2, "l3": netlink.IPVLAN_MODE_L3, "l3s": netlink.IPVLAN_MODE_L3S}[s.cfg.Mode]
		flag := map[string]netlink.IPVlanFlag{"private": netlink.IPVLAN_FLAG_PRIVATE, "vepa": netlink.IPVLAN_FLAG_VEPA}[s.cfg.Flag]
		return &netlink.IPVlan{LinkAttrs: attrs, Mode: mode, Flag: flag}, nil
	}
	mode := map[string]netlink.MacvlanMode{
		"bridge": netlink.MACVLAN_MODE_BRIDGE, "private": netlink.MACVLAN_MODE_PRIVATE, "vepa": netlink.MACVLAN_MODE_VEPA, "passthru": netlink.MACVLAN_MODE_PASSTHRU,
	}[s.cfg.Mode]
	if e.MAC == "" && s.cfg.Mode != "passthru" && e.IPv4.IsValid() { // in passthru mode it is that of the parent
		b := e.IPv4.Addr().As4()
		e.MAC = fmt.Sprintf("02:42:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3])
	}
	if e.MAC != "" {
		if attrs.HardwareAddr, err = net.ParseMAC(e.MAC); err != nil {
			return nil, errs.New(errs.Invalid, "invalid MAC address %q: %w", e.MAC, err)
		}
	}
	return &netlink.Macvlan{LinkAttrs: attrs, Mode: mode}, nil
}

// Promote sets the default routes.
func (s *segment) Promote(_ context.Context, c *network.Connection) error {
	c.Ports, c.Handed = nil, false
	return namespace.AddRoutes(c.Netns, c.Endpoint.Interface, s.via()...)
}

// Demote undoes Promote.
func (s *segment) Demote(_ context.Context, c *network.Connection) error {
	return namespace.RemoveRoutes(c.Netns, c.Endpoint.Interface)
}

// Adopt implements network.Segment.
func (s *segment) Adopt(context.Context, network.Connection) error { return nil }

// Disconnect removes the container's interface. It is gone with the namespace, too.
func (s *segment) Disconnect(_ context.Context, c network.Connection, done func()) {
	defer done()
	if !namespace.Exists(c.Netns) {
		return
	}
	ns, h, err := namespace.Open(c.Netns)
	if err != nil {
		return
	}
	defer ns.Close()
	defer h.Close()
	link, err := h.LinkByName(c.Endpoint.Interface)
	if err != nil {
		return
	}
	if err := h.LinkDel(link); err != nil {
		s.driver.opts.Log.Warn("interface stays", "container", c.Container, "interface", c.Endpoint.Interface, "err", err)
	}
}

// Down removes the parent if this engine made it.
func (s *segment) Down(context.Context) error {
	s.driver.making.Lock()
	defer s.driver.making.Unlock()
	s.driver.mu.Lock()
	delete(s.driver.segments, s.cfg.Parent)
	s.driver.mu.Unlock()
	link, err := netlink.LinkByName(s.cfg.Parent)
	if err != nil || !s.driver.made(link) {
		return nil
	}
	return netlink.LinkDel(link)
}

// Close implements network.Segment.
func (s *segment) Close() error { return nil }
