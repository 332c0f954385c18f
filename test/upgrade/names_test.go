package upgrade

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A container looks up names of its network without a pause while plyd is stopped or killed and another one takes over: every look-up is answered, also of names that
// came with the later plyd.
func TestNamesWhilePlydIsReplaced(t *testing.T) {
	m := newMachine(t, filepath.Join(mustMkdirTemp(t), "data"), "erofs")
	m.start(bin)
	m.ply("import", "-c", `CMD ["sh"]`, makeBusybox(t), "busybox")
	m.ply("network", "create", "--subnet", "10.97.0.0/24", "lan")
	m.ply("run", "-d", "--name", "db", "--network", "lan", "--network-alias", "store", "busybox", "sleep", "1000")
	m.ply("run", "-d", "--name", "asking", "--network", "lan", "busybox", "sh", "-c",
		`while :; do for n in db store; do a=$(nslookup $n 2>&1); case "$a" in *"Address: 10.97.0.2"*) echo found;; *) echo "lost $n: $a";; esac; done; sleep 0.01; done`)
	found := func() int { return strings.Count(m.ply("logs", "asking"), "found") }
	m.eventually("first look-ups", func() bool { return found() >= 10 })
	for i, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL, syscall.SIGTERM, syscall.SIGKILL} {
		before := found()
		m.stop(sig)
		m.start(bin)
		late := fmt.Sprintf("late%d", i)
		m.ply("run", "-d", "--name", late, "--network", "lan", "busybox", "sleep", "1000")
		if out := m.ply("exec", "asking", "nslookup", late); !strings.Contains(out, "Address: 10.97.0.") {
			t.Errorf("%s: %s", late, out)
		}
		m.eventually("further look-ups", func() bool { return found() >= before+10 })
	}
	if log := m.ply("logs", "asking"); strings.Contains(log, "lost") {
		t.Errorf("failed look-ups:\n%s", log[max(0, strings.Index(log, "lost")-100):])
	}
	m.ply("rm", "-f", "asking", "db", "late0", "late1", "late2", "late3")
	m.ply("network", "rm", "lan")
}
