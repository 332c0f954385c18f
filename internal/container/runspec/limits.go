package runspec

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"ply/internal/container/spec"
	"ply/internal/errs"
)

var rlimitNumbers = map[string]int{
	"AS": unix.RLIMIT_AS, "CORE": unix.RLIMIT_CORE, "CPU": unix.RLIMIT_CPU, "DATA": unix.RLIMIT_DATA,
	"FSIZE": unix.RLIMIT_FSIZE, "LOCKS": unix.RLIMIT_LOCKS, "MEMLOCK": unix.RLIMIT_MEMLOCK,
	"MSGQUEUE": unix.RLIMIT_MSGQUEUE, "NICE": unix.RLIMIT_NICE, "NOFILE": unix.RLIMIT_NOFILE,
	"NPROC": unix.RLIMIT_NPROC, "RSS": unix.RLIMIT_RSS, "RTPRIO": unix.RLIMIT_RTPRIO,
	"RTTIME": unix.RLIMIT_RTTIME, "SIGPENDING": unix.RLIMIT_SIGPENDING, "STACK": unix.RLIMIT_STACK,
}

func (b *builder) rlimits() ([]specs.POSIXRlimit, error) {
	var out []specs.POSIXRlimit
	for _, u := range b.in.Spec.Ulimits {
		if err := u.Check(); err != nil {
			return nil, err
		}
		name := strings.ToUpper(u.Name)
		if slices.ContainsFunc(out, func(r specs.POSIXRlimit) bool { return r.Type == "RLIMIT_"+name }) {
			return nil, errs.New(errs.Invalid, "ulimit %s: given twice", u.Name)
		}
		soft, hard := limitValue(u.Soft), limitValue(u.Hard)
		if most, ok := b.host.HardLimits[name]; ok && hard > most && !b.host.SysResource {
			b.warn("ulimit %s: this host does not allow more than %d, which is used", u.Name, most)
			hard, soft = most, min(soft, most)
		}
		out = append(out, specs.POSIXRlimit{Type: "RLIMIT_" + name, Soft: soft, Hard: hard})
	}
	return out, nil
}

func limitValue(v int64) uint64 {
	if v < 0 {
		return math.MaxUint64
	}
	return uint64(v)
}

func (b *builder) resources() error {
	r, warnings, err := linuxResources(b.in.Spec.Resources, b.host)
	if err != nil {
		return err
	}
	b.warnings = append(b.warnings, warnings...)
	if b.in.Spec.OomKillDisable {
		if b.host.OOMKillDisable {
			disable := true
			if r.Memory == nil {
				r.Memory = &specs.LinuxMemory{}
			}
			r.Memory.DisableOOMKiller = &disable
		} else {
			b.warn("Your kernel does not support OomKillDisable. OomKillDisable discarded.")
		}
	}
	r.Devices = b.spec.Linux.Resources.Devices // set by the step devices
	b.spec.Linux.Resources = r
	return nil
}

// LinuxResources returns limits in the form that a shim's Update takes. The warnings and errors are those of Build.
func LinuxResources(r spec.Resources) (*specs.LinuxResources, []string, error) {
	host, err := ProbeHost()
	if err != nil {
		return nil, nil, err
	}
	return linuxResources(r, &host)
}

// FitLimits checks limits against a host. It unsets those that the host cannot set, and returns docker's warnings for them.
func FitLimits(r *spec.Resources, host *Host) (warnings []string, err error) {
	if err := r.CheckMems(host.MemoryNodes); err != nil {
		return nil, err
	}
	return discard(r, host), nil
}

// discard unsets the limits that this host cannot set, and returns docker's warnings for them.
func discard(r *spec.Resources, host *Host) (warnings []string) {
	if r.MemorySwap > 0 && !host.SwapLimit {
		warnings = append(warnings, "Your kernel does not support swap limit capabilities or the cgroup is not mounted. Memory limited without swap.")
		r.MemorySwap = 0
	}
	if r.MemorySwappiness != nil && host.CgroupV2 {
		warnings = append(warnings, "Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. Memory swappiness discarded.")
		r.MemorySwappiness = nil
	}
	if r.BlkioWeight > 0 && !host.Weights {
		warnings = append(warnings, "Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded.")
		r.BlkioWeight = 0
	}
	for _, l := range []struct {
		list *[]spec.DeviceRate
		what string
	}{
		{&r.DeviceReadBps, "BPS Block I/O read limit or the cgroup is not mounted. Block I/O BPS read limit discarded."},
		{&r.DeviceWriteBps, "BPS Block I/O write limit or the cgroup is not mounted. Block I/O BPS write limit discarded."},
		{&r.DeviceReadIOps, "IOPS Block read limit or the cgroup is not mounted. Block I/O IOPS read limit discarded."},
		{&r.DeviceWriteIOps, "IOPS Block write limit or the cgroup is not mounted. Block I/O IOPS write limit discarded."},
	} {
		if len(*l.list) > 0 && !host.DeviceRates {
			warnings = append(warnings, "Your kernel does not support "+l.what)
			*l.list = nil
		}
	}
	if r.PidsLimit != nil && *r.PidsLimit > 0 && !host.Pids {
		warnings = append(warnings, "Your kernel does not support PIDs limit capabilities or the cgroup is not mounted. PIDs limit discarded.")
		r.PidsLimit = nil
	}
	if len(r.DeviceWeights) > 0 && !host.DeviceWeights {
		warnings = append(warnings, "Your kernel does not support Block I/O weight_device or the cgroup is not mounted. Weight-device discarded.")
		r.DeviceWeights = nil
	}
	return warnings
}

func linuxResources(r spec.Resources, host *Host) (*specs.LinuxResources, []string, error) {
	if err := r.CheckInForce(); err != nil {
		return nil, nil, err
	}
	warnings := discard(&r, host)
	out := &specs.LinuxResources{Memory: memoryLimits(&r, host)}
	out.CPU = cpuLimits(r)
	if r.PidsLimit != nil && *r.PidsLimit != 0 {
		limit := max(*r.PidsLimit, -1)
		out.Pids = &specs.LinuxPids{Limit: &limit}
	}
	var err error
	out.BlockIO, err = blockIO(&r, host)
	return out, warnings, err
}

func memoryLimits(r *spec.Resources, host *Host) *specs.LinuxMemory {
	if r.Memory == 0 && r.MemoryReservation == 0 && r.MemorySwap == 0 && r.MemorySwappiness == nil {
		return nil
	}
	m := &specs.LinuxMemory{Limit: positive(r.Memory), Reservation: number(r.MemoryReservation)}
	r.LimitSwap()
	if host.SwapLimit {
		m.Swap = number(r.MemorySwap)
	}
	if r.MemorySwappiness != nil {
		v := uint64(*r.MemorySwappiness)
		m.Swappiness = &v
	}
	return m
}

func blockIO(r *spec.Resources, host *Host) (*specs.LinuxBlockIO, error) {
	var b specs.LinuxBlockIO
	if r.BlkioWeight != 0 {
		b.Weight = &r.BlkioWeight
	}
	for _, l := range []struct {
		from []spec.DeviceRate
		to   *[]specs.LinuxThrottleDevice
	}{
		{r.DeviceReadBps, &b.ThrottleReadBpsDevice}, {r.DeviceWriteBps, &b.ThrottleWriteBpsDevice},
		{r.DeviceReadIOps, &b.ThrottleReadIOPSDevice}, {r.DeviceWriteIOps, &b.ThrottleWriteIOPSDevice},
	} {
		for _, d := range l.from {
			t := specs.LinuxThrottleDevice{Rate: d.Rate}
			if d.Rate == 0 && host.CgroupV2 {
				t.Rate = math.MaxUint64 // cgroup v2 refuses 0; this value means no limit
			}
			var err error
			if t.Major, t.Minor, err = blockDevice(d.Path); err != nil {
				return nil, err
			}
			*l.to = append(*l.to, t)
		}
	}
	for _, d := range r.DeviceWeights {
		w := specs.LinuxWeightDevice{Weight: &d.Weight}
		var err error
		if w.Major, w.Minor, err = blockDevice(d.Path); err != nil {
			return nil, err
		}
		if err := weighable(d.Path, w.Major, w.Minor); err != nil {
			return nil, err
		}
		b.WeightDevice = append(b.WeightDevice, w)
	}
	if reflect.ValueOf(b).IsZero() {
		return nil, nil
	}
	return &b, nil
}

// weighable refuses a device whose scheduler does not support weights. The kernel would refuse it too, but does not name the reason.
func weighable(name string, major, minor int64) error {
	b, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/queue/scheduler", major, minor))
	if err != nil {
		return nil // a partition, or a device without schedulers: the kernel decides
	}
	_, active, _ := strings.Cut(string(b), "[")
	active, _, _ = strings.Cut(active, "]")
	if active == "bfq" || active == "cfq" {
		return nil
	}
	return errs.New(errs.Precondition, "block device %s: its scheduler is %s, which does not support weights", name, active).
		WithHint("Write bfq into /sys/block/%s/queue/scheduler.", filepath.Base(name))
}

// blockDevice returns the number of a block device of the host.
func blockDevice(name string) (major, minor int64, err error) {
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil {
		return 0, 0, errs.New(errs.NotFound, "block device: stat %s: %w", name, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0, 0, errs.New(errs.Invalid, "block device: %s is not one", name)
	}
	return int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev)), nil
}

func cpuLimits(r spec.Resources) *specs.LinuxCPU {
	c := specs.LinuxCPU{Cpus: r.CpusetCpus, Mems: r.CpusetMems}
	empty := c
	if r.CPUShares > 0 {
		v := uint64(r.CPUShares)
		c.Shares = &v
	}
	period, quota := uint64(max(r.CPUPeriod, 0)), r.CPUQuota
	if r.NanoCPUs > 0 && quota == 0 { // the other quota that can stand beside NanoCPUs is -1, no limit
		period = 100_000
		quota = r.NanoCPUs * int64(period) / 1e9
	}
	if period > 0 {
		c.Period = &period
	}
	if quota != 0 {
		c.Quota = &quota
	}
	if r.CPURealtimePeriod > 0 {
		v := uint64(r.CPURealtimePeriod)
		c.RealtimePeriod = &v
	}
	c.RealtimeRuntime = positive(r.CPURealtimeRuntime)
	if c == empty && c.Cpus == "" && c.Mems == "" {
		return nil
	}
	return &c
}

// number returns a limit that may be -1; nil when there is none.
func number(v int64) *int64 {
	if v == 0 {
		return nil
	}
	return &v
}

func positive(v int64) *int64 {
	if v <= 0 {
		return nil
	}
	return &v
}
