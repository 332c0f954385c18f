package proxy

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

const dialTimeout = 10 * time.Second

// tcpProxy copies TCP connections between a port of the host and one of a container.
type tcpProxy struct {
	listener net.Listener
	mu       sync.Mutex
	target   netip.AddrPort
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
			time.Sleep(50 * time.Millisecond) // without a pause the loop would spin while descriptors are exhausted
			continue
		}
		go t.carry(c)
	}
}

// track adds a connection to those that close ends. After close it closes the connection and returns false.
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
	t.mu.Lock()
	target := t.target
	t.mu.Unlock()
	server, err := net.DialTimeout("tcp", target.String(), dialTimeout)
	if err != nil || !t.track(server) {
		return
	}
	defer t.drop(server)
	var wg sync.WaitGroup
	for _, pair := range [][2]net.Conn{{client, server}, {server, client}} {
		wg.Go(func() {
			_, _ = io.Copy(pair[0], pair[1]) // either side may close its connection at any time
			if half, ok := pair[0].(*net.TCPConn); ok {
				_ = half.CloseWrite()
			}
		})
	}
	wg.Wait()
}

// retarget changes where new connections go. Those to another address cannot go on.
func (t *tcpProxy) retarget(to netip.AddrPort) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.target == to {
		return
	}
	t.target = to
	for c := range t.open {
		c.Close()
	}
}

// Close ends the connections, too.
func (t *tcpProxy) Close() error {
	t.mu.Lock()
	t.closed = true
	for c := range t.open {
		c.Close()
	}
	t.mu.Unlock()
	return t.listener.Close()
}

const (
	udpIdle     = 90 * time.Second // a flow without an answer for this long is closed
	maxUDPFlows = 1024             // per published port
)

// udpProxy copies datagrams between a port of the host and one of a container, with one socket per client.
type udpProxy struct {
	conn   net.PacketConn
	mu     sync.Mutex
	target netip.AddrPort
	flows  map[string]net.Conn // by the client's address
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

// flow returns the client's socket to the container and makes it when there is none; nil when it cannot be made.
func (u *udpProxy) flow(from net.Addr) net.Conn {
	u.mu.Lock()
	defer u.mu.Unlock()
	if c, ok := u.flows[from.String()]; ok {
		return c
	}
	if u.closed || len(u.flows) >= maxUDPFlows {
		return nil
	}
	c, err := net.Dial("udp", u.target.String())
	if err != nil {
		return nil
	}
	u.flows[from.String()] = c
	go u.back(c, from)
	return c
}

// back copies the container's answers to the client until the flow is idle.
func (u *udpProxy) back(c net.Conn, to net.Addr) {
	defer func() {
		u.mu.Lock()
		if u.flows[to.String()] == c {
			delete(u.flows, to.String())
		}
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

// retarget changes where datagrams go.
func (u *udpProxy) retarget(to netip.AddrPort) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.target == to {
		return
	}
	u.target = to
	for _, c := range u.flows {
		c.Close() // back removes it
	}
}

// Close ends the flows, too.
func (u *udpProxy) Close() error {
	u.mu.Lock()
	u.closed = true
	for _, c := range u.flows {
		c.Close()
	}
	u.mu.Unlock()
	return u.conn.Close()
}
