package network_test

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"ply/internal/network"
	"ply/internal/network/bridge"
	"ply/internal/network/namespace"
	"ply/internal/network/vlan"
	"ply/internal/store/meta"
)

// openVLAN opens the networks with the drivers of parents beside the one of bridges. Both end the engine at a step.
func (w *world) openVLAN(kind vlan.Kind) *fragile {
	w.t.Helper()
	o := options(w.db, w.dir, w.owner)
	driver := vlan.New(kind, vlan.Options{Owner: w.owner})
	d := &fragile{Driver: driver}
	o.Drivers = map[string]network.Driver{"bridge": bridge.New(bridge.Options{Owner: w.owner}), string(kind): struct {
		network.Driver
		network.Sweeper
	}{d, driver}}
	s, err := network.Open(w.t.Context(), o)
	if err != nil {
		w.t.Fatal(err)
	}
	w.s = s
	return d
}

// An engine that is killed at any step of a connect to a macvlan or ipvlan network leaves a container that has exactly the interfaces that the next engine knows of.
// The next connect has the name and the address of the interface.
func TestKilledWhileConnectingToAParent(t *testing.T) {
	for _, kind := range []vlan.Kind{vlan.MACVLAN, vlan.IPVLAN} {
		t.Run(string(kind), func(t *testing.T) {
			script := "ip link add parent type veth peer name far; ip link add link parent name probe type " + string(kind) + " && ip link del probe"
			out, err := exec.Command("sh", "-c", script).CombinedOutput()
			t.Cleanup(func() { _ = exec.Command("ip", "link", "del", "parent").Run() })
			if err != nil {
				t.Skipf("the kernel has no interfaces of this kind: %s", out)
			}
			for at, dead := 1, true; dead; at++ {
				w := newWorld(t)
				if err := w.s.Close(); err != nil {
					t.Fatal(err)
				}
				d := w.openVLAN(kind)
				_, err := w.s.Create(t.Context(), network.CreateOptions{Name: "n", Driver: string(kind), Options: map[string]string{"parent": "parent"}, Pools: []network.Pool{{Subnet: prefix("10.1.0.0/24")}}})
				if err != nil {
					t.Fatal(err)
				}
				if _, err := w.attach(idA, "bridge"); err != nil {
					t.Fatal(err)
				}
				connect := func() (network.Attachment, error) {
					return w.s.Connect(t.Context(), idA, w.ns(idA), network.EndpointRequest{Network: "n", Names: []string{"web"}})
				}
				d.step, d.at = 0, at
				dead = until(func() { _, err = connect() })
				if err != nil {
					t.Fatal(err)
				}
				if err := w.s.Close(); err != nil {
					t.Fatal(err)
				}
				w.openVLAN(kind)
				a, _ := w.s.Attached(idA)
				if n := strings.Count(w.run(idA, "ip -o link"), "\n"); n != 1+len(a.Endpoints) {
					t.Errorf("killed at step %d: the container has %d interfaces, the engine knows %d networks", at, n, len(a.Endpoints))
				}
				if files, err := filepath.Glob(filepath.Join(w.dir, "net", "*.json")); err != nil || len(files) != len(a.Endpoints) {
					t.Errorf("killed at step %d: files %q, %v, want %d", at, files, err, len(a.Endpoints))
				}
				if dead {
					if a, err = connect(); err != nil {
						t.Errorf("killed at step %d: connect again: %v", at, err)
					}
				}
				if e := a.Endpoints["n"]; e.Interface != "eth1" || e.IPv4.String() != "10.1.0.2/24" {
					t.Errorf("killed at step %d: the endpoint is %+v", at, e)
				}
				w.gone(fmt.Sprintf("killed at step %d", at))
			}
		})
	}
}

// A parent that an engine made and did not record, because it was killed meanwhile, goes. One that another engine or someone else has made stays, and so does one that
// has a network, or on which someone else has put an interface.
func TestUnrecordedParentsAreRemoved(t *testing.T) {
	w := newWorldOf(t, "one")
	if err := w.s.Close(); err != nil {
		t.Fatal(err)
	}
	w.openVLAN(vlan.MACVLAN)
	w.sh(`set -e
for p in recorded left used member other foreign; do ip link add $p type dummy || ip link add $p type ifb; done 2>/dev/null
for p in recorded left used member; do ip link set $p alias "ply of one"; done
ip link set other alias "ply of two"
ip link add far type bridge
ip link set member master far
ip link add link used name above type macvlan`)
	t.Cleanup(func() {
		w.sh("for l in above far recorded left used member other foreign; do ip link del $l 2>/dev/null; done; true")
	})
	w.create(network.CreateOptions{Name: "n", Driver: "macvlan", Options: map[string]string{"parent": "recorded"}, Pools: []network.Pool{{Subnet: prefix("10.1.0.0/24")}}})
	if err := w.s.Close(); err != nil {
		t.Fatal(err)
	}
	w.openVLAN(vlan.MACVLAN)
	for name, want := range map[string]bool{"left": false, "used": true, "member": true, "other": true, "foreign": true, "recorded": true} {
		there, err := namespace.HasLink(name)
		if err != nil || there != want {
			t.Errorf("interface %s is there: %v, %v, want %v", name, there, err, want)
		}
	}
}

// The parent of a network whose record is gone stays while a container has an interface on it: to remove it would take that away.
func TestParentOfLostNetworkStays(t *testing.T) {
	w := newWorldOf(t, "one")
	if err := w.s.Close(); err != nil {
		t.Fatal(err)
	}
	w.openVLAN(vlan.MACVLAN)
	w.sh(`set -e
ip link add parent type dummy 2>/dev/null || ip link add parent type ifb
ip link set parent alias "ply of one"`)
	t.Cleanup(func() { w.sh("ip link del parent") })
	w.create(network.CreateOptions{Name: "n", Driver: "macvlan", Options: map[string]string{"parent": "parent"}, Pools: []network.Pool{{Subnet: prefix("10.1.0.0/24")}}})
	if _, err := w.s.Attach(t.Context(), w.request(idA, network.EndpointRequest{Network: "n"})); err != nil {
		t.Fatal(err)
	}
	if err := w.s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.db.Update(func(tx *meta.Tx) error { return tx.Networks.Delete("n") }); err != nil {
		t.Fatal(err)
	}
	w.openVLAN(vlan.MACVLAN)
	if links := w.run(idA, "ip -o link"); !strings.Contains(links, "eth0") {
		t.Errorf("the container has the interfaces\n%s", links)
	}
}
