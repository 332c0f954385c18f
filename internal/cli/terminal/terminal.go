// Package terminal is what the command line needs of a terminal: is it one, its size, raw mode, changes of size.
package terminal

import (
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// Term is a file descriptor that is a terminal.
type Term struct {
	fd    int
	mu    sync.Mutex
	saved *term.State
}

// Of gives f's terminal, or nil when f is none.
func Of(f *os.File) *Term {
	if f == nil || !term.IsTerminal(int(f.Fd())) {
		return nil
	}
	return &Term{fd: int(f.Fd())}
}

// Size in cells; zeros when the terminal does not say.
func (t *Term) Size() (width, height int) {
	if t == nil {
		return 0, 0
	}
	w, h, err := term.GetSize(t.fd)
	if err != nil {
		return 0, 0
	}
	return w, h
}

// Raw switches to raw mode. Call Restore on every way out; it may be called often.
func (t *Term) Raw() error {
	if t == nil || os.Getenv("NORAW") != "" {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.saved != nil {
		return nil
	}
	st, err := term.MakeRaw(t.fd)
	if err != nil {
		return err
	}
	t.saved = st
	return nil
}

// Restore undoes Raw.
func (t *Term) Restore() {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.saved != nil {
		_ = term.Restore(t.fd, t.saved) // nothing better can be done with the terminal gone
		t.saved = nil
	}
}

// ReadPassword reads a line without echo.
func (t *Term) ReadPassword() (string, error) {
	b, err := term.ReadPassword(t.fd)
	return string(b), err
}

// Resized gives a channel that gets a value at every change of size until stop is called.
func Resized() (c <-chan os.Signal, stop func()) {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, unix.SIGWINCH)
	return ch, func() { signal.Stop(ch) }
}
