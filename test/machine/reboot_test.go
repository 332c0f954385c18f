package machine

import (
	"strings"
	"testing"
)

// A reboot stops containers with their own signals, while their volumes are there, and starts those again whose policy says so.
func TestReboot(t *testing.T) {
	m := boot(t)
	m.sh(`
ply run -d --name always --restart always --stop-signal USR1 -v kept:/v busybox sh -c 'trap "echo got USR1 >>/v/log; exit 0" USR1; echo began >>/v/log; while :; do sleep 0.2; done'
ply run -d --name deaf --restart unless-stopped --stop-timeout 3 busybox sh -c 'trap "" TERM; while :; do sleep 1; done'
ply run -d --name web --restart on-failure -p 8080:80 busybox sh -c 'mkdir /www; echo served >/www/index.html; exec httpd -f -p 80 -h /www'
ply run -d --name halted --restart unless-stopped busybox sleep 1000000
ply stop -t 0 halted
ply run -d --name once busybox sleep 1000000`)
	// systemd alone would wait 90 seconds for the deaf one. A boot takes about one minute without KVM.
	took := m.reboot()
	t.Logf("down and up again in %v", took)
	m.sh(`for i in $(seq 100); do [ "$(ply ps -q | wc -l)" = 3 ] && break; sleep 0.5; done`)
	m.want("always\ndeaf\nweb", "ply ps --format '{{.Names}}' | sort")
	m.want("began\ngot USR1\nbegan", "cat /var/lib/ply/volumes/kept/_data/log")
	m.want("served", "curl -sf --retry 20 --retry-connrefused --retry-delay 1 http://127.0.0.1:8080/")
	m.want("exited 137", "ply inspect -f '{{.State.Status}} {{.State.ExitCode}}' once")
	m.want("Everything agrees.", "ply system check | tail -n 1")
	if log := m.sh("journalctl -u ply -b -1 --no-pager"); !strings.Contains(log, "containers-run-on=false") {
		t.Errorf("plyd kept the containers at the shutdown:\n%s", log)
	}
	if out := m.sh("journalctl -b -p err --no-pager -u ply -q"); strings.TrimSpace(out) != "" {
		t.Errorf("errors of this boot:\n%s", out)
	}
}
