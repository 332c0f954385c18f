package cli

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"ply/internal/cli/command"
	"ply/internal/cli/terminal"
)

// pty is a pseudo-terminal. The test reads and writes the master, the command the slave.
type pty struct {
	master, slave *os.File
	fd            int // of master, because calling Fd would make the file blocking

	mu  sync.Mutex
	got bytes.Buffer
}

// newPTY opens a pseudo-terminal.
func newPTY(t *testing.T, rows, cols uint16) *pty {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	m := os.NewFile(uintptr(fd), "/dev/ptmx") // opened with O_NONBLOCK, so that Close ends a Read
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	s, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	p := &pty{master: m, fd: fd, slave: s}
	p.resize(t, rows, cols)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for {
			n, err := m.Read(buf)
			p.mu.Lock()
			p.got.Write(buf[:n])
			p.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { m.Close(); <-done; s.Close() })
	return p
}

// resize sets the size of the terminal.
func (p *pty) resize(t *testing.T, rows, cols uint16) {
	if err := unix.IoctlSetWinsize(p.fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols}); err != nil {
		t.Fatal(err)
	}
}

// text returns what the command has written so far.
func (p *pty) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.got.String()
}

// until waits until the terminal shows want.
func (p *pty) until(t *testing.T, want string) {
	t.Helper()
	eventually(t, "terminal shows "+want, func() bool { return strings.Contains(p.text(), want) })
}

// invocation returns an invocation whose streams are all the terminal.
func (p *pty) invocation() *command.Invocation {
	inv := invocation(p.slave, p.slave, p.slave)
	term := terminal.Of(p.slave)
	inv.InTerm, inv.OutTerm, inv.ErrTerm = term, term, term
	return inv
}
