package network

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"ply/internal/errs"
	"ply/internal/events"
	"ply/internal/filter"
	"ply/internal/network/ipam"
	"ply/internal/oci"
	"ply/internal/store/meta"
)

// Options of Open. Meta and StateDir are required.
type Options struct {
	Meta     *meta.DB
	StateDir string            // what is true until the next boot: one file per connected container
	Drivers  map[string]Driver // by the name that a network's record has; "null" is built in
	Default  Config            // of the network "bridge"; the interface is ply0 unless it is named
	Events   *events.Bus
	Log      *slog.Logger
}

// Service keeps the networks of one engine. Safe for concurrent use; the caller serialises Attach and Detach of one
// container.
type Service struct {
	opts     Options
	log      *slog.Logger
	networks map[string]*managed // by name; the map does not change after Open

	mu        sync.Mutex // not held during I/O
	connected map[oci.ContainerID]Connection
	damaged   map[string]error // records that cannot be decoded, by their names
}

// managed is one network of the Service.
type managed struct {
	networkRecord
	name   string
	config Config

	making sync.Mutex // held while the driver makes or removes the network; comes before Service.mu
	made   *made      // nil until the network is needed
}

// made is a network that exists on the host.
type made struct {
	Segment
	addresses *ipam.Allocator // nil when the network has no addresses
}

var defaultNetworks = []struct{ name, driver string }{{"bridge", "bridge"}, {"host", "host"}, {"none", "null"}}

// Open reads the networks and the connected containers. A network is made on the host when its first container is
// attached, or here when containers of an earlier engine are connected to it. So an engine that only pulls images does
// not change the host's network.
func Open(ctx context.Context, opts Options) (*Service, error) {
	if opts.Default.Bridge == "" {
		opts.Default.Bridge = "ply0"
	}
	if opts.Default.MTU == 0 {
		opts.Default.MTU = 1500
	}
	if opts.Default.Pools == nil {
		opts.Default.Pools = ipam.DefaultPools()
	}
	opts.Drivers = maps.Clone(opts.Drivers)
	if opts.Drivers == nil {
		opts.Drivers = map[string]Driver{}
	}
	opts.Drivers["null"] = null{}
	s := &Service{opts: opts, log: opts.Log, networks: map[string]*managed{}, connected: map[oci.ContainerID]Connection{}, damaged: map[string]error{}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if err := s.loadNetworks(); err != nil {
		return nil, err
	}
	return s, s.restore(ctx)
}

// restore takes over the containers that an earlier engine connected.
func (s *Service) restore(ctx context.Context) error {
	found, err := readConnections(s.opts.StateDir)
	if err != nil {
		return err
	}
	for _, c := range found {
		s.connected[c.Container] = c
		m := s.networks[c.Endpoint.Network]
		if m == nil || !c.Endpoint.IPv4.IsValid() {
			continue
		}
		up, err := s.up(ctx, m, true)
		if err != nil {
			return err
		}
		if _, err := up.addresses.Allocate(c.Endpoint.IPv4.Addr()); err != nil {
			s.log.Warn("address of a running container is not free", "container", c.Container, "err", err)
		}
		if err := up.Adopt(ctx, c); err != nil {
			s.log.Warn("published port cannot be reserved again; the kernel's rules still serve it", "container", c.Container, "err", err)
		}
	}
	return nil
}

// up makes the network on the host unless it is there, and returns it.
func (s *Service) up(ctx context.Context, m *managed, inUse bool) (*made, error) {
	m.making.Lock()
	defer m.making.Unlock()
	if m.made != nil {
		return m.made, nil
	}
	d := s.opts.Drivers[m.Driver]
	if d == nil {
		return nil, errs.New(errs.Invalid, "network %s: there is no driver %s", m.name, m.Driver)
	}
	segment, err := d.Up(ctx, m.config, inUse)
	if err != nil {
		return nil, err
	}
	m.made = &made{Segment: segment}
	if gateway := segment.Gateway(); gateway.IsValid() {
		pool := m.config.Fixed
		if !pool.IsValid() {
			pool = gateway
		}
		m.made.addresses = ipam.NewAllocator(gateway, pool, gateway.Addr())
	}
	return m.made, nil
}

// current returns the network on the host; nil when it is not made.
func (m *managed) current() *made {
	m.making.Lock()
	defer m.making.Unlock()
	return m.made
}

// gateway returns the address of the gateway with the length of the subnet; invalid when the network is not made yet.
func (m *managed) gateway() netip.Prefix {
	up := m.current()
	if up == nil {
		return netip.Prefix{}
	}
	return up.Gateway()
}

// Close waits for background work and releases the reserved ports. Containers keep their network, and the rules stay.
func (s *Service) Close() error {
	var all error
	for _, m := range s.networks {
		if up := m.current(); up != nil {
			all = errors.Join(all, up.Close())
		}
	}
	return all
}

// Teardown removes the networks from the host unless a container is connected.
func (s *Service) Teardown(ctx context.Context) error {
	s.mu.Lock()
	busy := len(s.connected)
	s.mu.Unlock()
	if busy > 0 {
		return nil
	}
	var all error
	for _, m := range s.networks {
		m.making.Lock()
		if m.made != nil {
			all = errors.Join(all, m.made.Down(ctx))
			m.made = nil
		}
		m.making.Unlock()
	}
	return all
}

// Get returns a network by its name, its ID or an unambiguous prefix of the ID. The error's class is errs.NotFound when
// there is none.
func (s *Service) Get(ctx context.Context, ref string) (*Network, error) {
	all, err := s.List(ctx, nil)
	if err != nil {
		return nil, err
	}
	var found *Network
	for _, n := range all {
		if n.Name == ref || n.ID == ref {
			return n, nil
		}
		if ref != "" && strings.HasPrefix(n.ID, ref) {
			if found != nil {
				return nil, errs.New(errs.Invalid, "network %s is ambiguous (2 matches found based on ID prefix)", ref)
			}
			found = n
		}
	}
	if found == nil {
		return nil, errs.New(errs.NotFound, "network %s not found", ref)
	}
	return found, nil
}

// RemoveDamaged deletes a damaged record. The error's class is errs.NotFound when there is none of that name or ID.
func (s *Service) RemoveDamaged(ctx context.Context, ref string) error {
	n, err := s.Get(ctx, ref)
	if err != nil {
		return err
	}
	if n.Damaged == nil {
		return errs.New(errs.NotFound, "network %s has no damaged record", n.Name)
	}
	if err := s.opts.Meta.Update(func(tx *meta.Tx) error { return tx.Networks.Delete(n.Name) }); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.damaged, n.Name)
	return nil
}

// List returns the networks that match; ListFilters lists the filters. A record that is damaged is listed with its name, and
// Damaged says why.
func (s *Service) List(_ context.Context, filters filter.Args) ([]*Network, error) {
	match, err := ListFilters.Compile(filters)
	if err != nil {
		return nil, err
	}
	var out []*Network
	for _, n := range defaultNetworks {
		m := s.networks[n.name]
		gateway := m.gateway()
		net := &Network{ID: m.ID, Name: n.name, Driver: m.Driver, Created: m.Created, Subnet: gateway.Masked(), Gateway: gateway.Addr(), Endpoints: map[string]Endpoint{}}
		if n.name == "bridge" {
			net.Options = map[string]string{"com.docker.network.bridge.name": s.opts.Default.Bridge, "com.docker.network.bridge.default_bridge": "true"}
		}
		s.mu.Lock()
		for id, c := range s.connected {
			if c.Endpoint.Network == n.name {
				net.Endpoints[string(id)] = c.Endpoint
			}
		}
		s.mu.Unlock()
		if match(net) {
			out = append(out, net)
		}
	}
	s.mu.Lock()
	damaged := maps.Clone(s.damaged)
	s.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(damaged)) {
		// The ID is lost. That of the list is always the same, so that clients can tell the entries apart.
		net := &Network{ID: oci.DigestOf([]byte(name)).Hex(), Name: name, Endpoints: map[string]Endpoint{}, Damaged: damaged[name]}
		if match(net) {
			out = append(out, net)
		}
	}
	return out, nil
}
