package network_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"ply/internal/errs"
	"ply/internal/network"
	"ply/internal/network/names"
	"ply/internal/oci"
)

// Networks that many clients make and remove at the same time have their own subnets, one of each name is made, and nothing is left of them.
func TestManyNetworks(t *testing.T) {
	if os.Getenv("PLY_NIGHTLY") == "" {
		t.Skip("make nightly runs it")
	}
	w := newWorld(t)
	const count = 200
	each := func(do func(i int) error) (made int) {
		t.Helper()
		next := make(chan int)
		var mu sync.Mutex
		var work sync.WaitGroup
		for range 16 {
			work.Go(func() {
				for i := range next {
					err := do(i)
					if err != nil && !errors.Is(err, errs.Conflict) && !errors.Is(err, errs.Forbidden) && !errors.Is(err, errs.NotFound) {
						t.Errorf("network %d: %v", i, err)
					}
					mu.Lock()
					if err == nil {
						made++
					}
					mu.Unlock()
				}
			})
		}
		for i := range 2 * count {
			next <- i / 2 // each twice
		}
		close(next)
		work.Wait()
		return made
	}
	made := each(func(i int) error {
		_, err := w.s.Create(t.Context(), network.CreateOptions{Name: fmt.Sprintf("n%d", i), Pools: []network.Pool{{Subnet: prefix(fmt.Sprintf("10.1.%d.0/24", i))}}})
		return err
	})
	if l := links(t); made != count || strings.Count(l, "br-") != count {
		t.Errorf("%d networks and %d bridges, want %d", made, strings.Count(l, "br-"), count)
	}
	if err := w.s.Close(); err != nil {
		t.Fatal(err)
	}
	w.open()
	if list, err := w.s.List(t.Context(), nil); err != nil || len(list) != count+3 {
		t.Errorf("%d networks after a restart, %v", len(list), err)
	}
	if gone := each(func(i int) error { return w.s.Remove(t.Context(), fmt.Sprintf("n%d", i)) }); gone != count {
		t.Errorf("%d networks were removed, want %d", gone, count)
	}
	w.gone("after many networks")
}

// The error when every subnet is used says what to set.
func TestSubnetsAreExhausted(t *testing.T) {
	w := newWorld(t)
	if err := w.s.Close(); err != nil {
		t.Fatal(err)
	}
	o := options(w.db, w.dir, w.owner)
	o.Default.Pools = []netip.Prefix{prefix("10.1.0.0/24"), prefix("10.2.0.0/24"), prefix("10.3.0.0/24")}
	var err error
	if w.s, err = network.Open(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"a", "b"} { // the default bridge has one
		if got := w.create(network.CreateOptions{Name: n}); !slices.Contains(o.Default.Pools, got.Pools[0].Subnet) {
			t.Errorf("network %+v", got)
		}
	}
	_, err = w.s.Create(t.Context(), network.CreateOptions{Name: "c"})
	if e := new(errs.Error); !errors.Is(err, errs.Exhausted) || !errors.As(err, &e) || !strings.Contains(e.Hint, "default-address-pools") {
		t.Errorf("a network without a free subnet: %v", err)
	}
	if err := w.s.Remove(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	w.create(network.CreateOptions{Name: "c"}) // the subnet is free again
}

// A container may be in many networks: each has its interface, one has the default route, and the container is found in each by its name, also after a restart.
func TestContainerInManyNetworks(t *testing.T) {
	w := newWorld(t)
	const count = 30
	req := network.AttachRequest{ID: idA, NetnsPath: w.ns(idA)}
	for i := range count {
		name := fmt.Sprintf("n%02d", i)
		w.create(network.CreateOptions{Name: name, Pools: []network.Pool{{Subnet: prefix(fmt.Sprintf("10.1.%d.0/29", i))}}})
		req.Endpoints = append(req.Endpoints, network.EndpointRequest{Network: name, Names: []string{"web"}})
	}
	if _, err := w.s.Attach(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		a, _ := w.s.Attached(idA)
		view := names.New(w.s.Tables()).View(string(idA))
		have := w.run(idA, "ip -o -4 addr; ip route show default")
		for i := range count {
			e := a.Endpoints[fmt.Sprintf("n%02d", i)]
			if e.Interface != fmt.Sprintf("eth%d", i) || !strings.Contains(have, fmt.Sprintf("eth%d    inet 10.1.%d.2/29 ", i, i)) {
				t.Errorf("network %d: endpoint %+v, the container has\n%s", i, e, have)
			}
			if got, _ := view.Lookup(fmt.Sprintf("web.n%02d", i)); !slices.Equal(got, []netip.Addr{e.IPv4.Addr()}) {
				t.Errorf("web.n%02d is %v", i, got)
			}
		}
		if strings.Count(have, "default") != 1 || !strings.Contains(have, "default via 10.1.0.1 ") {
			t.Errorf("default routes:\n%s", have)
		}
		if err := w.s.Close(); err != nil {
			t.Fatal(err)
		}
		w.open()
	}
	w.gone("after many networks of a container")
}

// A network without IPv4 has one subnet, and its containers have published ports at the addresses of both families of the host.
func TestIPv6Only(t *testing.T) {
	w := newWorld(t)
	n := w.create(network.CreateOptions{Name: "n", NoIPv4: true, IPv6: true})
	a, err := w.attach(idA, "n", network.PortBinding{Proto: "tcp", ContainerPort: 80, HostPort: 8080})
	if err != nil {
		t.Fatal(err)
	}
	e := a.Endpoints["n"]
	if len(n.Pools) != 1 || e.IPv4.IsValid() || e.Gateway.IsValid() || !n.Pools[0].Subnet.Contains(e.IPv6.Addr()) || e.Gateway6 != n.Pools[0].Gateway {
		t.Errorf("network %+v, endpoint %+v", n.Pools, e)
	}
	if r := w.run(idA, "ip route show default; ip -6 route show default; ip -4 -o addr show eth0"); strings.Count(r, "\n") != 1 || !strings.Contains(r, "via "+e.Gateway6.String()+" ") {
		t.Errorf("routes and IPv4 addresses %q", r)
	}
	if _, err := w.attach(idB, "n"); err != nil {
		t.Fatal(err)
	}
	w.answer(idA, 80, "hello")
	for _, addr := range []string{"127.0.0.1:8080", "[::1]:8080"} {
		if out, err := greet(addr); err != nil || !strings.HasPrefix(out, "hello") {
			t.Errorf("%s: %q, %v", addr, out, err)
		}
	}
	if err := w.inside(idB, func() error { _, err := greet("[" + e.IPv6.Addr().String() + "]:80"); return err }); err != nil {
		t.Errorf("container to container: %v", err)
	}
}

// The smallest subnets have room for the gateway and one container.
func TestSmallestSubnets(t *testing.T) {
	w := newWorld(t)
	w.create(network.CreateOptions{Name: "n", Pools: []network.Pool{{Subnet: prefix("10.1.0.0/30")}, {Subnet: prefix("fd01::/127")}}})
	a, err := w.attach(idA, "n")
	if err != nil {
		t.Fatal(err)
	}
	if e := a.Endpoints["n"]; e.IPv4.String() != "10.1.0.2/30" || e.IPv6.String() != "fd01::/127" || e.Gateway6.String() != "fd01::1" {
		t.Errorf("endpoint %+v", e)
	}
	w.answer(idA, 80, "hello")
	for _, addr := range []string{"10.1.0.2:80", "[fd01::]:80"} {
		if _, err := greet(addr); err != nil {
			t.Errorf("%s: %v", addr, err)
		}
	}
	if _, err := w.attach(idB, "n"); !errors.Is(err, errs.Exhausted) || !strings.Contains(err.Error(), "no address is left in 10.1.0.0/30") {
		t.Errorf("a second container: %v", err)
	}
	for range 5 { // the address is about to be free when one of them has left
		for _, ids := range [][2]oci.ContainerID{{idA, idB}, {idB, idA}} {
			if err := w.s.Detach(t.Context(), ids[0], w.ns(ids[0])); err != nil {
				t.Fatal(err)
			}
			if _, err := w.attach(ids[1], "n"); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, subnet := range []string{"10.2.0.0/31", "fd02::/128"} {
		if _, err := w.s.Create(t.Context(), network.CreateOptions{Name: "m", IPv6: true, Pools: []network.Pool{{Subnet: prefix(subnet)}}}); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "no room") {
			t.Errorf("subnet %s: %v", subnet, err)
		}
	}
}

// A bridge that an engine made and did not record, because it was killed meanwhile, goes. One that another engine or someone else has made stays, and so does one to which
// something is attached.
func TestUnrecordedBridgesAreRemoved(t *testing.T) {
	w := newWorldOf(t, "one")
	w.create(network.CreateOptions{Name: "n", Options: map[string]string{"com.docker.network.bridge.name": "recorded"}})
	script := `set -e
for b in left used other foreign ply7; do ip link add $b type bridge; done
for b in left used ply7; do ip link set $b alias "ply of one"; done
ip link set other alias "ply of two"
ip link add member master used type veth peer name far`
	if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	defer exec.Command("sh", "-c", "for l in left used other foreign ply7 member; do ip link del $l; done").Run()
	if err := w.s.Close(); err != nil {
		t.Fatal(err)
	}
	w.open()
	all := strings.Fields(links(t))
	for name, want := range map[string]bool{"left": false, "used": true, "other": true, "foreign": true, "ply7": true, "recorded": true} {
		if slices.Contains(all, name) != want {
			t.Errorf("bridge %s is there: %v", name, !want)
		}
	}
}
