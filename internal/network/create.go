package network

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"ply/internal/errs"
	"ply/internal/events"
	"ply/internal/filter"
	"ply/internal/network/ipam"
	"ply/internal/oci"
	"ply/internal/store/meta"
)

// CreateOptions of Create.
type CreateOptions struct {
	Name       string
	Driver     string // "" = bridge
	NoIPv4     bool
	IPv6       bool
	Pools      []Pool            // at most one of each family; a family without one gets a free subnet
	IPAM       map[string]string // options
	Internal   bool
	Attachable bool
	Labels     map[string]string
	Options    map[string]string // of the driver

	// Of a network that another engine had.
	ID      string    // 64 hex digits; "" = a new one
	Created time.Time // zero = now
}

var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

// maxNameLen bounds the name of a network, in bytes.
const maxNameLen = 200

// Create makes a network and returns its ID. The network is on the host and its record is durable when Create returns. Errors: errs.Invalid for a
// name, an option or an address that makes no sense; errs.Conflict for a name that is taken; errs.Forbidden for a subnet that overlaps another one.
func (s *Service) Create(ctx context.Context, o CreateOptions) (string, error) {
	for try := 1; ; try++ {
		id, err := create(ctx, s, o)
		// Another engine took the subnet that was chosen a moment ago; its routes show it now.
		if taken := new(TakenError); errors.As(err, &taken) && try < maxChoices && !slices.ContainsFunc(o.Pools, func(p Pool) bool { return p.Subnet == taken.Subnet }) {
			continue
		}
		return id, err
	}
}

// maxChoices is how often Create chooses a subnet.
const maxChoices = 10

func create(ctx context.Context, s *Service, o CreateOptions) (string, error) {
	m, err := newNetwork(s, o)
	if err != nil {
		return "", err
	}
	if err := s.reserve(m); err != nil {
		return "", err
	}
	undo := func(err error) (string, error) {
		err = errors.Join(err, m.down(context.WithoutCancel(ctx)))
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.networks, m.name)
		return "", err
	}
	if _, err := s.up(ctx, m, false); err != nil {
		return undo(err)
	}
	err = s.opts.Meta.Update(func(tx *meta.Tx) error { return meta.As[networkRecord](tx.Networks).Put(m.name, m.networkRecord) })
	if err != nil {
		return undo(err)
	}
	m.pending.Store(false)
	s.publish("create", m, "")
	return m.ID, nil
}

func invalid(format string, args ...any) error { return errs.New(errs.Invalid, format, args...) }

// newNetwork checks what does not depend on other networks.
func newNetwork(s *Service, o CreateOptions) (*managed, error) {
	if !validName.MatchString(o.Name) || len(o.Name) > maxNameLen {
		return nil, invalid("invalid network name: %.64q: only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", o.Name)
	}
	if o.Name == "default" || slices.ContainsFunc(defaultNetworks, func(d struct{ name, driver string }) bool { return d.name == o.Name }) {
		return nil, errs.New(errs.Forbidden, "operation is not permitted on predefined %s network", o.Name)
	}
	rec := networkRecord{
		ID: randomID(), Driver: o.Driver, Created: time.Now().UTC(), User: true, NoIPv4: o.NoIPv4, IPv6: o.IPv6, Pools: slices.Clone(o.Pools), IPAM: o.IPAM,
		Internal: o.Internal, Attachable: o.Attachable, Labels: maps.Clone(o.Labels), Options: maps.Clone(o.Options),
	}
	if o.ID != "" {
		if !oci.IsHex64(o.ID) {
			return nil, invalid("invalid network ID: %.64q: it has 64 hexadecimal digits", o.ID)
		}
		rec.ID = o.ID
	}
	if !o.Created.IsZero() {
		rec.Created = o.Created.UTC()
	}
	if rec.Driver == "" {
		rec.Driver = "bridge"
	}
	if o.ID == "" { // a network that comes over from another engine has its options
		for name, value := range s.opts.DefaultOptions[rec.Driver] {
			if _, set := rec.Options[name]; !set {
				if rec.Options == nil {
					rec.Options = map[string]string{}
				}
				rec.Options[name] = value
			}
		}
	}
	if rec.Driver == "host" {
		return nil, errs.New(errs.Forbidden, "only one instance of \"host\" network is allowed")
	}
	if s.opts.Drivers[rec.Driver] == nil {
		return nil, errs.New(errs.NotFound, "could not find plugin %s in v1 plugin registry: the drivers are %s", rec.Driver,
			strings.Join(slices.Sorted(maps.Keys(s.opts.Drivers)), ", "))
	}
	if rec.NoIPv4 && !rec.IPv6 {
		return nil, invalid("IPv4 or IPv6 must be enabled")
	}
	if len(o.IPAM) > 0 {
		return nil, invalid("unknown IPAM option %q: the default IPAM driver has none", slices.Sorted(maps.Keys(o.IPAM))[0])
	}
	if err := checkPools(&rec); err != nil {
		return nil, err
	}
	m := &managed{name: o.Name, networkRecord: rec}
	m.pending.Store(true)
	return m, nil
}

// checkPools checks the subnets that a user gave, with their gateways.
func checkPools(rec *networkRecord) error {
	var v4, v6 int
	for i := range rec.Pools {
		p := &rec.Pools[i]
		if !p.Subnet.IsValid() {
			return invalid("invalid network config: a subnet is missing")
		}
		if m := p.Subnet.Masked(); m != p.Subnet {
			return invalid("invalid network config:\ninvalid subnet %s: it should be %s", p.Subnet, m)
		}
		if p.Subnet.Addr().Is4() {
			v4++
			if rec.NoIPv4 {
				return invalid("invalid network config:\nIPv4 is disabled, but subnet %s is an IPv4 one", p.Subnet)
			}
		} else {
			v6++
			rec.IPv6 = true
		}
		if p.Subnet.Bits() > 127 || p.Subnet.Addr().Is4() && p.Subnet.Bits() > 30 { // RFC 6164 lets hosts have both addresses of a /127
			return invalid("invalid network config:\nsubnet %s has no room for a gateway and a container", p.Subnet)
		}
		within := func(what string, a netip.Addr) error {
			if !p.Subnet.Contains(a) {
				return invalid("invalid network config:\ninvalid %s %s: parent subnet %s doesn't contain the address", what, a, p.Subnet)
			}
			return nil
		}
		if p.Range.IsValid() {
			if err := within("ip-range", p.Range.Addr()); err != nil {
				return err
			}
			if p.Range.Bits() < p.Subnet.Bits() {
				return invalid("invalid network config:\ninvalid ip-range %s: CIDR block is bigger than its parent subnet %s", p.Range, p.Subnet)
			}
			p.Range = p.Range.Masked()
		}
		if p.Gateway.IsValid() {
			if err := within("gateway", p.Gateway); err != nil {
				return err
			}
		}
		for name, a := range p.Aux {
			if err := within("auxiliary address "+name, a); err != nil {
				return err
			}
		}
	}
	if v4 > 1 || v6 > 1 {
		return invalid("a network has at most one subnet of each family")
	}
	return nil
}

// reserve chooses the subnets that are missing and enters the network, so that no other one gets its name or its subnets.
func (s *Service) reserve(m *managed) error {
	s.choosing.Lock()
	defer s.choosing.Unlock()
	host, err := s.opts.HostSubnets()
	if err != nil {
		return err
	}
	var used []netip.Prefix
	for _, other := range s.all() {
		if other.name == m.name {
			return errs.New(errs.Conflict, "network with name %s already exists", m.name)
		}
		if other.ID == m.ID {
			return errs.New(errs.Conflict, "network with ID %.12s already exists: it is %s", m.ID, other.name)
		}
		for _, p := range other.pools() {
			used = append(used, p.Subnet)
		}
	}
	s.mu.Lock()
	damaged := s.damaged[m.name]
	s.mu.Unlock()
	if damaged != nil {
		return damaged
	}
	for _, p := range m.Pools {
		if slices.ContainsFunc(used, p.Subnet.Overlaps) {
			return errs.New(errs.Forbidden, "invalid pool request: Pool overlaps with other one on this address space")
		}
	}
	used = append(used, host...)
	if p := ofDefault(s, used); p.IsValid() {
		used = append(used, p)
	}
	has := func(v4 bool) bool {
		return slices.ContainsFunc(m.Pools, func(p Pool) bool { return p.Subnet.Addr().Is4() == v4 })
	}
	if !m.NoIPv4 && !has(true) {
		pool, err := ipam.FreePool(s.opts.Default.Pools, used)
		if err != nil {
			return err
		}
		m.Pools = slices.Insert(m.Pools, 0, Pool{Subnet: pool})
	}
	if m.IPv6 && !has(false) {
		pool, err := ipam.FreeUniqueLocal(s.networks["bridge"].ID, used)
		if err != nil {
			return err
		}
		m.Pools = append(m.Pools, Pool{Subnet: pool})
	}
	asked, err := s.configure(m.networkRecord)
	if err != nil {
		return err
	}
	for i := range m.Pools {
		if p := &m.Pools[i]; !p.Gateway.IsValid() && asked.hasGateway(p.Subnet.Addr().Is4()) {
			p.Gateway = firstFree(p)
		}
	}
	if m.config, err = s.configure(m.networkRecord); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.networks[m.name] = m
	return nil
}

// hasGateway reports whether the containers of a network need a gateway of a family.
func (c *Config) hasGateway(v4 bool) bool {
	if v4 {
		return !c.Isolated && !(c.Inhibit && c.Internal)
	}
	return !c.Isolated6
}

// ofDefault returns the subnet that the default bridge will have when it is made; invalid when it is made or switched off.
func ofDefault(s *Service, used []netip.Prefix) netip.Prefix {
	m := s.named("bridge")
	if m.current() != nil || m.config.Bridge == "none" {
		return netip.Prefix{}
	}
	if m.config.Address.IsValid() {
		return m.config.Address.Masked()
	}
	p, err := ipam.FreePool(m.config.Pools, used)
	if err != nil {
		return netip.Prefix{} // none is free, for no network
	}
	return p
}

// firstFree returns the first address of a subnet that is neither its own nor that of another one.
func firstFree(p *Pool) netip.Addr {
	taken := slices.Collect(maps.Values(p.Aux))
	a := p.Subnet.Addr().Next()
	for slices.Contains(taken, a) {
		a = a.Next()
	}
	return a
}

// configure returns what the driver needs to make a network.
func (s *Service) configure(rec networkRecord) (Config, error) {
	c := Config{ID: rec.ID, NoIPv4: rec.NoIPv4, Internal: rec.Internal, MTU: s.opts.Default.MTU}
	if rec.Driver == "bridge" {
		c.Bridge = "br-" + rec.ID[:12]
	}
	for _, p := range rec.Pools {
		gateway := p.Subnet // without a gateway it is the address of the subnet
		if p.Gateway.IsValid() {
			gateway = netip.PrefixFrom(p.Gateway, p.Subnet.Bits())
		}
		if p.Subnet.Addr().Is4() {
			c.Address, c.Fixed = gateway, p.Range
		} else {
			c.Address6, c.Fixed6 = gateway, p.Range
		}
		c.Reserved = slices.AppendSeq(c.Reserved, maps.Values(p.Aux))
	}
	d := s.opts.Drivers[rec.Driver]
	if d == nil {
		return c, errs.New(errs.Unavailable, "there is no network driver %s", rec.Driver)
	}
	return c, d.Configure(&c, rec.Options)
}

// Remove removes a network, which may be given as Get takes it. Errors: errs.Forbidden for a default network and for one to which containers are connected.
func (s *Service) Remove(ctx context.Context, ref string) error {
	m, err := s.find(ref)
	if err != nil {
		if errors.Is(err, errs.NotFound) {
			return removeDamaged(ctx, s, ref)
		}
		return err
	}
	return s.remove(ctx, m)
}

func (s *Service) remove(ctx context.Context, m *managed) error {
	if !m.User {
		return errs.New(errs.Forbidden, "%s is a pre-defined network and cannot be removed", m.name)
	}
	if err := s.retire(m); err != nil {
		return err
	}
	err := s.opts.Meta.Update(func(tx *meta.Tx) error { return tx.Networks.Delete(m.name) })
	if err == nil {
		ctx := context.WithoutCancel(ctx)
		if err := errors.Join(s.takeDown(ctx, m), s.tables.Drop(m.ID)); err != nil {
			s.log.Warn("something of a removed network stays on this host", "network", m.name, "err", err)
		}
		s.publish("destroy", m, "")
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.networks[m.name] = m
	return err
}

// retire takes a network out of use, so that nothing connects to it any more.
func (s *Service) retire(m *managed) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.networks[m.name] != m || m.pending.Load() {
		return errs.New(errs.NotFound, "network %s not found", m.name)
	}
	var active []string
	for id, list := range s.connected {
		if slices.ContainsFunc(list, func(c Connection) bool { return c.Endpoint.NetworkID == m.ID }) {
			active = append(active, id.Short())
		}
	}
	if len(active) > 0 || m.users > 0 {
		slices.Sort(active)
		return errs.New(errs.Forbidden, "error while removing network: network %s has active endpoints (%s)", m.name, strings.Join(active, ", ")).
			WithHint("Disconnect or stop the containers first.")
	}
	delete(s.networks, m.name)
	return nil
}

// removeDamaged deletes a damaged record. The error's class is errs.NotFound when there is none of that name or ID.
func removeDamaged(ctx context.Context, s *Service, ref string) error {
	n, err := s.Get(ctx, ref)
	if err != nil {
		return err
	}
	if err := s.opts.Meta.Update(func(tx *meta.Tx) error { return tx.Networks.Delete(n.Name) }); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.damaged, n.Name)
	return nil
}

// Prune removes the networks without containers that match, and returns their names. PruneFilters lists the filters.
func (s *Service) Prune(ctx context.Context, filters filter.Args) ([]string, error) {
	match, err := PruneFilters.Compile(filters)
	if err != nil {
		return nil, err
	}
	var gone []string
	endpoints := s.endpoints()
	for _, m := range s.all() {
		if !m.User || len(endpoints[m.ID]) > 0 || !match(m.describe(nil)) {
			continue
		}
		err := s.remove(ctx, m)
		switch {
		case err == nil:
			gone = append(gone, m.name)
		case !errors.Is(err, errs.Forbidden) && !errors.Is(err, errs.NotFound): // a container connected, or someone else removed it
			return gone, err
		}
		if ctx.Err() != nil {
			return gone, ctx.Err()
		}
	}
	if s.opts.Events != nil {
		s.opts.Events.Publish(events.Event{Type: "network", Action: "prune", Attributes: map[string]string{"reclaimed": "0"}})
	}
	return gone, nil
}

func (s *Service) publish(action string, m *managed, id oci.ContainerID) {
	if s.opts.Events == nil {
		return
	}
	attrs := map[string]string{"name": m.name, "type": m.Driver}
	if id != "" {
		attrs["container"] = string(id)
	}
	s.opts.Events.Publish(events.Event{Type: "network", Action: action, ID: m.ID, Attributes: attrs})
}
