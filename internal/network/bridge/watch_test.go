package bridge

import (
	"context"
	"errors"
	"net"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"ply/internal/network"
)

// watched starts the watch of a driver for the duration of the test.
func watched(t *testing.T, d *Driver) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan bool), make(chan error, 1)
	go func() { done <- d.Watch(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// reachesGateway fails until the container reaches its gateway, on which nothing listens.
func reachesGateway(c network.Connection) error {
	var err error
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		err = within(c.Netns, func() error {
			conn, err := net.DialTimeout("tcp", "10.88.0.1:9", time.Second)
			if err == nil {
				return conn.Close()
			}
			return err
		})
		if errors.Is(err, syscall.ECONNREFUSED) {
			return nil
		}
	}
	return err
}

func rulesOf(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("nft", "list", "table", "inet", "ply").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

// Someone flushes the rules of the host, or a part of ours: the rules are there again as they were. Tables of others stay gone, or stay.
func TestRulesComeBack(t *testing.T) {
	state := t.TempDir() + "/forwarding.json"
	setForwarding(t, "0", "0")
	d := New(Options{StateFile: state})
	s, err := d.Up(t.Context(), config, false)
	if err != nil {
		t.Fatal(err)
	}
	watched(t, d)
	c := connect(t, s, network.PortBinding{Proto: "tcp", ContainerPort: 80, HostPort: 8181})
	want := rulesOf(t)
	forward := run(t, "nft list table inet ply-forward")
	for _, damage := range []string{
		"nft flush ruleset",
		"nft flush ruleset; nft 'table inet firewall { chain c { type filter hook forward priority 10; policy accept; }; }'",
		"nft delete table inet ply",
		"nft flush table inet ply",
		"nft flush chain inet ply forward",
		"nft delete table inet ply-forward",
		"nft flush table inet ply-forward",
	} {
		run(t, damage)
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
			got, _ := exec.Command("sh", "-c", "nft list table inet ply; nft list table inet ply-forward").CombinedOutput()
			if string(got) == want+forward {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("after %s the rules are\n%s\nwant\n%s", damage, got, want+forward)
			}
		}
	}
	run(t, "nft list table inet firewall; nft delete table inet firewall")
	s.Disconnect(t.Context(), c, func() {})
	if err := s.Down(t.Context()); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	// Nothing comes back of what the driver itself removed.
	time.Sleep(3 * gather)
	if out, err := exec.Command("nft", "list", "table", "inet", "ply").CombinedOutput(); err == nil {
		t.Errorf("after the last bridge was removed\n%s", out)
	}
}

// A bridge, an interface or an address that someone removes is there again, and containers have their network.
func TestBridgeAndInterfacesComeBack(t *testing.T) {
	d := New(Options{})
	s, err := d.Up(t.Context(), config, false)
	if err != nil {
		t.Fatal(err)
	}
	watched(t, d)
	c := connect(t, s)
	for _, damage := range []string{
		"ip link del test0", "ip link set test0 down", "ip addr flush dev test0", "ip link set " + c.Endpoint.HostIf + " nomaster",
		"ip link del " + c.Endpoint.HostIf, "ip link del test0; ip link del " + c.Endpoint.HostIf,
	} {
		run(t, damage)
		if err := reachesGateway(c); err != nil {
			t.Errorf("after %s: %v", damage, err)
		}
	}
	if got := run(t, "nsenter --net="+c.Netns+" ip -o link show eth0; nsenter --net="+c.Netns+" ip route"); !strings.Contains(got, c.Endpoint.MAC) || !strings.Contains(got, "default via 10.88.0.1") {
		t.Errorf("the interface that was made again: %s", got)
	}
	s.Disconnect(t.Context(), c, func() {})
	if err := s.Down(t.Context()); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if out, err := exec.Command("ip", "link", "show", "test0").CombinedOutput(); err == nil {
		t.Errorf("the bridge came back after its removal: %s", out)
	}
}

// A bridge that vanished while no engine ran is made again for the containers that were on it.
func TestRestoredMakesAVanishedBridgeAgain(t *testing.T) {
	s := segmentOf(t, Options{}, config)
	c := connect(t, s)
	run(t, "ip link del test0")
	d := New(Options{})
	again, err := d.Up(t.Context(), config, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Adopt(t.Context(), c); err != nil {
		t.Error(err)
	}
	if err := d.Restored(t.Context()); err != nil {
		t.Error(err)
	}
	if err := reachesGateway(c); err != nil {
		t.Error(err)
	}
	again.Disconnect(t.Context(), c, func() {})
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}
