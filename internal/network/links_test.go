package network_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"ply/internal/network"
	"ply/internal/oci"
)

// setFramesPassRules says whether frames between the ports of a bridge pass the rules of the host.
func setFramesPassRules(t *testing.T, value string) {
	t.Helper()
	for _, name := range []string{"iptables", "ip6tables"} {
		file := "/proc/sys/net/bridge/bridge-nf-call-" + name
		before, err := os.ReadFile(file)
		if err != nil {
			t.Skipf("the kernel lacks br_netfilter: %v", err)
		}
		if err := os.WriteFile(file, []byte(value), 0o644); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.WriteFile(file, before, 0o644); err != nil {
				t.Error(err)
			}
		})
	}
}

// dial connects from a container and ends the connection.
func (w *world) dial(id oci.ContainerID, addr netip.Addr, port uint16, wait time.Duration) error {
	return w.inside(id, func() error {
		c, err := net.DialTimeout("tcp", netip.AddrPortFrom(addr, port).String(), wait)
		if err == nil {
			err = c.Close()
		}
		return err
	})
}

// Of containers that a network keeps apart, one that is linked to another one connects to the ports that this one exposes, and to nothing else, while both are
// connected: after a restart of the engine, after others flushed the rules or removed the bridge, and when the other one comes back with another address.
func TestLinksOpenPorts(t *testing.T) {
	for _, frames := range []string{"1", "0"} {
		t.Run("bridge-nf-call="+frames, func(t *testing.T) {
			setFramesPassRules(t, frames)
			w := newWorld(t)
			w.create(network.CreateOptions{
				Name: "n", Pools: []network.Pool{{Subnet: prefix("10.1.0.0/24")}},
				Options: map[string]string{"com.docker.network.bridge.enable_icc": "false", "com.docker.network.bridge.name": "br-test"},
			})
			start := func(id oci.ContainerID, addr string, linked ...oci.ContainerID) netip.Addr {
				t.Helper()
				a, err := w.s.Attach(t.Context(), w.request(id, network.EndpointRequest{
					Network: "n", Spec: network.EndpointSpec{IPv4: netip.MustParseAddr(addr)}, Linked: linked, Exposed: []network.PortRange{{Proto: "tcp", First: 80, Last: 81}, {Proto: "udp", First: 82, Last: 82}},
				}))
				if err != nil {
					t.Fatal(err)
				}
				for port := 80; port <= 82; port++ {
					w.answer(id, port, "hello")
				}
				return a.Endpoints["n"].IPv4.Addr()
			}
			var own, target netip.Addr
			is := func(when string, open bool) {
				t.Helper()
				for port := uint16(80); port <= 81; port++ {
					if open {
						w.eventually(fmt.Sprintf("%s: port %d of the target", when, port), func() error { return w.dial(idB, target, port, time.Second) })
					} else if err := w.dial(idB, target, port, 300*time.Millisecond); err == nil {
						t.Errorf("%s: port %d of the target is open", when, port)
					}
				}
				if err := w.dial(idB, target, 82, 300*time.Millisecond); err == nil {
					t.Errorf("%s: a port of the target that is not exposed is open", when)
				}
				if err := w.dial(idA, own, 80, 300*time.Millisecond); err == nil {
					t.Errorf("%s: the target connects to the container that is linked to it", when)
				}
			}
			target = start(idA, "10.1.0.2")
			own = start(idB, "10.1.0.3", idA)
			is("at first", true)
			w.watch()
			is("after a restart of the engine", true)
			for _, damage := range []string{"nft flush ruleset", "nft flush set inet ply links4; nft flush chain inet ply forward", "ip link del br-test"} {
				rules := w.sh("nft list table inet ply")
				w.sh(damage)
				w.eventually("the rules", func() error {
					got, err := exec.Command("nft", "list", "table", "inet", "ply").CombinedOutput()
					if err == nil && string(got) != rules {
						err = errors.New(string(got))
					}
					return err
				})
				is("after "+damage, true)
			}
			relink := func(linked ...oci.ContainerID) {
				t.Helper()
				if err := w.s.Relink(t.Context(), idB, "n", linked); err != nil {
					t.Error(err)
				}
			}
			relink()
			is("without the link", false)
			w.watch()
			is("without the link, after a restart of the engine", false)
			relink(idA)
			is("with the link again", true)
			if err := w.s.Detach(t.Context(), idA, w.ns(idA)); err != nil {
				t.Fatal(err)
			}
			if rules := w.sh("nft list set inet ply links4"); strings.Contains(rules, target.String()) {
				t.Errorf("after the end of the target: %s", rules)
			}
			target = start(idA, "10.1.0.4")
			is("with another address of the target", true)
			if err := w.s.Detach(t.Context(), idB, w.ns(idB)); err != nil {
				t.Fatal(err)
			}
			if rules := w.sh("nft list set inet ply links4"); strings.Contains(rules, own.String()) {
				t.Errorf("after the end of the container: %s", rules)
			}
		})
	}
}

// sh runs a script on the host.
func (w *world) sh(script string) string {
	w.t.Helper()
	out, err := exec.Command("sh", "-c", script).CombinedOutput()
	if err != nil {
		w.t.Error(errors.Join(err, errors.New(string(out))))
	}
	return string(out)
}
