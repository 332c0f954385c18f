package proxy

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"
)

// echoServer answers each connection with a word and what it reads.
func echoServer(t *testing.T, word string) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				io.WriteString(c, word)
				io.Copy(c, c)
				c.Close()
			}()
		}
	}()
	return netip.MustParseAddrPort(l.Addr().String())
}

type filer interface {
	File() (*os.File, error)
	Close() error
}

// socket returns a socket as a file, and its address.
func socket(t *testing.T, network string) (*os.File, netip.AddrPort) {
	t.Helper()
	var s filer
	var addr net.Addr
	if network == "udp" {
		c, err := net.ListenPacket("udp6", "[::1]:0")
		if err != nil {
			t.Fatal(err)
		}
		s, addr = c.(*net.UDPConn), c.LocalAddr()
	} else {
		l, err := net.Listen("tcp6", "[::1]:0")
		if err != nil {
			t.Fatal(err)
		}
		s, addr = l.(*net.TCPListener), l.Addr()
	}
	f, err := s.File()
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	return f, netip.MustParseAddrPort(addr.String())
}

// ask sends a word, closes its side and returns what comes back until the end, for as long as limit.
func ask(t *testing.T, addr netip.AddrPort, limit time.Duration) string {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr.String(), 10*time.Second)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(c, "ping")
	_ = c.(*net.TCPConn).CloseWrite()
	b, _ := io.ReadAll(c)
	return string(b)
}

// A set carries connections to the target, follows a new target, and keeps a port without carrying when it is told to.
func TestSet(t *testing.T) {
	one, two := echoServer(t, "one "), echoServer(t, "two ")
	f, host := socket(t, "tcp")
	kept, keptHost := socket(t, "tcp")
	var s Set
	p := Port{Proto: "tcp", Host: host, Target: one, Carry: true, Socket: true}
	if err := s.Serve([]Port{p, {Proto: "tcp", Host: keptHost, Target: one, Socket: true}, {Proto: "sctp", Host: host}}, []*os.File{f, kept}); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, host, time.Minute); got != "one ping" {
		t.Errorf("answer %q", got)
	}
	if got := ask(t, keptHost, time.Second); got != "" {
		t.Errorf("answer of a port that is not carried: %q", got)
	}
	open, err := net.Dial("tcp", host.String())
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	word := make([]byte, 4)
	if _, err := io.ReadFull(open, word); err != nil {
		t.Fatal(err)
	}
	p.Socket = false
	if err := s.Serve([]Port{p}, nil); err != nil { // the same again: the open connection stays
		t.Fatal(err)
	}
	if _, err := io.WriteString(open, "x"); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadFull(open, word[:1]); err != nil {
		t.Errorf("a connection of a port that stays: %v", err)
	}
	if c, err := net.Dial("tcp", keptHost.String()); err == nil {
		c.Close()
		t.Error("a port that is not in the list is open")
	}
	p.Target = two
	if err := s.Serve([]Port{p}, nil); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, host, time.Minute); got != "two ping" {
		t.Errorf("answer after the target changed %q", got)
	}
	if _, err := io.ReadFull(open, word[:1]); err == nil {
		t.Error("a connection to the old target goes on")
	}
	p.Socket = true
	if err := s.Serve([]Port{p}, nil); err == nil {
		t.Error("a list whose socket is missing was taken")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if c, err := net.Dial("tcp", host.String()); err == nil {
		c.Close()
		t.Error("the port is open after Close")
	}
}

func TestDatagrams(t *testing.T) {
	server, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		buf := make([]byte, 100)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			server.WriteTo(buf[:n], from)
		}
	}()
	f, host := socket(t, "udp")
	var s Set
	if err := s.Serve([]Port{{Proto: "udp", Host: host, Target: netip.MustParseAddrPort(server.LocalAddr().String()), Carry: true, Socket: true}}, []*os.File{f}); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c, err := net.Dial("udp", host.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "ping"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	if n, err := c.Read(buf); err != nil || string(buf[:n]) != "ping" {
		t.Errorf("answer = %q, %v", buf[:max(n, 0)], err)
	}
}
