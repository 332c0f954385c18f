package bridge

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ply/internal/network"
)

// ufw returns a script that runs ufw with files of its own instead of the machine's, in a mount namespace of its own.
func ufw(t *testing.T) func(args string) string {
	t.Helper()
	dir := t.TempDir()
	var mounts strings.Builder
	for _, d := range []string{"/etc/ufw", "/etc/default", "/lib/ufw", "/run"} {
		own := filepath.Join(dir, strings.ReplaceAll(d[1:], "/", "-"))
		if err := os.Mkdir(own, 0o755); err != nil {
			t.Fatal(err)
		}
		if d != "/run" {
			run(t, "cp -a "+d+"/. "+own)
		}
		fmt.Fprintf(&mounts, "mount --bind %s %s; ", own, d)
	}
	return func(args string) string {
		return "unshare -m sh -euc '" + mounts.String() + "ufw " + args + " >/dev/null'"
	}
}

// outside is the world of a host whose firewall drops what is forwarded: a container with a published port, another container, and two networks.
type outside struct {
	neighbours
	first, second network.Connection
}

func newOutside(t *testing.T, d *Driver) (outside, network.Segment) {
	t.Helper()
	c := config
	c.Address6 = netip.MustParsePrefix("fd00:88::1/64")
	s := bringUp(t, d, c, false)
	o := outside{neighbours: newNeighbours(t)}
	o.first = connectAt(t, s, "10.88.0.2/24", network.PortBinding{Proto: "tcp", ContainerPort: 80, HostPort: 8080})
	o.second = connectAt(t, s, "10.88.0.3/24")
	for _, ns := range []string{o.first.Netns, o.second.Netns, o.b} {
		serve(t, ns, 80)
		serve(t, ns, 81)
	}
	return o, s
}

func (o outside) check(when string) {
	o.t.Helper()
	for _, c := range []struct{ what, ns, addr string }{
		{"published port", o.a, "10.91.0.1:8080"},
		{"published port, by IPv6", o.a, "[fd00:91::1]:8080"},
		{"container to another network", o.first.Netns, toB},
		{"container to another network, by IPv6", o.first.Netns, toB6},
		{"container to container", o.first.Netns, "10.88.0.3:80"},
	} {
		eventually(o.t, when+": "+c.what, func() error { return reaches(c.ns, c.addr, 400*time.Millisecond) })
	}
	for _, c := range []struct{ what, ns, addr string }{
		{"port that is not published", o.a, "10.88.0.2:81"},
		{"a host to another through this one", o.a, toB},
	} {
		if err := reaches(c.ns, c.addr, 200*time.Millisecond); err == nil {
			o.t.Errorf("%s: %s is reached", when, c.what)
		}
	}
}

// Where the host's firewall drops what is forwarded, containers have their network, whatever it did before or does later, and nothing else passes.
func TestHostDropsWhatIsForwarded(t *testing.T) {
	setForwarding(t, "1", "1")
	t.Cleanup(func() { _ = exec.Command("sh", "-c", "nft delete table ip filter; nft delete table ip6 filter").Run() }) // may be gone
	run(t, "iptables -P FORWARD DROP; ip6tables -P FORWARD DROP")
	d := New(Options{})
	watched(t, d)
	o, s := newOutside(t, d)
	o.check("the policy was DROP before")
	ufw := ufw(t)
	const none = "for f in ip ip6; do nft delete table $f filter 2>/dev/null || true; done; "
	for _, change := range []string{
		none + "iptables -P FORWARD DROP; ip6tables -P FORWARD DROP",
		"iptables -F FORWARD; ip6tables -F FORWARD",
		"iptables -A FORWARD -j REJECT --reject-with icmp-host-prohibited; ip6tables -A FORWARD -j REJECT",
		"iptables -P FORWARD ACCEPT; iptables -F FORWARD; iptables -A FORWARD -j DROP",
		none + "iptables -N DOCKER-USER; iptables -A FORWARD -j DOCKER-USER; iptables -P FORWARD DROP",
		none + ufw("--force enable"),
		ufw("reload"),
		ufw("default reject routed"),
	} {
		run(t, change)
		o.check(change)
	}
	if out := run(t, "iptables -S FORWARD; ip6tables -S FORWARD"); strings.Count(out, passChain) != 2 {
		t.Errorf("chains FORWARD\n%s", out)
	}
	run(t, "iptables-save | iptables-restore") // iptables understands all of it
	o.check("written by iptables")
	s.Disconnect(t.Context(), o.first, func() {})
	s.Disconnect(t.Context(), o.second, func() {})
	takeDown(t, s)
	if out := run(t, "iptables-save; ip6tables-save"); strings.Contains(out, passChain) {
		t.Errorf("without networks\n%s", out)
	}
}

// An administrator closes published ports to a source with the means of the host's firewall.
func TestAdministratorClosesPublishedPorts(t *testing.T) {
	setForwarding(t, "1", "1")
	t.Cleanup(func() { run(t, "nft flush ruleset") })
	run(t, "iptables -P FORWARD DROP; iptables -N DOCKER-USER; iptables -A FORWARD -j DOCKER-USER")
	d := New(Options{})
	watched(t, d)
	o, s := newOutside(t, d)
	ufw := ufw(t)
	for _, c := range []struct{ what, open, undo string }{
		{"a rule in FORWARD", "iptables -I FORWARD -s 10.91.0.2 -o test0 -j DROP", "iptables -D FORWARD -s 10.91.0.2 -o test0 -j DROP"},
		{"a rule in DOCKER-USER", "iptables -I DOCKER-USER -s 10.91.0.2 -j DROP", "iptables -F DOCKER-USER"},
		{"a rule for the port of the host", "iptables -I FORWARD -m conntrack --ctorigdstport 8080 --ctdir ORIGINAL -j DROP", "iptables -D FORWARD 1"},
		{"a table of nftables", "nft 'table inet mine { chain c { type filter hook forward priority filter; ip saddr 10.91.0.2 oifname test0 drop; }; }'", "nft delete table inet mine"},
		{"a route of ufw", ufw("--force enable") + "; " + ufw("route deny from 10.91.0.2"), ufw("route delete deny from 10.91.0.2")},
	} {
		o.open(c.what+", before", "10.91.0.1:8080")
		run(t, c.open)
		o.closed(c.what, "10.91.0.1:8080")
		if err := reaches(o.first.Netns, toB, 20*time.Second); err != nil {
			t.Errorf("%s closes more: %v", c.what, err)
		}
		run(t, c.undo)
		o.open(c.what+", afterwards", "10.91.0.1:8080")
	}
	s.Disconnect(t.Context(), o.first, func() {})
	s.Disconnect(t.Context(), o.second, func() {})
	takeDown(t, s)
}

// Beside a dockerd, which makes the policy of FORWARD DROP, containers have their network, and dockerd's rules stay.
func TestBesideDocker(t *testing.T) {
	setForwarding(t, "0", "0")
	t.Cleanup(func() { run(t, "nft flush ruleset"); _ = exec.Command("ip", "link", "del", "docker0").Run() })
	dir, err := os.MkdirTemp("", "dk")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	start := func() (stop func()) {
		var log strings.Builder
		cmd := exec.Command("dockerd", "--data-root", dir+"/data", "--exec-root", dir+"/exec", "-H", "unix://"+dir+"/s", "--pidfile", dir+"/pid", "--storage-driver", "vfs")
		cmd.Stdout, cmd.Stderr = &log, &log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "dockerd", func() error {
			return exec.Command("docker", "-H", "unix://"+dir+"/s", "version").Run()
		})
		return func() {
			_ = cmd.Process.Signal(os.Interrupt)
			if err := cmd.Wait(); err != nil {
				t.Errorf("dockerd: %v\n%s", err, log.String())
			}
		}
	}
	stop := start()
	defer func() { stop() }()
	if out := run(t, "iptables -S FORWARD"); !strings.Contains(out, "-P FORWARD DROP") {
		t.Fatalf("dockerd's chain FORWARD\n%s", out)
	}
	setForwarding(t, "1", "1")
	d := New(Options{})
	watched(t, d)
	o, s := newOutside(t, d)
	o.check("dockerd was first")
	stop()
	stop = start()
	o.check("dockerd starts again")
	s.Disconnect(t.Context(), o.first, func() {})
	s.Disconnect(t.Context(), o.second, func() {})
	takeDown(t, s)
	if out := run(t, "iptables -S"); strings.Contains(out, passChain) || !strings.Contains(out, "-j DOCKER-USER") {
		t.Errorf("the rules when the networks are gone\n%s", out)
	}
}

func TestPassScript(t *testing.T) {
	for name, c := range map[string]struct{ host, ours, want string }{
		"no chain":               {"", "", ""},
		"the host drops nothing": {"chain FORWARD {\ntype filter hook forward priority filter; policy accept;\noifname \"x\" drop # handle 4\n}", "", ""},
		"all is there": {
			"chain FORWARD { # handle 2\ntype filter hook forward priority filter; policy drop;\ncounter packets 1 bytes 2 jump PLY-FORWARD # handle 4\n}",
			"chain PLY-FORWARD { # handle 3\niifname \"a0\" counter packets 0 bytes 0 accept # handle 5\noifname \"a0\" accept # handle 6\n}", "",
		},
		"the jump is not the last, and there are two": {
			"chain FORWARD { # handle 2\ntype filter hook forward priority filter; policy drop;\ncounter packets 1 bytes 2 jump PLY-FORWARD # handle 4\njump PLY-FORWARD # handle 5\ncounter packets 1 bytes 2 jump other # handle 6\n}",
			"chain PLY-FORWARD { # handle 3\niifname \"a0\" counter packets 0 bytes 0 accept # handle 5\noifname \"a0\" accept # handle 6\n}",
			"add chain ip filter PLY-FORWARD\ndelete rule ip filter FORWARD handle 4\ndelete rule ip filter FORWARD handle 5\nadd rule ip filter FORWARD counter jump PLY-FORWARD\n",
		},
		"the jump is not the last": {
			"chain FORWARD { # handle 2\ntype filter hook forward priority filter; policy drop;\ncounter packets 1 bytes 2 jump PLY-FORWARD # handle 4\ncounter packets 1 bytes 2 jump ufw-before-forward # handle 6\n}",
			"chain PLY-FORWARD { # handle 3\niifname \"a0\" counter packets 0 bytes 0 accept # handle 5\noifname \"a0\" accept # handle 6\n}",
			"add chain ip filter PLY-FORWARD\ndelete rule ip filter FORWARD handle 4\nadd rule ip filter FORWARD counter jump PLY-FORWARD\n",
		},
		"before what rejects": {
			"chain FORWARD { # handle 2\ntype filter hook forward priority filter; policy accept;\ncounter packets 1 bytes 2 reject with icmp host-prohibited # handle 6\n}", "",
			"add chain ip filter PLY-FORWARD\nadd rule ip filter PLY-FORWARD iifname \"a0\" counter accept\nadd rule ip filter PLY-FORWARD oifname \"a0\" counter accept\ninsert rule ip filter FORWARD position 6 counter jump PLY-FORWARD\n",
		},
	} {
		if got := passScript("ip", c.host, func() string { return c.ours }, []string{"a0"}); got != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", name, got, c.want)
		}
	}
}
