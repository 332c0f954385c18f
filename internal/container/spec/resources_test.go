package spec

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// An update changes the devices that it names, keeps the others, and leaves the value that it started from alone.
func TestOverlayChangesTheNamedDevices(t *testing.T) {
	before := Resources{Memory: 8 << 20, DeviceReadBps: []DeviceRate{{"/dev/a", 1}, {"/dev/b", 2}}, DeviceWeights: []DeviceWeight{{"/dev/a", 10}}}
	after := before
	after.Overlay(Resources{DeviceWeights: []DeviceWeight{{"/dev/a", 20}}, DeviceReadBps: []DeviceRate{{"/dev/b", 0}, {"/dev/c", 3}}, DeviceWriteIOps: []DeviceRate{{"/dev/a", 4}}})
	want := Resources{Memory: 8 << 20, DeviceReadBps: []DeviceRate{{"/dev/a", 1}, {"/dev/b", 0}, {"/dev/c", 3}}, DeviceWriteIOps: []DeviceRate{{"/dev/a", 4}},
		DeviceWeights: []DeviceWeight{{"/dev/a", 20}}}
	if d := cmp.Diff(want, after); d != "" {
		t.Errorf("after the update (-want +got):\n%s", d)
	}
	if before.DeviceReadBps[1].Rate != 2 || before.DeviceWeights[0].Weight != 10 {
		t.Errorf("the update changed its origin: %+v", before)
	}
	if (Resources{DeviceReadIOps: []DeviceRate{{"/dev/a", 1}}}).IsZero() || !(Resources{}).IsZero() {
		t.Error("IsZero does not see a device's rate")
	}
}
