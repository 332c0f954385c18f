package network

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"ply/internal/errs"
)

// reservation holds a published port on the host: a socket that makes "in use" an error at start, and that carries
// what the kernel's rules do not (IPv6, hosts without nft). Connections that the rules redirect never reach it.
type reservation struct {
	PortBinding
	close func() error
}

// reserve binds the host ports of one container, all or none. A binding without a host address becomes one for each
// family, as docker shows it; host port 0 becomes a free one, the same in both.
func reserve(wants []PortBinding, defaultIP, target netip.Addr, carry bool) (held []reservation, err error) {
	defer func() {
		if err != nil {
			release(held)
			held = nil
		}
	}()
	for _, w := range wants {
		addrs := []netip.Addr{w.HostIP}
		if !w.HostIP.IsValid() {
			addrs = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
			if defaultIP.IsValid() {
				addrs = []netip.Addr{defaultIP}
			}
		}
		last := max(w.HostPortEnd, w.HostPort)
		var got []reservation
		for port := w.HostPort; ; port++ {
			if got, err = reservePort(w, addrs, port, target, carry); err == nil {
				break
			}
			if w.HostPort == 0 || port >= last || !errors.Is(err, errs.Conflict) {
				return held, err
			}
		}
		held = append(held, got...)
	}
	return held, nil
}

func reservePort(w PortBinding, addrs []netip.Addr, port uint16, target netip.Addr, carry bool) (got []reservation, err error) {
	for i, a := range addrs {
		p := w
		p.HostIP, p.HostPort, p.HostPortEnd = a.Unmap(), port, 0
		if len(got) > 0 {
			p.HostPort = got[0].HostPort
		}
		r, err := listen(p, netip.AddrPortFrom(target, w.ContainerPort), carry)
		if err != nil {
			// A host without IPv6 has nothing to publish there.
			if i > 0 && (errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL)) {
				continue
			}
			release(got)
			return nil, err
		}
		got = append(got, r)
	}
	return got, nil
}

func release(held []reservation) {
	for _, r := range held {
		_ = r.close() // a listening socket has nothing to lose
	}
}

func listen(p PortBinding, target netip.AddrPort, carry bool) (reservation, error) {
	host := netip.AddrPortFrom(p.HostIP, p.HostPort)
	family := "4"
	if p.HostIP.Is6() {
		family = "6"
	}
	switch p.Proto {
	case "tcp":
		l, err := net.Listen("tcp"+family, host.String())
		if err != nil {
			return reservation{}, bindError(p, err)
		}
		p.HostPort = uint16(l.Addr().(*net.TCPAddr).Port) //nolint:forcetypeassert // net.Listen("tcp") promises it
		proxy := &tcpProxy{listener: l, target: target.String(), open: map[net.Conn]struct{}{}}
		if carry {
			go proxy.serve()
		}
		return reservation{p, proxy.close}, nil
	case "udp":
		c, err := net.ListenPacket("udp"+family, host.String())
		if err != nil {
			return reservation{}, bindError(p, err)
		}
		p.HostPort = uint16(c.LocalAddr().(*net.UDPAddr).Port) //nolint:forcetypeassert // net.ListenPacket("udp") promises it
		proxy := &udpProxy{conn: c, target: target.String(), flows: map[string]net.Conn{}}
		if carry {
			go proxy.serve()
		}
		return reservation{p, proxy.close}, nil
	}
	return reservation{}, errs.New(errs.Invalid, "published port %d/%s: protocol is not tcp or udp", p.ContainerPort, p.Proto)
}

func bindError(p PortBinding, err error) error {
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

const dialTimeout = 10 * time.Second

type tcpProxy struct {
	listener net.Listener
	target   string
	mu       sync.Mutex
	open     map[net.Conn]struct{}
	closed   bool
}

func (t *tcpProxy) serve() {
	for {
		c, err := t.listener.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			time.Sleep(50 * time.Millisecond) // out of descriptors: accepting again at once would spin
			continue
		}
		go t.carry(c)
	}
}

func (t *tcpProxy) track(c net.Conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		c.Close()
		return false
	}
	t.open[c] = struct{}{}
	return true
}

func (t *tcpProxy) drop(c net.Conn) {
	t.mu.Lock()
	delete(t.open, c)
	t.mu.Unlock()
	c.Close()
}

func (t *tcpProxy) carry(client net.Conn) {
	if !t.track(client) {
		return
	}
	defer t.drop(client)
	server, err := net.DialTimeout("tcp", t.target, dialTimeout)
	if err != nil || !t.track(server) {
		return
	}
	defer t.drop(server)
	var wg sync.WaitGroup
	for _, pair := range [][2]net.Conn{{client, server}, {server, client}} {
		wg.Go(func() {
			_, _ = io.Copy(pair[0], pair[1]) // either end may go at any time
			if half, ok := pair[0].(*net.TCPConn); ok {
				_ = half.CloseWrite()
			}
		})
	}
	wg.Wait()
}

func (t *tcpProxy) close() error {
	t.mu.Lock()
	t.closed = true
	for c := range t.open {
		c.Close()
	}
	t.mu.Unlock()
	return t.listener.Close()
}

const (
	udpIdle     = 90 * time.Second
	maxUDPFlows = 1024
)

type udpProxy struct {
	conn   net.PacketConn
	target string
	mu     sync.Mutex
	flows  map[string]net.Conn
	closed bool
}

func (u *udpProxy) serve() {
	buf := make([]byte, 65535)
	for {
		n, from, err := u.conn.ReadFrom(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue
		}
		if flow := u.flow(from); flow != nil {
			_, _ = flow.Write(buf[:n]) // datagrams may be lost
		}
	}
}

func (u *udpProxy) flow(from net.Addr) net.Conn {
	u.mu.Lock()
	defer u.mu.Unlock()
	if c, ok := u.flows[from.String()]; ok {
		return c
	}
	if u.closed || len(u.flows) >= maxUDPFlows {
		return nil
	}
	c, err := net.Dial("udp", u.target)
	if err != nil {
		return nil
	}
	u.flows[from.String()] = c
	go u.back(c, from)
	return c
}

func (u *udpProxy) back(c net.Conn, to net.Addr) {
	defer func() {
		u.mu.Lock()
		delete(u.flows, to.String())
		u.mu.Unlock()
		c.Close()
	}()
	buf := make([]byte, 65535)
	for {
		if err := c.SetReadDeadline(time.Now().Add(udpIdle)); err != nil {
			return
		}
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		if _, err := u.conn.WriteTo(buf[:n], to); err != nil {
			return
		}
	}
}

func (u *udpProxy) close() error {
	u.mu.Lock()
	u.closed = true
	for _, c := range u.flows {
		c.Close()
	}
	u.mu.Unlock()
	return u.conn.Close()
}

// checkPorts refuses what cannot be bound, before anything is made: port 0, and one host port published twice.
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
