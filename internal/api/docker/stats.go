package docker

import (
	"context"
	"errors"
	"net/http"

	"ply/internal/container"
	"ply/internal/errs"
	"ply/internal/network"
	"ply/internal/wire"
)

func statsOf(st container.Stats) wire.Stats {
	cg := st.Cgroup
	a := wire.Stats{Name: "/" + st.Name, ID: st.ID, Read: st.Read, PidsStats: wire.PidsStats{Current: cg.PidsCurrent, Limit: cg.PidsLimit},
		MemoryStats: wire.MemoryStats{Usage: cg.MemoryUsage, MaxUsage: cg.MemoryMax, Stats: cg.MemoryStats, Failcnt: cg.MemoryFailcnt, Limit: cg.MemoryLimit}}
	a.CPUStats.CPUUsage.Total, a.CPUStats.CPUUsage.PerCPU = cg.CPUTotal, cg.PerCPU
	a.CPUStats.CPUUsage.InKern, a.CPUStats.CPUUsage.InUsers = cg.CPUSystem, cg.CPUUser
	a.CPUStats.SystemUsage, a.CPUStats.OnlineCPUs = st.SystemCPU, st.OnlineCPUs
	a.CPUStats.Throttling.Periods, a.CPUStats.Throttling.ThrottledPeriods, a.CPUStats.Throttling.ThrottledTime = cg.Throttled[0], cg.Throttled[1], cg.Throttled[2]
	none := []wire.BlkioEntry{}
	a.BlkioStats = wire.BlkioStats{ServiceBytes: none, Serviced: none, Queued: none, ServiceTime: none, WaitTime: none, Merged: none, Time: none, Sectors: none}
	for _, b := range cg.Blkio {
		a.BlkioStats.ServiceBytes = append(a.BlkioStats.ServiceBytes, wire.BlkioEntry{Major: b.Major, Minor: b.Minor, Op: b.Op, Value: b.Value})
	}
	for name, n := range st.Networks {
		if a.Networks == nil {
			a.Networks = map[string]wire.InterfaceStats{}
		}
		a.Networks[name] = interfaceOf(n)
	}
	return a
}

func interfaceOf(n network.Counters) wire.InterfaceStats {
	return wire.InterfaceStats{
		RxBytes: n.RxBytes, RxPackets: n.RxPackets, RxErrors: n.RxErrors, RxDropped: n.RxDropped,
		TxBytes: n.TxBytes, TxPackets: n.TxPackets, TxErrors: n.TxErrors, TxDropped: n.TxDropped,
	}
}

// errEnough ends the readings when the client has what it asked for.
var errEnough = errors.New("enough")

// stats sends one reading per second, or one in all. A single one contains the reading of the second before, from which
// clients compute the load, unless one-shot is set.
func (h containerHandlers) stats(c *call) error {
	follow, once := c.boolOr("stream", true), c.bool("one-shot")
	if follow && once {
		return errs.New(errs.Invalid, "cannot have stream=true and one-shot=true")
	}
	if follow {
		done, err := c.wait()
		if err != nil {
			return err
		}
		defer done()
	}
	c.w.Header().Set("Content-Type", "application/json")
	rc := http.NewResponseController(c.w)
	var last *wire.Stats
	ctx, cancel := context.WithCancel(c.ctx())
	defer cancel()
	err := h.state.Stats(ctx, c.vars["id"], !once, func(st container.Stats) error {
		a := statsOf(st)
		if last != nil {
			a.PreRead, a.PreCPUStats = last.Read, last.CPUStats
		}
		first := last == nil
		last = &a
		if first && !follow && !once && st.Cgroup.CPUTotal != 0 { // a stopped container has no load
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
