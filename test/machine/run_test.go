package machine

import (
	"strings"
	"testing"
)

// The units start ply at once, on the first connection and at boot, and what runs outlives every restart of plyd.
func TestUnits(t *testing.T) {
	m := boot(t)
	m.sh("systemd-analyze verify /usr/local/lib/systemd/system/ply.service /usr/local/lib/systemd/system/ply.socket /usr/local/lib/systemd/system/ply-registry.service")
	m.want("active\nactive", "systemctl is-active ply.service ply.socket")
	m.want("overlay2 2", "ply info -f '{{.Driver}} {{.CgroupVersion}}'")

	m.sh(`ply run -d --name web -p 8080:80 busybox sh -c 'mkdir /www; echo served >/www/index.html; httpd -p 80 -h /www; while :; do date; sleep 1; done'`)
	pid := strings.TrimSpace(m.sh("ply inspect -f '{{.State.Pid}}' web"))
	for _, disturb := range []string{
		"systemctl daemon-reload",
		"systemctl restart ply",
		"systemctl daemon-reexec",
		`kill -9 $(systemctl show -p MainPID --value ply); while [ "$(systemctl is-active ply)" != active ]; do sleep 0.2; done`,
		"install -m 755 -t /usr/local/bin " + bin + "/ply*; systemctl restart ply",
		"systemctl stop ply ply.socket; systemctl start ply.socket",
	} {
		m.sh(disturb)
		m.want("served", "curl -sf --retry 5 --retry-connrefused http://127.0.0.1:8080/")
		m.want(pid, "ply inspect -f '{{.State.Pid}}' web")
		m.want("1 /"+"ply", `d=$(cut -d: -f3 /proc/`+pid+`/cgroup); echo $(wc -l </proc/`+pid+`/cgroup) ${d%/*}`)
	}
	m.want("active", "systemctl is-active ply") // started by the connection of inspect

	out := m.sh("ply system status; ply system stop; ply system status || [ $? = 3 ]; ply system start; ply version >/dev/null; ply system status; ply system logs")
	for _, want := range []string{"Unit:       ply.service", "Log:        journal", "plyd is up"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
}
