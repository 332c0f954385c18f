package network

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"

	"github.com/vishvananda/netlink"

	"ply/internal/errs"
	"ply/internal/events"
	"ply/internal/oci"
)

// Attach makes a network namespace bound at req.NetnsPath and, unless the mode is none, an interface eth0 in it on the
// bridge, with the ports published. On failure nothing is left. errs.NotFound for a network that is not there,
// errs.Conflict for a host port in use.
func (s *Service) Attach(ctx context.Context, req AttachRequest) (_ Attachment, err error) {
	n, err := s.Get(ctx, req.Mode)
	if err != nil {
		return Attachment{}, err
	}
	if n.Driver == "host" {
		return Attachment{}, errs.New(errs.Invalid, "network host: shares the host's namespace, there is nothing to attach")
	}
	if n.Driver == "null" && len(req.Ports) > 0 {
		req.Ports = nil // as docker: -p means nothing without a network
	}
	if err := checkPorts(req.Ports); err != nil {
		return Attachment{}, err
	}
	if err := makeNamespace(req.NetnsPath); err != nil {
		return Attachment{}, err
	}
	f := endpointFile{Container: req.ID, Netns: req.NetnsPath, Endpoint: Endpoint{Network: n.Name, NetworkID: n.ID, ID: randomID()}}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeNamespace(req.NetnsPath))
		}
	}()
	if n.Driver == "bridge" {
		if err := s.connect(ctx, req, &f); err != nil {
			return Attachment{}, err
		}
	}
	if err := s.saveEndpoint(f); err != nil {
		s.disconnect(ctx, f)
		return Attachment{}, errs.New(errs.Internal, "network: record endpoint: %w", err)
	}
	s.mu.Lock()
	s.endpoints[req.ID] = f
	s.mu.Unlock()
	s.publish("connect", n, req.ID)
	return Attachment{Endpoints: map[string]Endpoint{n.Name: f.Endpoint}, Ports: f.Ports}, nil
}

func (s *Service) publish(action string, n *Network, id oci.ContainerID) {
	if s.opts.Events != nil {
		s.opts.Events.Publish(events.Event{Type: "network", Action: action, ID: n.ID,
			Attributes: map[string]string{"name": n.Name, "type": n.Driver, "container": string(id)}})
	}
}

// connect puts the container on the bridge; on failure everything but the namespace is undone.
func (s *Service) connect(ctx context.Context, req AttachRequest, f *endpointFile) (err error) {
	if err := s.ensure(ctx, true); err != nil {
		return err
	}
	if req.Spec.IPv6.IsValid() {
		return errs.New(errs.Invalid, "address %s: the network has no IPv6 subnet", req.Spec.IPv6)
	}
	addr, err := s.ipam.take(req.Spec.IPv4)
	if err != nil {
		return err
	}
	f.Endpoint.IPv4 = netip.PrefixFrom(addr, s.gw.Bits())
	f.Endpoint.Gateway = s.gw.Addr()
	f.Endpoint.MAC = req.Spec.MAC
	if f.Endpoint.MAC == "" {
		f.Endpoint.MAC = macFor(addr)
	}
	f.Endpoint.Interface, f.Endpoint.HostIf = "eth0", "veth"+randomID()[:7]
	f.Endpoint.Aliases = req.Aliases
	defer func() {
		if err != nil {
			s.disconnect(ctx, *f)
		}
	}()
	held, err := reserve(req.Ports, s.opts.HostIP, addr, !s.opts.NoProxy)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.ports[req.ID] = held
	s.mu.Unlock()
	for _, r := range held {
		f.Ports = append(f.Ports, r.PortBinding)
	}
	if err := s.plug(f.Endpoint, req.NetnsPath); err != nil {
		return err
	}
	if s.opts.NoRules {
		return nil
	}
	if err := nft(ctx, s.rules.elements("add", addr, f.Ports)); err != nil {
		return err
	}
	f.Published = true
	return nil
}

// plug makes the veth pair and configures the container's end.
func (s *Service) plug(e Endpoint, netnsPath string) error {
	mac, err := net.ParseMAC(e.MAC)
	if err != nil {
		return errs.New(errs.Invalid, "invalid MAC address %q: %w", e.MAC, err)
	}
	bridge, err := netlink.LinkByName(s.opts.Bridge)
	if err != nil {
		return errs.New(errs.Internal, "bridge %s: %w", s.opts.Bridge, err)
	}
	ns, h, err := inNamespace(netnsPath)
	if err != nil {
		return err
	}
	defer ns.Close()
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex = e.HostIf, s.opts.MTU, bridge.Attrs().Index
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: e.Interface, PeerHardwareAddr: mac, PeerNamespace: netlink.NsFd(ns), PeerMTU: uint32(s.opts.MTU)}
	fail := func(step string, err error) error {
		return errs.New(errs.Internal, "interface %s: %s: %w", e.HostIf, step, err)
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return fail("create", err)
	}
	if err := netlink.LinkSetUp(veth); err != nil {
		return fail("set up", err)
	}
	// A container may reach its own published port by the host's address: the frame leaves by the port it came in.
	if err := netlink.LinkSetHairpin(veth, true); err != nil {
		return fail("set hairpin mode", err)
	}
	eth, err := h.LinkByName(e.Interface)
	if err != nil {
		return fail("find peer", err)
	}
	last := lastAddr(e.IPv4)
	if err := h.AddrAdd(eth, &netlink.Addr{IPNet: ipNet(e.IPv4), Broadcast: net.IP(last.AsSlice())}); err != nil {
		return fail("address", err)
	}
	if err := h.LinkSetUp(eth); err != nil {
		return fail("set up peer", err)
	}
	if err := h.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: net.IP(e.Gateway.AsSlice())}); err != nil {
		return fail("default route", err)
	}
	return nil
}

// disconnect undoes connect as far as it got. What is gone already is fine; what stays is logged, for there is nobody to mend it.
func (s *Service) disconnect(ctx context.Context, f endpointFile) {
	ctx = context.WithoutCancel(ctx)
	if f.Published {
		if err := nft(ctx, s.rules.elements("delete", f.Endpoint.IPv4.Addr(), f.Ports)); err != nil {
			s.log.Warn("published ports stay in the rules", "container", f.Container, "err", err)
		}
	}
	s.mu.Lock()
	held := s.ports[f.Container]
	delete(s.ports, f.Container)
	s.mu.Unlock()
	release(held)
	// The kernel takes tens of milliseconds to delete an interface, and nobody needs to wait: its name is never
	// used again, and the address is given back when it is gone.
	s.background.Go(func() {
		if link, err := netlink.LinkByName(f.Endpoint.HostIf); err == nil {
			var gone netlink.LinkNotFoundError
			if err := netlink.LinkDel(link); err != nil && !errors.As(err, &gone) && !errors.Is(err, syscall.ENODEV) {
				s.log.Warn("interface stays", "interface", f.Endpoint.HostIf, "err", err)
			}
		}
		if s.ipam != nil && f.Endpoint.IPv4.IsValid() {
			s.ipam.giveBack(f.Endpoint.IPv4.Addr())
		}
	})
}

// Detach removes ports, interface, address and namespace. A container that is not attached is no error.
func (s *Service) Detach(ctx context.Context, id oci.ContainerID, netnsPath string) error {
	s.mu.Lock()
	f, ok := s.endpoints[id]
	delete(s.endpoints, id)
	s.mu.Unlock()
	if ok && f.Endpoint.IPv4.IsValid() {
		s.disconnect(ctx, f)
	}
	if ok {
		if n, err := s.Get(ctx, f.Endpoint.Network); err == nil {
			s.publish("disconnect", n, id)
		}
	}
	err := removeNamespace(netnsPath)
	if rerr := os.Remove(filepath.Join(s.opts.StateDir, string(id)+".json")); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	return err
}
