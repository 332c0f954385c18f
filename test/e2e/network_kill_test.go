package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// plyd is killed at any moment while containers are connected to networks and taken out of them. What inspect says afterwards is what the containers have, another
// container gets other addresses and finds them by their names, and in the end nothing is left.
func TestKilledWhileConnecting(t *testing.T) {
	w := newWorld(t)
	w.busybox()
	for i, n := range []string{"a", "b", "c"} {
		w.ply("network", "create", "--subnet", fmt.Sprintf("10.9%d.0.0/24", i), n)
	}
	w.ply("run", "-d", "--name", "web", "--network", "b", "-p", "127.0.0.1:18240:80", "busybox", "httpd", "-f", "-h", "/var/data")
	rounds := 6
	if os.Getenv("PLY_NIGHTLY") != "" {
		rounds = 100
	}
	for i := range rounds {
		changes := [][]string{{"connect", "a"}, {"disconnect", "b"}, {"connect", "c"}, {"disconnect", "a"}, {"connect", "b"}, {"disconnect", "c"}}
		change := changes[i%len(changes)]
		c := exec.Command(w.program("ply"), "network", change[0], change[1], "web")
		c.Env = append(os.Environ(), w.clientEnv()...)
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.IntN(40)) * time.Millisecond)
		w.kill9()
		_ = c.Wait() // the change was made, or was not
		w.startPlyd()
		what := fmt.Sprintf("round %d, killed in %s %s", i, change[0], change[1])
		shown := strings.Fields(w.ply("inspect", "-f", "{{range $n, $e := .NetworkSettings.Networks}}{{$e.IPAddress}}/{{$e.IPPrefixLen}} {{end}}", "web"))
		have := strings.Fields(w.ply("exec", "web", "sh", "-c", "ip -o -4 addr show | grep -v ' lo ' | sed 's/.*inet //; s/ .*//'"))
		slices.Sort(shown)
		slices.Sort(have)
		if !slices.Equal(shown, have) {
			t.Fatalf("%s: inspect shows %q, the container has %q\n%s", what, shown, have, w.tail())
		}
		out := w.ply("run", "--rm", "--network", "a", "busybox", "sh", "-c", "ip -o -4 addr show eth0 | sed 's/.*inet //; s/ .*//'; nslookup web | sed -n 's/^Address: //p'")
		got := strings.Fields(out)
		in := strings.HasPrefix(strings.Join(shown, " "), "10.90.")
		if slices.Contains(shown, got[0]) || in != (len(got) == 2) || in && got[1]+"/24" != shown[0] {
			t.Fatalf("%s: web has %q, another container %q and finds %q", what, shown, got[0], got[1:])
		}
		if len(shown) > 0 {
			if err := exec.Command("curl", "-sf", "-m", "20", "http://127.0.0.1:18240/seed").Run(); err != nil {
				t.Fatalf("%s: the published port: %v", what, err)
			}
		}
	}
	w.ply("rm", "-f", "web")
	w.ply("network", "rm", "a", "b", "c")
}
