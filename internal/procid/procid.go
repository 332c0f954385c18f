// Package procid names a process for ever: boot id, pid and start time. A bare pid is reused by the kernel,
// so a record on disk that holds one may point at a stranger after a crash or a reboot.
//
// Invariant: nothing here signals or changes a process; Open gives a pidfd, and only through it may a
// process that was found by a record be signalled.
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

// ID is the name of one process. The zero ID names none.
type ID struct {
	Boot  string `json:"boot"`  // kernel's boot id
	PID   int    `json:"pid"`   // in the pid namespace of /proc
	Start uint64 `json:"start"` // field 22 of /proc/PID/stat: clock ticks after boot
}

// ErrGone says that the process named by an ID has ended.
var ErrGone = errors.New("process has ended")

var bootID = sync.OnceValues(func() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
})

// Boot gives the id of this boot.
func Boot() (string, error) { return bootID() }

// Self names the calling process.
func Self() (ID, error) { return Of(os.Getpid()) }

// Of names the process that has this pid now; ErrGone when there is none. A zombie has a name still.
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

// Alive reports whether the process still runs. A zombie does not, nor does anything of another boot.
// A process that cannot be looked at for another reason than being gone counts as alive: the caller must
// not take what it may hold.
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

// Open gives a pidfd of the process; ErrGone when it has ended. The caller closes it.
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
	// The pid may have been reused between the look and the open; the descriptor pins whoever has it now.
	if !Alive(id) {
		_ = f.Close() // nothing was written through it
		return nil, fmt.Errorf("process %d: %w", id.PID, ErrGone)
	}
	return f, nil
}

// Kill sends a signal to exactly this process; ErrGone when it has ended.
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

// stat reads state and start time. The command name may hold blanks and brackets, so fields count from
// the last bracket.
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
