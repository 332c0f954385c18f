package network_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ply/internal/network"
	"ply/internal/network/bridge"
	"ply/internal/network/names"
	"ply/internal/network/namespace"
	"ply/internal/network/proxy"
	"ply/internal/oci"
)

// fragile is a driver that ends the engine at a step, as if it had been killed: the step panics, and nobody tidies up.
type fragile struct {
	network.Driver
	step, at int // of the calls that change a container; at 0 = never
}

// killed is the value of the panic.
type killed struct{}

func (d *fragile) count() {
	if d.step++; d.step == d.at {
		panic(killed{})
	}
}

func (d *fragile) Up(ctx context.Context, c network.Config, inUse bool) (network.Segment, error) {
	s, err := d.Driver.Up(ctx, c, inUse)
	if err != nil {
		return nil, err
	}
	return &fragileSegment{s, d}, nil
}

type fragileSegment struct {
	network.Segment
	d *fragile
}

func (s *fragileSegment) Connect(ctx context.Context, c *network.Connection) error {
	s.d.count()
	defer s.d.count()
	return s.Segment.Connect(ctx, c)
}

func (s *fragileSegment) Promote(ctx context.Context, c *network.Connection) error {
	s.d.count()
	defer s.d.count()
	return s.Segment.Promote(ctx, c)
}

func (s *fragileSegment) Demote(ctx context.Context, c *network.Connection) error {
	s.d.count()
	defer s.d.count()
	return s.Segment.Demote(ctx, c)
}

func (s *fragileSegment) Disconnect(ctx context.Context, c network.Connection, done func()) {
	s.d.count()
	defer s.d.count()
	s.Segment.Disconnect(ctx, c, done)
}

func (s *fragileSegment) HandOver(c *network.Connection, take func([]proxy.Port, []*os.File) error) error {
	return s.Segment.(network.Publisher).HandOver(c, take)
}

// openFragile opens the networks with a driver that ends the engine at a step.
func (w *world) openFragile() *fragile {
	w.t.Helper()
	o := options(w.db, w.dir, w.owner)
	d := &fragile{Driver: bridge.New(bridge.Options{Owner: w.owner})}
	o.Drivers = map[string]network.Driver{"bridge": d}
	s, err := network.Open(w.t.Context(), o)
	if err != nil {
		w.t.Fatal(err)
	}
	w.s = s
	return d
}

// until runs f and reports whether the engine was killed.
func until(f func()) (dead bool) {
	defer func() {
		switch r := recover(); r {
		case nil:
		case killed{}:
			dead = true
		default:
			panic(r)
		}
	}()
	f()
	return false
}

// An engine that is killed at any step of a change leaves a container that has exactly the interfaces, addresses and routes that the next engine knows of, whose port
// answers, and whose addresses and names nobody else has; and in the end nothing.
func TestKilledAtAnyStep(t *testing.T) {
	change := map[string]func(w *world) error{
		"connect": func(w *world) error {
			_, err := w.s.Connect(t.Context(), idA, w.ns(idA), network.EndpointRequest{Network: "a", Names: []string{"web"}})
			return err
		},
		"connect beside": func(w *world) error { // the route stays
			_, err := w.s.Connect(t.Context(), idA, w.ns(idA), network.EndpointRequest{Network: "c", Names: []string{"web"}})
			return err
		},
		"connect again": func(w *world) error {
			e := network.EndpointRequest{Network: "a", Names: []string{"web"}, Ports: []network.PortBinding{{Proto: "tcp", ContainerPort: 80, HostPort: 8080}}}
			_, err := w.s.Connect(t.Context(), idA, w.ns(idA), e)
			return err
		},
		"disconnect": func(w *world) error { _, err := w.s.Disconnect(t.Context(), idA, "b"); return err },
		"detach":     func(w *world) error { return w.s.Detach(t.Context(), idA, w.ns(idA)) },
	}
	for name, do := range change {
		t.Run(name, func(t *testing.T) {
			for at, dead := 1, true; dead; at++ {
				w := newWorld(t)
				for i, n := range []string{"a", "b", "c"} {
					w.create(network.CreateOptions{Name: n, Pools: []network.Pool{{Subnet: prefix(fmt.Sprintf("10.%d.0.0/24", i+1))}}})
				}
				if err := w.s.Close(); err != nil {
					t.Fatal(err)
				}
				d := w.openFragile()
				req := w.request(idA, network.EndpointRequest{Network: "b", Names: []string{"web"}}, network.PortBinding{Proto: "tcp", ContainerPort: 80, HostPort: 8080})
				if name == "disconnect" {
					req.Endpoints = append(req.Endpoints, network.EndpointRequest{Network: "c", Names: []string{"web"}})
				}
				if _, err := w.s.Attach(t.Context(), req); err != nil {
					t.Fatal(err)
				}
				w.answer(idA, 80, "hello")
				if name == "connect again" { // it has no network at all
					if _, err := w.s.Disconnect(t.Context(), idA, "b"); err != nil {
						t.Fatal(err)
					}
				}
				d.step, d.at = 0, at
				var err error
				dead = until(func() { err = do(w) })
				if err != nil {
					t.Fatal(err)
				}
				d.at = 0
				if err := w.s.Close(); err != nil { // the kernel closes the sockets of a killed process
					t.Fatal(err)
				}
				w.open()
				what := fmt.Sprintf("killed at step %d", at)
				w.consistent(what)
				w.gone(what)
			}
		})
	}
}

// consistent checks that the container has what the engine knows of, and that a second one gets something else.
func (w *world) consistent(what string) {
	t := w.t
	t.Helper()
	a, attached := w.s.Attached(idA)
	if !attached || !namespace.Exists(w.ns(idA)) { // it was being detached, or is in no network yet
		return
	}
	want := []string{"lo 127.0.0.1/8"}
	route := ""
	for name, e := range a.Endpoints {
		want = append(want, e.Interface+" "+e.IPv4.String())
		if route == "" || name < route {
			route = name
		}
	}
	var got []string
	for line := range strings.Lines(w.run(idA, "ip -o -4 addr")) {
		f := strings.Fields(line)
		got = append(got, f[1]+" "+f[3])
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("%s: the container has %q, the engine knows %q", what, got, want)
	}
	if n := strings.Count(w.run(idA, "ip -o link"), "\n"); n != len(want) {
		t.Errorf("%s: %d interfaces, want %d", what, n, len(want))
	}
	if r := w.run(idA, "ip route show default"); strings.Count(r, "\n") != 1 || !strings.Contains(r, "via "+a.Endpoints[route].Gateway.String()+" ") {
		t.Errorf("%s: the default routes are %q, want one by network %s", what, r, route)
	}
	if len(a.Ports) != 2 || a.Ports[0].HostPort != 8080 {
		t.Errorf("%s: ports %+v", what, a.Ports)
	}
	if out, err := greet("127.0.0.1:8080"); err != nil || !strings.HasPrefix(out, "hello") {
		t.Errorf("%s: the published port: %q, %v", what, out, err)
	}
	used := map[netip.Addr]bool{}
	for _, e := range a.Endpoints {
		used[e.IPv4.Addr()] = true
	}
	view := names.New(w.s.Tables()).View(string(idB))
	for _, n := range []string{"a", "b", "c"} {
		b, err := w.s.Attach(t.Context(), w.request(idB, network.EndpointRequest{Network: n, Names: []string{"other"}}))
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		if used[b.Endpoints[n].IPv4.Addr()] {
			t.Errorf("%s: %s was given twice", what, b.Endpoints[n].IPv4)
		}
		var names []netip.Addr
		if e, in := a.Endpoints[n]; in {
			names = []netip.Addr{e.IPv4.Addr()}
		}
		if got, _ := view.Lookup("web." + n); !slices.Equal(got, names) {
			t.Errorf("%s: web.%s is %v, want %v", what, n, got, names)
		}
		if err := w.s.Detach(t.Context(), idB, w.ns(idB)); err != nil {
			t.Error(err)
		}
	}
}

// gone removes the containers and the networks and checks that nothing is left of them.
func (w *world) gone(what string) {
	t := w.t
	t.Helper()
	for _, id := range []oci.ContainerID{idA, idB} {
		if err := w.s.Detach(t.Context(), id, w.ns(id)); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err := w.s.Prune(t.Context(), nil)
	if err := errors.Join(err, w.s.Teardown(t.Context())); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	if l := links(t); strings.Contains(l, "veth") || strings.Contains(l, "br-") || strings.Contains(l, "ply") {
		t.Errorf("%s: interfaces are left: %s", what, l)
	}
	if out, err := exec.Command("nft", "list", "tables").CombinedOutput(); err != nil || strings.Contains(string(out), "inet ply\n") {
		t.Errorf("%s: tables are left: %v\n%s", what, err, out)
	}
	var left []string
	_ = filepath.WalkDir(filepath.Join(w.dir, "net"), func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			left = append(left, path)
		}
		return nil
	})
	if len(left) > 0 {
		t.Errorf("%s: files are left: %q", what, left)
	}
}

// What an earlier engine made and did not record goes, also when no container of the network is recorded. What others have attached to the bridge stays, and what
// another engine has made.
func TestUnrecordedInterfacesAreRemoved(t *testing.T) {
	w := newWorld(t)
	w.create(network.CreateOptions{Name: "n", Options: map[string]string{"com.docker.network.bridge.name": "br-test"}, Pools: []network.Pool{{Subnet: prefix("10.1.0.0/24")}}})
	if _, err := w.attach(idA, "none"); err != nil {
		t.Fatal(err)
	}
	a, err := w.s.Connect(t.Context(), idA, w.ns(idA), network.EndpointRequest{Network: "n", Names: []string{"web"}})
	if err != nil {
		t.Fatal(err)
	}
	script := "ip link add veth1234567 type veth peer name own; ip link set veth1234567 master br-test; ip link set own alias 'port of network " + strings.Repeat("a", 64) + "'"
	if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	defer exec.Command("ip", "link", "del", "own").Run()
	files, err := filepath.Glob(filepath.Join(w.dir, "net", string(idA)+"-*"+".json"))
	if err != nil || len(files) != 2 {
		t.Fatalf("files %q, %v", files, err)
	}
	for _, f := range files {
		if b, err := os.ReadFile(f); err != nil || strings.Contains(string(b), `"eth0"`) {
			if err := errors.Join(err, os.Remove(f)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.s.Close(); err != nil {
		t.Fatal(err)
	}
	w.open()
	b, err := w.attach(idB, "n")
	if err != nil {
		t.Fatal(err)
	}
	if got := w.run(idA, "ip -o link"); strings.Contains(got, "eth0") {
		t.Errorf("the container still has %s, and another one %s:\n%s", a.Endpoints["n"].IPv4, b.Endpoints["n"].IPv4, got)
	}
	if got := w.run(idB, "ip -o link"); !strings.Contains(got, "eth0") {
		t.Errorf("the other container has\n%s", got)
	}
	if l := links(t); !strings.Contains(l, "veth1234567") {
		t.Errorf("an interface of someone else is gone: %s", l)
	}
}

// A connect that fails while it moves the default route leaves the container with its route and its ports.
func TestConnectThatFailsLeavesThePorts(t *testing.T) {
	w := newWorld(t)
	for i, n := range []string{"a", "b", "c"} {
		w.create(network.CreateOptions{Name: n, Pools: []network.Pool{{Subnet: prefix(fmt.Sprintf("10.%d.0.0/24", i+1))}}})
	}
	if err := w.s.Close(); err != nil {
		t.Fatal(err)
	}
	o := options(w.db, w.dir, "")
	o.Drivers = map[string]network.Driver{"bridge": refusing{bridge.New(bridge.Options{})}}
	s, err := network.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	w.s = s
	before, err := s.Attach(t.Context(), w.request(idA, network.EndpointRequest{Network: "b", Names: []string{"web"}}, network.PortBinding{Proto: "tcp", ContainerPort: 80, HostPort: 8080}))
	if err != nil {
		t.Fatal(err)
	}
	w.answer(idA, 80, "hello")
	if _, err := w.s.Connect(t.Context(), idA, w.ns(idA), network.EndpointRequest{Network: "a"}); !errors.Is(err, errRefused) {
		t.Fatalf("Connect: %v", err)
	}
	if after, _ := w.s.Attached(idA); len(after.Endpoints) != 1 || !slices.Equal(after.Ports, before.Ports) {
		t.Errorf("after Connect %+v, before %+v", after, before)
	}
	w.consistent("after a connect that failed")
}

var errRefused = errors.New("refused")

// refusing is a driver whose network 10.1.0.0/24 provides no default route.
type refusing struct{ network.Driver }

func (d refusing) Up(ctx context.Context, c network.Config, inUse bool) (network.Segment, error) {
	s, err := d.Driver.Up(ctx, c, inUse)
	if err != nil || c.Address.Addr() != netip.MustParseAddr("10.1.0.1") {
		return s, err
	}
	return refusingSegment{s}, nil
}

type refusingSegment struct{ network.Segment }

func (refusingSegment) Promote(context.Context, *network.Connection) error { return errRefused }
