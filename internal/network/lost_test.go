package network_test

import (
	"strings"
	"testing"

	"ply/internal/network"
	"ply/internal/network/namespace"
	"ply/internal/store/meta"
)

// A running container one of whose networks is lost, because its record is gone, is connected to other networks and disconnected from all as any other: its default
// route and its ports go to a network that is there.
func TestLostNetwork(t *testing.T) {
	w := newWorld(t)
	w.create(network.CreateOptions{Name: "a", Options: map[string]string{"com.docker.network.bridge.name": "br-a"}, Pools: []network.Pool{{Subnet: prefix("10.1.0.0/24")}}})
	w.create(network.CreateOptions{Name: "in", Internal: true, Pools: []network.Pool{{Subnet: prefix("10.2.0.0/24")}}})
	w.create(network.CreateOptions{Name: "out", Pools: []network.Pool{{Subnet: prefix("10.3.0.0/24")}}})
	req := w.request(idA, network.EndpointRequest{Network: "a", Names: []string{"web"}}, network.PortBinding{Proto: "tcp", ContainerPort: 80, HostPort: 8080})
	req.Endpoints = append(req.Endpoints, network.EndpointRequest{Network: "none"})
	if _, err := w.s.Attach(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	w.carry(idA)
	w.answer(idA, 80, "hello")
	if err := w.s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.db.Update(func(tx *meta.Tx) error { return tx.Networks.Delete("a") }); err != nil {
		t.Fatal(err)
	}
	w.open()
	is := func(when string, a network.Attachment, err error, networks, route string) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		var got []string
		for _, n := range []string{"a", "in", "none", "out"} {
			if _, in := a.Endpoints[n]; in {
				got = append(got, n)
			}
		}
		if strings.Join(got, " ") != networks {
			t.Errorf("%s: the networks are %q, want %q", when, got, networks)
		}
		if r := w.run(idA, "ip route show default"); !strings.Contains(r, route) || strings.Count(r, "\n") > 1 {
			t.Errorf("%s: the default route is %q, want %q", when, r, route)
		}
		if n := strings.Count(w.run(idA, "ip -o link"), "\n"); n != 1+len(got)-strings.Count(networks, "none") {
			t.Errorf("%s: the container has %d interfaces", when, n)
		}
	}
	if settled, err := w.s.Settle(t.Context(), idA); err != nil || settled {
		t.Errorf("Settle = %v, %v", settled, err)
	}
	w.carry(idA)
	a, err := w.s.Connect(t.Context(), idA, w.ns(idA), network.EndpointRequest{Network: "in"})
	is("connected to an internal network", a, err, "a in none", "via 10.1.0.1")
	a, err = w.s.Connect(t.Context(), idA, w.ns(idA), network.EndpointRequest{Network: "out"})
	is("connected to one with a gateway", a, err, "a in none out", "via 10.3.0.1")
	w.carry(idA)
	if _, err := greet("127.0.0.1:8080"); err != nil {
		t.Errorf("the published port: %v", err)
	}
	a, err = w.s.Disconnect(t.Context(), idA, "in")
	is("disconnected from the internal one", a, err, "a none out", "via 10.3.0.1")
	if err := w.s.Close(); err != nil {
		t.Fatal(err)
	}
	w.open()
	a, err = w.s.Disconnect(t.Context(), idA, "a")
	is("disconnected from the lost one", a, err, "none out", "via 10.3.0.1")
	if _, err := greet("127.0.0.1:8080"); err != nil {
		t.Errorf("the published port: %v", err)
	}
	if err := w.s.Close(); err != nil {
		t.Fatal(err)
	}
	w.open()
	if there, err := namespace.HasLink("br-a"); err != nil || there {
		t.Errorf("the bridge of the lost network is there: %v, %v", there, err)
	}
	w.gone("after the lost network")
}
