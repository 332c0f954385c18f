package procid

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// LockedError reports that another process holds the lock of a file.
type LockedError struct {
	Path   string
	Holder string // such as "plyd, pid 1234"; "another process" when /proc does not name it
}

func (e *LockedError) Error() string { return fmt.Sprintf("%s is locked by %s", e.Path, e.Holder) }

// LockFile takes the lock of an open file (flock), which lasts until the file is closed. It waits up to patience: when a process is killed while
// it starts a program, the new process holds the descriptors of the old one until it executes the program. The error is a *LockedError
// when another process holds the lock.
func LockFile(f *os.File, patience time.Duration) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(min(patience/40, 20*time.Millisecond)) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
		case !errors.Is(err, unix.EWOULDBLOCK):
			return fmt.Errorf("lock %s: %w", f.Name(), err)
		case time.Now().After(deadline):
			return &LockedError{f.Name(), holder(f)}
		}
	}
}

// holder returns in words which process holds the lock of a file.
func holder(f *os.File) string {
	const unknown = "another process"
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil {
		return unknown
	}
	b, err := os.ReadFile("/proc/locks")
	if err != nil {
		return unknown
	}
	pid := holderIn(string(b), fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino))
	if pid <= 0 { // none, or a process of another pid namespace
		return unknown
	}
	return Describe(pid)
}

// holderIn returns the process that holds the flock of a file in the format of /proc/locks; 0 when there is none.
func holderIn(locks, file string) int {
	for line := range strings.Lines(locks) {
		// 1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF
		f := strings.Fields(line)
		if len(f) < 6 || f[1] != "FLOCK" || f[5] != file { // a line with "->" is of a process that waits
			continue
		}
		if pid, err := strconv.Atoi(f[4]); err == nil {
			return pid
		}
	}
	return 0
}

// Describe returns a process in words: "plyd, pid 1234".
func Describe(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if name := strings.TrimSpace(string(b)); err == nil && name != "" {
		return fmt.Sprintf("%s, pid %d", name, pid)
	}
	return fmt.Sprintf("pid %d", pid)
}
