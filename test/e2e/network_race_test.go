package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Clients make, remove, prune, connect and disconnect the same networks and containers at once, and plyd is killed meanwhile. What inspect says afterwards is what the
// containers have, no address is there twice, names lead to the addresses that inspect shows, and in the end nothing is left on the host.
func TestRacingClientsOfNetworks(t *testing.T) {
	if os.Getenv("PLY_NIGHTLY") == "" {
		t.Skip("make nightly runs it")
	}
	w := newWorld(t)
	w.busybox()
	before := hostNetwork(t)
	w.ply("network", "create", "--subnet", "10.90.0.0/24", "base")
	containers := []string{"one", "two", "three"}
	for _, c := range containers {
		w.ply("run", "-d", "--name", c, "--network", "base", "busybox", "sleep", "3600")
	}
	const rounds, span = 12, 4 * time.Second
	for round := range rounds {
		ctx, cancel := context.WithCancel(t.Context())
		var clients sync.WaitGroup
		for range 16 {
			clients.Go(func() {
				for ctx.Err() == nil {
					n, c := rand.IntN(3), containers[rand.IntN(len(containers))]
					network := fmt.Sprintf("n%d", n)
					args := [][]string{
						{"create", "--subnet", fmt.Sprintf("10.9%d.0.0/24", n+1), network}, {"rm", network}, {"prune", "-f"},
						{"connect", network, c}, {"connect", network, c}, {"disconnect", network, c}, {"disconnect", "-f", network, c},
					}[rand.IntN(7)]
					cmd := exec.Command(w.program("ply"), append([]string{"network"}, args...)...)
					cmd.Env = append(os.Environ(), w.clientEnv()...)
					_ = cmd.Run() // many are refused, and plyd is killed
				}
			})
		}
		time.Sleep(span)
		w.kill9()
		cancel()
		clients.Wait()
		w.startPlyd()
		what := fmt.Sprintf("round %d", round)
		used := map[string]string{}
		for _, c := range containers {
			shown := strings.Fields(w.ply("inspect", "-f", "{{range $n, $e := .NetworkSettings.Networks}}{{$e.IPAddress}}/{{$e.IPPrefixLen}} {{end}}", c))
			have := strings.Fields(w.ply("exec", c, "sh", "-c", "ip -o -4 addr show | grep -v ' lo ' | sed 's/.*inet //; s/ .*//'"))
			slices.Sort(shown)
			slices.Sort(have)
			if !slices.Equal(shown, have) {
				t.Fatalf("%s: inspect of %s shows %q, the container has %q\n%s", what, c, shown, have, w.tail())
			}
			for _, a := range shown {
				if other := used[a]; other != "" {
					t.Errorf("%s: %s and %s have %s", what, other, c, a)
				}
				used[a] = c
			}
			names := strings.Fields(w.ply("inspect", "-f", "{{range $n, $e := .NetworkSettings.Networks}}{{$n}}={{$e.IPAddress}} {{end}}", c))
			for _, n := range names {
				network, addr, _ := strings.Cut(n, "=")
				if got := w.ply("exec", c, "sh", "-c", "nslookup "+c+"."+network+" | sed -n 's/^Address: //p'"); strings.TrimSpace(got) != addr {
					t.Errorf("%s: %s.%s is %q, want %s", what, c, network, got, addr)
				}
			}
		}
	}
	w.ply(append([]string{"rm", "-f"}, containers...)...)
	w.ply("network", "prune", "-f")
	until(t, func() bool { return hostNetwork(t) == before }, func() string {
		return "left on the host:\n" + hostNetwork(t) + "\nbefore:\n" + before + "\n" + w.tail()
	})
}

// hostNetwork returns the interfaces of the host and the elements of what ply has in its packet filter.
func hostNetwork(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", `ip -o link | cut -d: -f2; nft list ruleset | grep -E 'elements|10\.9[0-9]\.|br-|veth' || true`).CombinedOutput()
	if err != nil {
		t.Fatal(err, string(out))
	}
	return string(out)
}
