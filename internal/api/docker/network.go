package docker

import (
	"net/http"

	"ply/internal/errs"
	"ply/internal/network"
	"ply/internal/oci"
	"ply/internal/wire"
)

// networkHandlers serves networks.
type networkHandlers struct {
	networks   Networks
	containers containerGetter // for the names of the containers in a network
}

func (h networkHandlers) routes(add adder) {
	add(get, "/networks", h.list)
	add(post, "/networks/create", networkFixed)
	add(post, "/networks/prune", h.prune)
	add(get, "/networks/{id}", h.inspect)
	add(remove, "/networks/{id}", h.remove)
	add(post, "/networks/{id}/connect", networkFixed)
	add(post, "/networks/{id}/disconnect", networkFixed)
}

func networkOf(n *network.Network, v int) wire.Network {
	a := wire.Network{Name: n.Name, ID: n.ID, Created: n.Created, Scope: "local", Driver: n.Driver, Internal: n.Internal,
		Containers: map[string]wire.NetworkMember{}, Options: n.Options, Labels: n.Labels}
	a.IPAM.Driver, a.IPAM.Config = "default", []wire.IPAMConfig{}
	if n.Damaged != nil { // clients show the driver in lists, and nothing else that could say it
		a.Driver = "damaged"
	}
	if n.Subnet.IsValid() {
		a.IPAM.Config = append(a.IPAM.Config, wire.IPAMConfig{Subnet: n.Subnet.String(), Gateway: addrText(n.Gateway)})
		a.EnableIPv6 = n.Subnet.Addr().Is6()
	}
	if v >= 48 {
		on := !a.EnableIPv6
		a.EnableIPv4 = &on
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

// networkFixed refuses requests that would change the networks.
func networkFixed(*call) error {
	return errs.New(errs.Unimplemented, "user-defined networks are not supported: the networks are bridge, host and none")
}

func (h networkHandlers) remove(c *call) error {
	n, err := h.networks.Get(c.ctx(), c.vars["id"])
	if err != nil {
		return err
	}
	if n.Damaged != nil {
		return c.done(h.networks.RemoveDamaged(c.ctx(), n.ID))
	}
	return errs.New(errs.Forbidden, "%s is a pre-defined network and cannot be removed", n.Name)
}

// prune removes nothing, because the pre-defined networks are never removed.
func (h networkHandlers) prune(c *call) error {
	filters, err := c.filters()
	if err != nil {
		return err
	}
	if _, err := network.PruneFilters.Compile(filters); err != nil {
		return err
	}
	return c.json(http.StatusOK, wire.NetworksPruned{})
}
