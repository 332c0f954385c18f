// Package ports reserves ports of the host for containers.
//
// Reserve chooses the ports and keeps them with sockets. Package rules makes the kernel redirect connections to them; package proxy carries in user space,
// with the sockets, what the rules do not.
package ports

import (
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/network"
)

// Reservation is one published port with a socket on the host that listens on it. The socket makes a second use of the
// port fail when a container starts. It is nil for sctp on a host whose kernel has no such sockets, and where Options say so.
type Reservation struct {
	network.PortBinding
	socket socket
}

type socket interface {
	File() (*os.File, error) // a second descriptor
	Close() error
}

// Socket returns a descriptor of the socket, which the caller closes; nil when there is no socket.
func (r *Reservation) Socket() (*os.File, error) {
	if r.socket == nil {
		return nil, nil
	}
	return r.socket.File()
}

// Options of Reserve. The zero value is ready for use.
type Options struct {
	HostIP netip.Addr                     // where a binding without a host address listens; invalid = on all addresses of both families
	Routed func(host netip.Addr) bool     // reports whether bindings to an address of the host are routed, so that nothing is bound; nil = none is
	Kept   func(network.PortBinding) bool // reports whether the socket of a binding is kept elsewhere already; nil = none is
}

// maxTries is how many free ports are tried for a binding to more than one address.
const maxTries = 20

// Reserve binds the host ports of one container, all or none. A binding without a host address becomes one binding per
// family, as Docker shows it. Host port 0 becomes a free port, the same one for both families. The error's class is
// errs.Conflict when a port is in use.
func Reserve(wants []network.PortBinding, o Options) (all []Reservation, err error) {
	defer func() {
		if err != nil {
			Release(all)
			all = nil
		}
	}()
	for _, w := range wants {
		if o.Kept != nil && o.Kept(w) {
			all = append(all, Reservation{w, nil})
			continue
		}
		w.Routed = false
		addrs := []netip.Addr{w.HostIP}
		if !w.HostIP.IsValid() {
			addrs = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
			if o.HostIP.IsValid() {
				addrs = []netip.Addr{o.HostIP}
			}
		}
		last := max(w.HostPortEnd, w.HostPort)
		var got []Reservation
		for port, tries := w.HostPort, 1; ; tries++ {
			if got, err = reserveOn(w, addrs, port, o.Routed); err == nil {
				break
			}
			// A port that is free on one address may be in use on the other: the next try gets another one.
			if !errors.Is(err, errs.Conflict) || port == 0 && tries == maxTries || port != 0 && port >= last {
				return all, err
			}
			if port != 0 {
				port++
			}
		}
		all = append(all, got...)
	}
	return all, nil
}

// reserveOn binds one host port on every address.
func reserveOn(w network.PortBinding, addrs []netip.Addr, port uint16, routed func(netip.Addr) bool) (got []Reservation, err error) {
	for i, a := range addrs {
		p := w
		p.HostIP = a.Unmap()
		if routed != nil && routed(p.HostIP) {
			p.Routed = true
			got = append(got, Reservation{p, nil})
			continue
		}
		p.HostPort, p.HostPortEnd = port, 0
		if len(got) > 0 && !got[0].Routed {
			p.HostPort = got[0].HostPort
		}
		r, err := listen(p)
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

// Release closes the sockets.
func Release(all []Reservation) {
	for _, r := range all {
		if r.socket != nil {
			_ = r.socket.Close() // a listening socket has nothing to lose
		}
	}
}

func listen(p network.PortBinding) (Reservation, error) {
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
		t := l.(*net.TCPListener)                         //nolint:forcetypeassert // net.Listen("tcp") promises it
		p.HostPort = uint16(t.Addr().(*net.TCPAddr).Port) //nolint:forcetypeassert // as above
		return Reservation{p, t}, nil
	case "udp":
		c, err := net.ListenPacket("udp"+family, host.String())
		if err != nil {
			return Reservation{}, bindError(p, err)
		}
		u := c.(*net.UDPConn)                                  //nolint:forcetypeassert // net.ListenPacket("udp") promises it
		p.HostPort = uint16(u.LocalAddr().(*net.UDPAddr).Port) //nolint:forcetypeassert // as above
		return Reservation{p, u}, nil
	case "sctp":
		return listenSCTP(p)
	}
	return Reservation{}, errs.New(errs.Invalid, "published port %d/%s: protocol is not tcp, udp or sctp", p.ContainerPort, p.Proto)
}

// listenSCTP binds a port that only the rules serve. A kernel that has no sockets of the protocol has no other user of its ports either.
func listenSCTP(p network.PortBinding) (Reservation, error) {
	fail := func(fd int, err error) (Reservation, error) {
		return Reservation{}, errors.Join(bindError(p, err), unix.Close(fd))
	}
	domain, bind := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: int(p.HostPort)})
	if p.HostIP.Is6() {
		domain, bind = unix.AF_INET6, &unix.SockaddrInet6{Port: int(p.HostPort), Addr: p.HostIP.As16()}
	} else {
		bind.(*unix.SockaddrInet4).Addr = p.HostIP.As4() //nolint:forcetypeassert // set above
	}
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ESOCKTNOSUPPORT) {
		if p.HostPort == 0 {
			p.HostPort = uint16(firstDynamic + rand.IntN(1<<16-firstDynamic)) // the rules refuse one that is taken
		}
		return Reservation{p, nil}, nil
	}
	if err != nil {
		return Reservation{}, bindError(p, err)
	}
	if domain == unix.AF_INET6 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return fail(fd, err)
		}
	}
	if err := unix.Bind(fd, bind); err != nil {
		return fail(fd, err)
	}
	if err := unix.Listen(fd, 1); err != nil {
		return fail(fd, err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return fail(fd, err)
	}
	switch a := name.(type) {
	case *unix.SockaddrInet4:
		p.HostPort = uint16(a.Port)
	case *unix.SockaddrInet6:
		p.HostPort = uint16(a.Port)
	}
	return Reservation{p, fileSocket{os.NewFile(uintptr(fd), "sctp")}}, nil
}

// firstDynamic is the first port that nobody can register (RFC 6335).
const firstDynamic = 49152

// fileSocket is a socket of a protocol that package net does not have.
type fileSocket struct{ f *os.File }

func (s fileSocket) Close() error { return s.f.Close() }

func (s fileSocket) File() (*os.File, error) {
	fd, err := unix.FcntlInt(s.f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), s.f.Name()), nil
}

func bindError(p network.PortBinding, err error) error {
	host := netip.AddrPortFrom(p.HostIP, p.HostPort)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return &network.PortInUseError{Binding: p, Process: holder(p)}
	case errors.Is(err, syscall.EACCES):
		return errs.New(errs.Forbidden, "Bind for %s failed: %w", host, err)
	}
	return errs.New(errs.Internal, "Bind for %s failed: %w", host, err)
}
