// Package proxy carries the connections of published ports in user space: those that the rules of the host do not redirect, such as IPv6 connections to
// a container without an IPv6 address, and all on a host without rules.
//
// A container's shim runs a Set, so what it carries does not depend on plyd. plyd makes the sockets and passes them to the shim; until then, and for a shim of
// an earlier release, it runs a Set itself.
package proxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
)

// Port is a published port with a socket on the host. A shim stores nothing of it.
type Port struct {
	Proto  string         `json:"proto"` // tcp, udp, sctp
	Host   netip.AddrPort `json:"host"`
	Target netip.AddrPort `json:"target"` // of the container

	// Carry says to accept connections. Without it, and for sctp, the socket only keeps the port from others.
	Carry bool `json:"carry,omitempty"`
	// Socket says that the socket comes with the list; else the Set has it already.
	Socket bool `json:"socket,omitempty"`
}

type key struct {
	proto string
	host  netip.AddrPort
}

// Set is the published ports of one container. The zero value has none. Safe for concurrent use.
type Set struct {
	mu   sync.Mutex
	open map[key]carrier
}

// carrier is one open port.
type carrier interface {
	io.Closer
	retarget(to netip.AddrPort)
}

// Serve makes list the ports of the set, with a file for each port that says Socket, in their order. Connections of ports that stay, with the
// same target, go on. Serve takes the files over, and closes the ports that are not in list. After an error the other ports are served.
func (s *Set) Serve(list []Port, sockets []*os.File) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() {
		for _, f := range sockets {
			err = errors.Join(err, f.Close())
		}
	}()
	next := map[key]carrier{}
	for _, p := range list {
		k := key{p.Proto, p.Host}
		have := s.open[k]
		delete(s.open, k)
		if p.Socket {
			if have != nil {
				err = errors.Join(err, have.Close())
			}
			if len(sockets) == 0 {
				return errors.Join(err, fmt.Errorf("published port %s/%s: its socket is missing", p.Host, p.Proto), s.closeAll(next))
			}
			var oerr error
			if have, oerr = open(p, sockets[0]); oerr != nil {
				err = errors.Join(err, fmt.Errorf("published port %s/%s: %w", p.Host, p.Proto, oerr))
			}
			sockets = slices.Delete(sockets, 0, 1)
		}
		if have == nil {
			continue // one without a socket, on a host that has none of its protocol
		}
		have.retarget(p.Target)
		next[k] = have
	}
	gone := s.open
	s.open = next
	for _, c := range gone {
		err = errors.Join(err, c.Close())
	}
	return err
}

// closeAll puts the carriers of next back.
func (s *Set) closeAll(next map[key]carrier) error {
	if s.open == nil {
		s.open = map[key]carrier{}
	}
	for k, c := range next {
		s.open[k] = c
	}
	return nil
}

// Close closes the ports, and the connections that they carry.
func (s *Set) Close() error { return s.Serve(nil, nil) }

// open takes a socket over.
func open(p Port, f *os.File) (carrier, error) {
	switch {
	case !p.Carry || p.Proto == "sctp":
		return &kept{f}, nil
	case p.Proto == "udp":
		defer f.Close() // FilePacketConn has its own descriptor
		c, err := net.FilePacketConn(f)
		if err != nil {
			return nil, err
		}
		u := &udpProxy{conn: c, target: p.Target, flows: map[string]net.Conn{}}
		go u.serve()
		return u, nil
	}
	defer f.Close() // FileListener has its own descriptor
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	t := &tcpProxy{listener: l, target: p.Target, open: map[net.Conn]struct{}{}}
	go t.serve()
	return t, nil
}

// kept is a socket that only keeps a port from others.
type kept struct{ f *os.File }

func (k *kept) Close() error            { return k.f.Close() }
func (k *kept) retarget(netip.AddrPort) {}
