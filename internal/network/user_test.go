package network_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"reflect"
	"strings"
	"testing"

	"ply/internal/errs"
	"ply/internal/network"
	"ply/internal/network/names"
	"ply/internal/oci"
)

func (w *world) create(o network.CreateOptions) *network.Network {
	w.t.Helper()
	id, err := w.s.Create(w.t.Context(), o)
	if err != nil {
		w.t.Fatal(err)
	}
	n, err := w.s.Get(w.t.Context(), id)
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

func (w *world) run(id oci.ContainerID, command string) string {
	w.t.Helper()
	out, err := exec.Command("nsenter", "--net="+w.ns(id), "sh", "-c", command).CombinedOutput()
	if err != nil {
		w.t.Errorf("%s: %v\n%s", command, err, out)
	}
	return string(out)
}

// A network keeps its name, its subnets and its options over a restart, and its bridge goes with it.
func TestUserNetwork(t *testing.T) {
	w := newWorld(t)
	n := w.create(network.CreateOptions{Name: "backend", IPv6: true, Labels: map[string]string{"a": "b"}, Options: map[string]string{"com.docker.network.bridge.name": "br-test"}})
	if len(n.Pools) != 2 || n.Pools[0].Subnet.String() != "172.18.0.0/16" || n.Pools[0].Gateway.String() != "172.18.0.1" || n.Pools[1].Subnet.Bits() != 64 || n.Driver != "bridge" {
		t.Fatalf("network %+v", n)
	}
	if !strings.Contains(links(t), "br-test") {
		t.Errorf("links %s, want the bridge", links(t))
	}
	if _, err := w.s.Create(t.Context(), network.CreateOptions{Name: "backend"}); !errors.Is(err, errs.Conflict) || err.Error() != "network with name backend already exists" {
		t.Errorf("second network of the name: %v", err)
	}
	a, err := w.attach(idA, "backend")
	if err != nil {
		t.Fatal(err)
	}
	e := a.Endpoints["backend"]
	if e.IPv4.String() != "172.18.0.2/16" || !n.Pools[1].Subnet.Contains(e.IPv6.Addr()) || e.Gateway6 != n.Pools[1].Gateway {
		t.Errorf("endpoint %+v", e)
	}
	if _, err := w.attach(idB, n.ID[:12]); err != nil {
		t.Fatal(err)
	}
	w.answer(idA, 80, "hello")
	if err := w.inside(idB, func() error { _, err := greet("172.18.0.2:80"); return err }); err != nil {
		t.Errorf("container to container: %v", err)
	}
	if err := w.inside(idB, func() error { _, err := greet("[" + e.IPv6.Addr().String() + "]:80"); return err }); err != nil {
		t.Errorf("container to container, IPv6: %v", err)
	}
	if err := w.s.Remove(t.Context(), "backend"); !errors.Is(err, errs.Forbidden) || !strings.Contains(err.Error(), "has active endpoints") {
		t.Errorf("removal of a network in use: %v", err)
	}
	if err := w.s.Close(); err != nil {
		t.Fatal(err)
	}
	w.open()
	again, err := w.s.Get(t.Context(), "backend")
	if err != nil || again.ID != n.ID || !reflect.DeepEqual(again.Pools, n.Pools) || again.Labels["a"] != "b" || len(again.Endpoints) != 2 {
		t.Errorf("after a restart %+v, %v", again, err)
	}
	for _, id := range []oci.ContainerID{idA, idB} {
		if err := w.s.Detach(t.Context(), id, w.ns(id)); err != nil {
			t.Error(err)
		}
	}
	if err := w.s.Remove(t.Context(), "backend"); err != nil {
		t.Error(err)
	}
	if strings.Contains(links(t), "br-test") {
		t.Errorf("links %s, want the bridge gone", links(t))
	}
	if out, err := exec.Command("nft", "list", "tables").CombinedOutput(); err != nil || strings.Contains(string(out), "inet ply\n") {
		t.Errorf("tables after the last network: %v\n%s", err, out)
	}
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func TestCreateRefuses(t *testing.T) {
	w := newWorld(t)
	w.create(network.CreateOptions{Name: "taken", Pools: []network.Pool{{Subnet: prefix("10.5.0.0/16")}}})
	pool := func(p network.Pool) network.CreateOptions {
		return network.CreateOptions{Name: "new", Pools: []network.Pool{p}}
	}
	for _, c := range []struct {
		o     network.CreateOptions
		class error
		text  string
	}{
		{network.CreateOptions{Name: "bridge"}, errs.Forbidden, "predefined"},
		{network.CreateOptions{Name: "a/b"}, errs.Invalid, "invalid network name"},
		{network.CreateOptions{Name: "new", Driver: "overlay"}, errs.NotFound, "overlay"},
		{network.CreateOptions{Name: "new", Driver: "host"}, errs.Forbidden, "only one instance"},
		{network.CreateOptions{Name: "new", NoIPv4: true}, errs.Invalid, "IPv4 or IPv6"},
		{network.CreateOptions{Name: "new", Options: map[string]string{"color": "red"}}, errs.Invalid, `unknown option "color"`},
		{network.CreateOptions{Name: "new", Options: map[string]string{"com.docker.network.driver.mtu": "many"}}, errs.Invalid, "mtu"},
		{network.CreateOptions{Name: "new", Options: map[string]string{"com.docker.network.host_ipv4": "2001:db8::1"}}, errs.Invalid, "no IPv4 address"},
		{network.CreateOptions{Name: "new", Options: map[string]string{"com.docker.network.host_ipv4": "0.0.0.0"}}, errs.Invalid, "no IPv4 address"},
		{network.CreateOptions{Name: "new", Options: map[string]string{"com.docker.network.host_ipv6": "::ffff:192.0.2.1"}}, errs.Invalid, "no IPv6 address"},
		{network.CreateOptions{Name: "new", Options: map[string]string{"com.docker.network.host_ipv6": "fe80::1%eth0"}}, errs.Invalid, "no IPv6 address"},
		{network.CreateOptions{Name: "new", IPAM: map[string]string{"x": "y"}}, errs.Invalid, "IPAM option"},
		{pool(network.Pool{Subnet: prefix("10.5.1.0/24")}), errs.Forbidden, "Pool overlaps"},
		{pool(network.Pool{Subnet: prefix("10.6.0.1/24")}), errs.Invalid, "it should be 10.6.0.0/24"},
		{pool(network.Pool{Subnet: prefix("10.6.0.0/31")}), errs.Invalid, "no room"},
		{pool(network.Pool{Subnet: prefix("10.6.0.0/24"), Gateway: netip.MustParseAddr("10.7.0.1")}), errs.Invalid, "doesn't contain"},
		{pool(network.Pool{Subnet: prefix("10.6.0.0/24"), Range: prefix("10.6.0.0/16")}), errs.Invalid, "bigger than its parent"},
		{network.CreateOptions{Name: "new", Pools: []network.Pool{{Subnet: prefix("10.6.0.0/24")}, {Subnet: prefix("10.7.0.0/24")}}}, errs.Invalid, "at most one subnet"},
	} {
		if _, err := w.s.Create(t.Context(), c.o); !errors.Is(err, c.class) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("Create(%+v) = %v, want %q", c.o, err, c.text)
		}
	}
	if list, err := w.s.List(t.Context(), nil); err != nil || len(list) != 4 {
		t.Errorf("networks %v, %v, want those that were there", list, err)
	}
	if err := w.s.Remove(t.Context(), "taken"); err != nil {
		t.Error(err)
	}
}

// Addresses come from the range, and neither the gateway's nor a reserved one is given away.
func TestRangeAndReservedAddresses(t *testing.T) {
	w := newWorld(t)
	w.create(network.CreateOptions{Name: "n", Pools: []network.Pool{{
		Subnet: prefix("10.5.0.0/16"), Range: prefix("10.5.3.0/30"), Gateway: netip.MustParseAddr("10.5.3.0"), Aux: map[string]netip.Addr{"dns": netip.MustParseAddr("10.5.3.1")},
	}}})
	a, err := w.attach(idA, "n")
	if err != nil || a.Endpoints["n"].IPv4.String() != "10.5.3.2/16" {
		t.Errorf("endpoint %+v, %v", a, err)
	}
	_, err = w.s.Attach(t.Context(), w.request(idB, network.EndpointRequest{Network: "n", Spec: network.EndpointSpec{IPv4: netip.MustParseAddr("10.5.3.1")}}))
	if !errors.Is(err, errs.Conflict) {
		t.Errorf("a reserved address: %v, want Conflict", err)
	}
	if _, err = w.s.Attach(t.Context(), w.request(idB, network.EndpointRequest{Network: "n", Spec: network.EndpointSpec{IPv4: netip.MustParseAddr("10.5.9.9")}})); err != nil {
		t.Errorf("an address outside the range: %v", err)
	}
}

// A container that ends and starts again at once gets the address that it asks for, although its interface is still being removed.
func TestStaticAddressAfterRestart(t *testing.T) {
	w := newWorld(t)
	w.create(network.CreateOptions{Name: "n", Pools: []network.Pool{{Subnet: prefix("10.5.0.0/16")}, {Subnet: prefix("fd05::/64")}}})
	spec := network.EndpointSpec{IPv4: netip.MustParseAddr("10.5.9.9"), IPv6: netip.MustParseAddr("fd05::9")}
	for range 20 {
		a, err := w.s.Attach(t.Context(), w.request(idA, network.EndpointRequest{Network: "n", Spec: spec}))
		if err != nil {
			t.Fatal(err)
		}
		if e := a.Endpoints["n"]; e.IPv4.String() != "10.5.9.9/16" || e.IPv6.String() != "fd05::9/64" {
			t.Errorf("endpoint %+v", e)
		}
		if _, err := w.s.Attach(t.Context(), w.request(idB, network.EndpointRequest{Network: "n", Spec: spec})); !errors.Is(err, errs.Conflict) {
			t.Errorf("the address of another container: %v, want Conflict", err)
		}
		if err := w.s.Detach(t.Context(), idA, w.ns(idA)); err != nil {
			t.Fatal(err)
		}
	}
}

// Containers of two networks do not reach each other; one that is in both reaches both, and its default route and its published port follow the gateway.
func TestSeveralNetworks(t *testing.T) {
	w := newWorld(t)
	w.create(network.CreateOptions{Name: "a", Pools: []network.Pool{{Subnet: prefix("10.1.0.0/24")}}})
	w.create(network.CreateOptions{Name: "b", Pools: []network.Pool{{Subnet: prefix("10.2.0.0/24")}}})
	w.create(network.CreateOptions{Name: "in", Internal: true, Pools: []network.Pool{{Subnet: prefix("10.3.0.0/24")}}})
	req := w.request(idA, network.EndpointRequest{Network: "b", Names: []string{"web"}}, network.PortBinding{Proto: "tcp", ContainerPort: 80, HostPort: 8080})
	req.Endpoints = append(req.Endpoints, network.EndpointRequest{Network: "in", Names: []string{"web"}})
	a, err := w.s.Attach(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if a.Endpoints["b"].Interface != "eth0" || a.Endpoints["in"].Interface != "eth1" || len(a.Ports) != 2 || !a.Resolver || !a.Outside {
		t.Errorf("attachment %+v", a)
	}
	if _, err := w.attach(idB, "a"); err != nil {
		t.Fatal(err)
	}
	w.answer(idA, 80, "hello")
	routes := func() string { return w.run(idA, "ip route show default") }
	if r := routes(); !strings.Contains(r, "via 10.2.0.1 dev eth0") {
		t.Errorf("default route %q", r)
	}
	reach := func(addr string) bool {
		return exec.Command("nsenter", "--net="+w.ns(idB), "timeout", "1", "bash", "-c", "</dev/tcp/"+addr+"/80").Run() == nil
	}
	if reach("10.2.0.2") {
		t.Error("a container reaches one of another network")
	}
	port := func(what string, want bool) {
		t.Helper()
		if _, err := greet("127.0.0.1:8080"); (err == nil) != want {
			t.Errorf("%s: published port: %v", what, err)
		}
	}
	port("at first", true)
	// The first by name provides the default route.
	a, err = w.s.Connect(t.Context(), idA, w.ns(idA), network.EndpointRequest{Network: "a", Names: []string{"web"}})
	if err != nil {
		t.Fatal(err)
	}
	if r := routes(); !strings.Contains(r, "via 10.1.0.1 dev eth2") || strings.Contains(r, "10.2.0.1") {
		t.Errorf("default route after Connect %q", r)
	}
	if !reach("10.1.0.3") || len(a.Ports) != 2 || a.Ports[0].HostPort != 8080 {
		t.Errorf("after Connect: reached %v, ports %+v", reach("10.1.0.3"), a.Ports)
	}
	port("after Connect", true)
	if _, err := w.s.Connect(t.Context(), idA, w.ns(idA), network.EndpointRequest{Network: "a"}); !errors.Is(err, errs.Forbidden) {
		t.Errorf("second Connect: %v", err)
	}
	// Names are those of the networks in which a container is.
	view := names.New(w.s.Tables()).View(string(idA))
	if got, known := view.Lookup("WEB.in"); !known || got[0].String() != "10.3.0.2" {
		t.Errorf("web.in = %v", got)
	}
	if err := w.s.Close(); err != nil {
		t.Fatal(err)
	}
	w.open()
	if again, ok := w.s.Attached(idA); !ok || !reflect.DeepEqual(again, a) {
		t.Errorf("after a restart %+v, before %+v", again, a)
	}
	if a, err = w.s.Disconnect(t.Context(), idA, "a"); err != nil {
		t.Fatal(err)
	}
	if r := routes(); !strings.Contains(r, "via 10.2.0.1 dev eth0") {
		t.Errorf("default route after Disconnect %q", r)
	}
	port("after Disconnect", true)
	if _, err := w.s.Disconnect(t.Context(), idA, "a"); !errors.Is(err, errs.Forbidden) {
		t.Errorf("second Disconnect: %v", err)
	}
	if a, err = w.s.Disconnect(t.Context(), idA, "b"); err != nil || a.Outside || len(a.Ports) != 0 {
		t.Errorf("with the internal network only: %+v, %v", a, err)
	}
	if r := routes(); r != "" {
		t.Errorf("default route in an internal network %q", r)
	}
	port("without a gateway", false)
	for _, id := range []oci.ContainerID{idA, idB} {
		if err := w.s.Detach(t.Context(), id, w.ns(id)); err != nil {
			t.Error(err)
		}
	}
	if gone, err := w.s.Prune(t.Context(), nil); err != nil || strings.Join(gone, " ") != "a b in" {
		t.Errorf("Prune = %v, %v", gone, err)
	}
}

// Containers on a network without ICC reach the world and are reached at published ports, but not each other.
func TestWithoutICC(t *testing.T) {
	w := newWorld(t)
	w.create(network.CreateOptions{Name: "n", Options: map[string]string{"com.docker.network.bridge.enable_icc": "false"}, Pools: []network.Pool{{Subnet: prefix("10.1.0.0/24")}}})
	if _, err := w.attach(idA, "n", network.PortBinding{Proto: "tcp", ContainerPort: 80, HostPort: 8080}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.attach(idB, "n"); err != nil {
		t.Fatal(err)
	}
	w.answer(idA, 80, "hello")
	if exec.Command("nsenter", "--net="+w.ns(idB), "timeout", "1", "bash", "-c", "</dev/tcp/10.1.0.2/80").Run() == nil {
		t.Error("containers reach each other")
	}
	if _, err := greet("127.0.0.1:8080"); err != nil {
		t.Errorf("published port: %v", err)
	}
	// The rules keep neighbours apart where frames pass them, and the bridge does where they do not.
	if err := w.inside(idB, func() error { _, err := greet("10.1.0.1:8080"); return err }); err != nil {
		t.Errorf("published port from a neighbour: %v", err)
	}
}

// A network that is removed leaves no bridge, and neither does an engine that ends, also when the network was made by an earlier engine and nothing has used it since.
func TestNothingIsLeftAfterARestart(t *testing.T) {
	for name, end := range map[string]func(*network.Service) error{
		"rm":   func(s *network.Service) error { return s.Remove(t.Context(), "n") },
		"stop": func(s *network.Service) error { return s.Teardown(t.Context()) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.create(network.CreateOptions{Name: "n", Options: map[string]string{"com.docker.network.bridge.name": "left"}})
			if err := w.s.Close(); err != nil {
				t.Fatal(err)
			}
			w.open()
			if l := links(t); !strings.Contains(l, "left") {
				t.Fatalf("links %s", l)
			}
			if err := end(w.s); err != nil {
				t.Fatal(err)
			}
			if l := links(t); strings.Contains(l, "left") {
				t.Errorf("links %s", l)
			}
		})
	}
}

// Two engines on one host have a bridge, a table and addresses each, and neither touches those of the other.
func TestTwoEngines(t *testing.T) {
	a, b := newWorldOf(t, "one"), newWorldOf(t, "two")
	first, err := a.attach(idA, "bridge", network.PortBinding{Proto: "tcp", ContainerPort: 80, HostPort: 8080})
	if err != nil {
		t.Fatal(err)
	}
	second, err := b.attach(idB, "bridge")
	if err != nil {
		t.Fatal(err)
	}
	if first.Endpoints["bridge"].IPv4.Masked() == second.Endpoints["bridge"].IPv4.Masked() {
		t.Errorf("both have %s", first.Endpoints["bridge"].IPv4.Masked())
	}
	if _, err := b.s.Create(t.Context(), network.CreateOptions{Name: "n", Options: map[string]string{"com.docker.network.bridge.name": "ply0"}}); !errors.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "belongs to another engine") {
		t.Errorf("a bridge of another engine: %v", err)
	}
	if err := errors.Join(b.s.Detach(t.Context(), idB, b.ns(idB)), b.s.Teardown(t.Context())); err != nil {
		t.Fatal(err)
	}
	a.answer(idA, 80, "hello")
	if _, err := greet("127.0.0.1:8080"); err != nil {
		t.Errorf("after the other engine stopped: %v", err)
	}
	if l := links(t); !strings.Contains(l, "ply0") || strings.Contains(l, "ply1") {
		t.Errorf("links %s", l)
	}
}

// Engines of one host that create networks at the same time get different subnets, and an engine does not get a subnet that another one has.
func TestTwoEnginesNeverShareASubnet(t *testing.T) {
	a, b := newWorldOf(t, "one"), newWorldOf(t, "two")
	const each = 4
	type result struct {
		id  string
		w   *world
		err error
	}
	results := make(chan result)
	for _, w := range []*world{a, b} {
		go func() {
			for i := range each {
				id, err := w.s.Create(t.Context(), network.CreateOptions{Name: fmt.Sprintf("n%d", i), IPv6: true})
				results <- result{id, w, err}
			}
		}()
	}
	seen := map[netip.Prefix]bool{}
	for range 2 * each {
		r := <-results
		if r.err != nil {
			t.Fatal(r.err)
		}
		n, err := r.w.s.Get(t.Context(), r.id)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range n.Pools {
			if seen[p.Subnet] {
				t.Errorf("subnet %s was given twice", p.Subnet)
			}
			seen[p.Subnet] = true
		}
	}
	own, err := a.s.Get(t.Context(), "n0")
	if err != nil {
		t.Fatal(err)
	}
	part := netip.PrefixFrom(own.Pools[0].Subnet.Addr(), 24)
	if _, err := b.s.Create(t.Context(), network.CreateOptions{Name: "same", Pools: []network.Pool{{Subnet: part}}}); !errors.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "the engine of one") {
		t.Errorf("a subnet of another engine: %v", err)
	}
	if l := links(t); strings.Count(l, "br-") != 2*each {
		t.Errorf("links %s, want %d bridges", l, 2*each)
	}
	// While the first engine is away, the second one takes its subnet. The first one says so when it is back, and changes nothing of the second.
	if err := errors.Join(a.s.Teardown(t.Context()), a.s.Close()); err != nil {
		t.Fatal(err)
	}
	b.create(network.CreateOptions{Name: "same", Pools: []network.Pool{{Subnet: part}}})
	if _, err := b.attach(idB, "same"); err != nil {
		t.Fatal(err)
	}
	a.open()
	if _, err := a.attach(idA, "n0"); !errors.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "the engine of two") {
		t.Errorf("a network whose subnet another engine has: %v", err)
	}
	if _, err := a.attach(idA, "n1"); err != nil {
		t.Errorf("another network: %v", err)
	}
	b.answer(idB, 80, "hello")
	if _, err := greet(part.Addr().Next().Next().String() + ":80"); err != nil {
		t.Errorf("the second engine's container: %v", err)
	}
	for _, w := range []*world{a, b} {
		if err := w.s.Detach(t.Context(), map[*world]oci.ContainerID{a: idA, b: idB}[w], w.ns(map[*world]oci.ContainerID{a: idA, b: idB}[w])); err != nil {
			t.Error(err)
		}
		if _, err := w.s.Prune(t.Context(), nil); err != nil {
			t.Error(err)
		}
	}
}
