package docker

import (
	"context"
	"errors"
	"net/http"
	"time"

	"ply/internal/container"
	"ply/internal/errs"
	"ply/internal/network"
)

// statsAnswer is one reading of GET /containers/{id}/stats.
type statsAnswer struct {
	Name         string                    `json:"name"`
	ID           string                    `json:"id"`
	Read         time.Time                 `json:"read"`
	PreRead      time.Time                 `json:"preread"`
	PidsStats    pidsStats                 `json:"pids_stats"`
	BlkioStats   blkioStats                `json:"blkio_stats"`
	NumProcs     uint32                    `json:"num_procs"`
	StorageStats struct{}                  `json:"storage_stats"`
	CPUStats     cpuStats                  `json:"cpu_stats"`
	PreCPUStats  cpuStats                  `json:"precpu_stats"`
	MemoryStats  memoryStats               `json:"memory_stats"`
	Networks     map[string]interfaceStats `json:"networks,omitempty"`
}

type pidsStats struct {
	Current uint64 `json:"current,omitempty"`
	Limit   uint64 `json:"limit,omitempty"`
}

type cpuStats struct {
	CPUUsage struct {
		Total   uint64   `json:"total_usage"`
		PerCPU  []uint64 `json:"percpu_usage,omitempty"`
		InKern  uint64   `json:"usage_in_kernelmode"`
		InUsers uint64   `json:"usage_in_usermode"`
	} `json:"cpu_usage"`
	SystemUsage uint64 `json:"system_cpu_usage,omitempty"`
	OnlineCPUs  int    `json:"online_cpus,omitempty"`
	Throttling  struct {
		Periods          uint64 `json:"periods"`
		ThrottledPeriods uint64 `json:"throttled_periods"`
		ThrottledTime    uint64 `json:"throttled_time"`
	} `json:"throttling_data"`
}

type memoryStats struct {
	Usage    uint64            `json:"usage,omitempty"`
	MaxUsage uint64            `json:"max_usage,omitempty"`
	Stats    map[string]uint64 `json:"stats,omitempty"`
	Failcnt  uint64            `json:"failcnt,omitempty"`
	Limit    uint64            `json:"limit,omitempty"`
}

type interfaceStats struct {
	RxBytes   uint64 `json:"rx_bytes"`
	RxPackets uint64 `json:"rx_packets"`
	RxErrors  uint64 `json:"rx_errors"`
	RxDropped uint64 `json:"rx_dropped"`
	TxBytes   uint64 `json:"tx_bytes"`
	TxPackets uint64 `json:"tx_packets"`
	TxErrors  uint64 `json:"tx_errors"`
	TxDropped uint64 `json:"tx_dropped"`
}

type blkioStats struct {
	ServiceBytes []blkioEntry `json:"io_service_bytes_recursive"`
	Serviced     []blkioEntry `json:"io_serviced_recursive"`
	Queued       []blkioEntry `json:"io_queue_recursive"`
	ServiceTime  []blkioEntry `json:"io_service_time_recursive"`
	WaitTime     []blkioEntry `json:"io_wait_time_recursive"`
	Merged       []blkioEntry `json:"io_merged_recursive"`
	Time         []blkioEntry `json:"io_time_recursive"`
	Sectors      []blkioEntry `json:"sectors_recursive"`
}

type blkioEntry struct {
	Major uint64 `json:"major"`
	Minor uint64 `json:"minor"`
	Op    string `json:"op"`
	Value uint64 `json:"value"`
}

func statsOf(st container.Stats) statsAnswer {
	cg := st.Cgroup
	a := statsAnswer{Name: "/" + st.Name, ID: st.ID, Read: st.Read, PidsStats: pidsStats{cg.PidsCurrent, cg.PidsLimit},
		MemoryStats: memoryStats{cg.MemoryUsage, cg.MemoryMax, cg.MemoryStats, cg.MemoryFailcnt, cg.MemoryLimit}}
	a.CPUStats.CPUUsage.Total, a.CPUStats.CPUUsage.PerCPU = cg.CPUTotal, cg.PerCPU
	a.CPUStats.CPUUsage.InKern, a.CPUStats.CPUUsage.InUsers = cg.CPUSystem, cg.CPUUser
	a.CPUStats.SystemUsage, a.CPUStats.OnlineCPUs = st.SystemCPU, st.OnlineCPUs
	a.CPUStats.Throttling.Periods, a.CPUStats.Throttling.ThrottledPeriods, a.CPUStats.Throttling.ThrottledTime = cg.Throttled[0], cg.Throttled[1], cg.Throttled[2]
	none := []blkioEntry{}
	a.BlkioStats = blkioStats{none, none, none, none, none, none, none, none}
	for _, b := range cg.Blkio {
		a.BlkioStats.ServiceBytes = append(a.BlkioStats.ServiceBytes, blkioEntry{b.Major, b.Minor, b.Op, b.Value})
	}
	for name, n := range st.Networks {
		if a.Networks == nil {
			a.Networks = map[string]interfaceStats{}
		}
		a.Networks[name] = interfaceOf(n)
	}
	return a
}

func interfaceOf(n network.Counters) interfaceStats {
	return interfaceStats{n.RxBytes, n.RxPackets, n.RxErrors, n.RxDropped, n.TxBytes, n.TxPackets, n.TxErrors, n.TxDropped}
}

// errEnough ends a reading that has all it needs.
var errEnough = errors.New("enough")

// stats sends a reading every second, or one. One reading takes two, a second apart, unless one-shot: from
// their difference clients compute the load.
func (h containerHandlers) stats(c *call) error {
	follow, once := c.boolOr("stream", true), c.bool("one-shot")
	if follow && once {
		return errs.New(errs.Invalid, "cannot have stream=true and one-shot=true")
	}
	c.w.Header().Set("Content-Type", "application/json")
	rc := http.NewResponseController(c.w)
	var last *statsAnswer
	ctx, cancel := context.WithCancel(c.ctx())
	defer cancel()
	err := h.state.Stats(ctx, c.vars["id"], !once, func(st container.Stats) error {
		a := statsOf(st)
		if last != nil {
			a.PreRead, a.PreCPUStats = last.Read, last.CPUStats
		}
		first := last == nil
		last = &a
		if first && !follow && !once && st.Cgroup.CPUTotal != 0 { // one that does not run has nothing to compare
			return nil
		}
		b, err := encode(a)
		if err != nil {
			return err
		}
		if _, err := c.w.Write(b); err != nil {
			return err
		}
		if !follow {
			return errEnough
		}
		return rc.Flush()
	})
	if errors.Is(err, errEnough) || err != nil && c.ctx().Err() != nil {
		return nil
	}
	return err
}
