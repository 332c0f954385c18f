package rules

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ply/internal/network"
	"ply/test/private"
)

// The tests own rules, so they run in a network namespace of their own.
func TestMain(m *testing.M) { private.Main(m, nil) }

var (
	bridgeA = Bridge{Name: "ply0", Subnets: []netip.Prefix{netip.MustParsePrefix("172.17.0.1/16")}, Masquerade: true, ICC: true}
	bridgeB = Bridge{Name: "br-both", Subnets: []netip.Prefix{netip.MustParsePrefix("172.18.0.1/16"), netip.MustParsePrefix("fd00:1::1/64")}, Masquerade: true, Masquerade6: true, Source6: netip.MustParseAddr("2001:db8::9"), Open: true, Open6: true, Trusted: []string{"eth7"}}
	bridgeC = Bridge{Name: "br-in", Subnets: []netip.Prefix{netip.MustParsePrefix("10.1.0.1/24")}, Masquerade: true, ICC: true, Internal: true, Isolated: true, Isolated6: true}
	bridgeD = Bridge{Name: "apart", Subnets: []netip.Prefix{netip.MustParsePrefix("10.2.0.1/24")}, Masquerade: true, Source: netip.MustParseAddr("192.0.2.9")}
	target  = Target{IPv4: netip.MustParseAddr("172.18.0.2"), IPv6: netip.MustParseAddr("fd00:1::2"), Direct4: true, Direct6: true, Trusted: true}
	ports   = []network.PortBinding{
		{Proto: "tcp", ContainerPort: 5000, HostIP: netip.IPv4Unspecified(), HostPort: 5000},
		{Proto: "tcp", ContainerPort: 5000, HostIP: netip.IPv6Unspecified(), HostPort: 5000},
		{Proto: "udp", ContainerPort: 53, HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 5353},
		{Proto: "sctp", ContainerPort: 99, HostIP: netip.MustParseAddr("2001:db8::1"), HostPort: 9999},
	}
	links = []Link{{From: netip.MustParseAddr("10.2.0.2"), To: netip.MustParseAddr("10.2.0.3"), Ports: []network.PortRange{
		{Proto: "tcp", First: 80, Last: 80}, {Proto: "tcp", First: 90, Last: 99}, {Proto: "udp", First: 80, Last: 80},
	}}}
)

func filled(t *testing.T) *Table {
	t.Helper()
	table := New("ply-test")
	for _, b := range []Bridge{bridgeA, bridgeB, bridgeC, bridgeD} {
		if err := table.AddBridge(t.Context(), b, true); err != nil {
			t.Fatal(err)
		}
	}
	if err := table.AddPorts(t.Context(), target, ports, true); err != nil {
		t.Fatal(err)
	}
	if err := table.SetLinks(t.Context(), bridgeD.Name, func() []Link { return links }, true); err != nil {
		t.Fatal(err)
	}
	return table
}

func TestTableIsTheRecordedOne(t *testing.T) {
	got := filled(t).script([]string{"ply-old"})
	name := filepath.Join("testdata", "table.nft")
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil || got != string(want) {
		t.Errorf("rules differ from %s (%v):\n%s", name, err, got)
	}
	cmd := exec.Command("nft", "-c", "-f", "-")
	cmd.Stdin = strings.NewReader(got)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("nft -c: %v\n%s", err, out)
	}
}

func list(t *testing.T, what ...string) string {
	t.Helper()
	out, err := exec.Command("nft", append([]string{"list"}, what...)...).CombinedOutput()
	if err != nil {
		return err.Error()
	}
	return string(out)
}

// words returns the words in order, because the kernel does not keep the order of elements.
func words(s string) []string {
	w := strings.Fields(strings.ReplaceAll(s, ",", " "))
	slices.Sort(w)
	return w
}

func TestTableLifeCycle(t *testing.T) {
	ctx := t.Context()
	table := New("ply-test")
	if table.Exists(ctx) {
		t.Fatal("the table exists before it is made")
	}
	for _, b := range []Bridge{bridgeA, bridgeB, bridgeC, bridgeD} {
		if err := table.AddBridge(ctx, b, false); err != nil {
			t.Fatal(err)
		}
	}
	if err := table.AddPorts(ctx, target, ports, false); err != nil {
		t.Fatal(err)
	}
	if err := table.SetLinks(ctx, bridgeD.Name, func() []Link { return links }, false); err != nil {
		t.Fatal(err)
	}
	whole := list(t, "table", "inet", "ply-test")
	for _, want := range []string{`"apart" . 10.2.0.2 . 10.2.0.3 . tcp . 80`, `"apart" . 10.2.0.2 . 10.2.0.3 . tcp . 90-99`, `"apart" . 10.2.0.2 . 10.2.0.3 . udp . 80`, "tcp . 5000 : 172.18.0.2 . 5000", "tcp . 5000 : fd00:1::2 . 5000", "127.0.0.1 . udp . 5353", "2001:db8::1 . sctp . 9999", `"br-in"`, "172.18.0.0/16", "fd00:1::/64 : 2001:db8::9", "10.2.0.0/24 : 192.0.2.9"} {
		if !strings.Contains(whole, want) {
			t.Errorf("the table has no %q:\n%s", want, whole)
		}
	}
	// What someone else deletes is made again as it was.
	if out, err := exec.Command("nft", "flush", "ruleset").CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	if err := table.Restore(ctx); err != nil {
		t.Fatal(err)
	}
	if again := list(t, "table", "inet", "ply-test"); !slices.Equal(words(again), words(whole)) {
		t.Errorf("restored:\n%s\nbefore:\n%s", again, whole)
	}
	if err := table.RemovePorts(ctx, target, ports); err != nil {
		t.Fatal(err)
	}
	// The target exposes one port more, and one less.
	other := Link{From: links[0].From, To: links[0].To, Ports: []network.PortRange{{Proto: "tcp", First: 80, Last: 81}}}
	if err := table.SetLinks(ctx, bridgeD.Name, func() []Link { return []Link{other} }, false); err != nil {
		t.Fatal(err)
	}
	if set := list(t, "set", "inet", "ply-test", "links4"); !strings.Contains(set, "tcp . 80-81") || strings.Contains(set, "90") || strings.Contains(set, "udp") {
		t.Errorf("other links: %s", set)
	}
	if err := table.SetLinks(ctx, bridgeD.Name, func() []Link { return nil }, false); err != nil {
		t.Fatal(err)
	}
	if err := table.RemoveBridge(ctx, bridgeB.Name); err != nil {
		t.Fatal(err)
	}
	if left := list(t, "table", "inet", "ply-test"); strings.Contains(left, "5000") || strings.Contains(left, "172.18") || strings.Contains(left, "br-both") || !strings.Contains(left, "172.17.0.0/16") {
		t.Errorf("after removals:\n%s", left)
	}
	if err := table.RemoveBridge(ctx, bridgeD.Name); err != nil {
		t.Fatal(err)
	}
	if left := list(t, "table", "inet", "ply-test"); strings.Contains(left, "192.0.2.9") {
		t.Errorf("after the removal of the bridge with a source address:\n%s", left)
	}
	for _, b := range []Bridge{bridgeA, bridgeC, bridgeA} {
		if err := table.RemoveBridge(ctx, b.Name); err != nil {
			t.Fatal(err)
		}
	}
	if table.Exists(ctx) {
		t.Error("the table is there without bridges")
	}
}

// Ports that were not added are not in the table that Restore makes.
func TestPortsThatFailAreForgotten(t *testing.T) {
	table := New("ply-none")
	if err := table.AddPorts(t.Context(), target, ports, false); err == nil {
		t.Fatal("ports were added to a table that is not there")
	}
	if s := table.script(nil); strings.Contains(s, "5000") {
		t.Errorf("the script has them:\n%s", s)
	}
}
