package bridge

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"

	"ply/internal/errs"
	"ply/internal/network"
	"ply/internal/network/changes"
	"ply/internal/network/namespace"
)

// What the driver made can be removed by others: a reload of the host's own packet filter flushes all tables, a network manager or an administrator removes
// a bridge. Watch makes it again: the driver knows all that should be there.

// damage is what may have been removed.
type damage struct {
	rules    bool
	filter   bool            // the chain FORWARD of iptables is another one
	segments map[string]bool // whole bridges, by name
	ports    map[string]bool // single interfaces of containers, by name on the host
}

func (d *damage) any() bool { return d.rules || d.filter || len(d.segments) > 0 || len(d.ports) > 0 }

func (d *damage) add(o damage) {
	d.rules, d.filter = d.rules || o.rules, d.filter || o.filter
	maps.Copy(d.segments, o.segments)
	maps.Copy(d.ports, o.ports)
}

func newDamage() damage { return damage{segments: map[string]bool{}, ports: map[string]bool{}} }

const (
	gather     = 20 * time.Millisecond // changes come in groups
	firstRetry = 100 * time.Millisecond
	lastRetry  = 10 * time.Second
)

// Watch makes again what others remove of bridges, of the interfaces of containers and of rules, until ctx ends. started is called once, when no later removal is missed.
func (d *Driver) Watch(ctx context.Context, started func()) error {
	reports := make(chan damage)
	ended := make(chan error, 1)
	go func() {
		ended <- changes.Watch(ctx, started, func(c changes.Change) {
			if dmg := d.assess(c); dmg.any() {
				select {
				case reports <- dmg:
				case <-ctx.Done():
				}
			}
		})
		close(reports)
	}()
	d.mendOn(ctx, reports)
	return <-ended
}

// mendOn mends what is reported until reports is closed.
func (d *Driver) mendOn(ctx context.Context, reports <-chan damage) {
	open := newDamage()
	wait := firstRetry
	var timer <-chan time.Time
	soon := false // the timer ends the gathering of reports: later ones do not put it off
	for {
		select {
		case r, more := <-reports:
			if !more {
				return
			}
			open.add(r)
			if !soon {
				timer, wait, soon = time.After(gather), firstRetry, true
			}
		case <-timer:
			timer, soon = nil, false
			if open = d.mend(ctx, open); open.any() {
				timer, wait = time.After(wait), min(2*wait, lastRetry)
			}
		}
	}
}

// assess returns what a change may have damaged.
func (d *Driver) assess(c changes.Change) damage {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := newDamage()
	if c.Lost {
		out.rules, out.filter = true, true
		for name := range d.segments {
			out.segments[name] = true
		}
	}
	out.rules = out.rules || c.Table != "" && (c.Table == d.table.Name() || c.Table == forwardTable)
	for _, table := range []string{"ip filter", "ip6 filter"} {
		out.filter = out.filter || len(d.segments) > 0 && (c.Table == table || c.Grown == table)
	}
	for _, name := range []string{c.Removed, c.Changed} {
		if d.segments[name] != nil {
			out.segments[name] = true
		}
	}
	if d.plugged[c.Removed] != nil {
		out.ports[c.Removed] = true
	}
	return out
}

// mend returns what is still damaged.
func (d *Driver) mend(ctx context.Context, dmg damage) damage {
	left := newDamage()
	failed := func(what string, err error) bool {
		if err != nil && ctx.Err() == nil {
			d.opts.Log.Warn("what was removed from the host's network cannot be made again yet", "what", what, "err", err)
		}
		return err != nil
	}
	for _, name := range slices.Sorted(maps.Keys(dmg.segments)) {
		d.mu.Lock()
		s := d.segments[name]
		d.mu.Unlock()
		if s != nil && failed("bridge "+name, s.mend(ctx)) {
			left.segments[name] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(dmg.ports)) {
		d.mu.Lock()
		s := d.plugged[name]
		d.mu.Unlock()
		if s != nil && failed("interface "+name, s.mendPort(name)) {
			left.ports[name] = true
		}
	}
	if dmg.rules && failed("rules", d.mendRules(ctx)) {
		left.rules = true
	}
	if dmg.filter && failed("rules in the chain FORWARD", d.mendPassing(ctx)) {
		left.filter = true
	}
	return left
}

func (d *Driver) mendRules(ctx context.Context) error {
	if d.opts.NoRules {
		return nil
	}
	// First what keeps the host from forwarding for others.
	forwarding, ferr := d.mendForwarding(ctx)
	table, terr := d.table.Mend(ctx)
	if forwarding || table {
		d.opts.Log.Warn("rules were removed by someone else, and are there again", "table", d.table.Name())
	}
	return errors.Join(ferr, terr)
}

func (d *Driver) mendPassing(ctx context.Context) error {
	changed, err := d.passThrough(ctx)
	if changed && err == nil {
		d.opts.Log.Info("the host's firewall drops what is forwarded; it passes what ply's own rules allow", "chain", passChain)
	}
	return err
}

// mend makes the bridge and the interfaces of its containers again, as far as they are missing.
func (s *segment) mend(ctx context.Context) error {
	s.changing.Lock()
	defer s.changing.Unlock()
	if s.down {
		return nil
	}
	if err := s.mendBridge(ctx); err != nil {
		return err
	}
	var all error
	for _, c := range s.connections() {
		all = errors.Join(all, s.mendConnection(c))
	}
	return all
}

func (s *segment) connections() []network.Connection {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.connected))
}

// mendBridge makes the bridge again with the addresses that it had.
func (s *segment) mendBridge(ctx context.Context) error {
	unlock := lockHost(ctx, s.opts.Log)
	defer unlock()
	link, err := netlink.LinkByName(s.cfg.Bridge)
	var missing netlink.LinkNotFoundError
	switch {
	case errors.As(err, &missing):
		s.opts.Log.Warn("a bridge was removed by someone else, and is made again", "bridge", s.cfg.Bridge)
		c := s.cfg
		c.Address, c.Address6 = s.gateway, s.gateway6
		if _, _, err := ensureBridge(c, s.opts.Owner); err != nil {
			return err
		}
	case err != nil:
		return errs.New(errs.Internal, "bridge %s: %w", s.cfg.Bridge, err)
	default:
		for _, p := range []netip.Prefix{s.gateway, s.gateway6} {
			if !p.IsValid() || p.Addr().Is4() && (s.cfg.NoIPv4 || s.cfg.Isolated || s.cfg.Inhibit) || p.Addr().Is6() && s.cfg.Isolated6 {
				continue
			}
			if err := setAddress(link, p); err != nil {
				return err
			}
		}
		if err := up(link); err != nil {
			return err
		}
	}
	if s.opts.NoRules {
		return nil
	}
	if len(s.links()) > 0 {
		if err := s.answerForNeighbours(); err != nil {
			return err
		}
	}
	return sysctl("ipv4/conf/"+s.cfg.Bridge+"/route_localnet", "1")
}

// mendPort is mend for one container.
func (s *segment) mendPort(name string) error {
	s.changing.Lock()
	defer s.changing.Unlock()
	for _, c := range s.connections() {
		if c.Endpoint.HostIf == name && !s.down {
			return s.mendConnection(c)
		}
	}
	return nil
}

// mendConnection makes the interface of a container a port of the bridge, and makes it again if it is gone. The namespace may be gone
// as well, with a container that is about to be disconnected.
func (s *segment) mendConnection(c network.Connection) error {
	bridge, err := netlink.LinkByName(s.cfg.Bridge)
	if err != nil {
		return errs.New(errs.Internal, "bridge %s: %w", s.cfg.Bridge, err)
	}
	link, err := netlink.LinkByName(c.Endpoint.HostIf)
	var missing netlink.LinkNotFoundError
	switch {
	case errors.As(err, &missing) && !namespace.Exists(c.Netns):
		return nil
	case errors.As(err, &missing):
		s.opts.Log.Warn("an interface of a container was removed by someone else, and is made again", "container", c.Container, "interface", c.Endpoint.HostIf)
		return s.plug(c)
	case err != nil:
		return errs.New(errs.Internal, "interface %s: %w", c.Endpoint.HostIf, err)
	case link.Attrs().MasterIndex == bridge.Attrs().Index:
		return nil
	}
	if err := netlink.LinkSetMaster(link, bridge); err != nil {
		return errs.New(errs.Internal, "interface %s: attach to bridge %s: %w", c.Endpoint.HostIf, s.cfg.Bridge, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return errs.New(errs.Internal, "interface %s: set up: %w", c.Endpoint.HostIf, err)
	}
	return s.setModes(link)
}
