package run

import (
	"github.com/spf13/pflag"

	"ply/internal/cli/opts"
	"ply/internal/errs"
	"ply/internal/wire"
)

// changeableLimits defines the limits that run sets and update changes.
func changeableLimits(f *pflag.FlagSet, res *wire.Resources) (memory, swap *sizeField) {
	f.Uint16Var(&res.BlkioWeight, "blkio-weight", 0, "Block IO (relative weight), between 10 and 1000, or 0 to disable (default 0)")
	f.Int64Var(&res.CPUPeriod, "cpu-period", 0, "Limit CPU CFS (Completely Fair Scheduler) period")
	f.Int64Var(&res.CPUQuota, "cpu-quota", 0, "Limit CPU CFS (Completely Fair Scheduler) quota")
	f.Int64Var(&res.CPURealtimePeriod, "cpu-rt-period", 0, "Limit CPU real-time period in microseconds")
	f.Int64Var(&res.CPURealtimeRuntime, "cpu-rt-runtime", 0, "Limit CPU real-time runtime in microseconds")
	f.Int64VarP(&res.CPUShares, "cpu-shares", "c", 0, "CPU shares (relative weight)")
	f.Var((*opts.CPUs)(&res.NanoCPUs), "cpus", "Number of CPUs")
	f.StringVar(&res.CpusetCpus, "cpuset-cpus", "", "CPUs in which to allow execution (0-3, 0,1)")
	f.StringVar(&res.CpusetMems, "cpuset-mems", "", "MEMs in which to allow execution (0-3, 0,1)")
	memory, swap = sizeVar(&res.Memory), sizeVar(&res.MemorySwap)
	swap.Signed = true
	f.VarP(memory, "memory", "m", "Memory limit")
	f.Var(sizeVar(&res.MemoryReservation), "memory-reservation", "Memory soft limit")
	f.Var(swap, "memory-swap", "Swap limit equal to memory plus swap: '-1' to enable unlimited swap")
	res.PidsLimit = f.Int64("pids-limit", 0, "Tune container pids limit (set -1 for unlimited)")
	return memory, swap
}

// addLimits defines the flags of cgroups, rlimits and the OOM killer.
func (r *runFlags) addLimits(f *pflag.FlagSet) {
	h := &r.host
	memory, swap := changeableLimits(f, &h.Resources)
	f.StringVar(&h.CgroupParent, "cgroup-parent", "", "Optional parent cgroup for the container")
	f.Var(sizeVar(&h.KernelMemory), "kernel-memory", "Kernel memory limit")
	h.MemorySwappiness = f.Int64("memory-swappiness", -1, "Tune container memory swappiness (0 to 100)")
	h.OomKillDisable = f.Bool("oom-kill-disable", false, "Disable OOM Killer")
	f.IntVar(&h.OomScoreAdj, "oom-score-adj", 0, "Tune host's OOM preferences (-1000 to 1000)")
	r.then(func() error {
		if s := *h.MemorySwappiness; s != -1 && (s < 0 || s > 100) {
			return errs.New(errs.Invalid, "invalid value: %d. Valid memory swappiness range is 0-100", s)
		}
		if memory.N == 0 && swap.N > 0 {
			return errs.New(errs.Invalid, "--memory-swap %s: set --memory as well", swap)
		}
		return nil
	})
	var ulimits opts.Ulimits
	f.Var(&ulimits, "ulimit", "Ulimit options")
	r.then(func() error { h.Ulimits = ulimits.Wire(); return nil })
	r.addBlockIO(f)
}

// addBlockIO defines the limits of single devices.
func (r *runFlags) addBlockIO(f *pflag.FlagSet) {
	h := &r.host
	var weights opts.List
	f.Var(&weights, "blkio-weight-device", "Block IO weight (relative device weight)")
	r.then(func() error {
		for _, s := range weights.Values {
			w, err := opts.Weight(s)
			if err != nil {
				return err
			}
			h.BlkioWeightDevice = append(h.BlkioWeightDevice, w)
		}
		return nil
	})
	for _, t := range []struct {
		name, usage string
		bytes       bool
		to          *[]wire.ThrottleDevice
	}{
		{"device-read-bps", "Limit read rate (bytes per second) from a device", true, &h.BlkioDeviceReadBps},
		{"device-read-iops", "Limit read rate (IO per second) from a device", false, &h.BlkioDeviceReadIOps},
		{"device-write-bps", "Limit write rate (bytes per second) to a device", true, &h.BlkioDeviceWriteBps},
		{"device-write-iops", "Limit write rate (IO per second) to a device", false, &h.BlkioDeviceWriteIOps},
	} {
		var rates opts.List
		f.Var(&rates, t.name, t.usage)
		r.then(func() error {
			for _, s := range rates.Values {
				d, err := opts.Throttle(s, t.bytes)
				if err != nil {
					return err
				}
				*t.to = append(*t.to, d)
			}
			return nil
		})
	}
}
