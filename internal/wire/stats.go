package wire

import "time"

// Stats is one reading of GET /containers/{id}/stats: bytes and nanoseconds, summed since the start.
type Stats struct {
	Name         string                    `json:"name"`
	ID           string                    `json:"id"`
	Read         time.Time                 `json:"read"`
	PreRead      time.Time                 `json:"preread"`
	PidsStats    PidsStats                 `json:"pids_stats"`
	BlkioStats   BlkioStats                `json:"blkio_stats"`
	NumProcs     uint32                    `json:"num_procs"`
	StorageStats struct{}                  `json:"storage_stats"`
	CPUStats     CPUStats                  `json:"cpu_stats"`
	PreCPUStats  CPUStats                  `json:"precpu_stats"` // of the reading before
	MemoryStats  MemoryStats               `json:"memory_stats"`
	Networks     map[string]InterfaceStats `json:"networks,omitempty"`
}

// PidsStats counts processes and threads.
type PidsStats struct {
	Current uint64 `json:"current,omitempty"`
	Limit   uint64 `json:"limit,omitempty"`
}

// CPUStats is the time of processors.
type CPUStats struct {
	CPUUsage struct {
		Total   uint64   `json:"total_usage"`
		PerCPU  []uint64 `json:"percpu_usage,omitempty"`
		InKern  uint64   `json:"usage_in_kernelmode"`
		InUsers uint64   `json:"usage_in_usermode"`
	} `json:"cpu_usage"`
	SystemUsage uint64 `json:"system_cpu_usage,omitempty"` // of the whole machine
	OnlineCPUs  int    `json:"online_cpus,omitempty"`
	Throttling  struct {
		Periods          uint64 `json:"periods"`
		ThrottledPeriods uint64 `json:"throttled_periods"`
		ThrottledTime    uint64 `json:"throttled_time"`
	} `json:"throttling_data"`
}

// MemoryStats is the use of memory.
type MemoryStats struct {
	Usage    uint64            `json:"usage,omitempty"`
	MaxUsage uint64            `json:"max_usage,omitempty"`
	Stats    map[string]uint64 `json:"stats,omitempty"`
	Failcnt  uint64            `json:"failcnt,omitempty"`
	Limit    uint64            `json:"limit,omitempty"`
}

// InterfaceStats counts what passed a network interface.
type InterfaceStats struct {
	RxBytes   uint64 `json:"rx_bytes"`
	RxPackets uint64 `json:"rx_packets"`
	RxErrors  uint64 `json:"rx_errors"`
	RxDropped uint64 `json:"rx_dropped"`
	TxBytes   uint64 `json:"tx_bytes"`
	TxPackets uint64 `json:"tx_packets"`
	TxErrors  uint64 `json:"tx_errors"`
	TxDropped uint64 `json:"tx_dropped"`
}

// BlkioStats is block I/O by device and operation.
type BlkioStats struct {
	ServiceBytes []BlkioEntry `json:"io_service_bytes_recursive"`
	Serviced     []BlkioEntry `json:"io_serviced_recursive"`
	Queued       []BlkioEntry `json:"io_queue_recursive"`
	ServiceTime  []BlkioEntry `json:"io_service_time_recursive"`
	WaitTime     []BlkioEntry `json:"io_wait_time_recursive"`
	Merged       []BlkioEntry `json:"io_merged_recursive"`
	Time         []BlkioEntry `json:"io_time_recursive"`
	Sectors      []BlkioEntry `json:"sectors_recursive"`
}

// BlkioEntry is one number of BlkioStats.
type BlkioEntry struct {
	Major uint64 `json:"major"`
	Minor uint64 `json:"minor"`
	Op    string `json:"op"`
	Value uint64 `json:"value"`
}
