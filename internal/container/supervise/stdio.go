package supervise

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ends are what a runtime gives to a process: three files, or a socket by which it sends the terminal it makes.
type ends struct {
	stdin, stdout, stderr *os.File
	console               *os.File
}

// stdio is both ends of a process' streams.
type stdio struct {
	child ends
	// Our ends; nil where there is none. With a terminal only console is set.
	stdin, stdout, stderr *os.File
	consoleSock           *os.File
	console               *os.File
}

func newStdio(tty, wantStdin, discard bool) (io *stdio, err error) {
	io = &stdio{}
	defer func() {
		if err != nil {
			err = errors.Join(err, io.closeChild(), io.closeOurs())
		}
	}()
	if tty {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return io, fmt.Errorf("console socket: %w", err)
		}
		io.consoleSock = os.NewFile(uintptr(fds[0]), "console-socket")
		io.child.console = os.NewFile(uintptr(fds[1]), "console-socket")
		return io, nil
	}
	if wantStdin {
		if io.child.stdin, io.stdin, err = os.Pipe(); err != nil {
			return io, err
		}
	} else if io.child.stdin, err = os.Open(os.DevNull); err != nil {
		return io, err
	}
	if discard {
		if io.child.stdout, err = os.OpenFile(os.DevNull, os.O_WRONLY, 0); err != nil {
			return io, err
		}
		io.child.stderr, err = os.OpenFile(os.DevNull, os.O_WRONLY, 0)
		return io, err
	}
	if io.stdout, io.child.stdout, err = os.Pipe(); err != nil {
		return io, err
	}
	io.stderr, io.child.stderr, err = os.Pipe()
	return io, err
}

func (io *stdio) childEnds() ends { return io.child }

func closeAll(files ...**os.File) (err error) {
	for _, f := range files {
		if *f != nil {
			err = errors.Join(err, (*f).Close())
			*f = nil
		}
	}
	return err
}

// closeChild closes what the child has now for itself.
func (io *stdio) closeChild() error {
	c := &io.child
	return closeAll(&c.stdin, &c.stdout, &c.stderr, &c.console)
}

func (io *stdio) closeOurs() error {
	return closeAll(&io.stdin, &io.stdout, &io.stderr, &io.consoleSock, &io.console)
}
