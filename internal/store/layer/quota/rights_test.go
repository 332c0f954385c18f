package quota

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// withoutResource takes CAP_SYS_RESOURCE from this thread, which may exceed quotas of ext4 with it, until the returned function is called. Overlayfs writes without it.
func withoutResource(t *testing.T) (undo func()) {
	t.Helper()
	runtime.LockOSThread()
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var before [2]unix.CapUserData
	if err := unix.Capget(&h, &before[0]); err != nil {
		t.Fatal(err)
	}
	after := before
	after[0].Effective &^= 1 << unix.CAP_SYS_RESOURCE
	if err := unix.Capset(&h, &after[0]); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := unix.Capset(&h, &before[0]); err != nil {
			t.Error(err)
		}
		runtime.UnlockOSThread()
	}
}
