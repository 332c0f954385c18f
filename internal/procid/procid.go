// Package procid identifies a process by boot ID, pid and start time. The kernel reuses pids, so after a crash or a reboot a
// pid that was stored may be that of another process.
//
// Invariant: a process that was found by a stored ID is signalled only through a pidfd, after a check that the pidfd is of that
// process.
package procid

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// ID identifies one process. The zero ID identifies none.
type ID struct {
	Boot  string `json:"boot"`  // the kernel's boot ID
	PID   int    `json:"pid"`   // in the pid namespace of /proc
	Start uint64 `json:"start"` // field 22 of /proc/PID/stat: clock ticks after boot
}

// ErrGone reports that the process has ended.
var ErrGone = errors.New("process has ended")

var bootID = sync.OnceValues(func() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
})

// Boot returns the ID of this boot.
func Boot() (string, error) { return bootID() }

// Self returns the ID of the calling process.
func Self() (ID, error) { return Of(os.Getpid()) }

// Of returns the ID of the process that has this pid now, which may be a zombie; ErrGone when there is none.
func Of(pid int) (ID, error) {
	boot, err := bootID()
	if err != nil {
		return ID{}, err
	}
	_, start, err := stat(pid)
	if err != nil {
		return ID{}, err
	}
	return ID{Boot: boot, PID: pid, Start: start}, nil
}

// Alive reports whether the process still runs. A zombie does not run, nor does a process of another boot. When Alive cannot
// find out, it returns true: the caller must not take over what the process may be using.
func Alive(id ID) bool {
	if id.PID <= 0 {
		return false
	}
	boot, err := bootID()
	if err != nil {
		return true
	}
	if boot != id.Boot {
		return false
	}
	state, start, err := stat(id.PID)
	if err != nil {
		return !errors.Is(err, ErrGone)
	}
	return start == id.Start && state != 'Z' && state != 'X'
}

// Open returns a pidfd of the process; ErrGone when it has ended. The caller closes it.
func Open(id ID) (*os.File, error) {
	if !Alive(id) {
		return nil, fmt.Errorf("process %d: %w", id.PID, ErrGone)
	}
	fd, err := unix.PidfdOpen(id.PID, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil, fmt.Errorf("process %d: %w", id.PID, ErrGone)
	}
	if err != nil {
		return nil, fmt.Errorf("process %d: pidfd: %w", id.PID, err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	// The pid may have been reused since the check. The pidfd refers to the process that had it when it was opened.
	if !Alive(id) {
		_ = f.Close() // only read
		return nil, fmt.Errorf("process %d: %w", id.PID, ErrGone)
	}
	return f, nil
}

// Kill sends a signal to this process; ErrGone when it has ended.
func Kill(id ID, sig unix.Signal) error {
	f, err := Open(id)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.PidfdSendSignal(int(f.Fd()), sig, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("process %d: %w", id.PID, ErrGone)
	}
	return err
}

// stat reads the state and the start time. The command name may contain blanks and brackets, so fields are counted from the
// last bracket.
func stat(pid int) (state byte, start uint64, err error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return 0, 0, fmt.Errorf("process %d: %w", pid, ErrGone)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("process %d: %w", pid, err)
	}
	i := bytes.LastIndexByte(b, ')')
	fields := strings.Fields(string(b[i+1:]))
	if i < 0 || len(fields) < 20 || len(fields[0]) != 1 {
		return 0, 0, fmt.Errorf("process %d: unreadable stat", pid)
	}
	start, err = strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return 0, 0, fmt.Errorf("process %d: start time: %w", pid, err)
	}
	return fields[0][0], start, nil
}
