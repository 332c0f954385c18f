package runspec

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/capability"
	"golang.org/x/sys/unix"

	"ply/internal/host"
)

// Host is what a runtime spec depends on besides its Input: facts about this machine and this process.
type Host struct {
	CgroupV2         bool
	Caps             []string // CAP_…: permitted and in the bounding set of this process, in the kernel's order
	SysResource      bool     // may raise rlimits and lower oom scores
	OOMScoreAdj      int
	HardLimits       map[string]uint64 // rlimit name without RLIMIT_ → hard limit
	SwapLimit        bool              // the kernel can limit swap
	OOMKillDisable   bool              // the kernel can switch the OOM killer off for a cgroup
	Weights          bool              // the kernel can set a weight for block I/O
	DeviceRates      bool              // the kernel can limit the rates of block devices
	DeviceWeights    bool              // the kernel can set weights for single block devices
	Pids             bool              // the kernel can limit the number of processes
	RecursiveRO      bool              // mounts below a bind can be made read-only with it
	AppArmor         bool
	CPUs             int    // possible CPUs; 0 = not known
	MemoryNodes      string // list of the memory nodes, such as "0-1"; "" = not known
	DevDir           string
	UnprivilegedPing bool // the ping and low port sysctls exist
}

// ProbeHost reads the facts of this machine and this process. It is cheap enough to be called for every container.
func ProbeHost() (Host, error) {
	h := Host{DevDir: "/dev", HardLimits: map[string]uint64{}}
	var st unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &st); err != nil {
		return h, fmt.Errorf("host: /sys/fs/cgroup: %w", err)
	}
	h.CgroupV2 = st.Type == unix.CGROUP2_SUPER_MAGIC
	caps, err := ownCaps()
	if err != nil {
		return h, err
	}
	h.Caps = caps
	for _, c := range caps {
		h.SysResource = h.SysResource || c == "CAP_SYS_RESOURCE"
	}
	if b, err := os.ReadFile("/proc/self/oom_score_adj"); err == nil {
		h.OOMScoreAdj, _ = strconv.Atoi(strings.TrimSpace(string(b))) // the kernel writes a number
	}
	for name, resource := range rlimitNumbers {
		var lim unix.Rlimit
		if err := unix.Getrlimit(resource, &lim); err == nil {
			h.HardLimits[name] = lim.Max
		}
	}
	if h.CgroupV2 {
		own, err := filepath.Glob("/sys/fs/cgroup/*/memory.swap.max")
		h.SwapLimit = err == nil && len(own) > 0
		controllers, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
		h.DeviceRates = err == nil && slices.Contains(strings.Fields(string(controllers)), "io")
		h.Pids = err == nil && slices.Contains(strings.Fields(string(controllers)), "pids")
		weights, err := filepath.Glob("/sys/fs/cgroup/*/io.bfq.weight")
		h.DeviceWeights = err == nil && len(weights) > 0
		others, err := filepath.Glob("/sys/fs/cgroup/*/io.weight")
		h.Weights = h.DeviceWeights || err == nil && len(others) > 0
		h.MemoryNodes = line("/sys/fs/cgroup/cpuset.mems.effective")
	} else {
		h.SwapLimit = exists("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes")
		h.Pids = exists("/sys/fs/cgroup/pids")
		h.OOMKillDisable = exists("/sys/fs/cgroup/memory/memory.oom_control")
		h.DeviceRates = exists("/sys/fs/cgroup/blkio/blkio.throttle.read_bps_device")
		// The root cgroup has no weight files, but BFQ's statistics are there.
		h.DeviceWeights = exists("/sys/fs/cgroup/blkio/blkio.bfq.io_serviced") || exists("/sys/fs/cgroup/blkio/blkio.weight_device")
		h.Weights = h.DeviceWeights
		h.MemoryNodes = line("/sys/fs/cgroup/cpuset/cpuset.mems")
	}
	h.RecursiveRO = kernelAtLeast(5, 12)
	h.AppArmor = host.AppArmor()
	h.CPUs = possibleCPUs()
	h.UnprivilegedPing = exists("/proc/sys/net/ipv4/ping_group_range") && exists("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	return h, nil
}

// ownCaps returns the capabilities that are both permitted and in the bounding set of this process.
func ownCaps() ([]string, error) {
	c, err := capability.NewPid2(0)
	if err == nil {
		err = c.Load()
	}
	if err != nil {
		return nil, fmt.Errorf("host: capabilities: %w", err)
	}
	var out []string
	for _, v := range capability.ListKnown() {
		if c.Get(capability.PERMITTED, v) && c.Get(capability.BOUNDING, v) {
			out = append(out, "CAP_"+strings.ToUpper(v.String()))
		}
	}
	return out, nil
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

// line returns the only line of a file of the kernel, or "" when it cannot be read.
func line(name string) string {
	b, err := os.ReadFile(name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func kernelAtLeast(major, minor int) bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	var a, b int
	if n, _ := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &a, &b); n != 2 {
		return false
	}
	return a > major || a == major && b >= minor
}

// possibleCPUs returns the number of possible CPUs, or 0 when the file cannot be read.
func possibleCPUs() int {
	b, err := os.ReadFile("/sys/devices/system/cpu/possible")
	if err != nil {
		return 0
	}
	s := strings.TrimSpace(string(b))
	last := s[strings.LastIndexAny(s, "-,")+1:]
	n, err := strconv.Atoi(last)
	if err != nil {
		return 0
	}
	return n + 1
}
