package mount

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// InNamespace calls f on a thread with a mount namespace and a working directory of its own. Thread and namespace end with f. The
// namespace is a slave of the host's: it receives the host's unmounts, so it keeps no mount of another container busy, and passes on
// none of its own.
func InNamespace(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			// The main thread never ends, so a namespace made on it would stay: keep it locked and use another thread.
			result <- InNamespace(f)
			runtime.UnlockOSThread()
			return
		}
		// The thread is not unlocked, so it ends with this goroutine.
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			result <- fmt.Errorf("mount namespace: %w", err)
			return
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
			result <- fmt.Errorf("mount namespace: %w", err)
			return
		}
		result <- f()
	}()
	return <-result
}
