package spec

import (
	"errors"
	"math"
	"path"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"ply/internal/errs"
)

// Resources are cgroup limits. Memory is in bytes; zero means no limit. MemorySwap is memory and swap together; -1 means no limit.
type Resources struct {
	Memory             int64  `json:"Memory"`
	MemoryReservation  int64  `json:"MemoryReservation"`
	MemorySwap         int64  `json:"MemorySwap"`
	KernelMemory       int64  `json:"KernelMemory"`
	MemorySwappiness   *int64 `json:"MemorySwappiness"`
	NanoCPUs           int64  `json:"NanoCPUs"`
	CPUShares          int64  `json:"CPUShares"`
	CPUPeriod          int64  `json:"CPUPeriod"`
	CPUQuota           int64  `json:"CPUQuota"`
	CPURealtimePeriod  int64  `json:"CPURealtimePeriod"`
	CPURealtimeRuntime int64  `json:"CPURealtimeRuntime"`
	CpusetCpus         string `json:"CpusetCpus"`
	CpusetMems         string `json:"CpusetMems"`
	PidsLimit          *int64 `json:"PidsLimit"`
	BlkioWeight        uint16 `json:"BlkioWeight"`

	// Rates of block devices, in bytes and in operations per second.
	DeviceReadBps   []DeviceRate `json:"DeviceReadBps,omitempty"`
	DeviceWriteBps  []DeviceRate `json:"DeviceWriteBps,omitempty"`
	DeviceReadIOps  []DeviceRate `json:"DeviceReadIOps,omitempty"`
	DeviceWriteIOps []DeviceRate `json:"DeviceWriteIOps,omitempty"`

	DeviceWeights []DeviceWeight `json:"DeviceWeights,omitempty"`
}

// DeviceWeight is the weight of a container's operations on one block device of the host, from 10 to 1000; 0 is BlkioWeight.
type DeviceWeight struct {
	Path   string `json:"Path"`
	Weight uint16 `json:"Weight"`
}

func (d DeviceWeight) device() string { return d.Path }

// DeviceRate is the rate of one block device of the host; 0 is no limit.
type DeviceRate struct {
	Path string `json:"Path"`
	Rate uint64 `json:"Rate"`
}

func (d DeviceRate) device() string { return d.Path }

// deviceLists returns the lists of rates and docker's names for them.
func (r *Resources) deviceLists() []namedRates {
	return []namedRates{{"BlkioDeviceReadBps", &r.DeviceReadBps}, {"BlkioDeviceWriteBps", &r.DeviceWriteBps},
		{"BlkioDeviceReadIOps", &r.DeviceReadIOps}, {"BlkioDeviceWriteIOps", &r.DeviceWriteIOps}}
}

type namedRates struct {
	name string
	list *[]DeviceRate
}

// changed returns a copy of list in which changes replace the elements of the same device; those of other devices are appended.
func changed[T interface{ device() string }](list, changes []T) []T {
	list = slices.Clone(list)
	for _, d := range changes {
		if i := slices.IndexFunc(list, func(have T) bool { return have.device() == d.device() }); i >= 0 {
			list[i] = d
		} else {
			list = append(list, d)
		}
	}
	return list
}

func checkDevice(option, name string) error {
	if !path.IsAbs(name) || strings.IndexByte(name, 0) >= 0 {
		return invalid("%s: bad format for device path: %q", option, clip(name))
	}
	return nil
}

// minMemory is the least memory limit that docker accepts, in bytes.
const minMemory = 6 << 20

// Check refuses the limits of a new container that docker refuses on every host, in its words.
func (r *Resources) Check() error {
	if err := r.CheckChange(); err != nil {
		return err
	}
	return r.CheckInForce()
}

// CheckInForce refuses limits that no container has. Unlike Check it accepts what only a sequence of updates can set.
func (r *Resources) CheckInForce() error {
	if r.Memory == 0 && r.MemorySwap > 0 {
		return invalid("You should always set the Memory limit when using Memoryswap limit, see usage")
	}
	return r.checkValues()
}

// CheckChange refuses the limits of an update that docker refuses for every container, in its words.
func (r *Resources) CheckChange() error {
	if r.Memory > 0 && r.MemoryReservation > 0 && r.Memory < r.MemoryReservation {
		return invalid("Minimum memory limit can not be less than memory reservation limit, see usage")
	}
	return r.checkValues()
}

// CheckUpdate refuses a change of r by n that docker refuses because of r, in its words. The class of options that exclude each
// other is errs.Conflict.
func (r *Resources) CheckUpdate(n *Resources) error {
	conflict := func(what string) error { return errs.New(errs.Conflict, "%s", what) }
	switch {
	case n.MemorySwap > 0 && n.Memory == 0 && r.Memory == 0:
		return invalid("You should always set the Memory limit when using Memoryswap limit, see usage")
	case n.MemorySwap > 0 && n.Memory == 0 && n.MemorySwap < r.Memory:
		return invalid("Minimum memoryswap limit should be larger than memory limit, see usage")
	case n.Memory > 0 && n.MemorySwap == 0 && r.MemorySwap > 0 && n.Memory > r.MemorySwap:
		return conflict("Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time")
	case n.NanoCPUs > 0 && r.CPUPeriod > 0:
		return conflict("Conflicting options: Nano CPUs cannot be updated as CPU Period has already been set")
	case n.NanoCPUs > 0 && r.CPUQuota > 0:
		return conflict("Conflicting options: Nano CPUs cannot be updated as CPU Quota has already been set")
	case n.CPUPeriod > 0 && r.NanoCPUs > 0:
		return conflict("Conflicting options: CPU Period cannot be updated as NanoCPUs has already been set")
	case n.CPUQuota > 0 && r.NanoCPUs > 0:
		return conflict("Conflicting options: CPU Quota cannot be updated as NanoCPUs has already been set")
	}
	return nil
}

// checkValues refuses limits that have no meaning, alone or with each other.
func (r *Resources) checkValues() error {
	switch {
	case r.MemoryReservation < -1 || r.KernelMemory < -1:
		return invalid("memory limits can not be negative")
	case r.Memory != 0 && r.Memory < minMemory:
		return invalid("Minimum memory limit allowed is 6MB")
	case r.Memory > 0 && r.MemorySwap > 0 && r.MemorySwap < r.Memory:
		return invalid("Minimum memoryswap limit should be larger than memory limit, see usage")
	case r.MemorySwap < -1:
		return invalid("MemorySwap: %d is neither bytes nor -1, which means no limit", r.MemorySwap)
	case r.MemorySwappiness != nil && (*r.MemorySwappiness < 0 || *r.MemorySwappiness > 100):
		return invalid("Invalid value: %d, valid memory swappiness range is 0-100", *r.MemorySwappiness)
	case r.MemoryReservation > 0 && r.MemoryReservation < minMemory:
		return invalid("Minimum memory reservation allowed is 6MB")
	case r.NanoCPUs > 0 && r.CPUPeriod > 0:
		return invalid("Conflicting options: Nano CPUs and CPU Period cannot both be set")
	case r.NanoCPUs > 0 && r.CPUQuota > 0:
		return invalid("Conflicting options: Nano CPUs and CPU Quota cannot both be set")
	case r.NanoCPUs < 0:
		return invalid("NanoCpus: %d is negative", r.NanoCPUs)
	case r.CPUPeriod != 0 && (r.CPUPeriod < 1000 || r.CPUPeriod > 1000000):
		return invalid("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
	case r.CPUQuota > 0 && r.CPUQuota < 1000:
		return invalid("CPU cfs quota can not be less than 1ms (i.e. 1000)")
	case r.CPUShares < 0:
		return invalid("invalid CPU shares (%d): value must be a positive integer", r.CPUShares)
	case r.BlkioWeight > 0 && (r.BlkioWeight < 10 || r.BlkioWeight > 1000):
		return invalid("Range of blkio weight is from 10 to 1000")
	}
	for _, l := range r.deviceLists() {
		for _, d := range *l.list {
			if err := checkDevice(l.name, d.Path); err != nil {
				return err
			}
		}
	}
	for _, d := range r.DeviceWeights {
		if err := checkDevice("BlkioWeightDevice", d.Path); err != nil {
			return err
		}
		if d.Weight != 0 && (d.Weight < 10 || d.Weight > 1000) {
			return invalid("BlkioWeightDevice: invalid weight for device %s: Range of blkio weight is from 10 to 1000", clip(d.Path))
		}
	}
	if _, err := maxOfSet("cpuset cpus", r.CpusetCpus); err != nil {
		return err
	}
	_, err := maxOfSet("cpuset mems", r.CpusetMems)
	return err
}

// CheckCPUs refuses limits that need more than n CPUs.
func (r *Resources) CheckCPUs(n int) error {
	if r.NanoCPUs > int64(n)*1e9 {
		return invalid("Range of CPUs is from 0.01 to %d.00, as there are only %d CPUs available", n, n)
	}
	last, err := maxOfSet("cpuset cpus", r.CpusetCpus)
	if err != nil {
		return err
	}
	if last >= n {
		return invalid("Requested CPUs are not available - requested %s, available: 0-%d", r.CpusetCpus, n-1)
	}
	return nil
}

// maxOfSet returns the largest number of a list such as "0-2,4"; -1 for an empty one.
func maxOfSet(what, v string) (int, error) {
	members, err := membersOf(what, v)
	last := -1
	for n := range members {
		last = max(last, n)
	}
	return last, err
}

// CheckMems refuses memory nodes that are not in available, which is a list such as "0-1". It accepts all when available is "".
func (r *Resources) CheckMems(available string) error {
	asked, err := membersOf("cpuset mems", r.CpusetMems)
	if err != nil || available == "" {
		return err
	}
	have, err := membersOf("cpuset mems", available)
	if err != nil {
		return err
	}
	for n := range asked {
		if !have[n] {
			return invalid("Requested memory nodes are not available - requested %s, available: %s", clip(r.CpusetMems), available)
		}
	}
	return nil
}

// membersOf returns the numbers of a list such as "0-2,4".
func membersOf(what, v string) (map[int]bool, error) {
	members := map[int]bool{}
	if v == "" {
		return members, nil
	}
	for part := range strings.SplitSeq(v, ",") {
		a, b, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			b = a
		}
		lo, err1 := strconv.ParseUint(a, 10, 13)
		hi, err2 := strconv.ParseUint(b, 10, 13)
		switch {
		case errors.Is(err1, strconv.ErrRange) || errors.Is(err2, strconv.ErrRange):
			return nil, invalid("Invalid value %s for %s: value of out range, maximum is 8192", clip(v), what)
		case err1 != nil || err2 != nil || hi < lo:
			return nil, invalid("Invalid value %s for %s: invalid format: %s", clip(v), what, clip(v))
		}
		for n := lo; n <= hi; n++ {
			members[int(n)] = true
		}
	}
	return members, nil
}

// Reduce discards the limits that no kernel has any more, and returns a warning for each.
func (r *Resources) Reduce() (warnings []string) {
	if r.KernelMemory > 0 {
		warnings = append(warnings, "Kernel memory limits are gone from the kernel. Limitation discarded.")
	}
	r.KernelMemory = 0
	return warnings
}

// LimitSwap limits memory and swap together to twice the limit of memory, unless that limit is set or memory has no limit.
func (r *Resources) LimitSwap() {
	if r.Memory > 0 && r.MemorySwap == 0 && r.Memory <= math.MaxInt64/2 {
		r.MemorySwap = 2 * r.Memory
	}
}

// IsZero reports whether no limit is set.
func (r Resources) IsZero() bool { return reflect.ValueOf(r).IsZero() }

// Overlay replaces the limits that n sets. A limit that is zero in n stays as it is.
func (r *Resources) Overlay(n Resources) {
	set := func(dst *int64, v int64) {
		if v != 0 {
			*dst = v
		}
	}
	set(&r.Memory, n.Memory)
	set(&r.MemoryReservation, n.MemoryReservation)
	set(&r.MemorySwap, n.MemorySwap)
	set(&r.CPUShares, n.CPUShares)
	set(&r.CPURealtimePeriod, n.CPURealtimePeriod)
	set(&r.CPURealtimeRuntime, n.CPURealtimeRuntime)
	if n.NanoCPUs != 0 {
		r.NanoCPUs, r.CPUPeriod, r.CPUQuota = n.NanoCPUs, 0, 0
	}
	if n.CPUPeriod != 0 || n.CPUQuota != 0 {
		r.NanoCPUs = 0
	}
	set(&r.CPUPeriod, n.CPUPeriod)
	set(&r.CPUQuota, n.CPUQuota)
	if n.CpusetCpus != "" {
		r.CpusetCpus = n.CpusetCpus
	}
	if n.CpusetMems != "" {
		r.CpusetMems = n.CpusetMems
	}
	if n.PidsLimit != nil {
		r.PidsLimit = n.PidsLimit
	}
	if n.MemorySwappiness != nil {
		r.MemorySwappiness = n.MemorySwappiness
	}
	if n.BlkioWeight != 0 {
		r.BlkioWeight = n.BlkioWeight
	}
	changes := n.deviceLists()
	for i, l := range r.deviceLists() {
		*l.list = changed(*l.list, *changes[i].list)
	}
	r.DeviceWeights = changed(r.DeviceWeights, n.DeviceWeights)
}
