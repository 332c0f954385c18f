package vlan

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"ply/internal/errs"
	"ply/internal/network"
	"ply/internal/network/namespace"
	"ply/internal/oci"
	"ply/test/private"
)

// The tests make interfaces, so they run in a network and mount namespace of their own.
func TestMain(m *testing.M) { private.Main(m, nil) }

func run(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.Command("sh", "-euc", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s\n%s", err, out, script)
	}
	return string(out)
}

// parent makes a pair of interfaces: vparent, and vworld with the gateway's address, which is the network outside.
func parent(t *testing.T) {
	t.Helper()
	run(t, "ip link add vparent type veth peer name vworld; ip addr add 10.70.0.1/24 dev vworld; ip addr add fd70::1/64 dev vworld nodad; ip link set vparent up; ip link set vworld up")
	t.Cleanup(func() { run(t, "ip link del vparent") })
}

// up makes a network for the duration of the test; it skips the test where the kernel has no such interfaces.
func up(t *testing.T, kind Kind, options map[string]string) (network.Segment, *Driver) {
	t.Helper()
	d := New(kind, Options{Owner: "test"})
	c := network.Config{ID: strings.Repeat("c", 64), MTU: 1500, Address: netip.MustParsePrefix("10.70.0.1/24"), Address6: netip.MustParsePrefix("fd70::1/64")}
	if err := d.Configure(&c, options); err != nil {
		t.Fatal(err)
	}
	s, err := d.Up(t.Context(), c, false)
	if errors.Is(err, errs.Precondition) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(s.Down(context.Background()), s.Close()); err != nil {
			t.Error(err)
		}
	})
	return s, d
}

func connect(t *testing.T, s network.Segment, id oci.ContainerID, v4, v6 string) network.Connection {
	t.Helper()
	c := network.Connection{
		Container: id, Netns: filepath.Join(t.TempDir(), "netns"), Default: true, Sysctls: map[string]string{"ipv4/conf/IFNAME/log_martians": "1"},
		Ports: []network.PortBinding{{Proto: "tcp", ContainerPort: 80, HostPort: 8080}},
	}
	c.Endpoint.Interface, c.Endpoint.IPv4, c.Endpoint.IPv6 = "eth0", netip.MustParsePrefix(v4), netip.MustParsePrefix(v6)
	if err := namespace.Make(c.Netns); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := namespace.Remove(c.Netns); err != nil {
			t.Error(err)
		}
	})
	err := s.Connect(t.Context(), &c)
	if errors.Is(err, errs.Precondition) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// reaches fails unless the namespace reaches an address on which nothing listens.
func reaches(c network.Connection, addr string) error {
	err := errors.New("not tried")
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		err = namespace.Do(c.Netns, func() error {
			conn, err := net.DialTimeout("tcp", net.JoinHostPort(addr, "9"), time.Second)
			if err == nil {
				return conn.Close()
			}
			return err
		})
		if errors.Is(err, syscall.ECONNREFUSED) {
			return nil
		}
	}
	return err
}

// Containers of a macvlan network reach each other and the network of the parent, and the names of their options are in effect.
func TestMACVLAN(t *testing.T) {
	parent(t)
	s, d := up(t, MACVLAN, map[string]string{"parent": "vparent", "com.docker.network.driver.mtu": "1400"})
	a, b := connect(t, s, "a", "10.70.0.2/24", "fd70::2/64"), connect(t, s, "b", "10.70.0.3/24", "fd70::3/64")
	for _, addr := range []string{"10.70.0.1", "10.70.0.3", "fd70::1", "fd70::3"} {
		if err := reaches(a, addr); err != nil {
			t.Errorf("%s: %v", addr, err)
		}
	}
	if a.Endpoint.MAC != "02:42:0a:46:00:02" || a.Ports != nil || a.Endpoint.HostIf != "" || s.Name() != "vparent" {
		t.Errorf("connection %+v on %s", a, s.Name())
	}
	got := run(t, "nsenter --net="+a.Netns+" sh -c 'ip -o link show eth0; ip route; ip -6 route; cat /proc/sys/net/ipv4/conf/eth0/log_martians'")
	for _, want := range []string{"mtu 1400", "default via 10.70.0.1", "default via fd70::1", "\n1\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("in the container:\n%s\nwant %q", got, want)
		}
	}
	if err := s.Demote(t.Context(), &a); err != nil {
		t.Fatal(err)
	}
	if got := run(t, "nsenter --net="+a.Netns+" ip route"); strings.Contains(got, "default") {
		t.Errorf("routes after Demote: %s", got)
	}
	if err := s.Promote(t.Context(), &a); err != nil {
		t.Fatal(err)
	}
	if err := reaches(a, "10.70.0.1"); err != nil {
		t.Error(err)
	}
	other := network.Config{ID: strings.Repeat("d", 64), MTU: 1500, Parent: "vparent", Address: netip.MustParsePrefix("10.71.0.1/24")}
	if _, err := d.Up(t.Context(), other, false); !errors.Is(err, errs.Forbidden) || !strings.Contains(err.Error(), "already using parent interface vparent") {
		t.Errorf("a second network on the parent: %v", err)
	}
	done := false
	s.Disconnect(t.Context(), b, func() { done = true })
	if out := run(t, "nsenter --net="+b.Netns+" ip -o link"); strings.Contains(out, "eth0") || !done {
		t.Errorf("after Disconnect: %s, done %v", out, done)
	}
}

// Containers in mode private do not reach each other.
func TestModes(t *testing.T) {
	for _, mode := range []string{"private", "vepa", "passthru"} {
		t.Run(mode, func(t *testing.T) {
			parent(t)
			s, _ := up(t, MACVLAN, map[string]string{"parent": "vparent", "macvlan_mode": mode})
			a := connect(t, s, "a", "10.70.0.2/24", "fd70::2/64")
			if out := run(t, "nsenter --net="+a.Netns+" ip -d -o link show eth0"); !strings.Contains(out, "mode "+mode) {
				t.Errorf("interface %s", out)
			}
			if err := reaches(a, "10.70.0.1"); err != nil {
				t.Errorf("the network outside: %v", err)
			}
		})
	}
}

func TestIPVLAN(t *testing.T) {
	for _, mode := range []string{"l2", "l3", "l3s"} {
		t.Run(mode, func(t *testing.T) {
			parent(t)
			s, _ := up(t, IPVLAN, map[string]string{"parent": "vparent", "ipvlan_mode": mode})
			a, b := connect(t, s, "a", "10.70.0.2/24", "fd70::2/64"), connect(t, s, "b", "10.70.0.3/24", "fd70::3/64")
			if a.Endpoint.MAC != b.Endpoint.MAC {
				t.Errorf("MAC addresses %s and %s", a.Endpoint.MAC, b.Endpoint.MAC)
			}
			if err := reaches(a, "10.70.0.3"); err != nil {
				t.Error(err)
			}
			c := network.Connection{Netns: a.Netns, Endpoint: network.Endpoint{Interface: "eth1", MAC: "02:42:00:00:00:01"}}
			if err := s.Connect(t.Context(), &c); !errors.Is(err, errs.Invalid) {
				t.Errorf("a MAC address of its own: %v", err)
			}
		})
	}
}

// The driver makes a VLAN of an interface, and an interface that leads nowhere, and removes them with the network.
func TestParentsAreMade(t *testing.T) {
	for name, options := range map[string]map[string]string{"VLAN": {"parent": "vparent.7"}, "none": nil} {
		t.Run(name, func(t *testing.T) {
			parent(t)
			s, _ := up(t, MACVLAN, options)
			if _, err := net.InterfaceByName(s.Name()); err != nil {
				t.Error(err)
			}
			if err := s.Down(t.Context()); err != nil {
				t.Error(err)
			}
			if _, err := net.InterfaceByName(s.Name()); err == nil {
				t.Errorf("%s is left", s.Name())
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		kind    Kind
		options map[string]string
		want    string
	}{
		{MACVLAN, map[string]string{"macvlan_mode": "l2"}, "it is one of bridge, private, vepa, passthru"},
		{IPVLAN, map[string]string{"ipvlan_mode": "bridge"}, "it is one of l2, l3, l3s"},
		{MACVLAN, map[string]string{"ipvlan_mode": "l2"}, "unknown option"},
		{MACVLAN, map[string]string{"ipvlan_flag": "vepa"}, "only ipvlan has it"},
		{IPVLAN, map[string]string{"parent": "lo"}, "loopback"},
		{IPVLAN, map[string]string{"parent": "a/b"}, "no name of an interface"},
		{MACVLAN, map[string]string{"com.docker.network.driver.mtu": "x"}, "number"},
	} {
		cfg := network.Config{ID: strings.Repeat("c", 64)}
		if err := New(c.kind, Options{}).Configure(&cfg, c.options); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %v: %v, want %q", c.kind, c.options, err, c.want)
		}
	}
	for _, name := range []string{"absent", "absent.5", "lo.5000", "lo.x"} {
		cfg := network.Config{ID: strings.Repeat("c", 64), Parent: name}
		if _, err := New(MACVLAN, Options{}).Up(t.Context(), cfg, false); !errors.Is(err, errs.Invalid) {
			t.Errorf("parent %s: %v, want Invalid", name, err)
		}
	}
	if _, err := os.Stat("/sys/class/net/lo.5000"); err == nil {
		t.Error("lo.5000 was made")
	}
}
