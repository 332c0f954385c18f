package container

import (
	"fmt"
	"strings"

	"ply/internal/cli/format"
	"ply/internal/wire"
)

type statsRow struct {
	format.RowMark
	BlockIO, CPUPerc, Container, ID, MemPerc, MemUsage, Name, NetIO, PIDs string
}

var statsTitles = format.Titles{"Container": "CONTAINER", "ID": "CONTAINER ID", "Name": "NAME", "CPUPerc": "CPU %", "MemUsage": "MEM USAGE / LIMIT",
	"MemPerc": "MEM %", "NetIO": "NET I/O", "BlockIO": "BLOCK I/O", "PIDs": "PIDS"}

const statsTable = "{{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}"

// statsRowOf returns the row of a reading; ref is the container as the user named it.
func statsRowOf(ref string, r *wire.Stats, trunc bool) statsRow {
	row := statsRow{Container: ref, ID: r.ID, Name: strings.TrimPrefix(r.Name, "/")}
	if trunc {
		row.ID = format.ShortID(r.ID)
	}
	cpu := 0.0
	used := float64(r.CPUStats.CPUUsage.Total) - float64(r.PreCPUStats.CPUUsage.Total)
	total := float64(r.CPUStats.SystemUsage) - float64(r.PreCPUStats.SystemUsage)
	online := float64(r.CPUStats.OnlineCPUs)
	if online == 0 {
		online = float64(len(r.CPUStats.CPUUsage.PerCPU))
	}
	if total > 0 && used > 0 {
		cpu = used / total * online * 100
	}
	row.CPUPerc = fmt.Sprintf("%.2f%%", cpu)
	mem := float64(withoutCache(r.MemoryStats.Usage, r.MemoryStats.Stats))
	row.MemUsage = format.IEC(mem) + " / " + format.IEC(float64(r.MemoryStats.Limit))
	row.MemPerc = "0.00%"
	if r.MemoryStats.Limit > 0 {
		row.MemPerc = fmt.Sprintf("%.2f%%", mem/float64(r.MemoryStats.Limit)*100)
	}
	var rx, tx, rd, wr uint64
	for _, n := range r.Networks {
		rx += n.RxBytes
		tx += n.TxBytes
	}
	for _, b := range r.BlkioStats.ServiceBytes {
		switch b.Op {
		case "Read", "read":
			rd += b.Value
		case "Write", "write":
			wr += b.Value
		}
	}
	row.NetIO = format.Size(int64(rx)) + " / " + format.Size(int64(tx))
	row.BlockIO = format.Size(int64(rd)) + " / " + format.Size(int64(wr))
	row.PIDs = fmt.Sprint(r.PidsStats.Current)
	return row
}

// withoutCache returns the usage without the page cache that the kernel can drop. The names of the statistics are those of cgroup v1
// and v2.
func withoutCache(usage uint64, stats map[string]uint64) uint64 {
	for _, key := range []string{"total_inactive_file", "inactive_file"} {
		if v, ok := stats[key]; ok && v < usage {
			return usage - v
		}
	}
	return usage
}

// emptyStats returns the row of a container of which there is no reading yet.
func emptyStats(ref string) statsRow {
	return statsRow{Container: ref, ID: format.ShortID(ref), Name: "--", CPUPerc: "--", MemUsage: "-- / --", MemPerc: "--", NetIO: "--", BlockIO: "--", PIDs: "--"}
}
