package listen

import (
	"net"
	"sync"
)

const maxConns = 1000 // per listener

// limit returns a listener that accepts at most maxConns connections at the same time. Further ones wait in the kernel's queue.
func limit(l net.Listener) net.Listener {
	return &limited{Listener: l, slots: make(chan struct{}, maxConns), done: make(chan struct{})}
}

type limited struct {
	net.Listener
	slots chan struct{}
	done  chan struct{}
	once  sync.Once
}

func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.done:
		return nil, net.ErrClosed
	}
	conn, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	release := sync.OnceFunc(func() { <-l.slots })
	switch conn := conn.(type) {
	case *net.UnixConn:
		return &limitedUnix{conn, release}, nil
	case *net.TCPConn:
		return &limitedTCP{conn, release}, nil
	}
	return &limitedConn{conn, release}, nil
}

func (l *limited) Close() error {
	l.once.Do(func() { close(l.done) })
	return l.Listener.Close()
}

// There is one type per kind of connection, so that the methods for half-closing and for the raw socket stay available.
type (
	limitedUnix struct {
		*net.UnixConn
		release func()
	}
	limitedTCP struct {
		*net.TCPConn
		release func()
	}
	limitedConn struct {
		net.Conn
		release func()
	}
)

// Close closes the connection and frees its slot.
func (c *limitedUnix) Close() error { defer c.release(); return c.UnixConn.Close() }

// Close closes the connection and frees its slot.
func (c *limitedTCP) Close() error { defer c.release(); return c.TCPConn.Close() }

// Close closes the connection and frees its slot.
func (c *limitedConn) Close() error { defer c.release(); return c.Conn.Close() }
