package machine

import (
	"strings"
	"testing"
)

// Containers on the networks whose interfaces belong to one of the host's reach each other, and reach nothing where the mode says so. The host's
// kernel needs modules for them that not every machine has.
func TestVLANs(t *testing.T) {
	m := boot(t)
	m.sh("ip link add par0 type dummy && ip link set par0 up")
	for _, c := range []struct{ driver, mode, received string }{
		{"ipvlan", "l2", "2"}, {"ipvlan", "l3", "2"}, {"ipvlan", "l3s", "2"}, {"macvlan", "bridge", "2"}, {"macvlan", "private", "0"},
	} {
		t.Run(c.driver+" "+c.mode, func(t *testing.T) {
			m := m.in(t)
			m.sh(strings.NewReplacer("DRIVER", c.driver, "MODE", c.mode).Replace(`
ply network create -d DRIVER -o parent=par0 -o DRIVER_mode=MODE --subnet 10.77.0.0/24 side
ply run -d --name first --network side --ip 10.77.0.2 busybox sleep 1000000
ply run -d --name second --network side --ip 10.77.0.3 busybox sleep 1000000`))
			m.want(c.received, `{ ply exec first ping -c 2 -W 3 10.77.0.3 || :; } | sed -n 's/.* \([0-9]*\) packets received.*/\1/p'`)
			m.want("10.77.0.3", `ply exec first nslookup second | sed -n 's/^Address: \(10.*\)/\1/p'`)
			m.sh("ply rm -f first second; ply network rm side")
		})
	}
	m.sh("ply network create -d macvlan -o parent=par0.10 --subnet 10.78.0.0/24 tagged")
	m.want("802.1Q id 10", `ip -d link show par0.10 | grep -o '802.1Q id 10'`)
	m.want("10.78.0.2/24", "ply run --rm --network tagged busybox ip -o addr show eth0 | awk '{print $4}'")
	m.sh("ply network rm tagged")
	m.want("par0", "ls /sys/class/net | grep par0")
}

// Published ports carry SCTP, and UDP, from the machine itself and from its address.
func TestPublishedSCTP(t *testing.T) {
	m := boot(t)
	m.sh(`
modprobe sctp
cat >/root/server.py <<'END'
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP)
s.bind(("0.0.0.0", 9999))
s.listen(5)
while True:
    c, _ = s.accept()
    c.sendall(b"heard " + c.recv(100))
    c.close()
END
cat >/root/client.py <<'END'
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP)
s.settimeout(30)
s.connect((sys.argv[1], 9999))
s.sendall(b"me")
print(s.recv(100).decode())
END
ply run -d --name server -p 9999:9999/sctp busybox sleep 1000000
nohup nsenter -t $(ply inspect -f '{{.State.Pid}}' server) -n python3 /root/server.py >/root/server.log 2>&1 </dev/null &
for i in $(seq 100); do nsenter -t $(ply inspect -f '{{.State.Pid}}' server) -n grep -q 9999 /proc/net/sctp/eps && break; sleep 0.2; done`)
	m.want("heard me", "python3 /root/client.py $(ip -4 -o route get 1.1.1.1 | sed 's/.* src \\([0-9.]*\\).*/\\1/')")
	m.want("heard me", "python3 /root/client.py 127.0.0.1")
}
