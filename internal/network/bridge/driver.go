package bridge

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"

	"ply/internal/errs"
	"ply/internal/network"
	"ply/internal/network/namespace"
	"ply/internal/network/ports"
	"ply/internal/network/proxy"
	"ply/internal/network/rules"
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
	Owner         string     // the engine, in words: it is written at the bridges, which other engines leave alone then
	Zone          Zone       // of the host's firewall; nil = the host has no zones
	Log           *slog.Logger
}

// Zone is where a firewall that rejects what comes from unknown interfaces has the bridges.
type Zone interface {
	// Add and Remove put a bridge into the zone and take it out, without waiting.
	Add(bridge string)
	Remove(bridge string)

	// Await waits for a bounded time until the firewall knows about what was added and removed.
	Await(ctx context.Context)
}

// noZone is the Zone of a host without zones.
type noZone struct{}

func (noZone) Add(string)            {}
func (noZone) Remove(string)         {}
func (noZone) Await(context.Context) {}

// Driver makes bridges. Safe for concurrent use.
type Driver struct {
	opts  Options
	table *rules.Table

	forwarding sync.Mutex // held while the forwarding of the host is set up, which is read before it is changed
	filtering  sync.Mutex // held while the chain FORWARD of the host is changed, which is read before

	mu       sync.Mutex // not held during I/O
	obsolete []string   // tables of earlier releases, which had one for each bridge
	segments map[string]*segment
	plugged  map[string]*segment // by the names of the containers' interfaces on the host
}

var _ network.Driver = (*Driver)(nil)

// New returns the driver. It changes nothing on the host.
func New(o Options) *Driver {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Zone == nil || o.NoRules {
		o.Zone = noZone{}
	}
	return &Driver{opts: o, table: rules.New(tableOf(o.Owner)), segments: map[string]*segment{}, plugged: map[string]*segment{}}
}

// all returns the bridges.
func (d *Driver) all() []*segment {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Collect(maps.Values(d.segments))
}

// tableOf returns the name of an engine's table.
func tableOf(owner string) string {
	if owner == "" {
		return "ply"
	}
	sum := sha256.Sum256([]byte(owner))
	return "ply-" + hex.EncodeToString(sum[:4])
}

// Up makes the bridge and adds it to the rules. With inUse the rules stay as they are, with the ports of running
// containers, until Restored.
func (d *Driver) Up(ctx context.Context, c network.Config, inUse bool) (network.Segment, error) {
	if c.Bridge == "none" {
		return nil, errs.New(errs.Precondition, "the default bridge is switched off (\"bridge\": \"none\")").
			WithHint("Use --network host or --network none.")
	}
	s := &segment{
		driver: d, opts: d.opts, cfg: c, table: d.table, reserved: map[oci.ContainerID][]ports.Reservation{}, carried: map[oci.ContainerID]*proxy.Set{}, connected: map[oci.ContainerID]network.Connection{},
	}
	err := d.ensure(ctx, s)
	if err != nil {
		return nil, err
	}
	d.opts.Zone.Add(s.cfg.Bridge)
	if err := d.rules(ctx, s, inUse); err != nil {
		if !inUse {
			d.opts.Zone.Remove(s.cfg.Bridge)
			err = errors.Join(err, d.opts.remove(s.cfg.Bridge))
		}
		return nil, err
	}
	d.mu.Lock()
	d.segments[s.cfg.Bridge] = s
	d.mu.Unlock()
	if !inUse { // what containers send first should not be rejected
		if _, err := d.passThrough(ctx); err != nil {
			d.opts.Log.Warn("the host's firewall may drop what containers send", "bridge", s.cfg.Bridge, "err", err)
		}
		d.opts.Zone.Await(ctx)
	}
	return s, nil
}

// ensure makes the bridge. One without a name gets the first that no other engine has. No other engine chooses a name or an address at the same time.
func (d *Driver) ensure(ctx context.Context, s *segment) (err error) {
	unlock := lockHost(ctx, d.opts.Log)
	defer unlock()
	if s.cfg.Bridge != "" {
		s.gateway, s.gateway6, err = ensureBridge(s.cfg, d.opts.Owner)
		return err
	}
	for n := range maxEngines {
		s.cfg.Bridge = chosenPrefix + strconv.Itoa(n)
		if s.gateway, s.gateway6, err = ensureBridge(s.cfg, d.opts.Owner); !errors.As(err, new(*foreignError)) {
			break
		}
	}
	return err
}

// maxEngines bounds the search for a name.
const maxEngines = 100

// The driver chooses a name of this prefix and a number for a bridge whose network names none.
const chosenPrefix = "ply"

func chosen(name string) bool {
	n, ok := strings.CutPrefix(name, chosenPrefix)
	_, err := strconv.Atoi(n)
	return ok && err == nil
}

func (d *Driver) rules(ctx context.Context, s *segment, inUse bool) error {
	c := s.cfg
	if err := d.setUpForwarding(ctx, c.Bridge, s.gateway6.IsValid(), c.Internal); err != nil {
		return err
	}
	if d.opts.NoRules {
		return nil
	}
	if err := sysctl("ipv4/conf/"+c.Bridge+"/route_localnet", "1"); err != nil {
		return err
	}
	if inUse {
		d.mu.Lock()
		d.obsolete = append(d.obsolete, "ply-"+c.Bridge)
		d.mu.Unlock()
	}
	b := rules.Bridge{Name: c.Bridge, Masquerade: !c.NoMasq, Masquerade6: !c.NoMasq6, Source: c.Source, Source6: c.Source6, ICC: !c.NoICC, Internal: c.Internal, Open: c.Open, Open6: c.Open6,
		Isolated: c.Isolated, Isolated6: c.Isolated6, Trusted: c.Trusted}
	for _, p := range []netip.Prefix{s.gateway, s.gateway6} {
		if p.IsValid() {
			b.Subnets = append(b.Subnets, p)
		}
	}
	return d.table.AddBridge(ctx, b, inUse)
}

// Restored attaches the containers again whose bridges or interfaces vanished meanwhile, and writes the rules anew, with all bridges and ports that
// were handed over, in place of what an earlier engine wrote.
func (d *Driver) Restored(ctx context.Context) error {
	for _, s := range d.all() {
		if err := s.mend(ctx); err != nil {
			d.opts.Log.Error("containers are not attached to their bridge", "bridge", s.cfg.Bridge, "err", err)
		}
	}
	if d.opts.NoRules {
		return nil
	}
	if err := d.mendPassing(ctx); err != nil {
		d.opts.Log.Warn("the host's firewall may drop what containers send", "err", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	obsolete := slices.DeleteFunc(d.obsolete, func(name string) bool { return "inet "+name == d.table.Name() })
	d.obsolete = nil
	return d.table.Restore(ctx, obsolete...)
}

// segment is one bridge of this host.
type segment struct {
	driver            *Driver
	opts              Options
	cfg               network.Config
	gateway, gateway6 netip.Prefix
	table             *rules.Table

	background sync.WaitGroup // deletions of interfaces

	changing sync.RWMutex // what changes one container holds it shared, what looks at all of them exclusively; comes before mu
	down     bool         // changing protects it

	mu        sync.Mutex                              // not held during I/O
	reserved  map[oci.ContainerID][]ports.Reservation // until they are handed over
	carried   map[oci.ContainerID]*proxy.Set          // by this process
	connected map[oci.ContainerID]network.Connection
}

func (s *segment) Name() string { return s.cfg.Bridge }

func (s *segment) Gateways() (v4, v6 netip.Prefix) { return s.gateway, s.gateway6 }

// Connect reserves the ports, makes the veth pair and adds the ports to the table, in this order.
func (s *segment) Connect(ctx context.Context, c *network.Connection) error {
	s.changing.RLock()
	defer s.changing.RUnlock()
	e := &c.Endpoint
	if e.MAC == "" {
		e.MAC = macFor(*e)
	}
	if e.Interface == "" {
		e.Interface = "eth0"
	}
	e.HostIf = "veth" + randomDigits()
	if c.Default {
		if err := s.reserve(c); err != nil {
			return err
		}
	}
	if err := s.plugAgain(ctx, *c, s.plug(*c)); err != nil {
		return err
	}
	s.know(*c)
	if err := s.link(ctx, *c, false); err != nil {
		return err
	}
	if c.Default {
		return s.publish(ctx, c)
	}
	return nil
}

// know remembers how a container is connected.
func (s *segment) know(c network.Connection) {
	s.mu.Lock()
	s.connected[c.Container] = c
	s.mu.Unlock()
	s.driver.mu.Lock()
	defer s.driver.mu.Unlock()
	s.driver.plugged[c.Endpoint.HostIf] = s
}

// forget undoes know.
func (s *segment) forget(c network.Connection) {
	s.mu.Lock()
	delete(s.connected, c.Container)
	s.mu.Unlock()
	s.driver.mu.Lock()
	defer s.driver.mu.Unlock()
	delete(s.driver.plugged, c.Endpoint.HostIf)
}

// publish adds the reserved ports to the table.
func (s *segment) publish(ctx context.Context, c *network.Connection) error {
	if s.opts.NoRules {
		return nil
	}
	if err := s.table.AddPorts(ctx, s.target(c.Endpoint), c.Ports, false); err != nil {
		return err
	}
	c.Published = true
	return nil
}

func (s *segment) target(e network.Endpoint) rules.Target {
	t := rules.Target{Direct4: s.cfg.Direct, Direct6: s.cfg.Direct6, Trusted: len(s.cfg.Trusted) > 0}
	if e.IPv4.IsValid() {
		t.IPv4 = e.IPv4.Addr()
	}
	if e.IPv6.IsValid() {
		t.IPv6 = e.IPv6.Addr()
	}
	return t
}

// Promote reserves the ports, sets the default routes and adds the ports to the table.
func (s *segment) Promote(ctx context.Context, c *network.Connection) error {
	s.changing.RLock()
	defer s.changing.RUnlock()
	defer func() { s.know(*c) }()
	if err := s.reserve(c); err != nil {
		return err
	}
	if err := namespace.AddRoutes(c.Netns, c.Endpoint.Interface, s.gateways()...); err != nil {
		s.free(c.Container)
		return err
	}
	return s.publish(ctx, c)
}

// Demote undoes Promote.
func (s *segment) Demote(ctx context.Context, c *network.Connection) error {
	s.changing.RLock()
	defer s.changing.RUnlock()
	s.unpublish(ctx, *c)
	c.Published = false
	s.free(c.Container)
	demoted := *c
	demoted.Default, demoted.Ports, demoted.Handed = false, nil, false
	s.know(demoted)
	return namespace.RemoveRoutes(c.Netns, c.Endpoint.Interface)
}

// gateways returns where containers send what is for other networks.
func (s *segment) gateways() []netip.Addr {
	var out []netip.Addr
	for _, p := range []netip.Prefix{s.gateway, s.gateway6} {
		if p.IsValid() && (p.Addr().Is6() || !s.cfg.NoIPv4) {
			out = append(out, p.Addr())
		}
	}
	return out
}

// Adopt reserves the ports again. Interfaces and rules are still there, or Restored makes them again.
func (s *segment) Adopt(ctx context.Context, c network.Connection) error {
	s.changing.RLock()
	defer s.changing.RUnlock()
	s.know(c)
	if err := s.link(ctx, c, true); err != nil {
		return err
	}
	if c.Published && !s.opts.NoRules {
		if err := s.table.AddPorts(ctx, s.target(c.Endpoint), c.Ports, true); err != nil {
			return err
		}
	}
	if !c.Default || c.Handed { // the engine was killed before it published them, or the shim has them
		return nil
	}
	return s.reserve(&c)
}

// reserve reserves the ports, unless the container's shim has them or the network routes them, and sets c.Ports to those that it got.
func (s *segment) reserve(c *network.Connection) error {
	routed := func(host netip.Addr) bool {
		if host.Is4() {
			return s.cfg.Direct && c.Endpoint.IPv4.IsValid()
		}
		return s.cfg.Direct6 && c.Endpoint.IPv6.IsValid() // else the proxy carries it to the IPv4 address
	}
	handed := func(p network.PortBinding) bool { return c.Handed && !p.Routed && !routed(p.HostIP) }
	if !slices.ContainsFunc(c.Ports, func(p network.PortBinding) bool { return !handed(p) }) {
		return nil
	}
	o := ports.Options{HostIP: s.opts.HostIP, Routed: routed, Kept: handed}
	if s.cfg.HostIP.IsValid() {
		o.HostIP = s.cfg.HostIP
	}
	got, err := ports.Reserve(c.Ports, o)
	if used := new(network.PortInUseError); errors.As(err, &used) {
		used.Container, used.Name = s.driver.holder(used.Binding)
	}
	if err != nil {
		return err
	}
	c.Ports = nil
	for _, r := range got {
		c.Ports = append(c.Ports, r.PortBinding)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reserved[c.Container] = got
	return nil
}

// holder returns the container that publishes a port, with its name as its networks know it; "" when none does.
func (d *Driver) holder(p network.PortBinding) (id oci.ContainerID, name string) {
	for _, s := range d.all() {
		for _, c := range s.connections() {
			for _, o := range c.Ports {
				if o.Routed {
					continue
				}
				same := o.HostIP == p.HostIP || o.HostIP.Is4() == p.HostIP.Is4() && (o.HostIP.IsUnspecified() || p.HostIP.IsUnspecified())
				if o.Proto != p.Proto || o.HostPort != p.HostPort || !same {
					continue
				}
				if len(c.Endpoint.Aliases) > 0 {
					name = c.Endpoint.Aliases[0]
				}
				return c.Container, name
			}
		}
	}
	return "", ""
}

var _ network.Publisher = (*segment)(nil)

// HandOver implements network.Publisher.
func (s *segment) HandOver(c *network.Connection, take func([]proxy.Port, []*os.File) error) error {
	s.changing.RLock()
	defer s.changing.RUnlock()
	list, sockets, err := s.sockets(*c)
	if err != nil {
		return err
	}
	err = take(list, sockets)
	switch {
	case err == nil:
		s.free(c.Container)
		c.Handed = slices.ContainsFunc(c.Ports, func(p network.PortBinding) bool { return !p.Routed })
		s.know(*c)
		return nil
	case !errors.Is(err, errs.Unimplemented) || c.Handed:
		return err
	}
	if list, sockets, err = s.sockets(*c); err != nil {
		return err
	}
	s.mu.Lock()
	set := s.carried[c.Container]
	if set == nil {
		set = &proxy.Set{}
		s.carried[c.Container] = set
	}
	s.mu.Unlock()
	return set.Serve(list, sockets)
}

// sockets returns the published ports of a connection, with the reserved sockets.
func (s *segment) sockets(c network.Connection) (list []proxy.Port, sockets []*os.File, err error) {
	to := s.target(c.Endpoint)
	addr := to.IPv4
	if !addr.IsValid() {
		addr = to.IPv6
	}
	add := func(b network.PortBinding, socket bool) {
		if b.Routed {
			return
		}
		list = append(list, proxy.Port{
			Proto: b.Proto, Host: netip.AddrPortFrom(b.HostIP, b.HostPort), Target: netip.AddrPortFrom(addr, b.ContainerPort), Carry: !s.opts.NoProxy, Socket: socket,
		})
	}
	s.mu.Lock()
	reserved, some := s.reserved[c.Container]
	s.mu.Unlock()
	if c.Handed && !some {
		for _, b := range c.Ports {
			add(b, false)
		}
	}
	for i := range reserved {
		f, err := reserved[i].Socket()
		if err != nil {
			for _, f := range sockets {
				_ = f.Close() // the reservation has its own descriptor
			}
			return nil, nil, errs.New(errs.Internal, "published port: %w", err)
		}
		add(reserved[i].PortBinding, f != nil)
		if f != nil {
			sockets = append(sockets, f)
		}
	}
	return list, sockets, nil
}

// free releases the reserved ports of a container.
func (s *segment) free(id oci.ContainerID) {
	s.mu.Lock()
	reserved, set := s.reserved[id], s.carried[id]
	delete(s.reserved, id)
	delete(s.carried, id)
	s.mu.Unlock()
	ports.Release(reserved)
	if set != nil {
		_ = set.Close() // listening sockets have nothing to lose
	}
}

// plugAgain plugs once more after plug failed with err because someone else removed the bridge a moment ago.
func (s *segment) plugAgain(ctx context.Context, c network.Connection, err error) error {
	var missing netlink.LinkNotFoundError
	if _, gone := netlink.LinkByName(s.cfg.Bridge); err == nil || !errors.As(gone, &missing) {
		return err
	}
	if link, err := netlink.LinkByName(c.Endpoint.HostIf); err == nil {
		if err := netlink.LinkDel(link); err != nil {
			return errs.New(errs.Internal, "interface %s: remove: %w", c.Endpoint.HostIf, err)
		}
	}
	if again := s.mendBridge(ctx); again != nil {
		return errors.Join(err, again)
	}
	return s.plug(c)
}

// plug makes the veth pair and configures the container's end.
func (s *segment) plug(c network.Connection) error {
	e := c.Endpoint
	mac, err := net.ParseMAC(e.MAC)
	if err != nil {
		return errs.New(errs.Invalid, "invalid MAC address %q: %w", e.MAC, err)
	}
	bridge, err := netlink.LinkByName(s.cfg.Bridge)
	if err != nil {
		return errs.New(errs.Internal, "bridge %s: %w", s.cfg.Bridge, err)
	}
	ns, h, err := namespace.Open(c.Netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex, attrs.Flags = e.HostIf, s.cfg.MTU, bridge.Attrs().Index, net.FlagUp
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: e.Interface, PeerHardwareAddr: mac, PeerNamespace: netlink.NsFd(ns), PeerMTU: uint32(s.cfg.MTU)}
	fail := func(step string, err error) error {
		return errs.New(errs.Internal, "interface %s: %s: %w", e.HostIf, step, err)
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return fail("create", err)
	}
	// Sweep finds it by this, if this process is killed before the connection is recorded. The kernel takes no alias of a new interface.
	if err := netlink.LinkSetAlias(veth, portMark+s.cfg.ID); err != nil {
		return fail("alias", err)
	}
	if err := s.setModes(veth); err != nil {
		return err
	}
	i := namespace.Interface{Name: e.Interface, Sysctls: c.Sysctls, Addrs: namespace.Addresses(e.IPv4, e.IPv6, e.LinkLocal)}
	if c.Default {
		i.Via = s.gateways()
	}
	return namespace.SetUp(c.Netns, h, i)
}

// portMark is how the host's ends of containers' interfaces are marked, in their aliases: the words and the ID of the network.
const portMark = "port of network "

var _ network.Sweeper = (*Driver)(nil)

// Sweep implements network.Sweeper. Other interfaces that someone has attached to a bridge stay, and so do those of other engines: the IDs of networks are random.
func (d *Driver) Sweep(ctx context.Context, left func(network, hostIf string) bool, orphan func(hostIf string) bool) error {
	all, err := namespace.Whole(netlink.LinkList)
	if err != nil {
		return errs.New(errs.Internal, "network: interfaces: %w", err)
	}
	var failed error
	attached := map[int]bool{}
	for _, link := range all {
		attached[link.Attrs().MasterIndex] = true
	}
	for _, link := range all {
		a := link.Attrs()
		if link.Type() == "bridge" && a.Alias == mark+d.opts.Owner && !attached[a.Index] && !chosen(a.Name) && orphan(a.Name) {
			d.opts.Log.Warn("a bridge that an earlier engine has not recorded is removed", "bridge", a.Name)
			err := d.opts.remove(a.Name)
			if !d.opts.NoRules {
				err = errors.Join(err, leaveForwarding(ctx, a.Name))
			}
			failed = errors.Join(failed, err)
			continue
		}
		id, marked := strings.CutPrefix(a.Alias, portMark)
		if !marked || !left(id, a.Name) {
			continue
		}
		d.opts.Log.Warn("an interface that an earlier engine has not recorded is removed", "interface", a.Name)
		var gone netlink.LinkNotFoundError
		if err := netlink.LinkDel(link); err != nil && !errors.As(err, &gone) && !errors.Is(err, syscall.ENODEV) {
			failed = errors.Join(failed, errs.New(errs.Internal, "interface %s: remove: %w", a.Name, err))
		}
	}
	return failed
}

// setModes sets how the bridge passes frames to the host's end of a container's interface, which is a port of it.
func (s *segment) setModes(veth netlink.Link) error {
	fail := func(step string, err error) error {
		return errs.New(errs.Internal, "interface %s: %s: %w", veth.Attrs().Name, step, err)
	}
	// A container may connect to a published port of its own by the host's address. The frame then leaves the bridge
	// by the port on which it arrived, which a bridge allows in hairpin mode only.
	if err := netlink.LinkSetHairpin(veth, true); err != nil {
		return fail("set hairpin mode", err)
	}
	if s.cfg.NoICC && !framesPassRules() {
		// Frames between containers do not pass the rules of the host, so the bridge itself must keep them apart.
		if err := netlink.LinkSetIsolated(veth, true); err != nil {
			return fail("isolate", err)
		}
	}
	return nil
}

// framesPassRules reports whether frames between the ports of a bridge pass the host's rules (br_netfilter). Where they do, a bridge that keeps ports
// apart would also drop what goes from one to the other by a published port.
func framesPassRules() bool {
	for _, name := range []string{"iptables", "ip6tables"} {
		b, err := os.ReadFile("/proc/sys/net/bridge/bridge-nf-call-" + name)
		if err != nil || strings.TrimSpace(string(b)) != "1" {
			return false
		}
	}
	return true
}

// unpublish takes the ports of a container out of the table.
func (s *segment) unpublish(ctx context.Context, c network.Connection) {
	if !c.Published {
		return
	}
	if err := s.table.RemovePorts(ctx, s.target(c.Endpoint), c.Ports); err != nil {
		s.opts.Log.Warn("published ports stay in the rules", "container", c.Container, "err", err)
	}
}

// Disconnect undoes Connect as far as it came. What cannot be undone is logged.
func (s *segment) Disconnect(ctx context.Context, c network.Connection, done func()) {
	s.changing.RLock()
	defer s.changing.RUnlock()
	s.forget(c)
	if err := s.link(ctx, c, false); err != nil {
		s.opts.Log.Warn("ports that links opened stay in the rules", "container", c.Container, "err", err)
	}
	s.unpublish(ctx, c)
	s.free(c.Container)
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

// Down removes the bridge, and takes it out of the rules.
func (s *segment) Down(ctx context.Context) error {
	s.background.Wait()
	s.changing.Lock()
	defer s.changing.Unlock()
	s.down = true
	s.driver.mu.Lock()
	delete(s.driver.segments, s.cfg.Bridge)
	s.driver.mu.Unlock()
	var err error
	if !s.opts.NoRules {
		err = errors.Join(s.table.RemoveBridge(ctx, s.cfg.Bridge), leaveForwarding(ctx, s.cfg.Bridge), s.stopPassing(ctx))
	}
	err = errors.Join(err, s.opts.remove(s.cfg.Bridge))
	s.opts.Zone.Remove(s.cfg.Bridge)
	return err
}

// remove removes a bridge that this engine made.
func (o *Options) remove(name string) error {
	link, err := netlink.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) || err == nil && !o.made(link) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil {
		return errs.New(errs.Internal, "bridge %s: remove: %w", name, err)
	}
	return nil
}

// Close waits for deletions and closes the sockets of reserved ports. Interfaces and rules stay.
func (s *segment) Close() error {
	s.background.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.reserved {
		ports.Release(r)
	}
	for _, set := range s.carried {
		_ = set.Close() // as above
	}
	s.reserved, s.carried = map[oci.ContainerID][]ports.Reservation{}, map[oci.ContainerID]*proxy.Set{}
	return nil
}

// randomDigits returns seven hex digits for the name of an interface.
func randomDigits() string {
	var b [4]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])[:7]
}
