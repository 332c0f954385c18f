package changes

import (
	"context"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ply/test/private"
)

// The tests change the network of the host, so they run in a namespace of their own.
func TestMain(m *testing.M) { private.Main(m, nil) }

func TestWatch(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	got, ready, done := make(chan Change, 100), make(chan bool), make(chan error)
	go func() { done <- Watch(ctx, func() { close(ready) }, func(c Change) { got <- c }) }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	for _, c := range []struct {
		command string
		want    Change
	}{
		{"ip link add ctest0 type bridge; ip addr add 10.1.0.1/24 dev ctest0; ip link set ctest0 up; ip addr flush dev ctest0", Change{Changed: "ctest0"}},
		{"ip link set ctest0 down", Change{Changed: "ctest0"}},
		{"ip link del ctest0", Change{Removed: "ctest0"}},
		{"nft add table inet ctest; nft flush ruleset", Change{Table: "inet ctest"}},
		{"nft 'table ip ctest { chain c { accept; }; }'; nft flush table ip ctest; nft delete table ip ctest", Change{Table: "ip ctest"}},
		{"nft 'table ip ctest { chain c { type filter hook forward priority 0; policy accept; }; }'", Change{Grown: "ip ctest"}},
		{"nft 'table ip ctest { chain c { type filter hook forward priority 0; policy drop; }; }'", Change{Grown: "ip ctest"}},
		{"nft add rule ip ctest c accept", Change{Grown: "ip ctest"}},
		{"nft delete table ip ctest", Change{Table: "ip ctest"}},
	} {
		if out, err := exec.Command("sh", "-c", c.command).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", c.command, err, out)
		}
		limit := time.After(time.Minute)
		for found := false; !found; {
			select {
			case g := <-got:
				found = g == c.want
			case <-limit:
				t.Fatalf("%s: no report %+v", c.command, c.want)
			}
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Watch = %v after the end of its context", err)
	}
}

// Announcements that are cut off are ignored.
func TestTruncatedMessages(t *testing.T) {
	whole := append(make([]byte, unix.SizeofIfInfomsg), 9, 0, byte(unix.IFLA_IFNAME), 0, 'a', 'b', 'c', 'd', 0, 0, 0, 0)
	for n := range len(whole) + 1 {
		m := syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: unix.RTM_DELLINK}, Data: whole[:n]}
		c, ok := ofLink(m)
		if complete := n >= unix.SizeofIfInfomsg+9; ok != complete || complete && c.Removed != "abcd" {
			t.Errorf("%d bytes: %+v, %v", n, c, ok)
		}
		m.Header.Type = unix.RTM_NEWLINK
		ofLink(m)
		m.Header.Type = unix.RTM_DELADDR
		ofLink(m)
		m.Header.Type = nftDelTable
		ofTable(m)
	}
}
