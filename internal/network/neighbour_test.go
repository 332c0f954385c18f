package network_test

import (
	"context"
	"errors"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"ply/internal/errs"
	"ply/internal/network"
	"ply/internal/network/bridge"
	"ply/internal/oci"
)

// watch opens the networks with a driver that makes again what others remove.
func (w *world) watch() {
	w.t.Helper()
	if err := w.s.Close(); err != nil {
		w.t.Fatal(err)
	}
	d := bridge.New(bridge.Options{Owner: w.owner})
	o := options(w.db, w.dir, w.owner)
	o.Drivers = map[string]network.Driver{"bridge": d}
	s, err := network.Open(w.t.Context(), o)
	if err != nil {
		w.t.Fatal(err)
	}
	w.s = s
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan bool), make(chan error, 1)
	go func() { done <- d.Watch(ctx, func() { close(ready) }) }()
	<-ready
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	})
}

// disturb runs a command over and over until the returned function is called.
func disturb(script string) (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() {
		for ctx.Err() == nil {
			_ = exec.Command("sh", "-c", script).Run() // what it removes may be gone already
		}
	})
	return func() { cancel(); work.Wait() }
}

// Containers start, connect and end while someone flushes the rules of the host all the time: none fails, and the rules are right in the end.
func TestRulesAreFlushedMeanwhile(t *testing.T) {
	w := newWorld(t)
	w.watch()
	w.create(network.CreateOptions{Name: "n", Pools: []network.Pool{{Subnet: prefix("10.1.0.0/24")}}})
	end := disturb("nft flush ruleset")
	for range 10 {
		if _, err := w.attach(idA, "n", network.PortBinding{Proto: "tcp", ContainerPort: 80, HostPort: 8080}); err != nil {
			t.Error(err)
		}
		w.create(network.CreateOptions{Name: "other", Pools: []network.Pool{{Subnet: prefix("10.2.0.0/24")}}})
		if _, err := w.s.Connect(t.Context(), idA, w.ns(idA), network.EndpointRequest{Network: "other"}); err != nil {
			t.Error(err)
		}
		if err := w.s.Detach(t.Context(), idA, w.ns(idA)); err != nil {
			t.Error(err)
		}
		if err := w.s.Remove(t.Context(), "other"); err != nil {
			t.Error(err)
		}
	}
	if _, err := w.attach(idB, "n", network.PortBinding{Proto: "tcp", ContainerPort: 80, HostPort: 8080}); err != nil {
		t.Fatal(err)
	}
	w.answer(idB, 80, "hello")
	end()
	w.eventually("the published port", func() error { _, err := greet("127.0.0.1:8080"); return err })
	w.gone("after flushes")
}

// eventually waits until f succeeds.
func (w *world) eventually(what string, f func() error) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		err := f()
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			w.t.Errorf("%s: %v", what, err)
			return
		}
	}
}

// Containers start and end while someone removes their bridge and their interfaces all the time. A start may fail; it leaves nothing. In the end each container is
// reached at an address of its own.
func TestLinksAreDeletedMeanwhile(t *testing.T) {
	w := newWorld(t)
	w.watch()
	w.create(network.CreateOptions{Name: "n", Options: map[string]string{"com.docker.network.bridge.name": "br-test"}, Pools: []network.Pool{{Subnet: prefix("10.1.0.0/24")}}})
	end := disturb("ip link del br-test; for i in /sys/class/net/veth*; do ip link del ${i##*/}; done")
	attached := map[oci.ContainerID]bool{}
	for range 15 {
		for _, id := range []oci.ContainerID{idA, idB} {
			_, err := w.s.Attach(t.Context(), w.request(id, network.EndpointRequest{Network: "n"}))
			if attached[id] = err == nil; err != nil {
				t.Logf("an interface went while it was made: %v", err)
				continue
			}
		}
		for _, id := range []oci.ContainerID{idA, idB} {
			if err := w.s.Detach(t.Context(), id, w.ns(id)); err != nil {
				t.Error(err)
			}
		}
	}
	end()
	seen := map[netip.Prefix]bool{}
	for _, id := range []oci.ContainerID{idA, idB} {
		a, err := w.s.Attach(t.Context(), w.request(id, network.EndpointRequest{Network: "n"}))
		if err != nil {
			t.Fatal(err)
		}
		addr := a.Endpoints["n"].IPv4
		if seen[addr] {
			t.Errorf("%s was given twice", addr)
		}
		seen[addr] = true
		w.answer(id, 80, string(id[:1]))
		w.eventually("container "+id.Short(), func() error {
			out, err := greet(addr.Addr().String() + ":80")
			if err == nil && !strings.HasPrefix(out, string(id[:1])) {
				return errors.New("another container answered: " + out)
			}
			return err
		})
	}
	w.gone("after deletions")
}

// A container that leaves a network and joins one at once gets an interface of the same name.
func TestReconnectAtOnce(t *testing.T) {
	w := newWorld(t)
	for n, subnet := range map[string]string{"a": "10.1.0.0/24", "b": "10.2.0.0/24"} {
		w.create(network.CreateOptions{Name: n, Pools: []network.Pool{{Subnet: prefix(subnet)}}})
	}
	if _, err := w.attach(idA, "none"); err != nil {
		t.Fatal(err)
	}
	for i := range 40 {
		n := string("ab"[i%2])
		a, err := w.s.Connect(t.Context(), idA, w.ns(idA), network.EndpointRequest{Network: n})
		if err != nil || a.Endpoints[n].Interface != "eth0" {
			t.Fatalf("connect %d: %+v, %v", i, a, err)
		}
		if _, err := w.s.Disconnect(t.Context(), idA, n); err != nil {
			t.Fatal(err)
		}
	}
}

// Several clients connect and disconnect one container, and others, while networks come and go; the caller serialises the changes of one container, as the Service
// asks for. No address is given twice, and nothing is left.
func TestConnectRaces(t *testing.T) {
	w := newWorld(t)
	w.watch()
	var mu sync.Mutex
	used := map[string]oci.ContainerID{}
	claim := func(id oci.ContainerID, a network.Attachment) {
		mu.Lock()
		defer mu.Unlock()
		for n, e := range a.Endpoints {
			if other, is := used[n+e.NetworkID+e.IPv4.String()]; is && other != id {
				t.Errorf("%s in network %s was given to two containers", e.IPv4, n)
			}
			used[n+e.NetworkID+e.IPv4.String()] = id
		}
	}
	release := func(id oci.ContainerID) {
		mu.Lock()
		defer mu.Unlock()
		for k, v := range used {
			if v == id {
				delete(used, k)
			}
		}
	}
	expected := func(err error) {
		if err != nil && !errors.Is(err, errs.NotFound) && !errors.Is(err, errs.Forbidden) && !errors.Is(err, errs.Conflict) {
			t.Error(err)
		}
	}
	ctx := t.Context()
	w.create(network.CreateOptions{Name: "stays", Pools: []network.Pool{{Subnet: prefix("10.1.0.0/28")}}})
	var all sync.WaitGroup
	for _, id := range []oci.ContainerID{idA, idB} {
		all.Go(func() {
			for range 12 {
				a, err := w.s.Attach(ctx, w.request(id, network.EndpointRequest{Network: "stays"}))
				if err != nil {
					t.Error(err)
					return
				}
				claim(id, a)
				for range 2 {
					if a, err := w.s.Connect(ctx, id, w.ns(id), network.EndpointRequest{Network: "goes"}); err == nil {
						claim(id, a)
					} else {
						expected(err)
					}
					release(id)
					_, err := w.s.Disconnect(ctx, id, "goes")
					expected(err)
					if a, ok := w.s.Attached(id); ok {
						claim(id, a)
					}
				}
				release(id)
				if err := w.s.Detach(ctx, id, w.ns(id)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Go(func() {
		for range 30 {
			_, err := w.s.Create(ctx, network.CreateOptions{Name: "goes", Pools: []network.Pool{{Subnet: prefix("10.2.0.0/28")}}})
			expected(err)
			expected(w.s.Remove(ctx, "goes"))
		}
	})
	all.Wait()
	w.gone("after the race")
}
