package runspec

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"ply/internal/container/spec"
	"ply/internal/errs"
)

// blockNode makes a node of the block device 7:1. Only its number is read.
func blockNode(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk")
	if err := unix.Mknod(name, unix.S_IFBLK|0o600, int(unix.Mkdev(7, 1))); err != nil {
		t.Skipf("making a device node: %v", err)
	}
	return name
}

func throttle(rate uint64) []specs.LinuxThrottleDevice {
	d := specs.LinuxThrottleDevice{Rate: rate}
	d.Major, d.Minor = 7, 1
	return []specs.LinuxThrottleDevice{d}
}

func TestDeviceRates(t *testing.T) {
	disk := blockNode(t)
	rate := func(n uint64) []spec.DeviceRate { return []spec.DeviceRate{{Path: disk, Rate: n}} }
	in := input(t)
	in.Host.DeviceRates = true
	in.Spec.Resources = spec.Resources{DeviceReadBps: rate(1 << 20), DeviceWriteBps: rate(2), DeviceReadIOps: rate(3), DeviceWriteIOps: rate(0)}
	out, warnings, err := Build(in)
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	want := &specs.LinuxBlockIO{ThrottleReadBpsDevice: throttle(1 << 20), ThrottleWriteBpsDevice: throttle(2), ThrottleReadIOPSDevice: throttle(3),
		ThrottleWriteIOPSDevice: throttle(math.MaxUint64)}
	if d := cmp.Diff(want, out.Linux.Resources.BlockIO); d != "" {
		t.Errorf("block I/O (-want +got):\n%s", d)
	}
	in.Host.CgroupV2 = false
	if out, _, err = Build(in); err != nil || out.Linux.Resources.BlockIO.ThrottleWriteIOPSDevice[0].Rate != 0 {
		t.Errorf("no limit on cgroup v1: %v %+v", err, out.Linux.Resources.BlockIO)
	}
	in.Host.DeviceRates = false
	out, warnings, err = Build(in)
	if err != nil || out.Linux.Resources.BlockIO != nil {
		t.Errorf("without the controller: %v, %+v", err, out.Linux.Resources.BlockIO)
	}
	if text := strings.Join(warnings, "\n"); len(warnings) != 4 || !strings.Contains(text, "Block I/O BPS read limit discarded.") || !strings.Contains(text, "Block I/O IOPS write limit discarded.") {
		t.Errorf("warnings %q, want docker's four", warnings)
	}
	in.Host.DeviceRates = true
	for path, want := range map[string]error{"/dev/nosuch": errs.NotFound, "/dev/null": errs.Invalid} {
		in.Spec.Resources = spec.Resources{DeviceReadBps: []spec.DeviceRate{{Path: path, Rate: 1}}}
		if _, _, err := Build(in); !errors.Is(err, want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want class %v", path, err, want)
		}
	}
}

func TestDeviceWeights(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk")
	if err := unix.Mknod(disk, unix.S_IFBLK|0o600, int(unix.Mkdev(240, 77))); err != nil { // of no driver, so of no scheduler
		t.Skipf("making a device node: %v", err)
	}
	in := input(t)
	in.Host.DeviceWeights = true
	in.Spec.Resources = spec.Resources{BlkioWeight: 500, DeviceWeights: []spec.DeviceWeight{{Path: disk, Weight: 200}}}
	out, warnings, err := Build(in)
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	b := out.Linux.Resources.BlockIO
	if *b.Weight != 500 || len(b.WeightDevice) != 1 || b.WeightDevice[0].Major != 240 || b.WeightDevice[0].Minor != 77 || *b.WeightDevice[0].Weight != 200 {
		t.Errorf("block I/O %+v", b)
	}
	in.Host.DeviceWeights = false
	out, warnings, err = Build(in)
	if err != nil || len(out.Linux.Resources.BlockIO.WeightDevice) > 0 || len(warnings) != 1 || !strings.HasSuffix(warnings[0], "Weight-device discarded.") {
		t.Errorf("without the controller: %v, warnings %q", err, warnings)
	}
}

// The scheduler of a loop device without a file is none where nobody chose another.
func TestDeviceWithoutWeights(t *testing.T) {
	b, err := os.ReadFile("/sys/dev/block/7:1/queue/scheduler")
	if err != nil || !strings.Contains(string(b), "[none]") {
		t.Skipf("the scheduler of loop1 is %q, %v", b, err)
	}
	in := input(t)
	in.Host.DeviceWeights = true
	in.Spec.Resources = spec.Resources{DeviceWeights: []spec.DeviceWeight{{Path: blockNode(t), Weight: 200}}}
	if _, _, err := Build(in); !errors.Is(err, errs.Precondition) || !strings.Contains(err.Error(), "its scheduler is none") {
		t.Errorf("Build = %v, want Precondition that names the scheduler", err)
	}
}
