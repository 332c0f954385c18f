package supervise

import (
	"os"
	"os/signal"
	"unsafe"

	"golang.org/x/sys/unix"
)

// catchIgnored makes sure that this process ignores no signal, because the container's processes would inherit that. Shells
// start background jobs with SIGINT and SIGQUIT ignored, and some service managers ignore more signals. The shim catches
// these signals instead and does nothing when they come.
func catchIgnored() {
	unwanted := []os.Signal{unix.SIGPIPE, unix.SIGHUP}
	for sig := unix.Signal(1); sig <= 64; sig++ {
		if signal.Ignored(sig) {
			unwanted = append(unwanted, sig)
		}
	}
	signal.Notify(make(chan os.Signal, 1), unwanted...)
	// Go's runtime does not touch the two signals that C libraries use internally, and os/signal cannot.
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

// disposition is at least as large as the kernel's struct sigaction. Its first word is the handler; the rest is not used.
type disposition [8]uintptr

// ignored reports whether this process ignores a signal.
func ignored(sig uintptr) bool {
	var old disposition
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, 0, uintptr(unsafe.Pointer(&old)), 8, 0, 0)
	return errno == 0 && old[0] == sigIgnore
}

// setDisposition sets the handler of a signal.
func setDisposition(sig, handler uintptr) {
	next := disposition{handler}
	// It cannot fail for these signals.
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&next)), 0, 8, 0, 0)
}
