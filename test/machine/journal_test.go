package machine

import (
	"strings"
	"testing"
)

// What a container prints is in the real journal, with the fields that docker's users ask for.
func TestJournal(t *testing.T) {
	m := boot(t)
	m.sh(`ply run --name talker --log-driver journald --log-opt tag=told busybox sh -c 'echo good; echo bad >&2; printf "%5000s\n" long'`)
	m.sh(`for i in $(seq 50); do [ "$(journalctl -q CONTAINER_NAME=talker -o cat | grep -c .)" -ge 3 ] && break; sleep 0.2; done`)
	m.want("3 bad told\n6 good told", `journalctl -q --all CONTAINER_NAME=talker -o json | python3 -c '
import json, sys
for line in sys.stdin:
    e = json.loads(line)
    if len(e["MESSAGE"]) < 100: print(e["PRIORITY"], e["MESSAGE"], e["CONTAINER_TAG"])' | sort`)
	m.want("bad\ngood", "ply logs talker 2>&1 | grep -x 'good\\|bad' | sort")
	m.want("good", "journalctl -q -o cat CONTAINER_ID_FULL=$(ply inspect -f '{{.Id}}' talker) PRIORITY=6 | sed -n 1p")
	// journald away for a while: the container does not wait for it.
	m.sh(`
ply run -d --name chatty --log-driver journald busybox sh -c 'i=0; while :; do i=$((i+1)); echo line $i; sleep 0.1; done'
systemctl restart systemd-journald
sleep 2
n=$(journalctl -q CONTAINER_NAME=chatty -o cat | wc -l); sleep 2
[ "$(journalctl -q CONTAINER_NAME=chatty -o cat | wc -l)" -gt "$n" ]`)
}

// The registry runs under its unit, as a user that can do little, and outlives a restart.
func TestRegistryUnit(t *testing.T) {
	m := boot(t)
	m.sh("systemd-sysusers; systemctl enable -q --now ply-registry")
	m.sh(`
for i in $(seq 50); do curl -sf http://127.0.0.1:5000/v2/ >/dev/null && break; sleep 0.2; done
ply tag busybox 127.0.0.1:5000/some/box
ply push 127.0.0.1:5000/some/box
ply rmi -f 127.0.0.1:5000/some/box busybox
systemctl restart ply-registry
for i in $(seq 50); do curl -sf http://127.0.0.1:5000/v2/ >/dev/null && break; sleep 0.2; done
ply run --rm 127.0.0.1:5000/some/box true`)
	m.want("ply-registry", "ps -o user:20= -p $(systemctl show -p MainPID --value ply-registry)")
	out := strings.Fields(m.sh("systemd-analyze security --no-pager ply-registry | awk '/Overall/{print $(NF-2)}'"))
	if len(out) == 0 || !strings.HasPrefix(out[0], "1.") {
		t.Errorf("exposure of ply-registry.service: %v, want below 2", out)
	}
}
