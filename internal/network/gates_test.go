package network_test

import (
	"errors"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"ply/internal/errs"
	"ply/internal/network"
	"ply/internal/network/proxy"
)

// addressesOf returns the addresses of an interface of this host.
func addressesOf(t *testing.T, name string) string {
	t.Helper()
	out, err := exec.Command("ip", "-o", "addr", "show", "dev", name).CombinedOutput()
	if err != nil {
		t.Fatal(err, string(out))
	}
	return string(out)
}

// Containers of an isolated network reach each other and nothing else: the host has no address there, and takes no packet that a container sends to one of its
// other addresses.
func TestIsolatedNetwork(t *testing.T) {
	pools := []network.Pool{{Subnet: prefix("10.1.0.0/24")}, {Subnet: prefix("fd01::/64")}}
	both := func(mode string) map[string]string {
		return map[string]string{"com.docker.network.bridge.name": "gate", "com.docker.network.bridge.gateway_mode_ipv4": mode, "com.docker.network.bridge.gateway_mode_ipv6": mode}
	}
	neighbour(t)
	host, err := net.ListenPacket("udp4", "192.0.2.1:9000")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	host6, err := net.ListenPacket("udp6", "[2001:db8:2::1]:9000")
	if err != nil {
		t.Fatal(err)
	}
	defer host6.Close()
	for _, c := range []struct {
		mode    string
		arrives bool
	}{{"nat", true}, {"isolated", false}} {
		t.Run(c.mode, func(t *testing.T) {
			w := newWorld(t)
			n := w.create(network.CreateOptions{Name: "n", Internal: true, Options: both(c.mode), Pools: pools})
			a, err := w.attach(idA, "n")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.attach(idB, "n"); err != nil {
				t.Fatal(err)
			}
			if err := w.s.Close(); err != nil {
				t.Fatal(err)
			}
			w.open() // a later engine knows as much
			w.answer(idA, 80, "hello")
			e := a.Endpoints["n"]
			for _, addr := range []string{e.IPv4.Addr().String() + ":80", "[" + e.IPv6.Addr().String() + "]:80"} {
				if err := w.inside(idB, func() error { _, err := greet(addr); return err }); err != nil {
					t.Errorf("container to container: %v", err)
				}
			}
			if (e.Gateway.IsValid() || e.Gateway6.IsValid() || n.Pools[0].Gateway.IsValid() || n.Pools[1].Gateway.IsValid()) != c.arrives {
				t.Errorf("gateways of the endpoint %+v and of the network %+v", e, n.Pools)
			}
			if got := addressesOf(t, "gate"); strings.Contains(got, "inet") != c.arrives {
				t.Errorf("addresses of the host in the network:\n%s", got)
			}
			if r := w.run(idA, "ip route show default; ip -6 route show default"); r != "" {
				t.Errorf("default routes %q", r)
			}
			// A container that may change its network finds the host by the MAC address of the bridge.
			bridge, err := netlink.LinkByName("gate")
			if err != nil {
				t.Fatal(err)
			}
			for _, conf := range []string{"all", "gate"} {
				if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+conf+"/rp_filter", []byte("0"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			for _, f := range []struct {
				host net.PacketConn
				ip   string
			}{{host, "192.0.2.1"}, {host6, "2001:db8:2::1"}} {
				w.run(idA, "ip route add "+f.ip+" dev eth0; ip neigh add "+f.ip+" dev eth0 lladdr "+bridge.Attrs().HardwareAddr.String())
				err := w.inside(idA, func() error {
					c, err := net.Dial("udp", net.JoinHostPort(f.ip, "9000"))
					if err == nil {
						defer c.Close()
						_, err = c.Write([]byte(f.ip))
					}
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
				wait := 300 * time.Millisecond // what is dropped is not reported
				if c.arrives {
					wait = patience
				}
				var b [64]byte
				if err := f.host.SetReadDeadline(time.Now().Add(wait)); err != nil {
					t.Fatal(err)
				}
				if _, _, err := f.host.ReadFrom(b[:]); (err == nil) != c.arrives {
					t.Errorf("a packet to the host's address %s: %v", f.ip, err)
				}
			}
		})
	}
	w := newWorld(t)
	if _, err := w.s.Create(t.Context(), network.CreateOptions{Name: "n", Options: both("isolated")}); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "can only be used for an internal network") {
		t.Errorf("an isolated network that is not internal: %v", err)
	}
}

// A network that inhibits the gateway's address has it in the routes of its containers only: who has it on the bridge is the user's business.
func TestInhibitIPv4(t *testing.T) {
	w := newWorld(t)
	w.watch()
	n := w.create(network.CreateOptions{
		Name: "n", Options: map[string]string{"com.docker.network.bridge.inhibit_ipv4": "true", "com.docker.network.bridge.name": "gate"},
		Pools: []network.Pool{{Subnet: prefix("10.1.0.0/24")}, {Subnet: prefix("fd01::/64")}},
	})
	if _, err := w.attach(idA, "n"); err != nil {
		t.Fatal(err)
	}
	if r := w.run(idA, "ip route show default"); !strings.Contains(r, "via 10.1.0.1 ") || n.Pools[0].Gateway.String() != "10.1.0.1" {
		t.Errorf("default route %q of the network %+v", r, n.Pools)
	}
	none := func(when string) {
		t.Helper()
		if got := addressesOf(t, "gate"); strings.Contains(got, "inet ") || !strings.Contains(got, "fd01::1/64") {
			t.Errorf("%s: addresses of the host in the network:\n%s", when, got)
		}
	}
	none("at first")
	before, err := netlink.LinkByName("gate")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkDel(before); err != nil {
		t.Fatal(err)
	}
	w.eventually("the bridge is there again, with the container's interface", func() error {
		if after, err := netlink.LinkByName("gate"); err != nil || after.Attrs().Index == before.Attrs().Index {
			return errors.New("the bridge is not there")
		}
		return w.inside(idA, func() error {
			c, err := net.DialTimeout("tcp", "[fd01::1]:9", time.Second)
			if errors.Is(err, syscall.ECONNREFUSED) { // by the host
				return nil
			}
			if err == nil {
				c.Close()
			}
			return err
		})
	})
	none("after someone removed the bridge")
	link, err := netlink.LinkByName("gate")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 1, 0, 1), Mask: net.CIDRMask(24, 32)}}); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp4", "10.1.0.1:9001")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	err = w.inside(idA, func() error {
		c, err := net.DialTimeout("tcp", "10.1.0.1:9001", patience)
		if err == nil {
			c.Close()
		}
		return err
	})
	if err != nil {
		t.Errorf("the gateway that a user made: %v", err)
	}
}

// Others reach the published ports of a network at the containers' own addresses if they come through an interface that the network trusts, and no other ports.
func TestTrustedHostInterfaces(t *testing.T) {
	outside := neighbour(t)
	for trusted, want := range map[string]bool{"nosuch:out0": true, "out1": false} {
		t.Run(trusted, func(t *testing.T) {
			w := newWorld(t)
			w.create(network.CreateOptions{
				Name: "n", Options: map[string]string{"com.docker.network.bridge.trusted_host_interfaces": trusted},
				Pools: []network.Pool{{Subnet: prefix("10.1.0.0/24")}, {Subnet: prefix("fd01::/64")}},
			})
			w.create(network.CreateOptions{Name: "other", IPv6: true, Pools: []network.Pool{{Subnet: prefix("10.2.0.0/24")}, {Subnet: prefix("fd02::/64")}}})
			a, err := w.attach(idA, "n", network.PortBinding{Proto: "tcp", ContainerPort: 80, HostPort: 8080, HostIP: netip.MustParseAddr("127.0.0.1")},
				network.PortBinding{Proto: "tcp", ContainerPort: 80, HostPort: 8080, HostIP: netip.IPv6Loopback()})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.attach(idB, "other"); err != nil {
				t.Fatal(err)
			}
			w.answer(idA, 80, "hello")
			w.answer(idA, 81, "hello")
			for _, addr := range []netip.Addr{a.Endpoints["n"].IPv4.Addr(), a.Endpoints["n"].IPv6.Addr()} {
				for _, c := range []struct {
					from, netns, port string
					want              bool
				}{{"the trusted interface", outside, "80", want}, {"the trusted interface", outside, "81", false}, {"another network", w.ns(idB), "80", false}} {
					wait := "0.3"
					if c.want {
						wait = "30"
					}
					if got := exec.Command("nsenter", "--net="+c.netns, "timeout", wait, "bash", "-c", "</dev/tcp/"+addr.String()+"/"+c.port).Run() == nil; got != c.want {
						t.Errorf("%s port %s from %s: reached %v", addr, c.port, c.from, got)
					}
				}
			}
			if err := w.s.Detach(t.Context(), idA, w.ns(idA)); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command("nft", "list", "table", "inet", "ply").CombinedOutput()
			if err != nil || strings.Contains(string(out), "10.1.0.2") || strings.Contains(string(out), "fd01::2") {
				t.Errorf("the container is gone, its ports are not (%v):\n%s", err, out)
			}
		})
	}
}

// What is no name of one interface does not get into the rules.
func TestNamesOfInterfaces(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"br*", `a"}`, `b\`, "*", "a b", "sixteen-letters-", "ü", "..", "a/b"} {
		for _, option := range []string{"bridge.name", "bridge.trusted_host_interfaces"} {
			_, err := w.s.Create(t.Context(), network.CreateOptions{Name: "n", Options: map[string]string{"com.docker.network." + option: name}})
			if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "no name of an interface") {
				t.Errorf("%s %q: %v", option, name, err)
			}
		}
	}
	many := strings.Repeat("eth0:", 64) + "eth0"
	if _, err := w.s.Create(t.Context(), network.CreateOptions{Name: "n", Options: map[string]string{"com.docker.network.bridge.trusted_host_interfaces": many}}); !errors.Is(err, errs.Invalid) {
		t.Errorf("65 interfaces: %v", err)
	}
}

// In a routed network nothing of the host is taken for a published port, so that any number of containers and the host itself may use the number. When another network
// of the container takes the default route over, the port is bound as it was asked for, and it is free again afterwards; a shim carries what is bound, and no more.
func TestPortsOfRoutedNetworks(t *testing.T) {
	routed := map[string]string{"com.docker.network.bridge.gateway_mode_ipv6": "routed"}
	half := maps.Clone(routed)
	routed["com.docker.network.bridge.gateway_mode_ipv4"] = "routed"
	w := newWorld(t)
	for name, options := range map[string]map[string]string{"a": nil, "b": half, "c": routed} {
		n := "1" + string(name[0]-'a'+'0')
		w.create(network.CreateOptions{Name: name, Options: options, Pools: []network.Pool{{Subnet: prefix("10." + n + ".0.0/24")}, {Subnet: prefix("fd" + n + "::/64")}}})
	}
	port := network.PortBinding{Proto: "tcp", ContainerPort: 80, HostPort: 8080}
	if b, err := w.attach(idB, "c", port); err != nil || len(b.Ports) != 2 || !b.Ports[0].Routed || !b.Ports[1].Routed {
		t.Fatalf("ports %+v, %v", b.Ports, err)
	}
	var shim proxy.Set
	defer shim.Close()
	hand := func() {
		t.Helper()
		if err := w.s.HandOver(idA, shim.Serve); err != nil {
			t.Error(err)
		}
	}
	free := func(network string) bool {
		l, err := net.Listen(network, ":8080")
		if err == nil {
			l.Close()
		}
		return err == nil
	}
	check := func(what string, a network.Attachment, v4, v6 bool) {
		t.Helper()
		for range 2 {
			if len(a.Ports) != 2 || a.Ports[0].Routed == v4 || a.Ports[1].Routed == v6 || a.Ports[0].HostPort != 8080 || a.Ports[1].HostPort != 8080 {
				t.Errorf("%s: ports %+v", what, a.Ports)
			}
			for addr, bound := range map[string]bool{"127.0.0.1:8080": v4, "[::1]:8080": v6} {
				if out, err := greet(addr); (err == nil && strings.HasPrefix(out, "hello")) != bound {
					t.Errorf("%s: %s answers %q, %v", what, addr, out, err)
				}
			}
			if free("tcp4") == v4 || free("tcp6") == v6 {
				t.Errorf("%s: the ports of the host are free: %v, %v", what, free("tcp4"), free("tcp6"))
			}
			if err := w.s.Close(); err != nil { // and the same for the next engine
				t.Fatal(err)
			}
			w.open()
			hand()
			a, _ = w.s.Attached(idA)
			what += ", after a restart"
		}
	}
	a, err := w.s.Attach(t.Context(), w.request(idA, network.EndpointRequest{Network: "c"}, port))
	if err != nil {
		t.Fatal(err)
	}
	hand()
	w.answer(idA, 80, "hello")
	check("routed", a, false, false)
	for _, step := range []struct {
		what, connect, disconnect string
		v4, v6                    bool
	}{
		{"half routed", "b", "", true, false}, {"mapped", "a", "", true, true}, {"half routed again", "", "a", true, false}, {"routed again", "", "b", false, false},
		{"mapped at once", "a", "", true, true}, {"routed at once", "", "a", false, false},
	} {
		if step.connect != "" {
			a, err = w.s.Connect(t.Context(), idA, w.ns(idA), network.EndpointRequest{Network: step.connect})
		} else {
			a, err = w.s.Disconnect(t.Context(), idA, step.disconnect)
		}
		if err != nil {
			t.Fatal(err)
		}
		hand()
		check(step.what, a, step.v4, step.v6)
	}
}
