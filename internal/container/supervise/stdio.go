package supervise

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ends are the files that a runtime passes to a process, or the socket to which it sends the terminal that it creates.
type ends struct {
	stdin, stdout, stderr *os.File
	console               *os.File
}

// stdio holds both ends of a process' streams.
type stdio struct {
	child ends
	// The shim's ends; nil where there is none. With a terminal only consoleSock and console are set.
	stdin, stdout, stderr *os.File
	consoleSock           *os.File
	console               *os.File
}

// newStdio creates the streams of a process. With discard its output goes to /dev/null.
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

// closeAll closes the files that are not nil and sets them to nil.
func closeAll(files ...**os.File) (err error) {
	for _, f := range files {
		if *f != nil {
			err = errors.Join(err, (*f).Close())
			*f = nil
		}
	}
	return err
}

// closeChild closes the child's ends, of which the child has copies.
func (io *stdio) closeChild() error {
	c := &io.child
	return closeAll(&c.stdin, &c.stdout, &c.stderr, &c.console)
}

// closeOurs closes the shim's ends.
func (io *stdio) closeOurs() error {
	return closeAll(&io.stdin, &io.stdout, &io.stderr, &io.consoleSock, &io.console)
}
