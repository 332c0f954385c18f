package network

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"

	"ply/internal/errs"
	"ply/internal/network/names"
	"ply/internal/network/namespace"
	"ply/internal/network/proxy"
	"ply/internal/oci"
)

// Attach makes a network namespace bound at req.NetnsPath and connects it to the networks, with the ports
// published. On failure nothing remains. The error's class is errs.NotFound when a network does not exist, and
// errs.Conflict when a host port or an address is in use.
func (s *Service) Attach(ctx context.Context, req AttachRequest) (_ Attachment, err error) {
	plan, err := s.plan(ctx, req)
	defer s.release(plan)
	if err != nil {
		return Attachment{}, err
	}
	if err := namespace.Make(req.NetnsPath); err != nil {
		return Attachment{}, err
	}
	var done []Connection
	defer func() {
		if err == nil {
			return
		}
		for i := range done {
			s.drop(ctx, plan[i].up, done[i])
		}
		err = errors.Join(err, namespace.Remove(req.NetnsPath))
	}()
	for i := range plan {
		c, err := s.connect(ctx, &plan[i])
		if err != nil {
			return Attachment{}, err
		}
		done = append(done, c)
	}
	if err := setMemberships(s.tables, req.ID, done); err != nil {
		return Attachment{}, err
	}
	s.mu.Lock()
	s.connected[req.ID] = done
	s.mu.Unlock()
	for i := range plan {
		s.publish("connect", plan[i].m, req.ID)
	}
	return attachmentOf(done), nil
}

// planned is an endpoint that is about to be made, or is there.
type planned struct {
	m    *managed
	up   *made // nil = the network is lost: its record is gone, or it could not be taken over from an earlier engine
	spec EndpointSpec
	c    Connection
}

// plan finds the networks of a request, makes them on the host, and decides which of them provides the default route. The caller releases what
// plan returns, also after an error.
func (s *Service) plan(ctx context.Context, req AttachRequest) (plan []planned, err error) {
	if len(req.Endpoints) == 0 {
		return nil, invalid("a container needs a network")
	}
	if err := checkPorts(req.Ports); err != nil {
		return nil, err
	}
	for _, e := range req.Endpoints {
		p, err := s.planOne(ctx, req.ID, req.NetnsPath, e, plan)
		if p.m != nil {
			plan = append(plan, p)
		}
		if err != nil {
			return plan, err
		}
	}
	list := make([]*planned, len(plan))
	for i := range plan {
		list[i] = &plan[i]
	}
	if p := best(list); p != nil {
		p.c.Default = true
		p.c.Ports = req.Ports
	}
	return plan, nil
}

// planOne plans one endpoint beside those that are planned or there.
func (s *Service) planOne(ctx context.Context, id oci.ContainerID, netns string, e EndpointRequest, others []planned) (p planned, err error) {
	m, err := s.find(e.Network)
	if err != nil {
		return p, err
	}
	if m.Driver == "host" {
		return p, invalid("network host: shares the host's namespace, there is nothing to attach")
	}
	s.mu.Lock()
	if s.networks[m.name] != m || m.pending.Load() { // one that is not recorded would be gone after a kill, and its connections would not
		s.mu.Unlock()
		return p, errs.New(errs.NotFound, "network %s not found", e.Network)
	}
	m.users++
	s.mu.Unlock()
	p = planned{m: m, spec: e.Spec}
	if p.up, err = s.up(ctx, m, false); err != nil {
		return p, err
	}
	var taken []string
	for _, o := range others {
		taken = append(taken, o.c.Endpoint.Interface)
	}
	p.c = Connection{Container: id, Netns: netns, Priority: e.Spec.Priority, Endpoint: Endpoint{Network: m.name, NetworkID: m.ID, ID: randomID()}}
	if p.up.v4 != nil || p.up.v6 != nil {
		if p.c.Endpoint.Interface, err = interfaceName(m.config.IfPrefix, e.Spec.DriverOpts, taken); err != nil {
			return p, err
		}
		if p.c.Sysctls, err = endpointSysctls(e.Spec.DriverOpts); err != nil {
			return p, err
		}
	}
	if m.config.NoICC {
		p.c.Linked, p.c.Exposed = e.Linked, e.Exposed
		if len(e.Exposed) > maxExposed {
			s.log.Warn("a container exposes too many ports: links to it open none", "container", id, "ranges", len(e.Exposed), "most", maxExposed)
			p.c.Exposed = nil
		}
	}
	return p, p.setNames(e, m.User || s.opts.DefaultNames)
}

// maxExposed bounds the ranges of ports that a container opens to those that are linked to it.
const maxExposed = 1024

// setNames sets the names by which the network's containers know the endpoint, and the container's own names.
func (p *planned) setNames(e EndpointRequest, has bool) error {
	if !has || p.up.v4 == nil && p.up.v6 == nil { // on the default networks containers have no names, as with docker, unless the settings say so
		p.c.Endpoint.Aliases = append(slices.Clone(e.Names), e.Spec.Aliases...)
		return nil
	}
	var all []string
	for _, n := range append(slices.Clone(e.Names), e.Spec.Aliases...) {
		if n == "" || slices.Contains(all, n) {
			continue
		}
		if err := names.Check(n); err != nil {
			return err
		}
		all = append(all, n)
	}
	p.c.Names, p.c.Endpoint.Aliases = all, all
	for _, l := range e.Spec.Links {
		target, alias, ok := strings.Cut(l, ":")
		if !ok {
			alias = target
		}
		if err := errors.Join(names.Check(target), names.Check(alias)); err != nil {
			return invalid("invalid link %q", l)
		}
		if p.c.Links == nil {
			p.c.Links = map[string]string{}
		}
		p.c.Links[alias] = target
	}
	return nil
}

// interfaceName returns the name of the next interface in a container.
func interfaceName(prefix string, opts map[string]string, taken []string) (string, error) {
	if name := opts[optIfName]; name != "" {
		if len(name) > 15 || strings.ContainsAny(name, "/ \t\n:%") || name == "lo" || name == "." || name == ".." {
			return "", invalid("endpoint option %s: %.32q is no name of an interface", optIfName, name)
		}
		if slices.Contains(taken, name) {
			return "", errs.New(errs.Conflict, "endpoint option %s: the container has an interface %s", optIfName, name)
		}
		return name, nil
	}
	for n := 0; ; n++ {
		if name := fmt.Sprintf("%s%d", cmp.Or(prefix, "eth"), n); !slices.Contains(taken, name) {
			return name, nil
		}
	}
}

// Options of an endpoint: the name of the interface in the container, and settings of the kernel for it, such as
// net.ipv4.conf.IFNAME.forwarding=1, separated by commas.
const (
	optIfName  = "com.docker.network.endpoint.ifname"
	optSysctls = "com.docker.network.endpoint.sysctls"
)

var validSysctl = regexp.MustCompile(`^net\.(ipv4|ipv6|mpls)\.([a-z_]+)\.IFNAME\.([a-z0-9_]+)$`)

// Ignored returns the options of an endpoint that have no effect. As with docker, they are no error: they may be for another driver.
func (e *EndpointSpec) Ignored() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(e.DriverOpts)), func(k string) bool { return k == optIfName || k == optSysctls })
}

// endpointSysctls returns the settings for the interface of an endpoint.
func endpointSysctls(opts map[string]string) (map[string]string, error) {
	text := opts[optSysctls]
	if text == "" {
		return nil, nil
	}
	all := map[string]string{}
	for _, entry := range strings.Split(text, ",") {
		name, value, ok := strings.Cut(entry, "=")
		m := validSysctl.FindStringSubmatch(name)
		if !ok || m == nil || strings.ContainsAny(value, "\n\x00") {
			return nil, invalid("endpoint option %s: %.64q is not of the form net.ipv4.conf.IFNAME.NAME=VALUE", optSysctls, entry)
		}
		all[m[1]+"/"+m[2]+"/IFNAME/"+m[3]] = value
	}
	return all, nil
}

// release lets the networks of a plan be removed again.
func (s *Service) release(plan []planned) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range plan {
		plan[i].m.users--
	}
}

// best returns the endpoint that provides the default route: the one with the highest priority; of equal ones, one with IPv4 addresses before others, then the first by name
// of the network. It is nil when none can.
func best(list []*planned) *planned {
	var found *planned
	for _, p := range list {
		if p.up == nil || p.m.config.Internal || p.up.v4 == nil && p.up.v6 == nil {
			continue
		}
		if found == nil || p.before(found) {
			found = p
		}
	}
	return found
}

func (p *planned) before(o *planned) bool {
	if p.c.Priority != o.c.Priority {
		return p.c.Priority > o.c.Priority
	}
	if (p.up.v4 != nil) != (o.up.v4 != nil) {
		return p.up.v4 != nil
	}
	return p.m.name < o.m.name
}

// connect makes an endpoint, with its file and its names. On failure nothing of it remains.
func (s *Service) connect(ctx context.Context, p *planned) (_ Connection, err error) {
	c := p.c
	defer func() {
		if err != nil {
			<-s.drop(ctx, p.up, c)
		}
	}()
	if err := p.up.allocate(ctx, p.spec, &c.Endpoint); err != nil {
		return c, err
	}
	// First the file: an engine that is killed before the connection is whole and recorded has left word of the interface.
	c.Making = true
	if err := s.files.save(c); err != nil {
		return c, errs.New(errs.Internal, "network: record endpoint: %w", err)
	}
	if err := p.up.Connect(ctx, &c); err != nil {
		return c, err
	}
	c.Making = false
	if err := s.files.save(c); err != nil {
		return c, errs.New(errs.Internal, "network: record endpoint: %w", err)
	}
	if len(c.Names) > 0 {
		if err := s.tables.Add(c.Endpoint.NetworkID, c.entry()); err != nil {
			return c, errs.New(errs.Internal, "network: names: %w", err)
		}
	}
	return c, nil
}

func (c *Connection) entry() names.Entry {
	e := names.Entry{Names: c.Names}
	for _, p := range []netip.Prefix{c.Endpoint.IPv4, c.Endpoint.IPv6} {
		if p.IsValid() {
			e.Addrs = append(e.Addrs, p.Addr())
		}
	}
	return e
}

// allocate chooses the addresses of an endpoint. One that is asked for may still be that of an interface which is being removed, such as the container's own
// before a restart, and so may the last ones of a small subnet: allocate waits for it.
func (m *made) allocate(ctx context.Context, spec EndpointSpec, e *Endpoint) error {
	if spec.MAC != "" {
		if _, err := net.ParseMAC(spec.MAC); err != nil {
			return invalid("invalid MAC address %q", spec.MAC)
		}
	}
	e.MAC, e.LinkLocal = spec.MAC, spec.LinkLocal
	for _, f := range []struct {
		family  *family
		want    netip.Addr
		what    string
		addr    *netip.Prefix
		gateway *netip.Addr
	}{{m.v4, spec.IPv4, "IPv4", &e.IPv4, &e.Gateway}, {m.v6, spec.IPv6, "IPv6", &e.IPv6, &e.Gateway6}} {
		if f.family == nil {
			if f.want.IsValid() {
				return invalid("address %s: the network has no %s subnet", f.want, f.what)
			}
			continue
		}
		a, err := f.family.addresses.AllocateSoon(ctx, f.want)
		if err != nil {
			return err
		}
		*f.addr = netip.PrefixFrom(a, f.family.gateway.Bits())
		if !f.family.closed {
			*f.gateway = f.family.gateway.Addr()
		}
	}
	return nil
}

// take marks the addresses of an endpoint as used.
func (m *made) take(e Endpoint) error {
	var all error
	for _, f := range m.families(e) {
		_, err := f.family.addresses.Allocate(f.addr)
		all = errors.Join(all, err)
	}
	return all
}

type used struct {
	family *family
	addr   netip.Addr
}

func (m *made) families(e Endpoint) []used {
	var out []used
	if m.v4 != nil && e.IPv4.IsValid() {
		out = append(out, used{m.v4, e.IPv4.Addr()})
	}
	if m.v6 != nil && e.IPv6.IsValid() {
		out = append(out, used{m.v6, e.IPv6.Addr()})
	}
	return out
}

// drop undoes connect as far as it came. The addresses are free, and the container may get another interface of the name, when the driver is done with them: the
// channel that drop returns is closed then.
func (s *Service) drop(ctx context.Context, up *made, c Connection) <-chan struct{} {
	gone := make(chan struct{})
	if up == nil {
		close(gone)
	}
	if len(c.Names) > 0 {
		if err := s.tables.Remove(c.Endpoint.NetworkID, c.entry()); err != nil {
			s.log.Warn("names of a container stay", "container", c.Container, "err", err)
		}
	}
	if up == nil && c.Endpoint.Interface != "" && namespace.Exists(c.Netns) {
		if err := namespace.RemoveLink(c.Netns, c.Endpoint.Interface); err != nil {
			s.log.Warn("an interface of a lost network stays", "container", c.Container, "interface", c.Endpoint.Interface, "err", err)
		}
	}
	if up != nil {
		addresses := up.families(c.Endpoint)
		for _, f := range addresses {
			f.family.addresses.Leave(f.addr)
		}
		up.Disconnect(context.WithoutCancel(ctx), c, func() {
			for _, f := range addresses {
				f.family.addresses.Free(f.addr)
			}
			close(gone)
		})
	}
	if err := s.files.remove(c); err != nil {
		s.log.Warn("the file of an endpoint stays", "container", c.Container, "err", err)
	}
	return gone
}

// setMemberships tells the resolver of a container where to look names up.
func setMemberships(tables names.Tables, id oci.ContainerID, list []Connection) error {
	var out []names.Membership
	for _, c := range list {
		if len(c.Names) > 0 {
			out = append(out, names.Membership{Network: c.Endpoint.Network, ID: c.Endpoint.NetworkID, Links: c.Links})
		}
	}
	if len(out) == 0 {
		return tables.Forget(string(id))
	}
	if err := tables.SetMemberships(string(id), out); err != nil {
		return errs.New(errs.Internal, "network: names: %w", err)
	}
	return nil
}

// Tables returns the directory of the names, for the resolver of a container.
func (s *Service) Tables() string { return s.tables.Dir() }

// Connect connects a container, whose namespace is bound at netns, to one more network. On failure nothing of it remains. Errors are those of Attach, and
// errs.Forbidden for a network to which it is connected.
func (s *Service) Connect(ctx context.Context, id oci.ContainerID, netns string, req EndpointRequest) (_ Attachment, err error) {
	all := s.attached(id)
	p, err := s.planOne(ctx, id, netns, req, all)
	if p.m != nil {
		defer s.release([]planned{p})
	}
	if err != nil {
		return Attachment{}, err
	}
	if slices.ContainsFunc(all, func(o planned) bool { return o.m == p.m }) {
		return Attachment{}, errs.New(errs.Forbidden, "endpoint with name %s already exists in network %s", id.Short(), p.m.name)
	}
	if !slices.ContainsFunc(all, func(o planned) bool { return o.c.Default }) && best([]*planned{&p}) != nil {
		p.c.Ports = req.Ports
	}
	c, err := s.connect(ctx, &p)
	if err != nil {
		return Attachment{}, err
	}
	p.c = c
	before := slices.Clone(all)
	all = append(all, p)
	if err := s.reroute(ctx, all); err != nil {
		<-s.drop(ctx, p.up, all[len(all)-1].c)
		return Attachment{}, errors.Join(err, routeBack(ctx, s, id, before))
	}
	return s.keep(id, all, func() { s.publish("connect", p.m, id) })
}

// Disconnect takes a container out of a network, which may be lost. The error's class is errs.NotFound when the network does not exist, and errs.Forbidden when the
// container is not in it.
func (s *Service) Disconnect(ctx context.Context, id oci.ContainerID, ref string) (Attachment, error) {
	all := s.attached(id)
	m, err := s.find(ref)
	i := slices.IndexFunc(all, func(p planned) bool { return err == nil && p.c.Endpoint.NetworkID == m.ID })
	if i < 0 {
		i = slices.IndexFunc(all, func(p planned) bool { return p.up == nil && p.c.Endpoint.Network == ref })
	}
	if i < 0 && err != nil {
		return Attachment{}, err
	}
	if i < 0 {
		return Attachment{}, errs.New(errs.Forbidden, "container %s is not connected to network %s", id.Short(), m.name)
	}
	m = all[i].m
	gone := all[i]
	all = slices.Delete(all, i, i+1)
	if gone.c.Default { // the interface goes later, and its routes and ports must make room now
		gone.c.Moving = true
		if err := s.files.save(gone.c); err != nil {
			return Attachment{}, err
		}
		next := best(pointers(all))
		if next != nil {
			next.c.Ports, next.c.Handed = gone.c.Ports, gone.c.Handed
		}
		if err := gone.demote(ctx); err != nil {
			return Attachment{}, err
		}
	}
	// The file of the connection that goes is the last one to change: an engine that is killed meanwhile leaves the ports to one of the two.
	err = s.reroute(ctx, all)
	<-s.drop(ctx, gone.up, gone.c)
	att, kerr := s.keep(id, all, func() { s.publish("disconnect", m, id) })
	return att, errors.Join(err, kerr)
}

func pointers(all []planned) []*planned {
	out := make([]*planned, len(all))
	for i := range all {
		out[i] = &all[i]
	}
	return out
}

// demote undoes Promote. A lost network has no rules, and no sockets of the engine.
func (p *planned) demote(ctx context.Context) error {
	if p.up != nil {
		return p.up.Demote(ctx, &p.c)
	}
	p.c.Published = false
	return namespace.RemoveRoutes(p.c.Netns, p.c.Endpoint.Interface)
}

// lostDefault reports whether a lost network provides the default route. It keeps it until the container is connected to another network, or disconnected from one.
func lostDefault(all []planned) bool {
	return slices.ContainsFunc(all, func(p planned) bool { return p.up == nil && p.c.Default })
}

// attached returns the connections of a container with their networks, of which some may be lost.
func (s *Service) attached(id oci.ContainerID) []planned {
	s.mu.Lock()
	list := slices.Clone(s.connected[id])
	byID := map[string]*managed{}
	for _, m := range s.networks {
		byID[m.ID] = m
	}
	s.mu.Unlock()
	var all []planned
	for _, c := range list {
		m := byID[c.Endpoint.NetworkID]
		if m == nil {
			m = &managed{name: c.Endpoint.Network, networkRecord: networkRecord{ID: c.Endpoint.NetworkID}}
		}
		all = append(all, planned{m: m, up: m.current(), c: c})
	}
	return all
}

// routeBack undoes what reroute did before it failed.
func routeBack(ctx context.Context, s *Service, id oci.ContainerID, before []planned) error {
	for i := range before {
		if p := &before[i]; p.c.Default {
			if err := p.demote(ctx); err != nil { // reroute may have come that far, or not
				return err
			}
			p.c.Default = false
		}
	}
	err := s.reroute(ctx, before)
	_, kerr := s.keep(id, before, func() {})
	return errors.Join(err, kerr)
}

// reroute lets the right endpoint provide the default route, with the ports. The file of the endpoint that has the route says so first, and the file of the one that
// loses it is written last: of an engine that is killed meanwhile there is at least one file with the ports.
func (s *Service) reroute(ctx context.Context, all []planned) error {
	next := best(pointers(all))
	var ports []PortBinding
	var handed bool
	var demoted []*planned
	for i := range all {
		p := &all[i]
		if !p.c.Default || p == next || p.up == nil && next == nil {
			continue
		}
		ports, handed = p.c.Ports, p.c.Handed
		p.c.Moving = true
		if err := s.files.save(p.c); err != nil {
			return err
		}
		if err := p.demote(ctx); err != nil {
			return err
		}
		p.c.Default, p.c.Ports, p.c.Handed, p.c.Moving = false, nil, false, false
		demoted = append(demoted, p)
	}
	if next != nil && !next.c.Default {
		if len(next.c.Ports) == 0 {
			next.c.Ports, next.c.Handed = ports, handed
		}
		next.c.Default = true
		if err := next.up.Promote(ctx, &next.c); err != nil {
			return err
		}
		next.c.Moving = false
		if err := s.files.save(next.c); err != nil {
			return err
		}
	}
	for _, p := range demoted {
		if err := s.files.save(p.c); err != nil {
			return err
		}
	}
	return nil
}

// keep remembers the connections of a container.
func (s *Service) keep(id oci.ContainerID, all []planned, then func()) (Attachment, error) {
	var list []Connection
	for _, p := range all {
		list = append(list, p.c)
	}
	err := setMemberships(s.tables, id, list)
	s.mu.Lock()
	s.connected[id] = list
	s.mu.Unlock()
	then()
	return attachmentOf(list), err
}

// HandOver calls take with the published ports of a container, so that its shim carries them and keeps their sockets, whether plyd runs or not. The second
// argument are the sockets of the ports that the shim has not got yet, which take closes. While the class of its error is errs.Unimplemented, this process carries
// the ports. The caller serialises it with Attach, Connect, Disconnect and Detach of the container.
func (s *Service) HandOver(id oci.ContainerID, take func(list []proxy.Port, sockets []*os.File) error) error {
	all := s.attached(id)
	if lostDefault(all) {
		return nil // the shim keeps what it has
	}
	for i := range all {
		p := &all[i]
		if !p.c.Default {
			continue
		}
		publisher, ok := p.up.Segment.(Publisher)
		if !ok {
			continue
		}
		was := p.c.Handed
		if err := publisher.HandOver(&p.c, take); err != nil {
			return err
		}
		if p.c.Handed == was {
			return nil
		}
		var list []Connection
		for _, p := range all {
			list = append(list, p.c)
		}
		s.mu.Lock()
		s.connected[id] = list
		s.mu.Unlock()
		return s.files.save(p.c)
	}
	if err := take(nil, nil); err != nil && !errors.Is(err, errs.Unimplemented) {
		return err
	}
	return nil
}

// Relink changes to which containers a connected container is linked; those that it was not linked to when it was connected are no error. The caller serialises
// it with the other changes of the container. A container that is not in the network is no error.
func (s *Service) Relink(ctx context.Context, id oci.ContainerID, network string, linked []oci.ContainerID) error {
	all := s.attached(id)
	for i := range all {
		p := &all[i]
		if p.up == nil || p.m.name != network || !p.m.config.NoICC {
			continue
		}
		var err error
		p.c.Linked = linked
		if linker, ok := p.up.Segment.(Linker); ok {
			err = linker.Relink(ctx, p.c)
		}
		_, kerr := s.keep(id, all, func() {})
		return errors.Join(err, kerr, s.files.save(p.c))
	}
	return nil
}

// Rename changes a name of a container in the networks to which it is connected.
func (s *Service) Rename(id oci.ContainerID, old, name string) error {
	s.mu.Lock()
	list := slices.Clone(s.connected[id])
	s.mu.Unlock()
	var all error
	for i := range list {
		c := &list[i]
		at := slices.Index(c.Names, old)
		if at < 0 {
			if at = slices.Index(c.Endpoint.Aliases, old); at >= 0 { // on a network without names
				c.Endpoint.Aliases = slices.Clone(c.Endpoint.Aliases)
				c.Endpoint.Aliases[at] = name
				all = errors.Join(all, s.files.save(*c))
			}
			continue
		}
		before := c.entry()
		c.Names = slices.Clone(c.Names)
		c.Names[at] = name
		c.Endpoint.Aliases = c.Names
		all = errors.Join(all, s.tables.Remove(c.Endpoint.NetworkID, before), s.tables.Add(c.Endpoint.NetworkID, c.entry()), s.files.save(*c))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.connected[id] != nil {
		s.connected[id] = list
	}
	return all
}

// Attached returns what Attach made for a container, which may have been in an earlier engine; false when the container is
// not attached.
func (s *Service) Attached(id oci.ContainerID) (Attachment, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list, ok := s.connected[id]
	if !ok {
		return Attachment{}, false
	}
	return attachmentOf(list), true
}

// attachmentOf returns how a container with these connections is attached.
func attachmentOf(list []Connection) Attachment {
	a := Attachment{Endpoints: map[string]Endpoint{}}
	for _, c := range list {
		a.Endpoints[c.Endpoint.Network] = c.Endpoint
		a.Ports = append(a.Ports, c.Ports...)
		a.Resolver = a.Resolver || len(c.Names) > 0
		a.Outside = a.Outside || c.Default
	}
	return a
}

// Detach removes ports, interfaces, addresses and the namespace. A container that is not attached is no error.
func (s *Service) Detach(ctx context.Context, id oci.ContainerID, netns string) error {
	s.mu.Lock()
	list := s.connected[id]
	delete(s.connected, id)
	byID := map[string]*managed{}
	for _, c := range list {
		if m := s.networks[c.Endpoint.Network]; m != nil && m.ID == c.Endpoint.NetworkID {
			byID[m.ID] = m
			m.users++ // it is not removed before the interfaces are
		}
	}
	s.mu.Unlock()
	for _, c := range slices.Backward(list) {
		m := byID[c.Endpoint.NetworkID]
		var up *made
		if m != nil {
			up = m.current()
		}
		s.drop(ctx, up, c)
		if m != nil {
			s.publish("disconnect", m, id)
		}
	}
	s.mu.Lock()
	for m := range maps.Values(byID) {
		m.users--
	}
	s.mu.Unlock()
	return errors.Join(namespace.Remove(netns), s.tables.Forget(string(id)))
}

// checkPorts refuses what cannot be bound, before anything is made: container port 0, and one host port published
// twice.
func checkPorts(ports []PortBinding) error {
	for i, p := range ports {
		if p.ContainerPort == 0 {
			return errs.New(errs.Invalid, "published port: container port 0")
		}
		if p.HostPort == 0 {
			continue
		}
		same := func(o PortBinding) bool {
			return o.Proto == p.Proto && o.HostPort == p.HostPort && o.HostPortEnd == 0 && o.HostIP == p.HostIP
		}
		if p.HostPortEnd == 0 && slices.ContainsFunc(ports[:i], same) {
			return errs.New(errs.Conflict, "Bind for port %d/%s failed: it is published twice", p.HostPort, p.Proto)
		}
	}
	return nil
}
