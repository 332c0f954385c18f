package container

import (
	"fmt"
	"strings"
	"time"

	"ply/internal/cli/format"
)

// reading is one answer of /containers/ID/stats.
type reading struct {
	Name     string    `json:"name"`
	ID       string    `json:"id"`
	Read     time.Time `json:"read"`
	CPU      cpuStats  `json:"cpu_stats"`
	PreCPU   cpuStats  `json:"precpu_stats"`
	PidStats struct {
		Current uint64 `json:"current"`
	} `json:"pids_stats"`
	Memory struct {
		Usage uint64            `json:"usage"`
		Limit uint64            `json:"limit"`
		Stats map[string]uint64 `json:"stats"`
	} `json:"memory_stats"`
	Networks map[string]struct {
		Rx uint64 `json:"rx_bytes"`
		Tx uint64 `json:"tx_bytes"`
	} `json:"networks"`
	Blkio struct {
		Bytes []struct {
			Op    string `json:"op"`
			Value uint64 `json:"value"`
		} `json:"io_service_bytes_recursive"`
	} `json:"blkio_stats"`
}

type cpuStats struct {
	Usage struct {
		Total  uint64   `json:"total_usage"`
		PerCPU []uint64 `json:"percpu_usage"`
	} `json:"cpu_usage"`
	System uint64 `json:"system_cpu_usage"`
	Online uint32 `json:"online_cpus"`
}

type statsRow struct {
	format.RowMark
	BlockIO, CPUPerc, Container, ID, MemPerc, MemUsage, Name, NetIO, PIDs string
}

var statsTitles = format.Titles{"Container": "CONTAINER", "ID": "CONTAINER ID", "Name": "NAME", "CPUPerc": "CPU %", "MemUsage": "MEM USAGE / LIMIT",
	"MemPerc": "MEM %", "NetIO": "NET I/O", "BlockIO": "BLOCK I/O", "PIDs": "PIDS"}

const statsTable = "{{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}"

// statsRowOf returns the row of a reading; ref is the container as the user named it.
func statsRowOf(ref string, r *reading, trunc bool) statsRow {
	row := statsRow{Container: ref, ID: r.ID, Name: strings.TrimPrefix(r.Name, "/")}
	if trunc {
		row.ID = format.ShortID(r.ID)
	}
	cpu := 0.0
	used := float64(r.CPU.Usage.Total) - float64(r.PreCPU.Usage.Total)
	total := float64(r.CPU.System) - float64(r.PreCPU.System)
	online := float64(r.CPU.Online)
	if online == 0 {
		online = float64(len(r.CPU.Usage.PerCPU))
	}
	if total > 0 && used > 0 {
		cpu = used / total * online * 100
	}
	row.CPUPerc = fmt.Sprintf("%.2f%%", cpu)
	mem := float64(withoutCache(r.Memory.Usage, r.Memory.Stats))
	row.MemUsage = format.IEC(mem) + " / " + format.IEC(float64(r.Memory.Limit))
	row.MemPerc = "0.00%"
	if r.Memory.Limit > 0 {
		row.MemPerc = fmt.Sprintf("%.2f%%", mem/float64(r.Memory.Limit)*100)
	}
	var rx, tx, rd, wr uint64
	for _, n := range r.Networks {
		rx += n.Rx
		tx += n.Tx
	}
	for _, b := range r.Blkio.Bytes {
		switch b.Op {
		case "Read", "read":
			rd += b.Value
		case "Write", "write":
			wr += b.Value
		}
	}
	row.NetIO = format.Size(int64(rx)) + " / " + format.Size(int64(tx))
	row.BlockIO = format.Size(int64(rd)) + " / " + format.Size(int64(wr))
	row.PIDs = fmt.Sprint(r.PidStats.Current)
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
