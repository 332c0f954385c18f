package network_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"ply/internal/network"
	"ply/internal/network/namespace"
	"ply/internal/oci"
)

// neighbour is another host, in a namespace: 192.0.2.2 and 2001:db8:2::2, to which this host is the router.
func neighbour(t *testing.T) (netns string) {
	t.Helper()
	netns = filepath.Join(t.TempDir(), "netns")
	if err := namespace.Make(netns); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := namespace.Remove(netns); err != nil {
			t.Error(err)
		}
	})
	script := `set -e
ip link add out0 type veth peer name in0
trap 'ip link del out0' ERR
ip link set in0 netns ` + netns + `
echo 0 >/proc/sys/net/ipv6/conf/out0/disable_ipv6
ip addr add 192.0.2.1/24 dev out0
ip addr add 2001:db8:2::1/64 dev out0 nodad
ip link set out0 up
nsenter --net=` + netns + ` sh -ec 'echo 0 >/proc/sys/net/ipv6/conf/in0/disable_ipv6; ip addr add 192.0.2.2/24 dev in0; ip addr add 2001:db8:2::2/64 dev in0 nodad; ip link set in0 up
ip route add default via 192.0.2.1; ip -6 route add default via 2001:db8:2::1'`
	if out, err := exec.Command("bash", "-c", script).CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	t.Cleanup(func() { _ = exec.Command("ip", "link", "del", "out0").Run() }) // gone with the namespace, or not
	return netns
}

// How the outside reaches containers, and they the outside, for each mode and family: in mode nat by host ports only, and with the host's address; in mode routed at
// published ports, with addresses of their own and by no host ports; in mode nat-unprotected at all ports.
func TestGatewayModes(t *testing.T) {
	for _, c := range []struct {
		v4, v6          string
		direct4, other4 bool // published and other ports at the container's own address
		direct6, other6 bool
	}{
		{"nat", "routed", false, false, true, false},
		{"routed", "nat", true, false, false, false},
		{"nat-unprotected", "nat", true, true, false, false},
	} {
		t.Run(c.v4+" "+c.v6, func(t *testing.T) {
			w := newWorld(t)
			w.create(network.CreateOptions{
				Name: "n", Options: map[string]string{"com.docker.network.bridge.gateway_mode_ipv4": c.v4, "com.docker.network.bridge.gateway_mode_ipv6": c.v6},
				Pools: []network.Pool{{Subnet: prefix("10.1.0.0/24")}, {Subnet: prefix("fd01::/64")}},
			})
			w.create(network.CreateOptions{Name: "other", IPv6: true, Pools: []network.Pool{{Subnet: prefix("10.2.0.0/24")}, {Subnet: prefix("fd02::/64")}}})
			outside := neighbour(t)
			a, err := w.attach(idA, "n", network.PortBinding{Proto: "tcp", ContainerPort: 80, HostPort: 8080})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.attach(idB, "other"); err != nil {
				t.Fatal(err)
			}
			w.answer(idA, 80, "hello")
			w.answer(idA, 81, "hello")
			reach := func(netns, host, port string, want bool) bool {
				wait := "0.3" // what drops packets does not say so
				if want {
					wait = "30"
				}
				return exec.Command("nsenter", "--net="+netns, "timeout", wait, "bash", "-c", "</dev/tcp/"+host+"/"+port).Run() == nil
			}
			e := a.Endpoints["n"]
			for _, f := range []struct {
				family        string
				addr          netip.Addr
				host          string
				mode          string
				direct, other bool
			}{{"IPv4", e.IPv4.Addr(), "192.0.2.1", c.v4, c.direct4, c.other4}, {"IPv6", e.IPv6.Addr(), "2001:db8:2::1", c.v6, c.direct6, c.other6}} {
				if got := reach(outside, f.host, "8080", f.mode != "routed"); got != (f.mode != "routed") {
					t.Errorf("%s: the host's port: reached %v", f.family, got)
				}
				if got := reach(outside, f.addr.String(), "80", f.direct); got != f.direct {
					t.Errorf("%s: published port at the container's own address: reached %v", f.family, got)
				}
				if got := reach(outside, f.addr.String(), "81", f.other); got != f.other {
					t.Errorf("%s: another port at the container's own address: reached %v", f.family, got)
				}
				// Containers of other networks are outside as well, where addresses are not translated.
				if got := reach(w.ns(idB), f.addr.String(), "80", f.mode == "routed"); got != (f.mode == "routed") {
					t.Errorf("%s: published port, from a container of another network: reached %v", f.family, got)
				}
				if reach(w.ns(idB), f.addr.String(), "81", false) {
					t.Errorf("%s: another port is reached from a container of another network", f.family)
				}
			}
			// The address with which a container comes.
			for _, f := range []struct{ mode, network, listen, own, host string }{
				{c.v4, "tcp4", "192.0.2.2:9000", e.IPv4.Addr().String(), "192.0.2.1"}, {c.v6, "tcp6", "[2001:db8:2::2]:9000", e.IPv6.Addr().String(), "2001:db8:2::1"},
			} {
				want := f.host
				if f.mode == "routed" {
					want = f.own
				}
				if got := w.seenAs(outside, f.network, f.listen); got != want {
					t.Errorf("mode %s: the container comes from %s, want %s", f.mode, got, want)
				}
			}
		})
	}
}

// A network chooses with which of the host's addresses its containers come to others, and keeps to it after a restart of the engine and after others flushed the rules.
func TestSourceAddress(t *testing.T) {
	w := newWorld(t)
	outside := neighbour(t)
	w.sh("ip addr add 192.0.2.7/24 dev out0; ip addr add 2001:db8:2::7/64 dev out0 nodad")
	w.create(network.CreateOptions{
		Name: "n", Options: map[string]string{"com.docker.network.host_ipv4": "192.0.2.7", "com.docker.network.host_ipv6": "2001:db8:2::7"},
		Pools: []network.Pool{{Subnet: prefix("10.1.0.0/24")}, {Subnet: prefix("fd01::/64")}},
	})
	w.create(network.CreateOptions{Name: "other", Pools: []network.Pool{{Subnet: prefix("10.2.0.0/24")}}})
	is := func(when, v4, v6 string) {
		t.Helper()
		if got := w.seenAs(outside, "tcp4", "192.0.2.2:9000"); got != v4 {
			t.Errorf("%s: the container comes from %s, want %s", when, got, v4)
		}
		if v6 == "" {
			return
		}
		if got := w.seenAs(outside, "tcp6", "[2001:db8:2::2]:9000"); got != v6 {
			t.Errorf("%s: the container comes from %s, want %s", when, got, v6)
		}
	}
	if _, err := w.attach(idA, "n"); err != nil {
		t.Fatal(err)
	}
	is("at first", "192.0.2.7", "2001:db8:2::7")
	w.watch()
	is("after a restart of the engine", "192.0.2.7", "2001:db8:2::7")
	rules := w.sh("nft list table inet ply")
	w.sh("nft flush ruleset")
	w.eventually("the rules", func() error {
		if got, err := exec.Command("nft", "list", "table", "inet", "ply").CombinedOutput(); err != nil || string(got) != rules {
			return fmt.Errorf("%w: %s", errors.Join(err, errors.New("they differ")), got)
		}
		return nil
	})
	is("after a flush", "192.0.2.7", "2001:db8:2::7")
	if err := w.s.Detach(t.Context(), idA, w.ns(idA)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.attach(idA, "other"); err != nil {
		t.Fatal(err)
	}
	is("on another network", "192.0.2.1", "")
}

// seenAs returns the address from which a connection of a container comes to a neighbour that listens at an address.
func (w *world) seenAs(netns, network, listen string) string {
	w.t.Helper()
	var l net.Listener
	err := namespace.Do(netns, func() (err error) { l, err = net.Listen(network, listen); return err })
	if err != nil {
		w.t.Fatal(err)
	}
	defer l.Close()
	var from string
	done := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			from = netip.MustParseAddrPort(c.RemoteAddr().String()).Addr().Unmap().String()
			err = c.Close()
		}
		done <- err
	}()
	if err := w.inside(idA, func() error { _, err := greet(listen); return err }); err != nil {
		return err.Error()
	}
	if err := <-done; err != nil {
		return err.Error()
	}
	return from
}

// The endpoint with the highest priority provides the default route, whatever the names of the networks are.
func TestPriorityOfGateways(t *testing.T) {
	w := newWorld(t)
	for n, subnet := range map[string]string{"a": "10.1.0.0/24", "b": "10.2.0.0/24", "c": "10.3.0.0/24"} {
		w.create(network.CreateOptions{Name: n, Pools: []network.Pool{{Subnet: prefix(subnet)}}})
	}
	req := w.request(idA, network.EndpointRequest{Network: "a"})
	req.Endpoints = append(req.Endpoints, network.EndpointRequest{Network: "b", Spec: network.EndpointSpec{Priority: 5}})
	if _, err := w.s.Attach(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	route := func(what, want string) {
		t.Helper()
		if r := w.run(idA, "ip route show default"); strings.Count(r, "\n") != 1 || !strings.Contains(r, "via "+want+" ") {
			t.Errorf("%s: default route %q, want one by %s", what, r, want)
		}
	}
	route("at first", "10.2.0.1")
	for _, step := range []struct {
		priority int
		want     string
	}{{-1, "10.2.0.1"}, {6, "10.3.0.1"}} {
		if _, err := w.s.Connect(t.Context(), idA, w.ns(idA), network.EndpointRequest{Network: "c", Spec: network.EndpointSpec{Priority: step.priority}}); err != nil {
			t.Fatal(err)
		}
		route("connected", step.want)
		if _, err := w.s.Disconnect(t.Context(), idA, "c"); err != nil {
			t.Fatal(err)
		}
		route("disconnected", "10.2.0.1")
	}
}

// The settings of an endpoint are those of its interface: the MAC address, link-local addresses, its name and the kernel's settings for it.
func TestSettingsOfAnEndpoint(t *testing.T) {
	w := newWorld(t)
	w.create(network.CreateOptions{Name: "n", Pools: []network.Pool{{Subnet: prefix("10.1.0.0/24")}, {Subnet: prefix("fd01::/64")}}})
	spec := network.EndpointSpec{
		IPv4: netip.MustParseAddr("10.1.0.77"), IPv6: netip.MustParseAddr("fd01::77"), MAC: "02:00:00:00:00:77",
		LinkLocal:  []netip.Addr{netip.MustParseAddr("169.254.9.9"), netip.MustParseAddr("fe80::9")},
		DriverOpts: map[string]string{"com.docker.network.endpoint.ifname": "lan7", "com.docker.network.endpoint.sysctls": "net.ipv4.conf.IFNAME.log_martians=1"},
	}
	for _, id := range []oci.ContainerID{idA, idB} { // at the start, and later
		var err error
		if id == idA {
			_, err = w.s.Attach(t.Context(), w.request(id, network.EndpointRequest{Network: "n", Spec: spec}))
		} else if _, err = w.attach(id, "none"); err == nil {
			_, err = w.s.Connect(t.Context(), id, w.ns(id), network.EndpointRequest{Network: "n", Spec: spec})
		}
		if err != nil {
			t.Fatal(err)
		}
		got := w.run(id, "ip addr show dev lan7; cat /proc/sys/net/ipv4/conf/lan7/log_martians")
		for _, want := range []string{"10.1.0.77/24", "fd01::77/64", "02:00:00:00:00:77", "169.254.9.9/16", "fe80::9/64", "\n1\n"} {
			if !strings.Contains(got, want) {
				t.Errorf("the interface has no %q:\n%s", want, got)
			}
		}
		if err := w.s.Detach(t.Context(), id, w.ns(id)); err != nil {
			t.Fatal(err)
		}
	}
}
