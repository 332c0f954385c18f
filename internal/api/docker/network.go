package docker

import (
	"net/http"
	"net/netip"
	"strings"

	"ply/internal/errs"
	"ply/internal/network"
	"ply/internal/oci"
	"ply/internal/wire"
)

// networkHandlers serves networks.
type networkHandlers struct {
	networks   Networks
	containers containerGetter // for the names of the containers in a network
	connector  Connector
}

func (h networkHandlers) routes(add adder) {
	add(get, "/networks", h.list)
	add(get, "/networks/", h.list)
	add(post, "/networks/create", h.create)
	add(post, "/networks/prune", h.prune)
	add(get, "/networks/{id}", h.inspect)
	add(remove, "/networks/{id}", h.remove)
	add(post, "/networks/{id}/connect", h.connect)
	add(post, "/networks/{id}/disconnect", h.disconnect)
}

func networkOf(n *network.Network, v int) wire.Network {
	a := wire.Network{Name: n.Name, ID: n.ID, Created: n.Created, Scope: "local", Driver: n.Driver, Internal: n.Internal, Attachable: n.Attachable, EnableIPv6: n.IPv6,
		Containers: map[string]wire.NetworkMember{}, Options: n.Options, Labels: n.Labels}
	a.IPAM.Driver, a.IPAM.Config, a.IPAM.Options = "default", []wire.IPAMConfig{}, n.IPAM
	if n.Damaged != nil { // clients show the driver in lists, and nothing else that could say it
		a.Driver = "damaged"
	}
	for _, p := range n.Pools {
		cfg := wire.IPAMConfig{Subnet: p.Subnet.String(), Gateway: addrText(p.Gateway)}
		if p.Range.IsValid() {
			cfg.IPRange = p.Range.String()
		}
		for name, addr := range p.Aux {
			if cfg.AuxiliaryAddresses == nil {
				cfg.AuxiliaryAddresses = map[string]string{}
			}
			cfg.AuxiliaryAddresses[name] = addr.String()
		}
		a.IPAM.Config = append(a.IPAM.Config, cfg)
	}
	if v >= 48 {
		a.EnableIPv4 = &n.IPv4
	}
	if a.Options == nil {
		a.Options = map[string]string{}
	}
	if a.Labels == nil {
		a.Labels = map[string]string{}
	}
	return a
}

func (h networkHandlers) list(c *call) error {
	filters, err := c.filters()
	if err != nil {
		return err
	}
	networks, err := h.networks.List(c.ctx(), filters)
	if err != nil {
		return err
	}
	list := make([]wire.Network, 0, len(networks))
	for _, n := range networks {
		list = append(list, networkOf(n, c.v))
	}
	return c.json(http.StatusOK, list)
}

func (h networkHandlers) inspect(c *call) error {
	n, err := h.networks.Get(c.ctx(), c.vars["id"])
	if err != nil {
		return err
	}
	if n.Damaged != nil {
		return n.Damaged
	}
	a := networkOf(n, c.v)
	for id, ep := range n.Endpoints {
		m := wire.NetworkMember{EndpointID: ep.ID, MacAddress: ep.MAC}
		if ep.IPv4.IsValid() {
			m.IPv4Address = ep.IPv4.String()
		}
		if ep.IPv6.IsValid() {
			m.IPv6Address = ep.IPv6.String()
		}
		if ctr, err := h.containers.Get(c.ctx(), id, false); err == nil {
			m.Name = ctr.Name
		}
		a.Containers[string(oci.ContainerID(id))] = m
	}
	return c.json(http.StatusOK, a)
}

func (h networkHandlers) create(c *call) error {
	var b wire.NetworkBody
	if err := c.body(&b, false); err != nil {
		return err
	}
	o, err := networkOptions(&b)
	if err != nil {
		return err
	}
	id, err := h.networks.Create(c.ctx(), o)
	if err != nil {
		return err
	}
	return c.json(http.StatusCreated, wire.NetworkCreated{ID: id})
}

// networkOptions returns what a request asks for. What belongs to a swarm, or to another IPAM driver, is refused.
func networkOptions(b *wire.NetworkBody) (network.CreateOptions, error) {
	o := network.CreateOptions{Name: b.Name, Driver: b.Driver, Internal: b.Internal, Attachable: b.Attachable, Labels: b.Labels, Options: b.Options, IPAM: b.IPAM.Options}
	switch {
	case b.Ingress:
		return o, unsupported("Ingress of network "+clip(b.Name), "there is no swarm")
	case b.ConfigOnly, b.ConfigFrom != nil && b.ConfigFrom.Network != "":
		return o, unsupported("ConfigOnly and ConfigFrom of network "+clip(b.Name), "give the network its own configuration")
	case b.Scope != "" && b.Scope != "local":
		return o, unsupported("scope "+clip(b.Scope)+" of network "+clip(b.Name), "networks are local")
	case b.IPAM.Driver != "" && b.IPAM.Driver != "default":
		return o, unsupported("IPAM driver "+clip(b.IPAM.Driver)+" of network "+clip(b.Name), "addresses come from the default one")
	}
	if o.Driver == "null" || o.Driver == "none" {
		return o, errs.New(errs.Forbidden, "only one instance of \"null\" network is allowed")
	}
	o.NoIPv4 = b.EnableIPv4 != nil && !*b.EnableIPv4
	o.IPv6 = b.EnableIPv6 != nil && *b.EnableIPv6
	for _, cfg := range b.IPAM.Config {
		p, err := poolOf(cfg)
		if err != nil {
			return o, err
		}
		if p.Subnet.IsValid() {
			o.Pools = append(o.Pools, p)
		}
	}
	return o, nil
}

// poolOf reads one subnet. An entry without a subnet asks for any.
func poolOf(c wire.IPAMConfig) (p network.Pool, err error) {
	bad := func(what, value string) (network.Pool, error) {
		return p, errs.New(errs.Invalid, "invalid network config:\ninvalid %s %s", what, clip(value))
	}
	if c.Subnet == "" {
		if c.Gateway != "" || c.IPRange != "" || len(c.AuxiliaryAddresses) > 0 {
			return bad("subnet", `"": a gateway, an ip-range or an auxiliary address needs one`)
		}
		return p, nil
	}
	if p.Subnet, err = netip.ParsePrefix(c.Subnet); err != nil {
		return bad("subnet", c.Subnet+": invalid CIDR block notation")
	}
	if c.IPRange != "" {
		if p.Range, err = netip.ParsePrefix(c.IPRange); err != nil {
			return bad("ip-range", c.IPRange+": invalid CIDR block notation")
		}
	}
	if c.Gateway != "" {
		gateway, _, _ := strings.Cut(c.Gateway, "/")
		if p.Gateway, err = netip.ParseAddr(gateway); err != nil {
			return bad("gateway", c.Gateway+": invalid address")
		}
	}
	for name, v := range c.AuxiliaryAddresses {
		a, err := netip.ParseAddr(v)
		if err != nil {
			return bad("auxiliary address", v+": invalid address")
		}
		if p.Aux == nil {
			p.Aux = map[string]netip.Addr{}
		}
		p.Aux[name] = a
	}
	return p, nil
}

func (h networkHandlers) connect(c *call) error {
	var b wire.NetworkConnect
	if err := c.body(&b, false); err != nil {
		return err
	}
	e := b.EndpointConfig
	if e == nil {
		e = &wire.EndpointSettings{}
	}
	ep, err := endpointSpec(e, c.vars["id"])
	if err != nil {
		return err
	}
	if err := h.connector.Connect(c.lasting(), b.Container, c.vars["id"], ep); err != nil {
		return err
	}
	return c.none(http.StatusOK)
}

func (h networkHandlers) disconnect(c *call) error {
	var b wire.NetworkDisconnect
	if err := c.body(&b, false); err != nil {
		return err
	}
	if err := h.connector.Disconnect(c.lasting(), b.Container, c.vars["id"], b.Force); err != nil {
		return err
	}
	return c.none(http.StatusOK)
}

func (h networkHandlers) remove(c *call) error {
	return c.done(h.networks.Remove(c.lasting(), c.vars["id"]))
}

func (h networkHandlers) prune(c *call) error {
	filters, err := c.filters()
	if err != nil {
		return err
	}
	gone, err := h.networks.Prune(c.ctx(), filters)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, wire.NetworksPruned{NetworksDeleted: gone})
}
