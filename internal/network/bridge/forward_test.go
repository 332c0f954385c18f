package bridge

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"ply/internal/network"
	"ply/internal/network/namespace"
)

// neighbours are two networks that only the host connects: 10.91.0.0/24 with the host 10.91.0.2, and 10.92.0.0/24 with the
// host 10.92.0.2, each with an IPv6 network beside it. The host is the gateway of both.
type neighbours struct {
	t    *testing.T
	a, b string // the namespaces
}

func newNeighbours(t *testing.T) neighbours {
	t.Helper()
	dir := t.TempDir()
	n := neighbours{t, filepath.Join(dir, "a"), filepath.Join(dir, "b")}
	for i, ns := range []string{n.a, n.b} {
		if err := namespace.Make(ns); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := namespace.Remove(ns); err != nil {
				t.Error(err)
			}
		})
		run(t, fmt.Sprintf(`
			nsenter --net=%[1]s sysctl -qw net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0
			ip link add nb%[2]d type veth peer name eth0 netns %[1]s
			ip addr add 10.%[2]d.0.1/24 dev nb%[2]d
			ip -6 addr add fd00:%[2]d::1/64 dev nb%[2]d nodad
			ip link set nb%[2]d up
			nsenter --net=%[1]s ip addr add 10.%[2]d.0.2/24 dev eth0
			nsenter --net=%[1]s ip -6 addr add fd00:%[2]d::2/64 dev eth0 nodad
			nsenter --net=%[1]s ip link set eth0 up
			nsenter --net=%[1]s ip route add default via 10.%[2]d.0.1
			nsenter --net=%[1]s ip -6 route add default via fd00:%[2]d::1`, ns, 91+i))
		name := fmt.Sprintf("nb%d", 91+i)
		t.Cleanup(func() { _ = exec.Command("ip", "link", "del", name).Run() }) // may be gone with its namespace
	}
	return n
}

func run(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.Command("sh", "-euc", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s\n%s", err, out, script)
	}
	return string(out)
}

// within runs f on a thread in the namespace.
func within(ns string, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends with the goroutine
		h, err := netns.GetFromPath(ns)
		if err == nil {
			err = netns.Set(h)
			h.Close()
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// serve accepts connections in the namespace, on every address, and greets each.
func serve(t *testing.T, ns string, port int) {
	t.Helper()
	err := within(ns, func() error {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				io.WriteString(c, "hello")
				c.Close()
			}
		}()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// reaches reports whether a connection from the namespace to addr is answered. wait is how long a refusal may take to show:
// packets that are dropped cause no answer.
func reaches(ns, addr string, wait time.Duration) error {
	return within(ns, func() error {
		c, err := net.DialTimeout("tcp", addr, wait)
		if err != nil {
			return err
		}
		defer c.Close()
		b, err := io.ReadAll(c)
		if err == nil && string(b) != "hello" {
			err = fmt.Errorf("answer %q", b)
		}
		return err
	})
}

func (n neighbours) open(when, addr string) {
	n.t.Helper()
	if err := reaches(n.a, addr, 20*time.Second); err != nil {
		n.t.Errorf("%s: %s is not reached through the host: %v", when, addr, err)
	}
}

func (n neighbours) closed(when, addr string) {
	n.t.Helper()
	if err := reaches(n.a, addr, 400*time.Millisecond); err == nil {
		n.t.Errorf("%s: %s is reached through the host", when, addr)
	}
}

// setForwarding sets both families' forwarding of the host and removes the table of an earlier test.
func setForwarding(t *testing.T, v4, v6 string) {
	t.Helper()
	set := func(v4, v6 string) {
		for path, v := range map[string]string{ipForward: v4, "/proc/sys/net/ipv6/conf/all/forwarding": v6} {
			if err := os.WriteFile(path, []byte(v), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	set(v4, v6)
	t.Cleanup(func() {
		set("0", "0")
		_ = exec.Command("nft", "delete", "table", "inet", "ply-forward").Run() // is missing where none was made
	})
}

const (
	toB  = "10.92.0.2:80"
	toB6 = "[fd00:92::2]:80"
)

// A host that forwards because of ply forwards for containers only, while plyd runs and afterwards.
func TestHostDoesNotBecomeARouter(t *testing.T) {
	setForwarding(t, "0", "1")
	n := newNeighbours(t)
	serve(t, n.b, 80)
	run(t, "nft 'table ip foreign { chain c { type filter hook forward priority 5; ip daddr 192.0.2.1 drop; }; }'")
	foreign := run(t, "nft list table ip foreign")
	t.Cleanup(func() { run(t, "nft delete table ip foreign") })
	n.closed("before plyd", toB)
	n.open("IPv6, before plyd", toB6)

	o := Options{StateFile: filepath.Join(t.TempDir(), "run", "forwarding.json")}
	s := segmentOf(t, o, config)
	n.closed("with plyd", toB)
	n.open("IPv6 forwarding was on before plyd", toB6)

	c := connect(t, s, network.PortBinding{Proto: "tcp", ContainerPort: 80, HostPort: 8080})
	serve(t, c.Netns, 80)
	n.open("published port", "10.91.0.1:8080")
	if err := reaches(c.Netns, toB, 20*time.Second); err != nil {
		t.Errorf("container to another network: %v", err)
	}

	restarted, err := New(o).Up(t.Context(), config, true)
	if err != nil {
		t.Fatal(err)
	}
	n.closed("after a restart of plyd", toB)
	n.open("published port, after a restart of plyd", "10.91.0.1:8080")

	run(t, "nft delete table inet ply-forward") // as a reload of the host's rules does
	n.open("without the table", toB)
	again, err := New(o).Up(t.Context(), config, true)
	if err != nil {
		t.Fatal(err)
	}
	n.closed("after a restart of plyd that had lost its table", toB)

	other := Options{StateFile: filepath.Join(t.TempDir(), "forwarding.json")}
	second, err := New(other).Up(t.Context(), network.Config{Bridge: "test1", Address: addressOfSecond, MTU: 1500}, false)
	if err != nil {
		t.Fatal(err)
	}
	if got := run(t, "nft list set inet ply-forward bridges"); !strings.Contains(got, `"test0"`) || !strings.Contains(got, `"test1"`) {
		t.Errorf("bridges of two engines:\n%s", got)
	}
	if err := second.Down(t.Context()); err != nil {
		t.Error(err)
	}
	n.closed("after the second engine left", toB)
	if got := run(t, "nft list set inet ply-forward bridges"); strings.Contains(got, `"test1"`) {
		t.Errorf("a removed bridge is still entered:\n%s", got)
	}

	s.Disconnect(t.Context(), c, func() {})
	for _, stopped := range []network.Segment{restarted, again, second} {
		if err := stopped.Close(); err != nil {
			t.Error(err)
		}
	}
	n.closed("after plyd stopped", toB)
	if got := run(t, "nft list table ip foreign"); got != foreign {
		t.Errorf("another program's table has changed:\n%s", got)
	}
}

// The table and the record exist before the host forwards, so no moment is left in which it forwards for all.
func TestForwardingIsRestrictedBeforeItIsSwitchedOn(t *testing.T) {
	setForwarding(t, "0", "0")
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	// An nft that records the kernel's setting and fails at the second script, the bridge's own table.
	script := fmt.Sprintf("#!/bin/sh\ncat %s >>%s/seen\n[ $(wc -l <%[2]s/seen) = 1 ] || exit 1\nexec %s \"$@\"\n", ipForward, dir, nft)
	if err := os.WriteFile(filepath.Join(dir, "nft"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(dir, "forwarding.json")
	path := os.Getenv("PATH")
	t.Setenv("PATH", dir+":"+path)
	if _, err := New(Options{StateFile: state}).Up(t.Context(), config, false); err == nil {
		t.Error("Up succeeded without its table")
	}
	t.Setenv("PATH", path)
	seen, err := os.ReadFile(filepath.Join(dir, "seen"))
	if err != nil || !bytes.HasPrefix(seen, []byte("0\n")) {
		t.Errorf("net.ipv4.ip_forward at each call of nft: %q, %v, want 0 at the first", seen, err)
	}
	if _, err := os.Stat(state); err != nil {
		t.Error(err)
	}
	run(t, "nft list table inet ply-forward")
}

// A host that forwarded before ply goes on forwarding, also after restarts of plyd.
func TestRouterRemainsARouter(t *testing.T) {
	setForwarding(t, "1", "1")
	n := newNeighbours(t)
	serve(t, n.b, 80)
	n.open("before plyd", toB)
	o := Options{StateFile: filepath.Join(t.TempDir(), "forwarding.json")}
	segmentOf(t, o, config)
	n.open("with plyd", toB)
	if _, err := New(o).Up(t.Context(), config, true); err != nil {
		t.Fatal(err)
	}
	n.open("after a restart of plyd", toB)
}

// What an earlier boot, or an engine in another network namespace, switched on says nothing about this host.
func TestRecordOfAnotherBoot(t *testing.T) {
	for _, field := range []string{"boot", "netns"} {
		t.Run(field, func(t *testing.T) {
			setForwarding(t, "1", "1")
			n := newNeighbours(t)
			serve(t, n.b, 80)
			o := Options{StateFile: filepath.Join(t.TempDir(), "forwarding.json")}
			if err := New(o).rememberSwitch(families{v4: true}); err != nil {
				t.Fatal(err)
			}
			run(t, fmt.Sprintf(`sed -i 's/"%s":"\?/&1/' %s`, field, o.StateFile))
			segmentOf(t, o, config)
			n.open("with plyd", toB)
		})
	}
}

// The settings decide: ip-forward-no-drop opens the host also after it was restricted, without ip-forward nothing is
// switched, and a record that cannot be read errs on the closed side.
func TestForwardingSettings(t *testing.T) {
	setForwarding(t, "0", "0")
	n := newNeighbours(t)
	serve(t, n.b, 80)
	state := filepath.Join(t.TempDir(), "forwarding.json")

	segmentOf(t, Options{StateFile: state, NoForward: true}, config)
	if got := run(t, "cat "+ipForward); got != "0\n" {
		t.Errorf("without ip-forward net.ipv4.ip_forward = %s", got)
	}
	for _, step := range []struct {
		name string
		o    Options
		open bool
	}{
		{"as it is by default", Options{}, false},
		{"ip-forward-no-drop", Options{NoForwardDrop: true}, true},
		{"default again", Options{}, false},
		{"without ip-forward, when it was switched", Options{NoForward: true}, false},
	} {
		step.o.StateFile = state
		if _, err := New(step.o).Up(t.Context(), config, true); err != nil {
			t.Fatal(err)
		}
		if step.open {
			n.open(step.name, toB)
		} else {
			n.closed(step.name, toB)
		}
	}
	for name, record := range map[string]string{"damaged record": "garbage", "record of a later release": `{"version":99,"writer":"9.9.9"}`} {
		run(t, "nft delete table inet ply-forward; echo '"+record+"' >"+state)
		n.open("without the table", toB)
		if _, err := New(Options{StateFile: state}).Up(t.Context(), config, true); err != nil {
			t.Fatal(err)
		}
		n.closed(name, toB)
	}
}
