package supervise

import (
	"os"
	"os/signal"
	"unsafe"

	"golang.org/x/sys/unix"
)

// catchIgnored makes sure that this process ignores no signal: what is ignored, the container's processes inherit. A
// shell's background job has SIGINT and SIGQUIT ignored, some service managers more. What nobody needs is caught and
// thrown away instead.
func catchIgnored() {
	thrown := []os.Signal{unix.SIGPIPE, unix.SIGHUP}
	for sig := unix.Signal(1); sig <= 64; sig++ {
		if signal.Ignored(sig) {
			thrown = append(thrown, sig)
		}
	}
	signal.Notify(make(chan os.Signal, 1), thrown...)
	// Go leaves the two that C libraries use inside as it found them, and os/signal does not reach them.
	for _, sig := range []uintptr{32, 33} {
		if ignored(sig) {
			setDisposition(sig, sigDefault)
		}
	}
}

const (
	sigDefault = 0
	sigIgnore  = 1
)

// disposition is the kernel's struct sigaction with room to spare; only its first word, the handler, is of interest here.
type disposition [8]uintptr

func ignored(sig uintptr) bool {
	var old disposition
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, 0, uintptr(unsafe.Pointer(&old)), 8, 0, 0)
	return errno == 0 && old[0] == sigIgnore
}

func setDisposition(sig, handler uintptr) {
	next := disposition{handler}
	// It cannot fail for these signals.
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&next)), 0, 8, 0, 0)
}
