package machine

import (
	"strings"
	"testing"
)

// Limits are in force on cgroup v2 in the tree of systemd, and stay so when systemd loads its units again.
func TestLimits(t *testing.T) {
	m := boot(t)
	m.want("2", "ply info -f '{{.CgroupVersion}}'")
	m.want("", "ply info -f '{{range .Warnings}}{{println .}}{{end}}'")
	m.sh(`ply run -d --name busy --memory 64m --cpus 0.5 --pids-limit 50 --cpuset-cpus 1 --memory-reservation 32m --cpu-shares 512 --device-read-bps /dev/vda:1mb --device-write-iops /dev/vda:100 busybox sleep 1000000`)
	group := "/sys/fs/cgroup" + strings.TrimSpace(m.sh(`cut -d: -f3 /proc/$(ply inspect -f '{{.State.Pid}}' busy)/cgroup`))
	files := "cd " + group + "; cat memory.max memory.swap.max memory.low cpu.max cpu.weight pids.max cpuset.cpus io.max"
	const first = "67108864\n67108864\n33554432\n50000 100000\n59\n50\n1\n254:0 rbps=1048576 wbps=max riops=max wiops=100"
	m.want(first, files)
	m.want(first, "systemctl daemon-reload; systemctl restart ply; "+files)
	m.sh(`ply update --memory 96m --memory-swap 128m --cpus 1.5 --pids-limit 77 --cpuset-cpus 0 --blkio-weight 300 busy`)
	m.want("100663296\n33554432\n33554432\n150000 100000\n59\n77\n0\n254:0 rbps=1048576 wbps=max riops=max wiops=100", files)
	m.want("96MiB 1", `ply stats --no-stream --format '{{.MemUsage}} {{.PIDs}}' busy | sed 's/.* \/ //'`)
	m.want("sleep 1000000", "ply top busy -o pid,args | tail -n 1 | sed 's/^ *[0-9]* *//'")

	m.want("1", "ply pause busy >/dev/null; cat "+group+"/cgroup.freeze")
	m.want("paused", "systemctl restart ply; ply inspect -f '{{.State.Status}}' busy")
	m.want("0", "ply unpause busy >/dev/null; cat "+group+"/cgroup.freeze")

	m.want("true 137", `ply run --name hungry --memory 16m --memory-swap 16m busybox tail /dev/zero >/dev/null 2>&1 || ply inspect -f '{{.State.OOMKilled}} {{.State.ExitCode}}' hungry`)
	m.want("active", "systemctl is-active ply") // a killed process of a container is none of the unit's

	m.want("0::/", "ply run --rm busybox cat /proc/self/cgroup")
	m.want("0::/some.slice/ID", "ply run --rm --cgroupns host --cgroup-parent some.slice busybox cat /proc/self/cgroup | sed -E 's/[0-9a-f]{64}/ID/'")
	m.want("0::/up/per/ID", "ply run --rm --cgroupns host --cgroup-parent /up/per busybox cat /proc/self/cgroup | sed -E 's/[0-9a-f]{64}/ID/'")
	// A program that manages cgroups of its own, such as systemd, can do so where it is allowed to.
	m.sh("ply run --rm --privileged busybox sh -c 'mkdir /sys/fs/cgroup/mine && echo $$ >/sys/fs/cgroup/mine/cgroup.procs'")
	m.sh("! ply run --rm busybox mkdir /sys/fs/cgroup/mine")

	m.sh("ply rm -f busy hungry")
	m.want("", "find /sys/fs/cgroup -type d -regextype posix-extended -regex '.*/[0-9a-f]{64}'")
}

// What ends because of memory in the cgroup of the unit does not end plyd.
func TestUnitOutOfMemory(t *testing.T) {
	m := boot(t)
	m.sh("ply run -d --name on busybox sleep 1000000")
	m.want("on", `
d=/sys/fs/cgroup$(systemctl show -p ControlGroup --value ply)
main=$(systemctl show -p MainPID --value ply)
echo 300M >$d/memory.max
echo 0 >$d/memory.swap.max
{ (echo $BASHPID >$d/cgroup.procs; echo 1000 >/proc/self/oom_score_adj; exec tail /dev/zero) && exit 1; } 2>/dev/null # bash says that it was killed
echo max >$d/memory.max
sleep 2
[ "$main" = "$(systemctl show -p MainPID --value ply)" ]
ply ps --format '{{.Names}}'`)
}
