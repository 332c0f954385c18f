package network

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"ply/internal/errs"
	"ply/internal/events"
	"ply/internal/network/namespace"
	"ply/internal/oci"
)

// Attach makes a network namespace bound at req.NetnsPath and connects it to the network req.Mode, with the ports
// published. On failure nothing remains. The error's class is errs.NotFound when the network does not exist, and
// errs.Conflict when a host port or the address is in use.
func (s *Service) Attach(ctx context.Context, req AttachRequest) (_ Attachment, err error) {
	n, err := s.Get(ctx, req.Mode)
	if err != nil {
		return Attachment{}, err
	}
	if n.Driver == "host" {
		return Attachment{}, errs.New(errs.Invalid, "network host: shares the host's namespace, there is nothing to attach")
	}
	up, err := s.up(ctx, s.networks[n.Name], false)
	if err != nil {
		return Attachment{}, err
	}
	c := Connection{Container: req.ID, Netns: req.NetnsPath, Endpoint: Endpoint{Network: n.Name, NetworkID: n.ID, ID: randomID()}}
	if up.addresses != nil { // without an address no port can be published; docker ignores -p then
		c.Ports = req.Ports
	}
	if err := checkPorts(c.Ports); err != nil {
		return Attachment{}, err
	}
	if err := namespace.Make(req.NetnsPath); err != nil {
		return Attachment{}, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, namespace.Remove(req.NetnsPath))
		}
	}()
	if err := up.connect(ctx, req, &c); err != nil {
		return Attachment{}, err
	}
	if err := s.save(c); err != nil {
		up.disconnect(ctx, c)
		return Attachment{}, errs.New(errs.Internal, "network: record endpoint: %w", err)
	}
	s.mu.Lock()
	s.connected[req.ID] = c
	s.mu.Unlock()
	s.publish("connect", n, req.ID)
	return c.attachment(), nil
}

// Attached returns what Attach made for a container, which may have been in an earlier engine; false when the container is
// not attached.
func (s *Service) Attached(id oci.ContainerID) (Attachment, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.connected[id]
	if !ok {
		return Attachment{}, false
	}
	return c.attachment(), true
}

func (c Connection) attachment() Attachment {
	return Attachment{Endpoints: map[string]Endpoint{c.Endpoint.Network: c.Endpoint}, Ports: slices.Clone(c.Ports)}
}

func (s *Service) publish(action string, n *Network, id oci.ContainerID) {
	if s.opts.Events != nil {
		s.opts.Events.Publish(events.Event{Type: "network", Action: action, ID: n.ID,
			Attributes: map[string]string{"name": n.Name, "type": n.Driver, "container": string(id)}})
	}
}

// connect allocates the address and lets the driver make the interface. On failure nothing of them remains.
func (m *made) connect(ctx context.Context, req AttachRequest, c *Connection) error {
	if m.addresses != nil {
		if req.Spec.IPv6.IsValid() {
			return errs.New(errs.Invalid, "address %s: the network has no IPv6 subnet", req.Spec.IPv6)
		}
		gateway := m.Gateway()
		addr, err := m.addresses.Allocate(req.Spec.IPv4)
		if err != nil {
			return err
		}
		c.Endpoint.IPv4, c.Endpoint.Gateway = netip.PrefixFrom(addr, gateway.Bits()), gateway.Addr()
		c.Endpoint.MAC, c.Endpoint.Aliases = req.Spec.MAC, req.Aliases
	}
	if err := m.Connect(ctx, c); err != nil {
		m.disconnect(ctx, *c)
		return err
	}
	return nil
}

// disconnect undoes connect as far as it came. The address is free when the driver is done with it.
func (m *made) disconnect(ctx context.Context, c Connection) {
	m.Disconnect(context.WithoutCancel(ctx), c, func() {
		if m.addresses != nil && c.Endpoint.IPv4.IsValid() {
			m.addresses.Free(c.Endpoint.IPv4.Addr())
		}
	})
}

// Detach removes ports, interface, address and namespace. A container that is not attached is no error.
func (s *Service) Detach(ctx context.Context, id oci.ContainerID, netns string) error {
	s.mu.Lock()
	c, ok := s.connected[id]
	delete(s.connected, id)
	s.mu.Unlock()
	if ok {
		if m := s.networks[c.Endpoint.Network]; m != nil {
			if up := m.current(); up != nil {
				up.disconnect(ctx, c)
			}
		}
		if n, err := s.Get(ctx, c.Endpoint.Network); err == nil {
			s.publish("disconnect", n, id)
		}
	}
	err := namespace.Remove(netns)
	if rerr := os.Remove(filepath.Join(s.opts.StateDir, fileName(id))); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	return err
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
