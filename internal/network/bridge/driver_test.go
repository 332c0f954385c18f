package bridge

import (
	"context"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"ply/internal/network"
	"ply/internal/network/ipam"
	"ply/internal/network/namespace"
	"ply/test/private"
)

// The tests own a bridge and its rules, so they run in a network and mount namespace of their own.
func TestMain(m *testing.M) { private.Main(m, nil) }

// segmentOf makes a bridge for the duration of the test.
func segmentOf(t *testing.T, o Options, c network.Config) network.Segment {
	t.Helper()
	s, err := New(o).Up(t.Context(), c, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Down(context.Background()); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func gatewayOf(s network.Segment) netip.Prefix {
	v4, _ := s.Gateways()
	return v4
}

// connect connects a container at 10.88.0.2.
func connect(t *testing.T, s network.Segment, ports ...network.PortBinding) network.Connection {
	t.Helper()
	c := network.Connection{Container: "c", Netns: filepath.Join(t.TempDir(), "netns"), Ports: ports, Default: true}
	c.Endpoint.IPv4, c.Endpoint.Gateway = netip.MustParsePrefix("10.88.0.2/24"), gatewayOf(s).Addr()
	if err := namespace.Make(c.Netns); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := namespace.Remove(c.Netns); err != nil {
			t.Error(err)
		}
	})
	if err := s.Connect(t.Context(), &c); err != nil {
		t.Fatal(err)
	}
	return c
}

var addressOfSecond = netip.MustParsePrefix("10.89.0.1/24")

var config = network.Config{Bridge: "test0", Address: netip.MustParsePrefix("10.88.0.1/24"), MTU: 1400}

func TestConnectFillsInTheConnection(t *testing.T) {
	s := segmentOf(t, Options{}, config)
	if gatewayOf(s) != config.Address {
		t.Errorf("Gateway = %s, want %s", gatewayOf(s), config.Address)
	}
	c := connect(t, s, network.PortBinding{Proto: "tcp", ContainerPort: 80})
	if c.Endpoint.MAC != "02:42:0a:58:00:02" || c.Endpoint.Interface != "eth0" || c.Endpoint.HostIf == "" || !c.Published {
		t.Errorf("connection %+v", c)
	}
	if len(c.Ports) != 2 || c.Ports[0].HostPort == 0 || c.Ports[0].HostPort != c.Ports[1].HostPort {
		t.Errorf("ports as bound %+v", c.Ports)
	}
	link, err := netlink.LinkByName(c.Endpoint.HostIf)
	if err != nil || link.Attrs().MTU != 1400 {
		t.Errorf("interface on the host %+v, %v, want an MTU of 1400", link, err)
	}
	s.Disconnect(t.Context(), c, func() {})
}

// An address may be used again when done is called, so the interface that had it must be gone then.
func TestDoneFollowsTheDeletion(t *testing.T) {
	s := segmentOf(t, Options{}, config)
	c := connect(t, s)
	done := make(chan error, 1)
	s.Disconnect(t.Context(), c, func() {
		_, err := netlink.LinkByName(c.Endpoint.HostIf)
		done <- err
	})
	if err := <-done; err == nil {
		t.Error("done was called while the interface existed")
	}
}

// Without rules the driver changes nothing in nftables, and the connection says so.
func TestWithoutRules(t *testing.T) {
	s := segmentOf(t, Options{NoRules: true}, config)
	c := connect(t, s, network.PortBinding{Proto: "tcp", ContainerPort: 80})
	if c.Published {
		t.Error("a port was added to rules")
	}
	if out, err := exec.Command("nft", "list", "tables").CombinedOutput(); err != nil || strings.Contains(string(out), "test0") {
		t.Errorf("tables: %v\n%s", err, out)
	}
	s.Disconnect(t.Context(), c, func() {})
}

func TestUpRefusesAnAddressThatTheBridgeLacks(t *testing.T) {
	segmentOf(t, Options{NoRules: true}, config)
	other := config
	other.Address = netip.MustParsePrefix("10.89.0.1/24")
	if _, err := New(Options{NoRules: true}).Up(t.Context(), other, false); err == nil || !strings.Contains(err.Error(), "asks for 10.89.0.1/24") {
		t.Errorf("error = %v", err)
	}
	existing := config
	existing.Address, existing.Pools = netip.Prefix{}, ipam.DefaultPools()
	s, err := New(Options{NoRules: true}).Up(t.Context(), existing, true)
	if err != nil || gatewayOf(s) != config.Address {
		t.Errorf("a bridge that is there: %v, want its address to be kept", err)
	}
}
