package network

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"ply/internal/errs"
	"ply/internal/events"
	"ply/internal/filter"
	"ply/internal/network/ipam"
	"ply/internal/network/names"
	"ply/internal/network/namespace"
	"ply/internal/oci"
	"ply/internal/store/meta"
)

// Options of Open. Meta and StateDir are required.
type Options struct {
	Meta           *meta.DB
	StateDir       string                         // what is true until the next boot: one file per endpoint, and the tables of names
	Drivers        map[string]Driver              // by the name that a network's record has; "null" is built in
	Default        Config                         // of the network "bridge"; the interface is ply0, or the next one that is free, unless it is named
	DefaultOptions map[string]map[string]string   // options of networks that users create, by the driver, unless they set others
	DefaultNames   bool                           // containers on the network "bridge" find each other by name
	HostSubnets    func() ([]netip.Prefix, error) // subnets that the host has routes to, which no network gets by itself; nil = none
	Events         *events.Bus
	Log            *slog.Logger
}

// Service keeps the networks of one engine. Safe for concurrent use; the caller serialises Attach, Connect, Disconnect and Detach of one
// container.
type Service struct {
	opts   Options
	log    *slog.Logger
	tables names.Tables
	files  files

	choosing sync.Mutex // held while subnets are chosen for a new network; comes before mu

	mu        sync.Mutex // not held during I/O
	networks  map[string]*managed
	connected map[oci.ContainerID][]Connection // in the order of their interfaces
	damaged   map[string]error                 // records that cannot be decoded, by their names
}

// managed is one network of the Service.
type managed struct {
	networkRecord
	name     string
	config   Config
	unusable error // why the network cannot be made; nil = it can

	pending atomic.Bool // Create has not written the record yet

	users int // attaches and connects under way; Service.mu protects it

	making sync.Mutex // held while the driver makes or removes the network; comes before Service.mu
	made   *made      // nil until the network is needed
}

// made is a network that exists on the host.
type made struct {
	Segment
	v4, v6 *family // nil when the network has no addresses of the family
}

// family is the addresses of one family.
type family struct {
	gateway   netip.Prefix // with the length of the subnet
	closed    bool         // endpoints have no gateway
	addresses *ipam.Allocator
}

var defaultNetworks = []struct{ name, driver string }{{"bridge", "bridge"}, {"host", "host"}, {"none", "null"}}

// Open reads the networks and the connected containers. A network is made on the host when a user creates it and when its first container is
// attached, or here when containers of an earlier engine are connected to it. So an engine that only pulls images does
// not change the host's network.
func Open(ctx context.Context, opts Options) (*Service, error) {
	if opts.Default.MTU == 0 {
		opts.Default.MTU = defaultMTU
	}
	if opts.Default.Pools == nil {
		opts.Default.Pools = ipam.DefaultPools()
	}
	if opts.HostSubnets == nil {
		opts.HostSubnets = func() ([]netip.Prefix, error) { return nil, nil }
	}
	opts.Drivers = maps.Clone(opts.Drivers)
	if opts.Drivers == nil {
		opts.Drivers = map[string]Driver{}
	}
	opts.Drivers["null"] = null{}
	s := &Service{
		opts: opts, log: opts.Log, tables: names.New(filepath.Join(opts.StateDir, "names")), files: files(opts.StateDir),
		networks: map[string]*managed{}, connected: map[oci.ContainerID][]Connection{}, damaged: map[string]error{},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if err := s.loadNetworks(); err != nil {
		return nil, err
	}
	return s, restore(ctx, s)
}

const defaultMTU = 1500

// restore takes over the containers that an earlier engine connected.
func restore(ctx context.Context, s *Service) error {
	found, err := readConnections(s.opts.StateDir)
	if err != nil {
		return err
	}
	found = unmake(s, found)
	known, own := map[string]bool{}, map[string]bool{}
	for _, c := range found {
		known[c.Endpoint.HostIf] = true
	}
	named := map[string]bool{}
	for _, m := range s.networks {
		own[m.ID] = true
		named[m.config.Bridge], named[m.config.Parent] = true, true
	}
	// A network whose record is damaged, or gone while containers are in it, may have any interface.
	lost := len(s.damaged) > 0 || slices.ContainsFunc(found, func(c Connection) bool { return !own[c.Endpoint.NetworkID] })
	orphan := func(name string) bool { return !lost && !named[name] }
	for name, d := range s.opts.Drivers {
		if sw, ok := d.(Sweeper); ok {
			if err := sw.Sweep(ctx, func(network, hostIf string) bool { return own[network] && !known[hostIf] }, orphan); err != nil {
				s.log.Warn("interfaces that an earlier engine left stay", "driver", name, "err", err)
			}
		}
	}
	moved := unsettled(s, found)
	for _, c := range found {
		s.connected[c.Container] = append(s.connected[c.Container], c)
	}
	used := map[string]bool{}
	for _, c := range found {
		m := s.networks[c.Endpoint.Network]
		if m == nil || m.ID != c.Endpoint.NetworkID || !c.Endpoint.addressed() {
			continue
		}
		if m.made == nil && !m.config.Address.IsValid() && c.Endpoint.IPv4.IsValid() {
			// If the bridge vanished it is made again with the address to which the container sends.
			m.config.Address = netip.PrefixFrom(c.Endpoint.Gateway, c.Endpoint.IPv4.Bits())
		}
		up, err := s.up(ctx, m, true)
		if err != nil && m.User { // the other networks are not to blame
			s.log.Error("network of a running container cannot be taken over", "network", m.name, "container", c.Container, "err", err)
			continue
		}
		if err != nil {
			return err
		}
		used[m.Driver] = true
		if err := up.Adopt(ctx, c); err != nil {
			if errors.As(err, new(*PortInUseError)) { // the engine was killed before it recorded that the container's shim has it
				handed(s, c)
			}
			s.log.Warn("published port cannot be reserved again; the kernel's rules still serve it", "container", c.Container, "err", err)
		}
	}
	for id, list := range s.connected {
		slices.SortFunc(list, func(a, b Connection) int { return strings.Compare(a.Endpoint.Interface, b.Endpoint.Interface) })
		s.connected[id] = list
	}
	var all error
	for driver := range used {
		all = errors.Join(all, s.opts.Drivers[driver].Restored(ctx))
	}
	restoreRoutes(ctx, s, moved)
	return errors.Join(all, restoreNames(s))
}

// unmake removes what an earlier engine made of connections before it was killed, and returns the other ones.
func unmake(s *Service, found []Connection) (whole []Connection) {
	for _, c := range found {
		if !c.Making {
			whole = append(whole, c)
			continue
		}
		s.log.Warn("a connection that an earlier engine has not completed is removed", "container", c.Container, "network", c.Endpoint.Network, "interface", c.Endpoint.Interface)
		var err error
		if c.Endpoint.Interface != "" {
			err = namespace.RemoveLink(c.Netns, c.Endpoint.Interface)
		}
		if err == nil {
			err = s.files.remove(c)
		}
		if err != nil { // the file stays for the next start
			s.log.Warn("an interface of a container stays", "container", c.Container, "interface", c.Endpoint.Interface, "err", err)
		}
	}
	return whole
}

// restoreRoutes brings the default routes of containers back, with what they publish, and moves those of containers that an engine has connected and not rerouted
// before it was killed.
func restoreRoutes(ctx context.Context, s *Service, moved map[oci.ContainerID]published) {
	for id := range maps.Clone(s.connected) {
		all := s.attached(id)
		p, is := moved[id]
		next := best(pointers(all))
		if !is && (next == nil || next.c.Default || lostDefault(all)) {
			continue
		}
		var err error
		if is && next != nil {
			next.c.Ports, next.c.Handed = p.ports, p.handed
		}
		if err = s.reroute(ctx, all); err != nil && next != nil {
			next.c.Default = false // Settle tries again
		}
		for _, o := range all {
			if is && err == nil {
				err = s.files.save(o.c)
			}
		}
		if _, kerr := s.keep(id, all, func() {}); err != nil || kerr != nil {
			s.log.Warn("default route of a container was not moved", "container", id, "err", errors.Join(err, kerr))
		}
	}
}

// Settle publishes the ports of a container, and makes its default route, if that was not possible when the networks were opened: its shim may have held a port
// that an engine did not take back before it was killed. It reports whether it did. The caller serialises it with the other changes of the container.
func (s *Service) Settle(ctx context.Context, id oci.ContainerID) (bool, error) {
	all := s.attached(id)
	next := best(pointers(all))
	if next == nil || next.c.Default || lostDefault(all) {
		return false, nil
	}
	if err := s.reroute(ctx, all); err != nil {
		return false, err
	}
	_, err := s.keep(id, all, func() {})
	return true, err
}

// restoreNames makes the tables of names say what the connections do.
func restoreNames(s *Service) error {
	entries := map[string][]names.Entry{}
	all := s.tables.Prune(func(id string) bool { return s.connected[oci.ContainerID(id)] != nil })
	for id, list := range s.connected {
		var want []names.Membership
		for _, c := range list {
			if len(c.Names) > 0 {
				entries[c.Endpoint.NetworkID] = append(entries[c.Endpoint.NetworkID], c.entry())
				want = append(want, names.Membership{Network: c.Endpoint.Network, ID: c.Endpoint.NetworkID})
			}
		}
		same := func(a, b names.Membership) bool { return a.Network == b.Network && a.ID == b.ID }
		if !slices.EqualFunc(s.tables.Memberships(string(id)), want, same) {
			all = errors.Join(all, setMemberships(s.tables, id, list))
		}
	}
	return errors.Join(all, s.tables.Restore(entries))
}

// published is what a container publishes while none of its connections provides its default route.
type published struct {
	ports  []PortBinding
	handed bool
}

// unsettled takes the default routes from the containers of which an engine was killed while it moved them, and returns what these publish. The files of the
// connections stay as they are until restoreRoutes has brought the routes back.
func unsettled(s *Service, found []Connection) map[oci.ContainerID]published {
	moved := map[oci.ContainerID]published{}
	for i := range found {
		if found[i].Moving {
			moved[found[i].Container] = published{}
		}
	}
	for i := range found {
		c := &found[i]
		p, is := moved[c.Container]
		if !is {
			continue
		}
		if c.Default && len(c.Ports) > 0 {
			p.ports = c.Ports
		}
		p.handed = p.handed || c.Handed
		moved[c.Container] = p
		c.Default, c.Ports, c.Published, c.Handed, c.Moving = false, nil, false, false, false
		if !c.Endpoint.addressed() {
			continue
		}
		if err := namespace.RemoveRoutes(c.Netns, c.Endpoint.Interface); err != nil { // the interface may be gone, with its routes
			s.log.Info("default route of a container was not removed", "container", c.Container, "interface", c.Endpoint.Interface, "err", err)
		}
	}
	return moved
}

// handed notes that the shim of a container has the sockets of its ports.
func handed(s *Service, c Connection) {
	list := s.connected[c.Container]
	for i := range list {
		if list[i].Endpoint.NetworkID == c.Endpoint.NetworkID {
			list[i].Handed = true
		}
	}
}

func (e *Endpoint) addressed() bool { return e.IPv4.IsValid() || e.IPv6.IsValid() }

// up makes the network on the host unless it is there, and returns it.
func (s *Service) up(ctx context.Context, m *managed, inUse bool) (*made, error) {
	m.making.Lock()
	defer m.making.Unlock()
	if m.made != nil {
		return m.made, nil
	}
	if m.unusable != nil {
		return nil, m.unusable
	}
	d := s.opts.Drivers[m.Driver]
	if d == nil {
		return nil, errs.New(errs.Invalid, "network %s: there is no driver %s", m.name, m.Driver)
	}
	segment, err := d.Up(ctx, m.config, inUse)
	if err != nil {
		return nil, err
	}
	up := &made{Segment: segment}
	v4, v6 := segment.Gateways()
	up.v4, up.v6 = newFamily(&m.config, v4, m.config.Fixed), newFamily(&m.config, v6, m.config.Fixed6)
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, list := range s.connected { // to an earlier engine
		for _, c := range list {
			if c.Endpoint.NetworkID != m.ID {
				continue
			}
			if err := up.take(c.Endpoint); err != nil {
				s.log.Warn("address of a running container is not free", "container", id, "err", err)
			}
		}
	}
	m.made = up
	return up, nil
}

func newFamily(c *Config, gateway, pool netip.Prefix) *family {
	if !gateway.IsValid() {
		return nil
	}
	if !pool.IsValid() {
		pool = gateway
	}
	return &family{gateway, !c.hasGateway(gateway.Addr().Is4()), ipam.NewAllocator(gateway, pool, append(slices.Clone(c.Reserved), gateway.Addr())...)}
}

// current returns the network on the host; nil when it is not made.
func (m *managed) current() *made {
	m.making.Lock()
	defer m.making.Unlock()
	return m.made
}

// pools returns the subnets of the network, as far as they are chosen.
func (m *managed) pools() []Pool {
	if m.User {
		return m.Pools
	}
	up := m.current()
	if up == nil {
		return nil
	}
	var out []Pool
	for _, f := range []*family{up.v4, up.v6} {
		if f != nil {
			out = append(out, Pool{Subnet: f.gateway.Masked(), Gateway: f.gateway.Addr()})
		}
	}
	return out
}

// all returns the networks: the default ones, then the others by name.
func (s *Service) all() []*managed {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out, users []*managed
	for _, n := range defaultNetworks {
		out = append(out, s.networks[n.name])
	}
	for _, m := range s.networks {
		if m.User {
			users = append(users, m)
		}
	}
	slices.SortFunc(users, func(a, b *managed) int { return strings.Compare(a.name, b.name) })
	return append(out, users...)
}

// Close waits for background work and releases the reserved ports. Containers keep their network, and the rules stay.
func (s *Service) Close() error {
	var all error
	for _, m := range s.all() {
		if up := m.current(); up != nil {
			all = errors.Join(all, up.Close())
		}
	}
	return all
}

// Teardown removes the networks from the host unless a container is connected. Their records stay.
func (s *Service) Teardown(ctx context.Context) error {
	s.mu.Lock()
	busy := len(s.connected)
	s.mu.Unlock()
	if busy > 0 {
		return nil
	}
	var all error
	for _, m := range s.all() {
		all = errors.Join(all, s.takeDown(ctx, m))
	}
	return all
}

// takeDown removes a network from the host. Of one that nothing has used since this engine began, an earlier engine may have left the bridge.
func (s *Service) takeDown(ctx context.Context, m *managed) error {
	if m.config.Bridge != "" && m.current() == nil {
		there, err := namespace.HasLink(m.config.Bridge)
		if err != nil {
			return err
		}
		if there {
			if _, err := s.up(ctx, m, false); err != nil {
				s.log.Info("the bridge of a network stays on this host", "network", m.name, "err", err) // it may be another engine's
			}
		}
	}
	return m.down(ctx)
}

// down removes the network from the host if it is there.
func (m *managed) down(ctx context.Context) error {
	m.making.Lock()
	defer m.making.Unlock()
	if m.made == nil {
		return nil
	}
	err := errors.Join(m.made.Down(ctx), m.made.Close())
	m.made = nil
	return err
}

// find returns a network by its name, its ID or an unambiguous prefix of the ID. The error's class is errs.NotFound when
// there is none.
func (s *Service) find(ref string) (*managed, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.networks {
		if m.ID == ref {
			return m, nil
		}
	}
	if m := s.networks[ref]; m != nil {
		return m, nil
	}
	var found *managed
	for _, m := range s.networks {
		if ref != "" && strings.HasPrefix(m.ID, ref) {
			if found != nil {
				return nil, errs.New(errs.Invalid, "network %s is ambiguous (2 matches found based on ID prefix)", ref)
			}
			found = m
		}
	}
	if found == nil {
		return nil, errs.New(errs.NotFound, "network %s not found", ref)
	}
	return found, nil
}

// Name returns the name of a network, which may be given as find takes it.
func (s *Service) Name(ref string) (string, error) {
	m, err := s.find(ref)
	if err != nil {
		return "", err
	}
	return m.name, nil
}

// Get returns a network by its name, its ID or an unambiguous prefix of the ID. The error's class is errs.NotFound when
// there is none.
//
// The default bridge is made on the host then: only so its subnet and its gateway are known, which programs look for before they start a container.
func (s *Service) Get(ctx context.Context, ref string) (*Network, error) {
	m, err := s.find(ref)
	if err == nil {
		if !m.User {
			s.upToShow(ctx, m)
		}
		return m.describe(s.endpoints()[m.ID]), nil
	}
	for _, n := range s.listDamaged() {
		if n.Name == ref || n.ID == ref || ref != "" && strings.HasPrefix(n.ID, ref) {
			return n, nil
		}
	}
	return nil, err
}

// upToShow makes the default bridge on the host if it is not there. The other default networks have none.
func (s *Service) upToShow(ctx context.Context, m *managed) {
	if m.Driver != "bridge" || m.config.Bridge == "none" {
		return
	}
	if _, err := s.up(ctx, m, false); err != nil {
		s.log.Warn("the network has no addresses to show", "network", m.name, "err", err)
	}
}

// endpoints returns the endpoints of every network, by its ID and that of the container.
func (s *Service) endpoints() map[string]map[string]Endpoint {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]map[string]Endpoint{}
	for id, list := range s.connected {
		for _, c := range list {
			if out[c.Endpoint.NetworkID] == nil {
				out[c.Endpoint.NetworkID] = map[string]Endpoint{}
			}
			out[c.Endpoint.NetworkID][string(id)] = c.Endpoint
		}
	}
	return out
}

// describe returns a network as list and inspect show it.
func (m *managed) describe(endpoints map[string]Endpoint) *Network {
	n := &Network{
		ID: m.ID, Name: m.name, Driver: m.Driver, Created: m.Created, BuiltIn: !m.User, Pools: m.pools(), IPv4: !m.NoIPv4, IPv6: m.IPv6, IPAM: m.IPAM,
		Internal: m.Internal, Attachable: m.Attachable, Labels: m.Labels, Options: m.Options, Endpoints: endpoints,
	}
	if n.Endpoints == nil {
		n.Endpoints = map[string]Endpoint{}
	}
	if m.name == "bridge" {
		c := &m.config
		host := "0.0.0.0"
		if c.HostIP.IsValid() {
			host = c.HostIP.String()
		}
		n.Options = map[string]string{
			"com.docker.network.bridge.name": m.hostInterface(), "com.docker.network.bridge.default_bridge": "true",
			"com.docker.network.bridge.enable_icc": strconv.FormatBool(!c.NoICC), "com.docker.network.bridge.enable_ip_masquerade": strconv.FormatBool(!c.NoMasq),
			"com.docker.network.bridge.host_binding_ipv4": host, "com.docker.network.driver.mtu": strconv.Itoa(cmp.Or(c.MTU, defaultMTU)),
		}
	}
	return n
}

// hostInterface returns the name of the network's interface on the host; before it is made, what it probably will be.
func (m *managed) hostInterface() string {
	if up := m.current(); up != nil {
		return up.Name()
	}
	return cmp.Or(m.config.Bridge, "ply0")
}

// listDamaged returns the networks whose records are damaged.
func (s *Service) listDamaged() []*Network {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*Network
	for _, name := range slices.Sorted(maps.Keys(s.damaged)) {
		// The ID is lost. That of the list is always the same, so that clients can tell the entries apart.
		out = append(out, &Network{ID: oci.DigestOf([]byte(name)).Hex(), Name: name, Endpoints: map[string]Endpoint{}, Damaged: s.damaged[name]})
	}
	return out
}

// List returns the networks that match; ListFilters lists the filters. A record that is damaged is listed with its name, and
// Damaged says why.
func (s *Service) List(_ context.Context, filters filter.Args) ([]*Network, error) {
	match, err := ListFilters.Compile(filters)
	if err != nil {
		return nil, err
	}
	var out []*Network
	endpoints := s.endpoints()
	for _, m := range s.all() {
		if n := m.describe(endpoints[m.ID]); match(n) {
			out = append(out, n)
		}
	}
	for _, n := range s.listDamaged() {
		if match(n) {
			out = append(out, n)
		}
	}
	return out, nil
}
