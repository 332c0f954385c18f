package network_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"ply/internal/errs"
	"ply/internal/network"
	"ply/internal/network/bridge"
	"ply/internal/network/namespace"
	"ply/internal/network/proxy"
	"ply/internal/oci"
	"ply/internal/store/meta"
	"ply/test/private"
)

// The tests own bridges and rules, so they run in a network and mount namespace of their own.
func TestMain(m *testing.M) { private.Main(m, nil) }

const idA, idB = oci.ContainerID("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"), oci.ContainerID("bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb")

// patience is how long tests wait for what must happen, on a host under load.
const patience = time.Minute

type world struct {
	t     *testing.T
	owner string
	dir   string
	db    *meta.DB
	s     *network.Service
}

func newWorld(t *testing.T) *world { return newWorldOf(t, "") }

// newWorldOf returns one of several engines of a host.
func newWorldOf(t *testing.T, owner string) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), owner: owner}
	var err error
	if w.db, err = meta.Open(filepath.Join(w.dir, "meta.db"), meta.Options{}); err != nil {
		t.Fatal(err)
	}
	w.open()
	t.Cleanup(func() {
		ctx := context.Background()
		for _, id := range []oci.ContainerID{idA, idB} {
			if err := w.s.Detach(ctx, id, w.ns(id)); err != nil {
				t.Errorf("Detach: %v", err)
			}
		}
		if err := errors.Join(w.s.Teardown(ctx), w.s.Close(), w.db.Close()); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *world) open() {
	w.t.Helper()
	s, err := network.Open(w.t.Context(), options(w.db, w.dir, w.owner))
	if err != nil {
		w.t.Fatal(err)
	}
	w.s = s
}

func options(db *meta.DB, dir, owner string) network.Options {
	return network.Options{Meta: db, StateDir: filepath.Join(dir, "net"), Drivers: map[string]network.Driver{"bridge": bridge.New(bridge.Options{Owner: owner})}, HostSubnets: bridge.Subnets}
}

func (w *world) ns(id oci.ContainerID) string { return filepath.Join(w.dir, "netns", string(id)) }

func (w *world) attach(id oci.ContainerID, mode string, ports ...network.PortBinding) (network.Attachment, error) {
	a, err := w.s.Attach(w.t.Context(), w.request(id, network.EndpointRequest{Network: mode}, ports...))
	if err == nil {
		w.carry(id)
	}
	return a, err
}

// carry lets this process carry the published ports, as for a shim of an earlier release.
func (w *world) carry(id oci.ContainerID) {
	w.t.Helper()
	err := w.s.HandOver(id, func(_ []proxy.Port, sockets []*os.File) error {
		for _, f := range sockets {
			f.Close()
		}
		return errs.New(errs.Unimplemented, "no shim")
	})
	if err != nil {
		w.t.Error(err)
	}
}

func (w *world) request(id oci.ContainerID, e network.EndpointRequest, ports ...network.PortBinding) network.AttachRequest {
	return network.AttachRequest{ID: id, NetnsPath: w.ns(id), Endpoints: []network.EndpointRequest{e}, Ports: ports}
}

// inside runs f on a thread in the container's namespace.
func (w *world) inside(id oci.ContainerID, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends with the goroutine
		ns, err := netns.GetFromPath(w.ns(id))
		if err == nil {
			err = netns.Set(ns)
			ns.Close()
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// answer listens in the container and answers every connection with the word and the client's address. It returns when
// it listens.
func (w *world) answer(id oci.ContainerID, port int, word string) {
	w.t.Helper()
	err := w.inside(id, func() error {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		w.t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				io.WriteString(c, word+" "+c.RemoteAddr().String())
				c.Close()
			}
		}()
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

func greet(addr string) (string, error) {
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	b, err := io.ReadAll(c)
	return string(b), err
}

func links(t *testing.T) string {
	t.Helper()
	all, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, l := range all {
		names = append(names, l.Attrs().Name)
	}
	return strings.Join(names, " ")
}

// Addresses, MAC and broadcast are those that Docker chooses; containers reach each other and the host.
func TestBridge(t *testing.T) {
	w := newWorld(t)
	a, err := w.attach(idA, "bridge")
	if err != nil {
		t.Fatal(err)
	}
	ea := a.Endpoints["bridge"]
	if ea.IPv4.String() != "172.17.0.2/16" || ea.MAC != "02:42:ac:11:00:02" || ea.Gateway.String() != "172.17.0.1" {
		t.Errorf("first endpoint = %+v", ea)
	}
	b, err := w.attach(idB, "bridge")
	if err != nil || b.Endpoints["bridge"].IPv4.String() != "172.17.0.3/16" {
		t.Fatalf("second endpoint = %+v, %v", b, err)
	}
	out, err := exec.Command("nsenter", "--net="+w.ns(idA), "ip", "addr").CombinedOutput()
	for _, want := range []string{"inet 172.17.0.2/16 brd 172.17.255.255", "02:42:ac:11:00:02", "127.0.0.1/8"} {
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("ip addr has no %q: %v\n%s", want, err, out)
		}
	}
	if strings.Contains(string(out), "fe80") {
		t.Errorf("eth0 has an IPv6 address although its network has none:\n%s", out)
	}
	w.answer(idA, 80, "hello")
	if got, err := greet("172.17.0.2:80"); err != nil || !strings.HasPrefix(got, "hello 172.17.0.1") {
		t.Errorf("host to container = %q, %v", got, err)
	}
	err = w.inside(idB, func() error { _, err := greet("172.17.0.2:80"); return err })
	if err != nil {
		t.Errorf("container to container: %v", err)
	}
}

// A published port answers on loopback, on a host address, over IPv6, and to another container by the host's address.
func TestPublishedPort(t *testing.T) {
	w := newWorld(t)
	if err := exec.Command("ip", "link", "add", "ext0", "type", "bridge").Run(); err != nil {
		t.Fatal(err)
	}
	defer exec.Command("ip", "link", "del", "ext0").Run()
	if out, err := exec.Command("sh", "-c", "ip addr add 198.51.100.7/24 dev ext0 && ip link set ext0 up").CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	a, err := w.attach(idA, "bridge", network.PortBinding{Proto: "tcp", ContainerPort: 5000, HostPort: 5000})
	if err != nil {
		t.Fatal(err)
	}
	if len(a.Ports) != 2 || a.Ports[0].HostIP != netip.IPv4Unspecified() || a.Ports[1].HostIP != netip.IPv6Unspecified() || a.Ports[1].HostPort != 5000 {
		t.Errorf("ports as bound = %+v", a.Ports)
	}
	if _, err := w.attach(idB, "bridge"); err != nil {
		t.Fatal(err)
	}
	w.answer(idA, 5000, "registry")
	for _, addr := range []string{"127.0.0.1:5000", "198.51.100.7:5000", "[::1]:5000", "172.17.0.1:5000"} {
		if got, err := greet(addr); err != nil || !strings.HasPrefix(got, "registry ") {
			t.Errorf("%s = %q, %v", addr, got, err)
		}
	}
	for _, id := range []oci.ContainerID{idA, idB} {
		if err := w.inside(id, func() error { _, err := greet("198.51.100.7:5000"); return err }); err != nil {
			t.Errorf("container %s by the host's address: %v", id.Short(), err)
		}
	}
	// The kernel redirects the connection, not the proxy, so it works while plyd is not running.
	if err := w.s.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := greet("127.0.0.1:5000"); err != nil || !strings.HasPrefix(got, "registry ") {
		t.Errorf("without plyd: %q, %v", got, err)
	}
	// A new plyd takes over the endpoint: its address is in use, its port is reserved.
	w.open()
	if out, err := exec.Command("nft", "list", "table", "inet", "ply").CombinedOutput(); err != nil || !strings.Contains(string(out), "5000 : 172.17.0.2 . 5000") {
		t.Errorf("the rules lost the port: %v\n%s", err, out)
	}
	if again, ok := w.s.Attached(idA); !ok || !reflect.DeepEqual(again, a) {
		t.Errorf("Attached = %+v, %v, before the restart %+v", again, ok, a)
	}
	if err := w.s.Detach(t.Context(), idB, w.ns(idB)); err != nil {
		t.Error(err)
	}
	if _, ok := w.s.Attached(idB); ok {
		t.Error("a detached container is attached")
	}
	if _, err := w.attach(idB, "bridge", network.PortBinding{Proto: "tcp", ContainerPort: 1, HostPort: 5000}); !errors.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "port is already allocated") {
		t.Errorf("second use of the port: %v", err)
	}
	if err := w.s.Detach(t.Context(), idA, w.ns(idA)); err != nil {
		t.Error(err)
	}
	if _, err := greet("127.0.0.1:5000"); err == nil {
		t.Error("the port still answers after Detach")
	}
	out, err := exec.Command("nft", "list", "table", "inet", "ply").CombinedOutput()
	if err != nil || strings.Contains(string(out), "5000") {
		t.Errorf("rules after Detach: %v\n%s", err, out)
	}
}

// After a restart, the address of a container that runs is in use.
func TestRestoredAddressIsInUse(t *testing.T) {
	w := newWorld(t)
	for _, id := range []oci.ContainerID{idA, idB} {
		if _, err := w.attach(id, "bridge"); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.s.Detach(t.Context(), idA, w.ns(idA)), w.s.Close()); err != nil {
		t.Fatal(err)
	}
	w.open()
	req := w.request(idA, network.EndpointRequest{Network: "bridge", Spec: network.EndpointSpec{IPv4: netip.MustParseAddr("172.17.0.3")}})
	if _, err := w.s.Attach(t.Context(), req); !errors.Is(err, errs.Conflict) {
		t.Errorf("Attach with the address of a running container: %v, want Conflict", err)
	}
	req.Endpoints[0].Spec.IPv4 = netip.MustParseAddr("172.17.0.2")
	if _, err := w.s.Attach(t.Context(), req); err != nil {
		t.Errorf("Attach with a free address: %v", err)
	}
}

// Ports that cannot be published are refused before anything is made.
func TestInvalidPorts(t *testing.T) {
	w := newWorld(t)
	if _, err := w.attach(idA, "bridge", network.PortBinding{Proto: "tcp"}); !errors.Is(err, errs.Invalid) {
		t.Errorf("container port 0: %v, want Invalid", err)
	}
	twice := network.PortBinding{Proto: "tcp", ContainerPort: 80, HostPort: 6200}
	if _, err := w.attach(idA, "bridge", twice, twice); !errors.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "published twice") {
		t.Errorf("one host port twice: %v, want Conflict", err)
	}
	if namespace.Exists(w.ns(idA)) {
		t.Error("a namespace was made")
	}
}

func TestPortInUseLeavesNothing(t *testing.T) {
	w := newWorld(t)
	l, err := net.Listen("tcp4", "0.0.0.0:6000")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = w.attach(idA, "bridge", network.PortBinding{Proto: "udp", ContainerPort: 53, HostPort: 6001}, network.PortBinding{Proto: "tcp", ContainerPort: 1, HostPort: 6000})
	if !errors.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "0.0.0.0:6000") {
		t.Fatalf("error = %v", err)
	}
	if err := w.s.Close(); err != nil { // waits until the interfaces are deleted
		t.Fatal(err)
	}
	if namespace.Exists(w.ns(idA)) || strings.Contains(links(t), "veth") {
		t.Errorf("left behind: namespace %v, links %s", namespace.Exists(w.ns(idA)), links(t))
	}
	u, err := net.ListenPacket("udp4", "0.0.0.0:6001")
	if err != nil {
		t.Errorf("the other port is still reserved: %v", err)
	} else {
		u.Close()
	}
}

func TestRangeAndEphemeralPorts(t *testing.T) {
	w := newWorld(t)
	l, err := net.Listen("tcp4", "127.0.0.1:7000")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	lo := netip.MustParseAddr("127.0.0.1")
	a, err := w.attach(idA, "bridge",
		network.PortBinding{Proto: "tcp", ContainerPort: 80, HostIP: lo, HostPort: 7000, HostPortEnd: 7005}, network.PortBinding{Proto: "tcp", ContainerPort: 81})
	if err != nil {
		t.Fatal(err)
	}
	if a.Ports[0].HostPort != 7001 || a.Ports[1].HostPort == 0 || a.Ports[1].HostPort != a.Ports[2].HostPort {
		t.Errorf("ports = %+v", a.Ports)
	}
}

func TestNoneAndUnknown(t *testing.T) {
	w := newWorld(t)
	a, err := w.attach(idA, "none", network.PortBinding{Proto: "tcp", ContainerPort: 80, HostPort: 80})
	if err != nil || a.Endpoints["none"].IPv4.IsValid() || len(a.Ports) != 0 {
		t.Errorf("none = %+v, %v", a, err)
	}
	if err := w.inside(idA, func() error {
		ifs, err := net.Interfaces()
		if len(ifs) != 1 || ifs[0].Flags&net.FlagUp == 0 {
			return fmt.Errorf("interfaces %v, %v; want lo, up", ifs, err)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if _, err := w.attach(idB, "backend"); !errors.Is(err, errs.NotFound) || err.Error() != "network backend not found" {
		t.Errorf("unknown network: %v", err)
	}
	if strings.Contains(links(t), "ply0") {
		t.Error("a bridge was made although no container needs one")
	}
}

func TestPoolAvoidsHostNetworks(t *testing.T) {
	if out, err := exec.Command("sh", "-c", "ip link add ext1 type bridge && ip addr add 172.17.5.1/24 dev ext1 && ip link set ext1 up").CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	defer exec.Command("ip", "link", "del", "ext1").Run()
	w := newWorld(t)
	a, err := w.attach(idA, "bridge")
	if err != nil || a.Endpoints["bridge"].IPv4.String() != "172.18.0.2/16" {
		t.Errorf("endpoint = %+v, %v; want 172.18.0.2/16", a.Endpoints["bridge"], err)
	}
}

func BenchmarkAttachDetach(b *testing.B) {
	dir := b.TempDir()
	db, err := meta.Open(filepath.Join(dir, "meta.db"), meta.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	s, err := network.Open(b.Context(), options(db, dir, ""))
	if err != nil {
		b.Fatal(err)
	}
	path := filepath.Join(dir, "ns")
	for b.Loop() {
		if _, err := s.Attach(b.Context(), network.AttachRequest{ID: idA, NetnsPath: path, Endpoints: []network.EndpointRequest{{Network: "bridge"}}}); err != nil {
			b.Fatal(err)
		}
		if err := s.Detach(b.Context(), idA, path); err != nil {
			b.Fatal(err)
		}
	}
	if err := s.Teardown(context.Background()); err != nil {
		b.Fatal(err)
	}
}

// Who looks at the default networks finds the subnet of the bridge, which is made for that; the others have nothing that could be made.
func TestLookingAtDefaultNetworks(t *testing.T) {
	w := newWorld(t)
	if err := w.s.Close(); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	o := options(w.db, w.dir, w.owner)
	o.Log = slog.New(slog.NewTextHandler(&log, nil))
	var err error
	if w.s, err = network.Open(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	for name, subnets := range map[string]int{"host": 0, "none": 0, "bridge": 1} {
		n, err := w.s.Get(t.Context(), name)
		if err != nil || len(n.Pools) != subnets {
			t.Errorf("%s: %+v, %v", name, n, err)
		}
	}
	if log.Len() > 0 {
		t.Errorf("logged: %s", &log)
	}
}
