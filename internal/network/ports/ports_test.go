package ports

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"ply/internal/errs"
	"ply/internal/network"
	"ply/test/private"
)

// The tests own rules and ports, so they run in a network namespace of their own.
func TestMain(m *testing.M) { private.Main(m, nil) }

func TestReserveTakesAllPortsOrNone(t *testing.T) {
	used, err := net.Listen("tcp4", "0.0.0.0:6000")
	if err != nil {
		t.Fatal(err)
	}
	defer used.Close()
	_, err = Reserve([]network.PortBinding{{Proto: "udp", ContainerPort: 53, HostPort: 6001}, {Proto: "tcp", ContainerPort: 1, HostPort: 6000}},
		netip.MustParseAddr("127.0.0.1"), Options{})
	if !errors.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "0.0.0.0:6000") {
		t.Fatalf("error = %v", err)
	}
	u, err := net.ListenPacket("udp4", "0.0.0.0:6001")
	if err != nil {
		t.Errorf("the other port is still reserved: %v", err)
	} else {
		u.Close()
	}
}

func TestReserveOnTheDefaultHostAddress(t *testing.T) {
	lo := netip.MustParseAddr("127.0.0.1")
	all, err := Reserve([]network.PortBinding{{Proto: "tcp", ContainerPort: 80, HostPort: 6100}}, lo, Options{HostIP: lo})
	if err != nil {
		t.Fatal(err)
	}
	defer Release(all)
	if len(all) != 1 || all[0].HostIP != lo || all[0].HostPort != 6100 {
		t.Errorf("reserved %+v, want one binding on %s", all, lo)
	}
}

func TestProxyCarriesBothWays(t *testing.T) {
	for _, c := range []struct {
		name  string
		proxy bool
	}{{"with a proxy", true}, {"without", false}} {
		t.Run(c.name, func(t *testing.T) {
			server, err := net.Listen("tcp4", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			go func() {
				for {
					conn, err := server.Accept()
					if err != nil {
						return
					}
					io.Copy(conn, conn)
					conn.Close()
				}
			}()
			target := netip.MustParseAddrPort(server.Addr().String())
			all, err := Reserve([]network.PortBinding{{Proto: "tcp", ContainerPort: target.Port(), HostIP: netip.IPv6Loopback()}}, target.Addr(), Options{Proxy: c.proxy})
			if err != nil {
				t.Fatal(err)
			}
			defer Release(all)
			got := echo(t, netip.AddrPortFrom(all[0].HostIP, all[0].HostPort).String())
			if want := map[bool]string{true: "ping", false: ""}[c.proxy]; got != want {
				t.Errorf("answer = %q, want %q", got, want)
			}
		})
	}
}

// echo sends a word, closes its side and returns what comes back within a second.
func echo(t *testing.T, addr string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "ping"); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(c)
	return string(b)
}

func TestProxyCarriesDatagrams(t *testing.T) {
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
	target := netip.MustParseAddrPort(server.LocalAddr().String())
	all, err := Reserve([]network.PortBinding{{Proto: "udp", ContainerPort: target.Port(), HostIP: netip.IPv6Loopback()}}, target.Addr(), Options{Proxy: true})
	if err != nil {
		t.Fatal(err)
	}
	defer Release(all)
	c, err := net.Dial("udp", netip.AddrPortFrom(all[0].HostIP, all[0].HostPort).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
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
