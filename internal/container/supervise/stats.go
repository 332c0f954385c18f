package supervise

import (
	"math"
	"time"

	"github.com/opencontainers/cgroups"

	"ply/internal/container/shim"
)

// stats returns the counters of the container's cgroups.
func (r *linked) stats() (shim.StatsReply, error) {
	st, err := r.c.Stats()
	if err != nil {
		return shim.StatsReply{}, err
	}
	return statsReply(st.CgroupStats), nil
}

// noLimit is the memory limit that cgroup v1 reports when there is none, in bytes.
const noLimit = math.MaxInt64 &^ 0xfff

// statsReply converts the counters. No limit is 0. The memory usage includes the page cache, as the kernel counts it.
func statsReply(s *cgroups.Stats) shim.StatsReply {
	cpu, mem := &s.CpuStats, &s.MemoryStats
	out := shim.StatsReply{
		Read:          time.Now().UTC(),
		CPUTotal:      cpu.CpuUsage.TotalUsage,
		CPUUser:       cpu.CpuUsage.UsageInUsermode,
		CPUSystem:     cpu.CpuUsage.UsageInKernelmode,
		PerCPU:        cpu.CpuUsage.PercpuUsage,
		Throttled:     [3]uint64{cpu.ThrottlingData.Periods, cpu.ThrottlingData.ThrottledPeriods, cpu.ThrottlingData.ThrottledTime},
		MemoryUsage:   mem.Usage.Usage,
		MemoryMax:     mem.Usage.MaxUsage,
		MemoryLimit:   mem.Usage.Limit,
		MemoryStats:   mem.Stats,
		MemoryFailcnt: mem.Usage.Failcnt,
		PidsCurrent:   s.PidsStats.Current,
		PidsLimit:     s.PidsStats.Limit,
	}
	if out.MemoryLimit >= noLimit {
		out.MemoryLimit = 0
	}
	for _, e := range s.BlkioStats.IoServiceBytesRecursive {
		out.Blkio = append(out.Blkio, shim.BlkioEntry{Major: e.Major, Minor: e.Minor, Op: e.Op, Value: e.Value})
	}
	return out
}
