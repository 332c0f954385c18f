package supervise

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// PID1 is the first process of a container that was created with --init. It runs a program, forwards signals to it, waits
// for orphans, and returns the program's exit code when the program has ended.
func PID1(args []string) int {
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		fmt.Fprintln(os.Stderr, "docker-init: no program to run")
		return 2
	}
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	path, err := exec.LookPath(args[0])
	if err != nil {
		fmt.Fprintf(os.Stderr, "docker-init: %v\n", err)
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
			return 127
		}
		return 126
	}
	// The program leads its own process group, in the foreground of the terminal if there is one.
	attr := &syscall.ProcAttr{Files: []uintptr{0, 1, 2}, Env: os.Environ(), Sys: &syscall.SysProcAttr{Setpgid: true}}
	if _, err := unix.IoctlGetInt(0, unix.TIOCGPGRP); err == nil {
		attr.Sys.Foreground, attr.Sys.Ctty = true, 0
	}
	pid, err := syscall.ForkExec(path, args, attr)
	if err != nil {
		fmt.Fprintf(os.Stderr, "docker-init: exec %s: %v\n", args[0], err)
		return 126
	}
	for sig := range signals {
		switch sig {
		case unix.SIGCHLD:
			if code, done := takeChildren(pid); done {
				return code
			}
		case unix.SIGURG, unix.SIGTTIN, unix.SIGTTOU: // sent by Go's scheduler, or because this process is in the background of the terminal
		default:
			_ = syscall.Kill(pid, sig.(syscall.Signal)) // it fails when the program has ended; SIGCHLD follows
		}
	}
	return 255
}

// takeChildren waits for all children that have ended. done reports whether the program was among them, and code is its
// exit code.
func takeChildren(program int) (code int, done bool) {
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return code, done
		}
		if pid == program {
			done, code = true, ws.ExitStatus()
			if ws.Signaled() {
				code = 128 + int(ws.Signal())
			}
		}
	}
}
