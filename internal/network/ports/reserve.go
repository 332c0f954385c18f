// Package ports reserves ports of the host for containers.
//
// Reserve chooses the ports and keeps them with sockets. Package rules makes the kernel redirect connections to them; the sockets carry in user space what the
// rules do not.
package ports

import (
	"errors"
	"net"
	"net/netip"
	"syscall"

	"ply/internal/errs"
	"ply/internal/network"
)

// Reservation is one published port with a socket on the host that listens on it. The socket makes a second use of the
// port fail when a container starts. With a proxy it also carries the connections that the kernel's rules do not
// redirect: those over IPv6 to a container without an IPv6 address or from the
// host itself, and every connection on a host without rules.
type Reservation struct {
	network.PortBinding
	close func() error
}

// Options of Reserve.
type Options struct {
	HostIP netip.Addr // where a binding without a host address listens; invalid = on all addresses of both families
	Proxy  bool       // carry connections in user space
}

// Reserve binds the host ports of one container, all or none. A binding without a host address becomes one binding per
// family, as Docker shows it. Host port 0 becomes a free port, the same one for both families. The error's class is
// errs.Conflict when a port is in use.
func Reserve(wants []network.PortBinding, target netip.Addr, o Options) (all []Reservation, err error) {
	defer func() {
		if err != nil {
			Release(all)
			all = nil
		}
	}()
	for _, w := range wants {
		addrs := []netip.Addr{w.HostIP}
		if !w.HostIP.IsValid() {
			addrs = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
			if o.HostIP.IsValid() {
				addrs = []netip.Addr{o.HostIP}
			}
		}
		last := max(w.HostPortEnd, w.HostPort)
		var got []Reservation
		for port := w.HostPort; ; port++ {
			if got, err = reserveOn(w, addrs, port, target, o.Proxy); err == nil {
				break
			}
			if w.HostPort == 0 || port >= last || !errors.Is(err, errs.Conflict) {
				return all, err
			}
		}
		all = append(all, got...)
	}
	return all, nil
}

// reserveOn binds one host port on every address.
func reserveOn(w network.PortBinding, addrs []netip.Addr, port uint16, target netip.Addr, proxy bool) (got []Reservation, err error) {
	for i, a := range addrs {
		p := w
		p.HostIP, p.HostPort, p.HostPortEnd = a.Unmap(), port, 0
		if len(got) > 0 {
			p.HostPort = got[0].HostPort
		}
		r, err := listen(p, netip.AddrPortFrom(target, w.ContainerPort), proxy)
		if err != nil {
			// A host without IPv6 cannot publish there.
			if i > 0 && (errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL)) {
				continue
			}
			Release(got)
			return nil, err
		}
		got = append(got, r)
	}
	return got, nil
}

// Release closes the sockets, and the connections that they carry.
func Release(all []Reservation) {
	for _, r := range all {
		_ = r.close() // a listening socket has nothing to lose
	}
}

func listen(p network.PortBinding, target netip.AddrPort, proxy bool) (Reservation, error) {
	host := netip.AddrPortFrom(p.HostIP, p.HostPort)
	family := "4"
	if p.HostIP.Is6() {
		family = "6"
	}
	switch p.Proto {
	case "tcp":
		l, err := net.Listen("tcp"+family, host.String())
		if err != nil {
			return Reservation{}, bindError(p, err)
		}
		p.HostPort = uint16(l.Addr().(*net.TCPAddr).Port) //nolint:forcetypeassert // net.Listen("tcp") promises it
		t := &tcpProxy{listener: l, target: target.String(), open: map[net.Conn]struct{}{}}
		if proxy {
			go t.serve()
		}
		return Reservation{p, t.close}, nil
	case "udp":
		c, err := net.ListenPacket("udp"+family, host.String())
		if err != nil {
			return Reservation{}, bindError(p, err)
		}
		p.HostPort = uint16(c.LocalAddr().(*net.UDPAddr).Port) //nolint:forcetypeassert // net.ListenPacket("udp") promises it
		u := &udpProxy{conn: c, target: target.String(), flows: map[string]net.Conn{}}
		if proxy {
			go u.serve()
		}
		return Reservation{p, u.close}, nil
	}
	return Reservation{}, errs.New(errs.Invalid, "published port %d/%s: protocol is not tcp or udp", p.ContainerPort, p.Proto)
}

func bindError(p network.PortBinding, err error) error {
	host := netip.AddrPortFrom(p.HostIP, p.HostPort)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return errs.New(errs.Conflict, "Bind for %s failed: port is already allocated", host).
			WithHint("Choose another host port, or stop what listens there (ss -ltnup shows it).")
	case errors.Is(err, syscall.EACCES):
		return errs.New(errs.Forbidden, "Bind for %s failed: %w", host, err)
	}
	return errs.New(errs.Internal, "Bind for %s failed: %w", host, err)
}
