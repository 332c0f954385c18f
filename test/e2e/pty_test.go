package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const typeLimit = time.Minute

// onTerminal runs a program on a new terminal and types a dialogue; see the command pty.
func onTerminal(c *exec.Cmd, dialogue string) (string, error) {
	master, slave, err := openTerminal(40, 120)
	if err != nil {
		return "", err
	}
	defer master.Close()
	c.Stdin, c.Stdout, c.Stderr = slave, slave, slave
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	err = c.Start()
	slave.Close()
	if err != nil {
		return "", err
	}
	var mu sync.Mutex
	var seen strings.Builder
	read := make(chan struct{})
	go func() {
		defer close(read)
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			mu.Lock()
			seen.Write(buf[:n])
			mu.Unlock()
			if err != nil {
				return // EIO: the last user of the terminal has gone
			}
		}
	}()
	text := func() string { mu.Lock(); defer mu.Unlock(); return seen.String() }
	err = typeDialogue(master, dialogue, text)
	if err != nil {
		_ = c.Process.Kill()
	}
	exited := make(chan error, 1)
	go func() { exited <- c.Wait() }()
	select {
	case werr := <-exited:
		err = errors.Join(err, werr)
	case <-time.After(typeLimit):
		_ = c.Process.Kill()
		err = errors.Join(err, fmt.Errorf("the program does not end"), <-exited)
	}
	select {
	case <-read:
	case <-time.After(time.Second): // a child holds the terminal; what it printed so far will do
	}
	return strings.ReplaceAll(text(), "\r\n", "\n"), err
}

func typeDialogue(to *os.File, dialogue string, text func() string) error {
	from := 0
	for line := range strings.Lines(dialogue) {
		line = strings.TrimRight(line, "\n")
		expect, what, ok := strings.Cut(line, "\t")
		if !ok {
			continue
		}
		for deadline := time.Now().Add(typeLimit); ; time.Sleep(10 * time.Millisecond) {
			if i := strings.Index(text()[from:], expect); i >= 0 {
				from += i + len(expect)
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("never saw %q after: %q", expect, text()[from:])
			}
		}
		keys, err := strconv.Unquote(`"` + what + `"`)
		if err != nil {
			return fmt.Errorf("%q: %w", what, err)
		}
		if _, err := to.WriteString(keys); err != nil {
			return err
		}
	}
	return nil
}

func openTerminal(rows, cols uint16) (master, slave *os.File, err error) {
	if master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0); err != nil {
		return nil, nil, err
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	}
	if err == nil {
		slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|syscall.O_NOCTTY, 0)
	}
	if err != nil {
		return nil, nil, errors.Join(err, master.Close())
	}
	return master, slave, nil
}
