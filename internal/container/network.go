package container

import (
	"context"
	"errors"
	"maps"
	"os"
	"slices"

	"ply/internal/container/etc"
	"ply/internal/container/shim"
	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/network"
	"ply/internal/network/proxy"
	"ply/internal/oci"
)

// sharesNetwork reports whether a container has no networks of its own.
func sharesNetwork(mode string) bool { return mode == "host" || isContainerMode(mode) }

// resolveNetworks replaces the references to networks by their names, as far as they exist, and refuses what cannot be combined. A network
// that does not exist yet is looked for again at the start.
func (e *env) resolveNetworks(sp *spec.Spec) error {
	name := func(ref string) string {
		if n, err := e.opts.Network.Name(ref); err == nil {
			return n
		}
		return ref
	}
	if !sharesNetwork(sp.NetworkMode) {
		sp.NetworkMode = name(sp.NetworkMode)
	}
	if err := e.resolveLinks(sp); err != nil {
		return err
	}
	endpoints := map[string]network.EndpointSpec{}
	for ref, ep := range sp.Endpoints {
		endpoints[name(ref)] = ep
	}
	if len(endpoints) == 0 {
		endpoints = nil
	}
	sp.Endpoints = endpoints
	for n, ep := range endpoints {
		if err := checkEndpoint(sp.NetworkMode, n, ep); err != nil {
			return err
		}
	}
	return nil
}

// checkEndpoint refuses endpoints that a container of a mode cannot have.
func checkEndpoint(mode, name string, ep network.EndpointSpec) error {
	switch {
	case name == mode && sharesNetwork(mode):
	case sharesNetwork(mode):
		return invalid("container sharing network namespace with another container or host cannot be connected to any other network")
	case name == "host":
		return invalid("container cannot be disconnected from host network or connected to host network")
	case name != mode && (name == "none" || mode == "none"):
		return invalid("container cannot be connected to multiple networks with one of the networks in private (none) mode")
	}
	if spec.IsUserDefined(name) {
		return nil
	}
	if ep.IPv4.IsValid() || ep.IPv6.IsValid() {
		return invalid("invalid config for network %s: invalid endpoint settings:\nuser specified IP address is supported on user defined networks only", name)
	}
	if len(ep.Aliases) > 0 {
		return invalid("invalid config for network %s: invalid endpoint settings:\nnetwork-scoped alias is supported only for containers in user defined networks", name)
	}
	return nil
}

// networksOf returns the networks of a new container, as its record has them.
func networksOf(sp *spec.Spec) map[string]network.Endpoint {
	if sharesNetwork(sp.NetworkMode) {
		if sp.NetworkMode == "host" {
			return map[string]network.Endpoint{"host": {Network: "host"}}
		}
		return nil
	}
	out := map[string]network.Endpoint{sp.NetworkMode: {Network: sp.NetworkMode}}
	for name := range sp.Endpoints {
		out[name] = network.Endpoint{Network: name}
	}
	return out
}

// endpointRequests returns what a container asks of its networks, that of its mode first. The caller holds c.mu.
func endpointRequests(c *ctr) []network.EndpointRequest {
	sp := &c.rec.Spec
	names := slices.Sorted(maps.Keys(c.rec.Networks))
	if i := slices.Index(names, sp.NetworkMode); i > 0 {
		names = slices.Insert(slices.Delete(names, i, i+1), 0, sp.NetworkMode)
	}
	if len(names) == 0 { // disconnected from all
		names = []string{"none"}
	}
	var out []network.EndpointRequest
	for _, n := range names {
		out = append(out, requestOf(c.id, c.rec.Name, sp, n))
	}
	return out
}

// requestOf returns what a container asks of one network.
func requestOf(id oci.ContainerID, name string, sp *spec.Spec, net string) network.EndpointRequest {
	ep := sp.Endpoints[net]
	if ep.MAC == "" && net == sp.NetworkMode {
		ep.MAC = sp.MacAddress
	}
	names := []string{name, id.Short()}
	if sp.Hostname != "" && sp.Hostname != id.Short() {
		names = append(names, sp.Hostname)
	}
	req := network.EndpointRequest{Network: net, Spec: ep, Names: names}
	if net == defaultNetwork {
		req.Linked, req.Exposed = targetsOf(sp), exposedRanges(sp.ExposedPorts)
	}
	return req
}

// attachNetwork connects the container to its networks; attached reports whether there is something to detach.
func (s *starter) attachNetwork(ctx context.Context, c *ctr, p *prepared) (attached bool, err error) {
	c.mu.Lock()
	sp, requests := c.rec.Spec, endpointRequests(c)
	c.mu.Unlock()
	if sharesNetwork(sp.NetworkMode) {
		return false, nil
	}
	ports, err := sp.PublishedPorts()
	if err != nil {
		return false, err
	}
	req := network.AttachRequest{ID: c.id, NetnsPath: c.paths.netns, Endpoints: requests, Ports: ports}
	if p.att, err = s.env.opts.Network.Attach(ctx, req); err != nil {
		return false, s.env.nameHolder(err)
	}
	setAttachment(c, p.att)
	return true, nil
}

// nameHolder adds to an error on a port the name of the container that has it.
func (e *env) nameHolder(err error) error {
	if used := new(network.PortInUseError); errors.As(err, &used) && used.Container != "" {
		if c, ferr := e.index.find(string(used.Container)); ferr == nil {
			used.Name = c.name()
		}
	}
	return err
}

// publishPorts makes the shim carry the published ports, so that what does not go through the kernel's rules does not end with plyd.
func publishPorts(ctx context.Context, c *ctr, client *shim.Client) error {
	return c.env.opts.Network.HandOver(c.id, func(list []proxy.Port, sockets []*os.File) error { return client.Publish(ctx, list, sockets) })
}

// setAttachment writes down how the container is attached.
func setAttachment(c *ctr, att network.Attachment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rec.Networks, c.rec.Ports, c.rec.Netns = att.Endpoints, att.Ports, c.paths.netns
}

// detachNetwork undoes attachNetwork; idempotent.
func (c *ctr) detachNetwork(ctx context.Context) error {
	c.mu.Lock()
	netns := c.rec.Netns
	c.mu.Unlock()
	if netns == "" {
		return nil
	}
	err := c.env.opts.Network.Detach(ctx, c.id, netns)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		c.rec.Netns = ""
	}
	c.rec.Ports = nil
	left := make(map[string]network.Endpoint, len(c.rec.Networks)) // a new map: save may be reading the old one
	for n, e := range c.rec.Networks {
		left[n] = network.Endpoint{Network: e.Network, NetworkID: e.NetworkID, Aliases: e.Aliases}
	}
	c.rec.Networks = left
	return err
}

// resolve lets the shim answer the names of the container's networks, if it is in any that has names.
func resolve(ctx context.Context, c *ctr, client *shim.Client, att network.Attachment) error {
	if !att.Resolver {
		return nil
	}
	c.mu.Lock()
	own := c.rec.Spec
	c.mu.Unlock()
	ask, engine := resolversOf(c, own)
	_, servers, inside := etc.ResolvByShim(ask, engine, c.env.opts.ResolvConf)
	if !att.Outside {
		servers = nil // an internal network reveals nothing, not even questions
	}
	return client.Resolve(ctx, shim.ResolveArgs{
		Netns: c.paths.netns, Tables: c.env.opts.Network.Tables(), Container: string(c.id), Servers: servers, Inside: inside,
	})
}

// resolversOf returns the resolvers that a container and the engine ask for.
func resolversOf(c *ctr, sp spec.Spec) (own, engine etc.Resolver) {
	opts := &c.env.opts
	return etc.Resolver{Servers: sp.DNS, Search: sp.DNSSearch, Options: sp.DNSOptions},
		etc.Resolver{Servers: opts.DNS, Search: opts.DNSSearch, Options: opts.DNSOptions}
}

// Connector connects containers to networks and takes them out again. Safe for concurrent use.
type Connector struct{ s *Service }

// NewConnector returns the connector of the containers of s.
func NewConnector(s *Service) *Connector { return &Connector{s} }

// Connect connects a container to a network: at once when it runs, else at its next start. Errors: NotFound; Forbidden when it is connected; Invalid
// when it cannot be.
func (n *Connector) Connect(ctx context.Context, ref, networkRef string, ep network.EndpointSpec) error {
	name, err := n.s.env.opts.Network.Name(networkRef)
	if err != nil {
		return err
	}
	return n.change(ctx, ref, func(c *ctr) error {
		c.mu.Lock()
		mode, connected := c.rec.Spec.NetworkMode, c.rec.Networks
		c.mu.Unlock()
		if sharesNetwork(mode) {
			mode = "host"
		} else { // what counts is where it is connected now
			mode = name
			for n := range connected {
				if mode = n; n == "none" {
					break
				}
			}
		}
		if err := checkEndpoint(mode, name, ep); err != nil {
			return err
		}
		if mode == "host" {
			return invalid("container sharing network namespace with another container or host cannot be connected to any other network")
		}
		if _, is := connected[name]; is {
			return errs.New(errs.Forbidden, "endpoint with name %s already exists in network %s", c.name(), name)
		}
		c.mu.Lock()
		sp := c.rec.Spec
		sp.Endpoints = maps.Clone(sp.Endpoints)
		if sp.Endpoints == nil {
			sp.Endpoints = map[string]network.EndpointSpec{}
		}
		sp.Endpoints[name] = ep
		running, life, cname := c.rec.Netns != "", c.life, c.rec.Name
		c.mu.Unlock()
		if running {
			req := requestOf(c.id, cname, &sp, name)
			if req.Ports, err = sp.PublishedPorts(); err != nil {
				return err
			}
			att, err := n.s.env.opts.Network.Connect(ctx, c.id, c.paths.netns, req)
			if err != nil {
				return err
			}
			if err := followNetwork(ctx, c, life, att, connected); err != nil {
				back, derr := n.s.env.opts.Network.Disconnect(ctx, c.id, name)
				if derr == nil {
					setAttachment(c, back)
				}
				return errors.Join(err, derr)
			}
			setAttachment(c, att)
		} else {
			left := maps.Clone(connected)
			left[name] = network.Endpoint{Network: name}
			c.mu.Lock()
			c.rec.Networks = left
			c.mu.Unlock()
		}
		c.mu.Lock()
		c.rec.Spec.Endpoints = sp.Endpoints
		c.mu.Unlock()
		return nil
	})
}

// Disconnect takes a container out of a network, which may be gone. With force, a network to which the container is not connected is no error.
func (n *Connector) Disconnect(ctx context.Context, ref, networkRef string, force bool) error {
	name, unknown := n.s.env.opts.Network.Name(networkRef)
	if unknown != nil {
		name = networkRef
	}
	err := n.change(ctx, ref, func(c *ctr) error {
		c.mu.Lock()
		mode, connected, running, life := c.rec.Spec.NetworkMode, c.rec.Networks, c.rec.Netns != "", c.life
		c.mu.Unlock()
		if _, is := connected[name]; !is && unknown != nil && !force {
			return unknown
		}
		if sharesNetwork(mode) || name == "host" {
			return invalid("container cannot be disconnected from host network or connected to host network")
		}
		if _, is := connected[name]; !is {
			if force {
				return nil
			}
			return errs.New(errs.Forbidden, "container %s is not connected to network %s", c.id, name)
		}
		if running {
			att, err := n.s.env.opts.Network.Disconnect(ctx, c.id, name)
			if err != nil {
				return err
			}
			setAttachment(c, att)
			if err := followNetwork(ctx, c, life, att, connected); err != nil {
				c.env.log.Warn("files of a disconnected container are not up to date", "container", c.id, "err", err)
			}
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if !running {
			left := maps.Clone(connected)
			delete(left, name)
			c.rec.Networks = left
		}
		eps := maps.Clone(c.rec.Spec.Endpoints)
		delete(eps, name)
		c.rec.Spec.Endpoints = eps
		return nil
	})
	if unknown != nil && !force && errors.Is(err, errs.NotFound) { // neither is there
		return unknown
	}
	return err
}

// change changes the networks of a container and makes the change durable.
func (n *Connector) change(ctx context.Context, ref string, do func(c *ctr) error) error {
	c, err := n.s.find(ref)
	if err != nil {
		return err
	}
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.release()
	c.mu.Lock()
	st := c.rec.State.Status
	c.mu.Unlock()
	if st == StatusRemoving || st == StatusDead {
		return errs.New(errs.Conflict, "container is marked for removal and cannot be connected or disconnected to the network")
	}
	if err := do(c); err != nil {
		return err
	}
	return c.save()
}

// followNetwork brings hosts, resolv.conf and the resolver of a running container in line with its networks.
func followNetwork(ctx context.Context, c *ctr, l *life, att network.Attachment, before map[string]network.Endpoint) error {
	c.mu.Lock()
	sp := c.rec.Spec
	c.mu.Unlock()
	if l != nil && (len(sp.Ports) > 0 || sp.PublishAll) {
		if err := publishPorts(ctx, c, l.Client); err != nil {
			return err
		}
	}
	if err := etc.ChangeHosts(c.paths.hosts, sp.Hostname, sp.Domainname, before, att.Endpoints); err != nil {
		return err
	}
	if !att.Resolver || l == nil {
		return nil
	}
	if err := resolve(ctx, c, l.Client, att); err != nil {
		return err
	}
	own, engine := resolversOf(c, sp)
	data, _, _ := etc.ResolvByShim(own, engine, c.env.opts.ResolvConf)
	return etc.Write(c.paths.resolv, data)
}
