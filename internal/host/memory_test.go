package host

import "testing"

func TestMemoryLimit(t *testing.T) {
	const ram = 8 << 30
	for name, tc := range map[string]struct {
		root map[string]string
		want int64
	}{
		"no cgroups": {nil, ram},
		"v2": {map[string]string{
			"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/memory.max": "268435456\n",
		}, 256 << 20},
		"v2, the group itself": {map[string]string{
			"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "1048576\n", "sys/fs/cgroup/a/memory.max": "268435456\n",
		}, 1 << 20},
		"v2, in a namespace": {map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "4096\n"}, 4096},
		"v1": {map[string]string{
			"proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/a\n1:name=systemd:/a\n0::/a\n",
			"sys/fs/cgroup/memory/a/memory.limit_in_bytes":  "1073741824\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes":    "9223372036854771712\n",
			"sys/fs/cgroup/cpu,cpuacct/x/memory.max":        "1\n",
			"sys/fs/cgroup/unified/a/memory.limit_in_bytes": "1\n",
		}, 1 << 30},
		"no limit":  {map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, ram},
		"nonsense":  {map[string]string{"proc/self/cgroup": "\n::\n0\n0::/../..\n", "sys/fs/cgroup/memory.max": "-1\n"}, ram},
		"above RAM": {map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "99999999999999\n"}, ram},
	} {
		if got := memoryLimit(files(tc.root), ram); got != tc.want {
			t.Errorf("%s: %d, want %d", name, got, tc.want)
		}
	}
	if got := MemoryLimit(); got < 1<<20 || got > Read().Memory {
		t.Errorf("MemoryLimit() = %d with %d bytes of RAM", got, Read().Memory)
	}
}
