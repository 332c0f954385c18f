package bridge

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"

	"ply/internal/errs"
	"ply/internal/network"
	"ply/internal/network/ipam"
	"ply/internal/network/namespace"
	"ply/internal/network/ports"
	"ply/internal/oci"
)

// Options of New, the same for every bridge of the host. The zero value is ready for use.
type Options struct {
	HostIP        netip.Addr // where ports are published by default; invalid = on all addresses
	NoRules       bool       // do not touch nftables ("iptables": false)
	NoForward     bool       // do not switch IP forwarding on
	NoForwardDrop bool       // after switching IP forwarding on, let the host forward between all its networks
	StateFile     string     // remembers until the next boot that IP forwarding was switched on; "" = only the rules tell
	NoProxy       bool       // reserve published ports, but carry no connection in user space
	Log           *slog.Logger
}

// Driver makes bridges. Safe for concurrent use.
type Driver struct{ opts Options }

var _ network.Driver = (*Driver)(nil)

// New returns the driver. It changes nothing on the host.
func New(o Options) *Driver {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Driver{o}
}

// Up makes the bridge and its table. With inUse a table that exists stays as it is, with the ports of running
// containers; otherwise it is made anew.
func (d *Driver) Up(ctx context.Context, c network.Config, inUse bool) (network.Segment, error) {
	if c.Bridge == "none" {
		return nil, errs.New(errs.Precondition, "the default bridge is switched off (\"bridge\": \"none\")").
			WithHint("Use --network host or --network none.")
	}
	gateway, err := ensureBridge(c)
	if err != nil {
		return nil, err
	}
	if err := d.setUpForwarding(ctx, c.Bridge); err != nil {
		return nil, err
	}
	s := &segment{
		opts: d.opts, cfg: c, gateway: gateway, reserved: map[oci.ContainerID][]ports.Reservation{},
		table: ports.Table{Name: "ply-" + c.Bridge, Bridge: c.Bridge, Subnet: gateway, Masquerade: !c.NoMasq, ICC: !c.NoICC},
	}
	if d.opts.NoRules {
		return s, nil
	}
	if err := sysctl("ipv4/conf/"+c.Bridge+"/route_localnet", "1"); err != nil {
		return nil, err
	}
	if !inUse || !s.table.Exists(ctx) {
		if err := s.table.Create(ctx); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// segment is one bridge of this host.
type segment struct {
	opts    Options
	cfg     network.Config
	gateway netip.Prefix
	table   ports.Table

	background sync.WaitGroup // deletions of interfaces

	mu       sync.Mutex // not held during I/O
	reserved map[oci.ContainerID][]ports.Reservation
}

func (s *segment) Gateway() netip.Prefix { return s.gateway }

// Connect reserves the ports, makes the veth pair and adds the ports to the table, in this order.
func (s *segment) Connect(ctx context.Context, c *network.Connection) error {
	e := &c.Endpoint
	if e.MAC == "" {
		e.MAC = macFor(e.IPv4.Addr())
	}
	e.Interface, e.HostIf = "eth0", "veth"+randomDigits()
	if err := s.reserve(*c); err != nil {
		return err
	}
	c.Ports = s.bound(c.Container)
	if err := s.plug(*e, c.Netns); err != nil {
		return err
	}
	if s.opts.NoRules {
		return nil
	}
	if err := s.table.Add(ctx, e.IPv4.Addr(), c.Ports); err != nil {
		return err
	}
	c.Published = true
	return nil
}

// Adopt reserves the ports again. Interfaces and rules are still there.
func (s *segment) Adopt(_ context.Context, c network.Connection) error { return s.reserve(c) }

func (s *segment) reserve(c network.Connection) error {
	got, err := ports.Reserve(c.Ports, c.Endpoint.IPv4.Addr(), ports.Options{HostIP: s.opts.HostIP, Proxy: !s.opts.NoProxy})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reserved[c.Container] = got
	return nil
}

// bound returns the reserved ports of a container, with host addresses and ports filled in.
func (s *segment) bound(id oci.ContainerID) []network.PortBinding {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []network.PortBinding
	for _, r := range s.reserved[id] {
		out = append(out, r.PortBinding)
	}
	return out
}

// plug makes the veth pair and configures the container's end.
func (s *segment) plug(e network.Endpoint, netns string) error {
	mac, err := net.ParseMAC(e.MAC)
	if err != nil {
		return errs.New(errs.Invalid, "invalid MAC address %q: %w", e.MAC, err)
	}
	bridge, err := netlink.LinkByName(s.cfg.Bridge)
	if err != nil {
		return errs.New(errs.Internal, "bridge %s: %w", s.cfg.Bridge, err)
	}
	ns, h, err := namespace.Open(netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex = e.HostIf, s.cfg.MTU, bridge.Attrs().Index
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: e.Interface, PeerHardwareAddr: mac, PeerNamespace: netlink.NsFd(ns), PeerMTU: uint32(s.cfg.MTU)}
	fail := func(step string, err error) error {
		return errs.New(errs.Internal, "interface %s: %s: %w", e.HostIf, step, err)
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return fail("create", err)
	}
	if err := netlink.LinkSetUp(veth); err != nil {
		return fail("set up", err)
	}
	// A container may connect to a published port of its own by the host's address. The frame then leaves the bridge
	// by the port on which it arrived, which a bridge allows in hairpin mode only.
	if err := netlink.LinkSetHairpin(veth, true); err != nil {
		return fail("set hairpin mode", err)
	}
	eth, err := h.LinkByName(e.Interface)
	if err != nil {
		return fail("find peer", err)
	}
	if err := h.AddrAdd(eth, &netlink.Addr{IPNet: ipNet(e.IPv4), Broadcast: net.IP(ipam.Broadcast(e.IPv4).AsSlice())}); err != nil {
		return fail("address", err)
	}
	if err := h.LinkSetUp(eth); err != nil {
		return fail("set up peer", err)
	}
	if err := h.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: net.IP(e.Gateway.AsSlice())}); err != nil {
		return fail("default route", err)
	}
	return nil
}

// Disconnect undoes Connect as far as it came. What cannot be undone is logged.
func (s *segment) Disconnect(ctx context.Context, c network.Connection, done func()) {
	if c.Published {
		if err := s.table.Remove(ctx, c.Endpoint.IPv4.Addr(), c.Ports); err != nil {
			s.opts.Log.Warn("published ports stay in the rules", "container", c.Container, "err", err)
		}
	}
	s.mu.Lock()
	reserved := s.reserved[c.Container]
	delete(s.reserved, c.Container)
	s.mu.Unlock()
	ports.Release(reserved)
	// The kernel takes tens of milliseconds to delete an interface, and no caller needs to wait for it: the
	// interface's name is random, and the address is freed afterwards.
	s.background.Go(func() {
		defer done()
		link, err := netlink.LinkByName(c.Endpoint.HostIf)
		if err != nil {
			return
		}
		var gone netlink.LinkNotFoundError
		if err := netlink.LinkDel(link); err != nil && !errors.As(err, &gone) && !errors.Is(err, syscall.ENODEV) {
			s.opts.Log.Warn("interface stays", "interface", c.Endpoint.HostIf, "err", err)
		}
	})
}

// Down removes the bridge and the table.
func (s *segment) Down(ctx context.Context) error {
	s.background.Wait()
	var err error
	if !s.opts.NoRules {
		err = errors.Join(s.table.Delete(ctx), leaveForwarding(ctx, s.cfg.Bridge))
	}
	if link, lerr := netlink.LinkByName(s.cfg.Bridge); lerr == nil {
		err = errors.Join(err, netlink.LinkDel(link))
	}
	return err
}

// Close waits for deletions and closes the sockets of reserved ports. Interfaces and rules stay.
func (s *segment) Close() error {
	s.background.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.reserved {
		ports.Release(r)
	}
	s.reserved = map[oci.ContainerID][]ports.Reservation{}
	return nil
}

// randomDigits returns seven hex digits for the name of an interface.
func randomDigits() string {
	var b [4]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])[:7]
}
