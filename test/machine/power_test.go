package machine

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// worker runs, commits, builds, pushes and removes for ever. It prints a line after each command that was acknowledged; $1 is the first number.
const worker = `
exec 2>&1
mkdir -p /root/context
i=$1
while :; do
	ply run --name run$i busybox sh -c "echo $i >/f; echo said $i" >/dev/null
	echo "ack run $i"
	ply commit run$i commit:$i >/dev/null
	echo "ack commit $i"
	ply run --rm -v vol$i:/v busybox sh -c "echo $i >/v/f; sync"
	echo "ack volume $i"
	printf 'FROM busybox\nRUN echo %s >/b\n' $i | ply build -q -t build:$i - >/dev/null
	echo "ack build $i"
	ply tag commit:$i 127.0.0.1:5000/pushed:$i
	ply push -q 127.0.0.1:5000/pushed:$i >/dev/null
	echo "ack push $i"
	ply rm run$i >/dev/null
	echo "ack rm $i"
	i=$((i+1))
done`

// TestPowerCuts cuts the power of a machine while clients use ply. After each boot everything that was acknowledged is there, what was
// removed is gone, and an examination finds nothing. test/crash does it far more often with a machine of namespaces; here the kernel, the disk cache of
// a virtual disk and systemd are real.
func TestPowerCuts(t *testing.T) {
	m := boot(t)
	m.sh(`
systemd-sysusers
systemctl enable -q --now ply-registry
ply run -d --name always --restart always busybox sleep 1000000
sync`)
	acks := map[string]bool{} // "run 3"
	next := 1
	for range *cuts {
		next = m.work(acks, next, time.Duration(rand.IntN(20_000))*time.Millisecond)
		m.start()
		m.mountShares()
		m.verify(acks)
		if t.Failed() {
			break
		}
		next += 2
	}
	count := map[string]int{}
	for ack := range acks {
		what, _, _ := strings.Cut(ack, " ")
		count[what]++
	}
	t.Logf("%d cuts; acknowledged: %v", *cuts, count)
	if count["push"] == 0 || count["rm"] == 0 {
		t.Error("the machine did not get to every kind of work")
	}
}

// work runs the worker, and cuts the power a while after its first round. It returns the number that the next worker may begin with.
func (m *machine) work(acks map[string]bool, first int, while time.Duration) (next int) {
	m.t.Helper()
	r, w := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := m.stream(fmt.Sprintf("set -- %d\n%s", first, worker), w)
		w.Close()
		ended <- err
	}()
	next = first
	lines := bufio.NewScanner(r)
	var other []string
	var killed atomic.Bool
	for begun := false; lines.Scan(); {
		ack, ok := strings.CutPrefix(lines.Text(), "ack ")
		if !ok {
			other = append(other, lines.Text())
			continue
		}
		acks[ack] = true
		if what, number, _ := strings.Cut(ack, " "); what == "run" {
			fmt.Sscan(number, &next)
		}
		if strings.HasPrefix(ack, "rm ") && !begun {
			begun = true
			qemu := m.qemu
			time.AfterFunc(while, func() {
				killed.Store(true)
				_ = qemu.Process.Kill() // it may have ended
			})
		}
	}
	m.cut()
	if <-ended; !killed.Load() {
		m.t.Fatalf("the worker ended by itself:\n%s", strings.Join(other, "\n"))
	}
	return next
}

// verify compares the machine with what was acknowledged.
func (m *machine) verify(acks map[string]bool) {
	m.t.Helper()
	var script strings.Builder
	script.WriteString("set +e\nfor i in $(seq 100); do [ \"$(systemctl is-active ply ply-registry | sort -u)\" = active ] && ply version >/dev/null 2>&1 && break; sleep 0.5; done\n")
	check := func(what, want, command string) {
		fmt.Fprintf(&script, "got=$(%s 2>&1) ; [ \"$got\" = '%s' ] || echo \"LOST %s: $got\"\n", command, want, what)
	}
	for ack := range acks {
		what, i, _ := strings.Cut(ack, " ")
		switch what {
		case "run":
			if acks["rm "+i] {
				check(ack+", removed", "", "ply ps -aq --filter name=^run"+i+"$")
			} else {
				check(ack, "exited 0 said "+i, "echo $(ply inspect -f '{{.State.Status}} {{.State.ExitCode}}' run"+i+"; ply logs run"+i+")")
			}
		case "commit":
			check(ack, i, "ply run --rm commit:"+i+" cat /f")
		case "volume":
			check(ack, i, "cat /var/lib/ply/volumes/vol"+i+"/_data/f")
		case "build":
			check(ack, i, "ply run --rm build:"+i+" cat /b")
		case "push":
			check(ack, i, "ply rmi -f 127.0.0.1:5000/pushed:"+i+" >/dev/null; ply run --rm 127.0.0.1:5000/pushed:"+i+" cat /f | tail -n 1")
		}
	}
	check("restart policy", "running", "for i in $(seq 50); do s=$(ply inspect -f '{{.State.Status}}' always); [ \"$s\" = running ] && break; sleep 0.2; done; echo $s")
	check("examination", "Everything agrees.", "ply system check | tail -n 1")
	out, err := m.try(script.String())
	if err != nil || regexp.MustCompile(`(?m)^LOST`).MatchString(out) {
		m.t.Errorf("after a cut: %v\n%s\n%s", err, out, m.log())
	}
}

// stream runs a script in the machine until its connection ends, and writes what it prints.
func (m *machine) stream(script string, w io.Writer) error {
	ssh := exec.CommandContext(m.t.Context(), "ssh", m.sshArgs()...)
	ssh.Stdin = strings.NewReader(scriptHead + script + "\n")
	ssh.Stdout = w
	return ssh.Run()
}
