package e2e

import (
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// effect shows what a flag does: two shell scripts, with the flag and without it, and regular expressions for all that they print
// on both streams, with blanks in place of newlines. $d is the client. A flag without an effect here has an error that names it.
type effect struct {
	with, want       string
	without, wantNot string
}

// inside runs a script in a container.
func flagInside(flags, script, want, wantNot string) effect {
	run := func(flags string) string { return fmt.Sprintf("$d run --rm %s busybox sh -c '%s'", flags, script) }
	return effect{run(flags), want, run(""), wantNot}
}

// flagShown looks at a field of a container's description.
func flagShown(flags, format, want, wantNot string) effect {
	run := func(flags string) string {
		return fmt.Sprintf("$d create --name shown %s busybox true >/dev/null; $d inspect -f '%s' shown; $d rm shown >/dev/null", flags, format)
	}
	return effect{run(flags), want, run(""), wantNot}
}

// flagRefused is a flag of run that is refused.
func flagRefused(flags, want string) effect {
	return flagInside(flags, "echo ran", ".*"+want+".*", "ran")
}

// cgroupFile prints a file of the container's own cgroup, by its name in cgroup v1 and v2.
func cgroupFile(controller, v1, v2 string) string {
	return fmt.Sprintf("cat /sys/fs/cgroup/%s/%s 2>/dev/null || cat /sys/fs/cgroup/%s", controller, v1, v2)
}

// windows is docker's client's answer to flags of Windows, and that of ply, which does not have them.
const windows = `(only supported on a Docker daemon running on windows|unknown flag)`

// clusterOnly is the answer to flags of swarm.
const clusterOnly = `(ClusterVolumeSpec is not supported|unknown flag)`

// sameNamespace prints whether a container has the host's namespace.
func sameNamespace(flags, kind, own string) effect {
	run := func(flags string) string {
		return fmt.Sprintf(`id=$($d run -d --stop-signal KILL %s busybox sleep 60); [ "$(readlink /proc/$($d inspect -f '{{.State.Pid}}' $id)/ns/%s)" = "$(readlink /proc/self/ns/%s)" ] && echo host || echo own; $d rm -f $id >/dev/null`, flags, kind, kind)
	}
	other := map[string]string{"host": "own", "own": "host"}
	return effect{run(flags), own, run(""), other[own]}
}

// runEffects are the flags of run and create that no story uses.
func runEffects() map[string]effect {
	cgroupns := sameNamespace("--cgroupns private", "cgroup", "own")
	if cgroupV2() {
		cgroupns = sameNamespace("--cgroupns host", "cgroup", "host")
	}
	effects := map[string]effect{
		"annotation":            flagShown("--annotation com.example.a=b", "{{.HostConfig.Annotations}}", `map\[com.example.a:b\]`, `map\[\]|.*no entry.*`),
		"cgroup-parent":         flagInside("--cgroupns host --cgroup-parent /flags", "cat /proc/self/cgroup", `.*/flags/.*`, `(.*/ply/.*|.*:/( .*|$))`),
		"cgroupns":              cgroupns,
		"cpu-count":             flagRefused("--cpu-count 1", windows),
		"cpu-percent":           flagRefused("--cpu-percent 10", windows),
		"io-maxbandwidth":       flagRefused("--io-maxbandwidth 1m", windows),
		"io-maxiops":            flagRefused("--io-maxiops 10", windows),
		"isolation":             flagRefused("--isolation hyperv", "Isolation hyperv is not supported"),
		"cpu-period":            flagInside("--cpu-period 54321", cgroupFile("cpu", "cpu.cfs_period_us", "cpu.max"), `(max )?54321`, `(max )?100000`),
		"cpu-quota":             flagInside("--cpu-quota 43210", cgroupFile("cpu", "cpu.cfs_quota_us", "cpu.max"), `43210( 100000)?`, `(-1|max 100000)`),
		"cpuset-cpus":           flagInside("--cpuset-cpus 0", "grep Cpus_allowed_list /proc/self/status | cut -f 2", `0`, `0.*`),
		"cpuset-mems":           flagShown("--cpuset-mems 0", "{{.HostConfig.CpusetMems}}", `0`, ``),
		"device-cgroup-rule":    flagInside(`--device-cgroup-rule "c 10:229 rwm"`, "mknod /root/t c 10 229; : <>/root/t", `(|.*(No such device|nonexistent directory).*)`, `.*(Operation not permitted|can.t (create|open)).*`),
		"disable-content-trust": {"$d run --rm --disable-content-trust=false busybox echo ran", `.*(notary|Notary|trust).*`, "$d run --rm --disable-content-trust=true busybox echo ran", `ran`},
		"gpus":                  flagRefused("--gpus all", `could not select device driver "" with capabilities: ..gpu..`),
		"health-start-interval": flagShown("--health-cmd true --health-start-interval 3s", "{{with .Config.Healthcheck}}{{.StartInterval}}{{end}}", `3s|3000000000`, `|.*no entry.*`),
		"health-start-period":   flagShown("--health-cmd true --health-start-period 4s", "{{with .Config.Healthcheck}}{{.StartPeriod}}{{end}}", `4s|4000000000`, `|.*no entry.*`),
		"health-timeout":        flagShown("--health-cmd true --health-timeout 5s", "{{with .Config.Healthcheck}}{{.Timeout}}{{end}}", `5s|5000000000`, `|.*no entry.*`),
		"no-healthcheck":        {"$d create --name shown --no-healthcheck checked true >/dev/null; $d inspect -f '{{.Config.Healthcheck.Test}}' shown; $d rm shown >/dev/null", `\[NONE\]`, "$d create --name shown checked true >/dev/null; $d inspect -f '{{.Config.Healthcheck.Test}}' shown; $d rm shown >/dev/null", `\[CMD-SHELL true\]`},
		"ip":                    flagInside("--ip 172.17.9.99", "echo ran", `.*IP address is supported on user defined networks only.*|ran`, "ran"), // the client of 20.10 does not send it,
		"ip6":                   flagInside("--ip6 fd00::9", "echo ran", `.*IP address is supported on user defined networks only.*|ran`, "ran"),    // see ip,
		"link-local-ip":         flagInside("--link-local-ip 169.254.1.1", "ip -4 -o addr show eth0 | grep -c 169.254.1.1", `1|0`, `0`),
		"network-alias":         flagRefused("--network-alias other", "network-scoped alias(es are| is) .*supported"),
		"kernel-memory":         flagShown("--kernel-memory 50m", "{{.HostConfig.KernelMemory}}", `(0|52428800|<no value>|.*discarded.*|.*map has no entry for key "KernelMemory".*)`, `(0|<no value>|.*map has no entry for key "KernelMemory".*)`),
		"label-file":            flagShown("--label-file $WORK/labels", "{{.Config.Labels.from}}", `file`, `<no value>`),
		"memory-reservation":    flagShown("--memory-reservation 7m", "{{.HostConfig.MemoryReservation}}", `7340032`, `0`),
		"memory-swap":           flagShown("-m 64m --memory-swap 100m", "{{.HostConfig.MemorySwap}}", `104857600|.*without swap.* 0`, `0`),
		"memory-swappiness":     flagShown("--memory-swappiness 7", "{{.HostConfig.MemorySwappiness}}", `7|.*swappiness discarded.*`, `<nil>|<no value>|-1`),
		"oom-kill-disable":      flagShown("-m 64m --oom-kill-disable", "{{.HostConfig.OomKillDisable}}", `true|.*OomKillDisable discarded.*`, `false`),
		"oom-score-adj":         flagInside("--oom-score-adj 321", "cat /proc/1/oom_score_adj", `321`, `0`),
		"pid":                   sameNamespace("--pid host", "pid", "host"),
		"uts":                   sameNamespace("--uts host", "uts", "host"),
		"userns":                {"$d run --rm --userns bogus busybox echo ran", `.*(--userns).*`, "$d run --rm --userns host busybox echo ran", `ran`},
		"platform":              {"$d run --rm --pull never --platform linux/s390x busybox echo ran", `.*(platform|No such image).*`, "$d run --rm --pull never --platform linux/$(dpkg --print-architecture) busybox echo ran", `ran`},
		"pull":                  {"$d run --rm --pull always 192.0.2.1/absent true", `.*192\.0\.2\.1.*(unreachable|refused|no route|timeout).*`, "$d run --rm --pull never 192.0.2.1/absent true", `.*No such image: 192\.0\.2\.1/absent.*`},
		"runtime":               flagRefused("--runtime nosuch", "invalid runtime name: nosuch"),
		"storage-opt":           flagRefused("--storage-opt size=1G", "can be limited on XFS and ext4 with project quotas only"),
		"use-api-socket":        flagInside("--use-api-socket", "test -S /var/run/docker.sock && echo socket || echo none", `(socket|.*--use-api-socket is not supported.*)`, `none`),
		"volume-driver":         flagRefused("--volume-driver nosuch", "VolumeDriver nosuch is not supported"),
		"cpu-rt-period":         flagShown("--cpu-rt-period 900000", "{{.HostConfig.CpuRealtimePeriod}}", `900000|.*cpu.*real-time.*`, `0`),
		"cpu-rt-runtime":        flagShown("--cpu-rt-runtime 1000", "{{.HostConfig.CpuRealtimeRuntime}}", `1000|.*cpu.*real-time.*`, `0`),
	}
	return effects
}

// otherEffects are the flags of other commands that no story uses.
var otherEffects = map[string]map[string]effect{
	"push": {
		"progress": {"$d push --progress json $TARGET/pushed:1 | grep -c '^{'", `[1-9]\d*`, "$d push $TARGET/pushed:1 | grep -c '^{'", `0`},

		"disable-content-trust": {"$d push --disable-content-trust=false $TARGET/pushed:1", `.*(notary|Notary|trust).*`, "$d push --disable-content-trust=true $TARGET/pushed:1", `.*digest: sha256.*`},
		"platform":              {"$d push --platform linux/s390x $TARGET/pushed:1", `.*does not match the specified platform.*`, "$d push $TARGET/pushed:1", `.*digest: sha256.*`},
	},
	"logs": {
		"details": {"$d logs --details printed | tr ' ' _", `_early _late`, "$d logs printed | tr ' ' _", `early late`},
		"until":   {"$d logs --until 0s --since 1h printed; $d logs --until $($d inspect -f '{{.State.StartedAt}}' printed) printed", `early late`, "$d logs printed; $d logs printed", `early late early late`},
	},
	"stop":    {"signal": signalled("stop")},
	"restart": {"signal": signalled("restart")},
	"rmi": {
		"no-prune": {"$d tag busybox extra; $d rmi --no-prune extra; $d images -q busybox | wc -l", `Untagged: extra:latest 1`, "$d tag busybox extra; $d rmi extra; $d images -q busybox | wc -l", `Untagged: extra:latest 1`},
		"platform": {"$d tag busybox extra; $d rmi -f --platform linux/s390x extra; $d rmi -f extra >/dev/null", `.*does not match the specified platform.*`, "$d tag busybox extra; $d rmi -f extra", `Untagged: extra:latest`},
	},
	"cp": {"follow-link": {"$d cp -L printed:/bin/sh $WORK/sh 2>/dev/null >&2; test -h $WORK/sh && echo link || echo file; rm -f $WORK/sh", `file`, "$d cp printed:/bin/sh $WORK/sh 2>/dev/null >&2; test -h $WORK/sh && echo link || echo file; rm -f $WORK/sh", `link`}},
	"version": {
		"client":     {"$d version --client | grep -c ^Server", `0`, "$d version | grep -c ^Server", `1`},
		"kubeconfig": {"$d version --kubeconfig /nonexistent -f '{{.Server.Os}}'", `linux|.*unknown flag.*`, "$d version -f '{{.Server.Os}}'", `linux`}, // for a client that had Kubernetes
	},
	"import": {"progress": {"$d import --progress quiet $ROOT other | wc -l; $d rmi other >/dev/null", `0`, "$d import --progress plain $ROOT other | wc -l; $d rmi other >/dev/null", `[1-9]\d*`},
		"platform": {"$d import --platform linux/arm64 $ROOT other >/dev/null; $d inspect -f '{{.Architecture}}' other; $d rmi other >/dev/null", `arm64`, "$d import $ROOT other >/dev/null; $d inspect -f '{{.Architecture}}' other; $d rmi other >/dev/null", `$ARCH`}},
	"save": {"platform": {"$d save --platform linux/s390x -o $WORK/saved.tar busybox", `.*does not match the specified platform.*`, "$d save -o $WORK/saved.tar busybox && echo saved", `saved`}},
	"load": {"progress": {"$d save -o $WORK/l.tar busybox; $d load --progress json -i $WORK/l.tar | grep -c '^{'", `[1-9]\d*`, "$d save -o $WORK/l.tar busybox; $d load -i $WORK/l.tar | grep -c '^{'", `0`},
		"platform": {"$d save -o $WORK/l.tar busybox; $d load --platform linux/s390x -i $WORK/l.tar", `.*does not match the specified platform.*`, "$d save -o $WORK/l.tar busybox; $d load --platform linux/$ARCH -i $WORK/l.tar", `Loaded image: busybox:latest`}},
	"update": {
		"cpus":         updated("--cpus 0.5", "{{.HostConfig.NanoCpus}}", "500000000"),
		"cpu-shares":   updated("--cpu-shares 77", "{{.HostConfig.CpuShares}}", "77"),
		"blkio-weight": updated("--blkio-weight 300", "{{.HostConfig.BlkioWeight}}", "300|.*[wW]eight.*"),

		"cpu-period":         updated("--cpu-period 54321", "{{.HostConfig.CpuPeriod}}", "54321"),
		"cpu-quota":          updated("--cpu-quota 43210", "{{.HostConfig.CpuQuota}}", "43210"),
		"cpuset-cpus":        updated("--cpuset-cpus 0", "{{.HostConfig.CpusetCpus}}", "0"),
		"cpuset-mems":        updated("--cpuset-mems 0", "{{.HostConfig.CpusetMems}}", "0"),
		"memory-reservation": updated("--memory-reservation 7m", "{{.HostConfig.MemoryReservation}}", "7340032"),
		"cpu-rt-period":      updated("--cpu-rt-period 900000", "{{.HostConfig.CpuRealtimePeriod}}", "900000"),
		"cpu-rt-runtime":     updated("--cpu-rt-runtime 1000", "{{.HostConfig.CpuRealtimeRuntime}}", "1000"),
		"kernel-memory":      {"$d create --name changed busybox true >/dev/null; $d update --kernel-memory 50m changed; $d rm changed >/dev/null", `.*(discarded|unknown flag).*`, "true", ``},
	},
	"stats": {"all": {"$d stats -a --no-stream --format '{{.Name}}' | grep -c printed", `1`, "$d stats --no-stream --format '{{.Name}}' | grep -c printed", `0`},
		"no-trunc": {"$d stats --no-stream --no-trunc --format '{{.ID}}' running", `[0-9a-f]{64}`, "$d stats --no-stream --format '{{.ID}}' running", `[0-9a-f]{12}`}},
	"attach": {"detach-keys": {"$d attach --no-stdin --detach-keys nonsense running", `.*[dD]etach.?[kK]eys.*|.*Unknown character.*|.*received 400.*`, "{ timeout -s KILL 2 $d attach --no-stdin --detach-keys ctrl-x running; } 2>/dev/null", `(Killed)?`},
		"no-stdin": {attached("--no-stdin"), `(Killed)?`, attached(""), `(Killed )?typed`},
	},
	"history": {
		"human": {"$d history --human=false --format '{{.Size}}' busybox", `\d{5,}`, "$d history --format '{{.Size}}' busybox", `[\d.]+[kM]B`},
		"quiet": {"$d history -q busybox", `[0-9a-f]{12}`, "$d history busybox", `IMAGE CREATED.*`},

		"no-trunc": {"$d history -q --no-trunc busybox", `sha256:[0-9a-f]{64}`, "$d history -q busybox", `[0-9a-f]{12}`},
		"platform": {"$d history --platform linux/s390x busybox", `.*does not match the specified platform.*`, "$d history -q busybox", `[0-9a-f]{12}`},
	},
	"inspect": {
		"size": {"$d inspect --size -f '{{.SizeRootFs}}' printed", `\d{5,}`, "$d inspect -f '{{.SizeRootFs}}' printed", `(<nil>|<no value>|.*no entry.*)`},
		"type": {"$d inspect --type volume printed", `.*(no such volume|No such volume).*`, "$d inspect -f '{{.Name}}' --type container printed", `/printed`},
	},
	"container inspect": {"size": {"$d container inspect --size -f '{{.SizeRootFs}}' printed", `\d{5,}`, "$d container inspect -f '{{.SizeRootFs}}' printed", `(<nil>|<no value>|.*no entry.*)`}},
	"image inspect":     {"platform": {"$d image inspect --platform linux/s390x busybox", `.*does not match the specified platform.*`, "$d image inspect -f '{{.Os}}' busybox", `linux`}},
	"search": {
		"format":   {"$d search --format '{{.Name}}' $SEARCH/x", `\S+/starred \S+/plain`, "$d search $SEARCH/x | head -n 1", `NAME DESCRIPTION.*`},
		"limit":    {"$d search --limit 1 --format '{{.Name}}' $SEARCH/x", `\S+/starred`, "$d search --format '{{.Name}}' $SEARCH/x", `\S+/starred \S+/plain`},
		"no-trunc": {"$d search --no-trunc $SEARCH/x", `.*a description that is much too long for one column of a table.*`, "$d search $SEARCH/x", `.*a description that is much too.*….*`},
		"filter":   {"$d search --filter stars=5 --format '{{.Name}}' $SEARCH/x", `\S+/starred`, "$d search --format '{{.Name}}' $SEARCH/x", `\S+/starred \S+/plain`},
	},
	"start": {
		"detach-keys": {"$d start -a --detach-keys nonsense again", `.*[dD]etach.?[kK]eys.*|.*Unknown character.*|.*received 400.*`, "$d start -a --detach-keys ctrl-x again", `once more`},

		"checkpoint":     {"$d start --checkpoint absent again", `.*checkpoint absent does not exist.*|.*only supported on a Docker daemon with experimental.*`, "$d start again", `again`},
		"checkpoint-dir": {"$d start --checkpoint absent --checkpoint-dir no again", `.*not an absolute path.*|.*only supported on a Docker daemon with experimental.*`, "$d start again", `again`},
	},
	"volume create": {
		"driver": {"$d volume create --driver nosuch other1", `.*nosuch.*`, "$d volume create --driver local other1; $d volume rm other1", `other1 other1`},

		"availability": clusterVolume("--availability active"), "group": clusterVolume("--group g"), "limit-bytes": clusterVolume("--limit-bytes 1"), "required-bytes": clusterVolume("--required-bytes 1"),
		"scope": clusterVolume("--scope single"), "sharing": clusterVolume("--sharing all"), "type": clusterVolume("--type block"),
		// Docker's client sends these only beside one of the others.
		"secret": clusterVolume("--type block --secret a=b"), "topology-preferred": clusterVolume("--type block --topology-preferred a=b"), "topology-required": clusterVolume("--type block --topology-required a=b"),
	},
	"ps":           {"last": listed("ps -n 1", "ps -a"), "latest": listed("ps -l", "ps -a")},
	"container ls": {"last": listed("container ls -n 1", "container ls -a"), "latest": listed("container ls -l", "container ls -a")},
	"exec": {
		"detach-keys": {"$d exec --detach-keys nonsense running echo ran", `.*[dD]etach.?[kK]eys.*|.*Unknown character.*|.*received 400.*`, "$d exec --detach-keys ctrl-x running echo ran", `ran`},
		"env-file":    {"$d exec --env-file $WORK/labels running sh -c 'echo from $from'", `from file`, "$d exec running sh -c 'echo from $from'", `from`},
	},
	"volume ls":     {"cluster": {"$d volume ls -q --cluster", `(|.*unknown flag.*)`, "$d volume create local1 >/dev/null; $d volume ls -q; $d volume rm local1 >/dev/null", `local1`}},
	"volume update": {"availability": {"$d volume update --availability active nosuch", `.*(no such volume|unknown flag).*`, "true", ``}},
	"volume prune": {"all": prunable("volume create --label prunable=1 named1", "volume prune -f --filter label=prunable -a", "volume prune -f --filter label=prunable", "volume ls -q -f label=prunable", "volume rm"),
		"filter": pruned("volume create --label mine=1 --label keep=1 kept", "volume prune -af", "volume ls -q", "volume rm kept", `.*kept`)},
	"container prune": {"filter": pruned("create --name kept --label mine=1 --label keep=1 busybox true", "container prune -f", "ps -a --format {{.Names}} -f name=kept", "rm kept", `.*kept`)},
	"image prune": {"all": prunable("import -c LABEL\\ prunable=1 $ROOT unused", "image prune -f --filter label=prunable -a", "image prune -f --filter label=prunable", "images -q -f label=prunable", "rmi"),
		"filter": {"$d image prune -f --filter nosuch=1", `.*(invalid filter|nosuch).*`, "$d image prune -f", `.*Total reclaimed space: .*`}},
	"network prune": {"filter": {"$d network prune -f --filter nosuch=1", `.*(invalid filter|nosuch).*`, "$d network prune -f", ``}},
	"system prune": {"all": prunable("import -c LABEL\\ prunable=1 $ROOT unused", "system prune -f --filter label=prunable -a", "system prune -f --filter label=prunable", "images -q -f label=prunable", "rmi"),
		"volumes": prunable("volume create --label prunable=1", "system prune -f --filter label=prunable --volumes", "system prune -f --filter label=prunable", "volume ls -q -f label=prunable", "volume rm"),
		"filter":  pruned("create --name kept --label mine=1 --label keep=1 busybox true", "system prune -f", "ps -a --format {{.Names}} -f name=kept", "rm kept", `.*kept`)},
	"network create": {
		"driver":      networkShown("-d bridge", "{{.Driver}}", "bridge", "bridge"),
		"attachable":  networkShown("--attachable", "{{.Attachable}}", "true", "false"),
		"aux-address": networkShown("--subnet 198.51.100.0/24 --aux-address a=198.51.100.9", "{{(index .IPAM.Config 0).AuxiliaryAddresses}}", `map\[a:198\.51\.100\.9\]`, `map\[\]`),
		"gateway":     networkShown("--subnet 198.51.100.0/24 --gateway 198.51.100.77", "{{(index .IPAM.Config 0).Gateway}}", `198\.51\.100\.77`, `[0-9.]*\.1`),
		"internal":    networkShown("--internal", "{{.Internal}}", "true", "false"),
		"ip-range":    networkShown("--subnet 198.51.100.0/24 --ip-range 198.51.100.128/25", "{{(index .IPAM.Config 0).IPRange}}", `198\.51\.100\.128/25`, ``),
		"ipv4":        networkShown("--ipv4=false --ipv6", "{{len .IPAM.Config}}", `1|.*(unknown flag|requires API version).*`, `1`),
		"ipv6":        networkShown("--ipv6", "{{.EnableIPv6}}", "true", "false"),
		"subnet":      networkShown("--subnet 198.51.100.0/24", "{{(index .IPAM.Config 0).Subnet}}", `198\.51\.100\.0/24`, `172.*`),
		"config-from": networkRefused("--config-from x", "ConfigOnly and ConfigFrom"),
		"config-only": networkRefused("--config-only", "ConfigOnly and ConfigFrom"),
		"ingress":     networkRefused("--ingress", "Ingress"),
		"ipam-driver": networkRefused("--ipam-driver other", "IPAM driver other"),
		"ipam-opt":    networkRefused("--ipam-opt a=b", "unknown IPAM option"),
		"scope":       networkRefused("--scope swarm", "scope swarm"),
	},
	"network connect": {
		"link":          connected("--link printed:renamed", "{{range .NetworkSettings.Networks}}{{range .Links}}{{.}}{{end}}{{end}}", `printed:renamed`, ``),
		"alias":         connected("--alias other", "{{range .NetworkSettings.Networks}}{{.Aliases}}{{end}}", `.*other.*`, `[^o]*`),
		"driver-opt":    connected("--driver-opt com.docker.network.endpoint.ifname=lan7", "{{range .NetworkSettings.Networks}}{{.DriverOpts}}{{end}}", `.*lan7.*`, `[^7]*`),
		"gw-priority":   connected("--gw-priority 5", "{{range .NetworkSettings.Networks}}{{.GwPriority}}{{end}}", `(0?5|50|.*(unknown flag|no entry|can't evaluate).*)`, `(00|0|.*(no entry|can't evaluate).*)`),
		"ip":            connected("--ip 198.51.100.99", "{{range .NetworkSettings.Networks}}{{with .IPAMConfig}}{{.IPv4Address}}{{end}}{{end}}", `198\.51\.100\.99`, ``),
		"ip6":           connected("--ip6 2001:db8::99", "{{range .NetworkSettings.Networks}}{{with .IPAMConfig}}{{.IPv6Address}}{{end}}{{end}}", `2001:db8::99`, ``),
		"link-local-ip": connected("--link-local-ip 169.254.1.2", "{{range .NetworkSettings.Networks}}{{with .IPAMConfig}}{{.LinkLocalIPs}}{{end}}{{end}}", `\[169\.254\.1\.2\]`, ``),
	},
	"network disconnect": {"force": {"$d network disconnect --force bridge $($d create --network none busybox true); echo $?", `0`, "$d network disconnect bridge $($d create --network none busybox true) 2>/dev/null; echo $?", `1`}},
	"network ls":         {"no-trunc": {"$d network ls -q --no-trunc -f name=bridge", `[0-9a-f]{64}`, "$d network ls -q -f name=bridge", `[0-9a-f]{12}`}},
	"network inspect":    {"verbose": {"$d network inspect -v -f '{{.Name}}' bridge", `bridge`, "$d network inspect -f '{{.Name}}' bridge", `bridge`}}, // adds the services of a swarm
}

// shownElsewhere are flags that tests of other packages show: the test's file, and the text in which it does.
var shownElsewhere = map[string][2]string{
	"commit pause": {"internal/container/commit_test.go", "Pause: true"},
}

// listed shows that a list has one line, and otherwise several.
func listed(one, several string) effect {
	return effect{"$d " + one + " -q | wc -l", `1`, "$d " + several + " -q | wc -l", `[3-9]`}
}

// prunable shows that a prune takes an object with the flag only.
func prunable(make, with, without, list, remove string) effect {
	run := func(prune string) string {
		return fmt.Sprintf("$d %s >/dev/null 2>&1; $d %s >/dev/null; $d %s | wc -l; $d %s $($d %s) >/dev/null 2>&1", make, prune, list, remove, list)
	}
	return effect{run(with), `0`, run(without), `1`}
}

// signalled shows which signal a command sends: the container prints the first that it gets.
func signalled(command string) effect {
	run := func(flags string) string {
		return `$d run -d --name sig busybox sh -c 'trap "echo USR1; exit" USR1; trap "echo TERM; exit" TERM; echo ready; while :; do sleep 0.05; done' >/dev/null; ` +
			`for i in $(seq 200); do $d logs sig | grep -q ready && break; sleep 0.05; done; $d ` + command + " " + flags + ` sig >/dev/null; $d logs sig | grep -m 1 -E "USR1|TERM"; $d rm -f sig >/dev/null`
	}
	return effect{run("--signal USR1"), `USR1`, run(""), `TERM`}
}

// attached types a line to a container by attach, and prints what the container has read.
func attached(flags string) string {
	return `$d run -d -i --name reading --stop-signal KILL busybox sh -c 'read line; echo $line >/root/read; sleep 60' >/dev/null; ` +
		`{ echo typed | timeout -s KILL 3 $d attach ` + flags + ` reading; } 2>/dev/null; $d exec reading cat /root/read 2>/dev/null; $d rm -f reading >/dev/null`
}

func updated(flag, format, want string) effect {
	run := func(flag string) string {
		return fmt.Sprintf("$d create --name changed busybox true >/dev/null; $d update %s changed >/dev/null; $d inspect -f '%s' changed; $d rm changed >/dev/null", flag, format)
	}
	return effect{run(flag), want, run("--restart no"), "0?"}
}

func clusterVolume(flags string) effect {
	return effect{"$d volume create " + flags + " cluster1", `.*` + clusterOnly + `.*`, "$d volume create local1; $d volume rm local1", `local1 local1`}
}

// pruned shows that a filter keeps an object from being pruned.
func pruned(make, prune, list, remove, want string) effect {
	run := func(filter string) string {
		return fmt.Sprintf("$d %s >/dev/null; $d %s %s >/dev/null; $d %s | grep kept || echo gone; $d %s >/dev/null 2>&1", make, prune, filter, list, remove)
	}
	return effect{run("--filter label=mine --filter label!=keep"), want, run("--filter label=mine"), `gone`}
}

// networkShown shows a property of a network that is created with flags, and of one without.
func networkShown(flags, format, want, other string) effect {
	run := func(flags string) string {
		return fmt.Sprintf("$d network create %s mine >/dev/null; $d network inspect -f '%s' mine; $d network rm mine >/dev/null 2>&1", flags, format)
	}
	return effect{run(flags), want, run(""), other}
}

// networkRefused shows that a network is not created with flags.
func networkRefused(flags, why string) effect {
	return effect{"$d network create " + flags + " mine", ".*" + why + ".*", "$d network create mine | wc -l; $d network rm mine", "1 mine"}
}

// connected shows a property of a container that is connected to a network with flags, and of one without.
func connected(flags, format, want, other string) effect {
	run := func(flags string) string {
		return fmt.Sprintf("$d network create --subnet 198.51.100.0/24 --ipv6 --subnet 2001:db8::/64 mine >/dev/null; $d create --name member busybox true >/dev/null; "+
			"$d network connect %s mine member; $d inspect -f '%s' member; $d rm member >/dev/null; $d network rm mine >/dev/null", flags, format)
	}
	return effect{run(flags), want, run(""), other}
}

// commandsWithFlags are the commands whose flags are looked at: all but those of builds.
var commandsWithFlags = strings.Split("run,create,pull,push,ps,images,exec,logs,stop,kill,rm,rmi,cp,commit,import,save,load,export,events,info,update,wait,top,stats,rename,port,attach,diff,history,"+
	"inspect,login,logout,search,start,restart,pause,unpause,tag,version,volume create,volume ls,volume rm,volume inspect,volume prune,volume update,network create,network ls,network rm,network inspect,"+
	"network prune,network connect,network disconnect,system df,system prune,system info,system events,container prune,container ls,container inspect,image prune,image ls,image inspect", ",")

var helpLine = regexp.MustCompile(`(?m)^\s+(?:-(\w), )?--([a-z0-9-]+)\b`)

// flagsOf returns the flags that a client's help lists for a command, with their short forms.
func flagsOf(t *testing.T, client, command string) map[string]string {
	t.Helper()
	out, err := exec.Command(client, append(strings.Fields(command), "--help")...).Output()
	if err != nil {
		t.Fatalf("%s %s --help: %v", client, command, err)
	}
	flags := map[string]string{}
	for _, m := range helpLine.FindAllStringSubmatch(string(out), -1) {
		if m[2] != "help" {
			flags[m[2]] = m[1]
		}
	}
	return flags
}

// storyLines returns the lines of all stories and tests that can run a command.
func storyLines(t *testing.T) (lines []string) {
	t.Helper()
	files, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	more, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range append(files, more...) {
		if f == "flags_test.go" {
			continue
		}
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			if !strings.HasPrefix(line, "#") && !strings.HasPrefix(strings.TrimSpace(line), "//") {
				lines = append(lines, line)
			}
		}
	}
	return lines
}

// usedIn reports whether a line uses a flag of a command: the line names the command and, after it, the flag.
func usedIn(lines []string, command, flag, short string) bool {
	words := strings.Fields(command)
	verb := regexp.QuoteMeta(words[len(words)-1])
	switch command {
	case "run", "create":
		verb = "run|create|flags" // the stories of run's flags run them by functions
	case "ps", "container ls":
		verb = "ps|container ls"
	case "images", "image ls":
		verb = "images|image ls"
	}
	pattern := "--" + flag + `\b`
	if short != "" {
		pattern = `(?:` + pattern + `|\s"?-[a-zA-Z]*` + short + `)`
	}
	re := regexp.MustCompile(`\b(?:` + verb + `)\b.*` + pattern)
	return slices.ContainsFunc(lines, re.MatchString)
}

// searchIndex answers a search with two repositories.
func searchIndex(w http.ResponseWriter, r *http.Request) {
	const starred, plain = `{"name": "starred", "star_count": 9, "description": "a description that is much too long for one column of a table"}`, `{"name": "plain", "description": "short"}`
	list := starred + ", " + plain
	if r.URL.Query().Get("n") == "1" {
		list = starred
	}
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"num_results": 2, "query": "x", "results": [%s]}`, list)
}

// flagClients are the clients whose flags are looked at.
func flagClients() map[string]string {
	return map[string]string{"ply": filepath.Join(bin, "ply"), "docker20": "/usr/bin/docker", "docker": "docker"}
}

// listedFlags returns the flags that each client lists in its help: by client, then by "command flag" their short forms.
func listedFlags(t *testing.T) map[string]map[string]string {
	t.Helper()
	listed := map[string]map[string]string{}
	for name, client := range flagClients() {
		listed[name] = map[string]string{}
		for _, command := range commandsWithFlags {
			if name == "ply" && command == "volume update" {
				continue // it is for swarm
			}
			for flag, short := range flagsOf(t, client, command) {
				listed[name][command+" "+flag] = short
			}
		}
	}
	return listed
}

func flagEffects() map[string]map[string]effect {
	rows := maps.Clone(otherEffects)
	rows["run"] = runEffects()
	rows["create"] = rows["run"]
	return rows
}

// Each flag that a client of docker or ply lists in its help is used by a story, or has a row of this file.
func TestEveryFlagHasARow(t *testing.T) {
	lines, rows := storyLines(t), flagEffects()
	for client, flags := range listedFlags(t) {
		for name, short := range flags {
			i := strings.LastIndex(name, " ")
			command, flag := name[:i], name[i+1:]
			if at, ok := shownElsewhere[name]; ok {
				b, err := os.ReadFile(filepath.Join("..", "..", at[0]))
				if err != nil || !strings.Contains(string(b), at[1]) {
					t.Errorf("%s does not show %s --%s: %v", at[0], command, flag, err)
				}
				continue
			}
			if _, ok := rows[command][flag]; !ok && !usedIn(lines, command, flag, short) {
				t.Errorf("%s %s --%s: no story and no row shows its effect", client, command, flag)
			}
		}
	}
}

// Each row shows an effect, or an error that names the flag, through ply and through a client of docker, and what happens without the flag.
func TestEveryFlagHasAnEffect(t *testing.T) {
	if os.Getenv("PLY_NIGHTLY") == "" {
		t.Skip("starts hundreds of programs; run nightly")
	}
	clients, listed := flagClients(), listedFlags(t)
	w := newWorld(t)
	w.busybox()
	addr := w.registry("")
	w.ply("import", "-c", "HEALTHCHECK CMD true", filepath.Join(images, "busybox.tar"), "checked")
	w.ply("tag", "busybox", addr+"/pushed:1")
	w.ply("run", "--name", "printed", "busybox", "sh", "-c", "echo early; echo late")
	w.ply("run", "-d", "--name", "running", "--stop-signal", "KILL", "busybox", "sleep", "600")
	w.ply("create", "--name", "again", "busybox", "echo", "once more")
	index := httptest.NewServer(http.HandlerFunc(searchIndex))
	defer index.Close()
	if err := os.WriteFile(filepath.Join(w.dir, "labels"), []byte("from=file\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	arch := w.ply("inspect", "-f", "{{.Architecture}}", "busybox")
	show := func(client, script string) string {
		c := exec.Command("sh", "-c", script)
		c.Env = append(append(os.Environ(), w.clientEnv()...), "d="+clients[client], "WORK="+w.dir, "TARGET="+addr, "SEARCH="+index.Listener.Addr().String(), "ROOT="+filepath.Join(images, "busybox.tar"), "ARCH="+arch)
		out, _ := c.CombinedOutput() // a refusal is an error
		return strings.Join(strings.Fields(string(out)), " ")
	}
	check := func(client, name, script, want string) {
		want = strings.ReplaceAll(want, "$ARCH", arch)
		if got := show(client, script); !regexp.MustCompile(`\A(?:` + want + `)\z`).MatchString(got) {
			t.Errorf("%s %s:\n%s\nprints %q, want %q", client, name, script, got, want)
		}
	}
	lists := func(client, flag string) bool { _, ok := listed[client][flag]; return ok }
	rows := flagEffects()
	delete(rows, "create") // run has shown them
	for _, command := range slices.Sorted(maps.Keys(rows)) {
		for _, flag := range slices.Sorted(maps.Keys(rows[command])) {
			e, name := rows[command][flag], command+" "+flag
			// The newest of docker's clients that has the flag is enough. Ply may refuse a flag that only they have.
			with := []string{"ply"}
			switch {
			case lists("docker", name):
				with = append(with, "docker")
			case lists("docker20", name):
				with = append(with, "docker20")
			}
			for _, client := range with {
				check(client, name, e.with, e.want)
			}
			check(with[len(with)-1], name, e.without, e.wantNot)
		}
	}
}
