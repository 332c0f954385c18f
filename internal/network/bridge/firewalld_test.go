package bridge

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ply/internal/network"
	"ply/internal/network/firewalld"
	"ply/internal/network/firewalld/firewalldtest"
	"ply/internal/network/namespace"
	"ply/internal/oci"
)

// engineOn returns the driver of an engine on a host with firewalld, and stops the work of the engine with stop or at the end of the test.
func engineOn(t *testing.T, h *firewalldtest.Host, o Options) (d *Driver, stop func()) {
	t.Helper()
	zone := firewalld.New(firewalld.Options{Address: h.Address, Log: o.Log})
	o.Zone = zone
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { zone.Run(ctx) })
	stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	t.Cleanup(func() {
		zone.Await(context.Background())
		stop()
	})
	return New(o), stop
}

func bringUp(t *testing.T, d *Driver, c network.Config, inUse bool) network.Segment {
	t.Helper()
	s, err := d.Up(t.Context(), c, inUse)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func takeDown(t *testing.T, s network.Segment) {
	t.Helper()
	if err := s.Down(context.Background()); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// connectAt connects a container with an address.
func connectAt(t *testing.T, s network.Segment, addr string, ports ...network.PortBinding) network.Connection {
	t.Helper()
	c := network.Connection{Container: oci.ContainerID(addr), Netns: filepath.Join(t.TempDir(), "netns"), Ports: ports, Default: true}
	c.Endpoint.IPv4, c.Endpoint.Gateway = netip.MustParsePrefix(addr), gatewayOf(s).Addr()
	if _, v6 := s.Gateways(); v6.IsValid() { // with the same last part
		a := v6.Addr().As16()
		a[15] = c.Endpoint.IPv4.Addr().As4()[3]
		c.Endpoint.IPv6 = netip.PrefixFrom(netip.AddrFrom16(a), v6.Bits())
	}
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
	t.Cleanup(func() { _ = exec.Command("ip", "link", "del", c.Endpoint.HostIf).Run() }) // may be gone with its namespace
	return c
}

// members returns the interfaces of the zone.
func members(h *firewalldtest.Host) string {
	return h.Command("--zone="+firewalld.ZoneName, "--list-interfaces")
}

// eventually waits until f succeeds.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Errorf("%s: %v", what, err)
}

// hasMembers waits until the zone has exactly the bridges.
func hasMembers(t *testing.T, h *firewalldtest.Host, when string, want ...string) {
	t.Helper()
	eventually(t, when, func() error {
		got := strings.Fields(members(h))
		slices.Sort(got)
		if !slices.Equal(got, want) {
			return fmt.Errorf("the zone has %q, want %q", got, want)
		}
		return nil
	})
}

// On a host with firewalld, containers have the network that they have without it, whatever firewalld does; and nothing is open that is not open without it.
func TestFirewalld(t *testing.T) {
	setForwarding(t, "0", "0")
	n := newNeighbours(t)
	serve(t, n.b, 80)
	h := firewalldtest.New(t)
	h.Start()
	o := Options{StateFile: filepath.Join(t.TempDir(), "forwarding.json")}
	d, stop := engineOn(t, h, o)

	nat := config
	routed := network.Config{Bridge: "test1", Address: netip.MustParsePrefix("10.89.0.1/24"), MTU: 1400, NoMasq: true, Direct: true}
	internal := network.Config{Bridge: "test2", Address: netip.MustParsePrefix("10.90.0.1/24"), MTU: 1400, Internal: true}
	s, r, i := bringUp(t, d, nat, false), bringUp(t, d, routed, false), bringUp(t, d, internal, false)
	port := network.PortBinding{Proto: "tcp", ContainerPort: 80, HostPort: 8080}
	first, second := connectAt(t, s, "10.88.0.2/24", port), connectAt(t, s, "10.88.0.3/24")
	port.HostPort = 8081
	direct, inner := connectAt(t, r, "10.89.0.2/24", port), connectAt(t, i, "10.90.0.2/24")
	for _, c := range []network.Connection{first, second, direct, inner} {
		serve(t, c.Netns, 80)
		serve(t, c.Netns, 81)
	}
	check := func(when string) {
		t.Helper()
		for _, c := range []struct{ what, ns, addr string }{
			{"container to container", first.Netns, "10.88.0.3:80"},
			{"container to another network", first.Netns, toB},
			{"published port", n.a, "10.91.0.1:8080"},
			{"published port of a routed network, at the container's address", n.a, "10.89.0.2:80"},
			{"routed container to another network", direct.Netns, toB},
		} {
			eventually(t, when+": "+c.what, func() error { return reaches(c.ns, c.addr, 400*time.Millisecond) })
		}
		for _, c := range []struct{ what, ns, addr string }{
			{"a host to another through this one", n.a, toB},
			{"port that is not published", n.a, "10.88.0.2:81"},
			{"port that is not published, of a routed network", n.a, "10.89.0.2:81"},
			{"container to one of another network", first.Netns, "10.89.0.2:81"},
			{"container to one of an internal network", first.Netns, "10.90.0.2:80"},
			{"container of an internal network to another network", inner.Netns, toB},
		} {
			if err := reaches(c.ns, c.addr, 200*time.Millisecond); err == nil {
				t.Errorf("%s: %s is reached", when, c.what)
			}
		}
	}
	check("at first")
	h.Command("--reload")
	check("after a reload")
	h.Command("--complete-reload")
	check("after a complete reload")
	h.Stop()
	late := network.Config{Bridge: "test3", Address: netip.MustParsePrefix("10.94.0.1/24"), MTU: 1400}
	third := bringUp(t, d, late, false)
	takeDown(t, r)
	h.Start()
	hasMembers(t, h, "a network that is made and one that is removed while firewalld is away", "test0", "test2", "test3")
	if got := h.Command("--permanent", "--zone="+firewalld.ZoneName, "--list-interfaces"); got != "" {
		t.Errorf("firewalld's permanent configuration has interfaces: %q", got)
	}

	// Another engine on the host, and one that must not change the rules of the host.
	other, _ := engineOn(t, h, Options{Owner: "another"})
	foreign := bringUp(t, other, network.Config{Bridge: "test5", Address: netip.MustParsePrefix("10.95.0.1/24"), MTU: 1400}, false)
	without, _ := engineOn(t, h, Options{Owner: "a third", NoRules: true})
	unruled := bringUp(t, without, network.Config{Bridge: "test6", Address: netip.MustParsePrefix("10.96.0.1/24"), MTU: 1400}, false)
	hasMembers(t, h, "with another engine", "test0", "test2", "test3", "test5")
	takeDown(t, third)
	hasMembers(t, h, "a network is removed", "test0", "test2", "test5")
	takeDown(t, foreign)
	takeDown(t, unruled)
	hasMembers(t, h, "the other engine removed its network", "test0", "test2")

	// The engine is away while firewalld starts again.
	stop()
	for _, s := range []network.Segment{s, i} {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	h.Stop()
	h.Start()
	again, _ := engineOn(t, h, o)
	s, i = bringUp(t, again, nat, true), bringUp(t, again, internal, true)
	hasMembers(t, h, "after a restart of plyd", "test0", "test2")
	takeDown(t, s)
	takeDown(t, i)
	hasMembers(t, h, "after the last network")
}

// uninstall takes the zone and the policy out of firewalld's permanent configuration, unless it removes files from the root of a package. An engine that is installed
// again has its zone again.
func TestUninstallRemovesTheZone(t *testing.T) {
	h := firewalldtest.New(t)
	h.Start()
	uninstall := func(destdir string) {
		t.Helper()
		cmd := exec.Command("sh", "../../../packaging/uninstall", t.TempDir())
		cmd.Env = append(os.Environ(), "DBUS_SYSTEM_BUS_ADDRESS="+h.Address, "PYTHONDONTWRITEBYTECODE=1", "DESTDIR="+destdir)
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("uninstall: %v: %s", err, out)
		}
	}
	has := func(when string, want bool, permanent ...string) {
		t.Helper()
		for what, name := range map[string]string{"--get-zones": firewalld.ZoneName, "--get-policies": firewalld.ZoneName + "-forwarding"} {
			if all := strings.Fields(h.Command(append(permanent, what)...)); slices.Contains(all, name) != want {
				t.Errorf("%s: %s returns %q", when, what, all)
			}
		}
	}
	for _, when := range []string{"at first", "installed again"} {
		d, stop := engineOn(t, h, Options{})
		takeDown(t, bringUp(t, d, config, false))
		stop()
		has(when, true, "--permanent")
		uninstall("/of/a/package")
		has("after uninstall with DESTDIR", true, "--permanent")
		uninstall("")
		has("after uninstall", false, "--permanent")
		h.Command("--reload")
		has("after uninstall and a reload", false)
		uninstall("")
	}
}

// uninstall takes the zone away while firewalld does not run, too.
func TestUninstallWithoutFirewalld(t *testing.T) {
	bin := t.TempDir()
	for name, script := range map[string]string{
		"firewall-cmd":         "exit 252",
		"firewall-offline-cmd": `echo "$*" >>` + bin + `/calls; case $1 in --get-zones) echo block ply public ;; --get-policies) echo ply-forwarding ;; *) echo success ;; esac`,
	} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("sh", "../../../packaging/uninstall", t.TempDir())
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "DESTDIR=")
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("uninstall: %v: %s", err, out)
	}
	calls, err := os.ReadFile(filepath.Join(bin, "calls"))
	if err != nil || string(calls) != "--get-policies\n--delete-policy=ply-forwarding\n--get-zones\n--delete-zone=ply\n" {
		t.Errorf("calls %q, %v", calls, err)
	}
}
