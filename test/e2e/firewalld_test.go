package e2e

import (
	"slices"
	"strings"
	"testing"
	"time"

	"ply/internal/network/firewalld/firewalldtest"
)

// plyd tells firewalld about its bridges: when a network is first used, when plyd or firewalld starts again, and when it ends.
func TestFirewalldKnowsTheBridges(t *testing.T) {
	h := firewalldtest.New(t)
	h.Start()
	w := prepareWorld(t)
	w.env = []string{"DBUS_SYSTEM_BUS_ADDRESS=" + h.Address}
	w.startPlyd()
	w.busybox()
	w.ply("network", "create", "-o", "com.docker.network.bridge.name=plyfw0", "--subnet", "10.90.0.0/24", "n")
	zone := func(when string, want ...string) {
		t.Helper()
		slices.Sort(want)
		var got []string
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
			got = strings.Fields(h.Command("--zone=ply", "--list-interfaces"))
			slices.Sort(got)
			if slices.Equal(got, want) {
				return
			}
		}
		t.Errorf("%s: the zone has %q, want %q\n%s", when, got, want, w.tail())
	}
	w.ply("run", "-d", "--name", "web", "--network", "n", "-p", "18250:80", "busybox", "httpd", "-f", "-h", "/var/data")
	w.ply("run", "--rm", "busybox", "true")
	zone("networks are used", "plyfw0", w.bridge)
	// The host is a network of another zone; the first packet of a container is not rejected.
	w.ply("run", "--rm", "--network", "n", "busybox", "wget", "-q", "-O", "/dev/null", "http://10.90.0.1:18250/seed")
	w.kill9()
	h.Stop()
	h.Start()
	w.startPlyd()
	zone("after plyd and firewalld started again", "plyfw0")
	w.ply("run", "--rm", "--network", "n", "busybox", "wget", "-q", "-O", "/dev/null", "http://10.90.0.1:18250/seed")
	w.ply("rm", "-f", "web")
	w.ply("network", "rm", "n")
	zone("the network is removed")
	w.ply("run", "--rm", "busybox", "true")
	zone("the default network is used again", w.bridge)
	w.stopPlyd()
	zone("plyd has ended")
}
