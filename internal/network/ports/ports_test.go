package ports

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"ply/internal/errs"
	"ply/internal/network"
	"ply/internal/procid"
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
	_, err = Reserve([]network.PortBinding{{Proto: "udp", ContainerPort: 53, HostPort: 6001}, {Proto: "tcp", ContainerPort: 1, HostPort: 6000}}, Options{})
	own := "Bind for 0.0.0.0:6000 failed: port is already allocated: " + procid.Describe(os.Getpid()) + " has it"
	if !errors.Is(err, errs.Conflict) || !strings.Contains(err.Error(), own) {
		t.Fatalf("error = %v, want %s", err, own)
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
	all, err := Reserve([]network.PortBinding{{Proto: "tcp", ContainerPort: 80, HostPort: 6100}}, Options{HostIP: lo})
	if err != nil {
		t.Fatal(err)
	}
	defer Release(all)
	if len(all) != 1 || all[0].HostIP != lo || all[0].HostPort != 6100 {
		t.Errorf("reserved %+v, want one binding on %s", all, lo)
	}
}

// A free port is one that is free for both families, although another one is found first.
func TestAFreePortIsFreeForBothFamilies(t *testing.T) {
	const name = "/proc/sys/net/ipv4/ip_local_port_range"
	before, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := os.WriteFile(name, before, 0); err != nil {
			t.Error(err)
		}
	}()
	if err := os.WriteFile(name, []byte("6200 6215"), 0); err != nil {
		t.Fatal(err)
	}
	for _, used := range []string{"[::]:6201", "[::1]:6205"} {
		l, err := net.Listen("tcp6", used)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	for range 20 {
		all, err := Reserve([]network.PortBinding{{Proto: "tcp", ContainerPort: 80}}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if len(all) != 2 || all[0].HostPort != all[1].HostPort {
			t.Errorf("reserved %+v, want one port", all)
		}
		Release(all)
	}
}

// The holder of a port is found for every protocol, family and address.
func TestAConflictNamesTheProcess(t *testing.T) {
	for _, c := range []struct{ network, held, proto, want string }{
		{"tcp", "127.0.0.1:6200", "tcp", "127.0.0.1"}, {"tcp", "[::]:6201", "tcp", "::"}, {"tcp", "[::1]:6202", "tcp", "::"},
		{"udp", "0.0.0.0:6203", "udp", "127.0.0.1"}, {"udp", "[::1]:6204", "udp", "::1"},
	} {
		held := netip.MustParseAddrPort(c.held)
		var socket interface{ Close() error }
		var err error
		if c.network == "udp" {
			socket, err = net.ListenPacket(c.network, c.held)
		} else {
			socket, err = net.Listen(c.network, c.held)
		}
		if err != nil {
			t.Fatal(err)
		}
		got := holder(network.PortBinding{Proto: c.proto, HostIP: netip.MustParseAddr(c.want), HostPort: held.Port()})
		if got != procid.Describe(os.Getpid()) {
			t.Errorf("%s %s: holder of %s = %q", c.network, c.held, c.want, got)
		}
		if err := socket.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, line := range []string{"", "sl local", "0: 0100007F 0 0A 0 0 0 0 0 1", "0: 0100007F:1838 x 0A 0 0 0 0 0 7", "0: ZZ:1838 x 0A 0 0 0 0 0 7"} {
		want := map[bool]string{true: "7"}[strings.Contains(line, "F:1838")]
		if got := socketIn(strings.NewReader(line), network.PortBinding{Proto: "tcp", HostIP: netip.IPv4Unspecified(), HostPort: 0x1838}); got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}

// Ports of sctp are reserved with sockets where the kernel has them; elsewhere the rules alone have them.
func TestReserveSCTP(t *testing.T) {
	all, err := Reserve([]network.PortBinding{{Proto: "sctp", ContainerPort: 9, HostIP: netip.IPv4Unspecified()}}, Options{})
	if err != nil || len(all) != 1 || all[0].HostPort == 0 {
		t.Fatalf("reserved %+v, %v", all, err)
	}
	f, err := all[0].Socket()
	if err != nil {
		t.Fatal(err)
	}
	if f != nil {
		if _, err := Reserve([]network.PortBinding{all[0].PortBinding}, Options{}); !errors.Is(err, errs.Conflict) {
			t.Errorf("the port a second time: %v", err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	Release(all)
}
