package supervise

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// child is a process that a runtime started.
type child struct {
	pid int
	// wait blocks until the process has ended and returns docker's exit code, 128+n for signal n. It is called once.
	wait func() int
	// signal sends a signal to this process and no other. It returns os.ErrProcessDone when the process has ended.
	signal func(unix.Signal) error
}

// exitCode returns docker's exit code.
func exitCode(st *os.ProcessState) int {
	if st == nil {
		return 255 // the status is lost; reap leaves known children alone, so this should not happen
	}
	if ws := st.Sys().(syscall.WaitStatus); ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return st.ExitCode()
}

// firstZombie returns the pid of a child that has ended and was not waited for, 0 if there is none.
func firstZombie() (int, error) {
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, err
		}
		// si_pid is the first field of the union, which is aligned like a pointer.
		off := (3*4 + unsafe.Sizeof(uintptr(0)) - 1) &^ (unsafe.Sizeof(uintptr(0)) - 1)
		return int(*(*int32)(unsafe.Add(unsafe.Pointer(&info), off))), nil
	}
}

// receiveFD receives one descriptor from a socket.
func receiveFD(sock int) (*os.File, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	name := make([]byte, 4096)
	var n int
	for {
		var err error
		_, n, _, _, err = unix.Recvmsg(sock, name, oob, unix.MSG_CMSG_CLOEXEC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("console: %w", err)
		}
		break
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return nil, errors.New("console: the runtime sent no terminal")
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.New("console: the runtime sent no terminal")
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, errors.Join(err, unix.Close(fds[0]))
	}
	return os.NewFile(uintptr(fds[0]), "console"), nil
}
