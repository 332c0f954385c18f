// Package terminal provides what the command line needs of a terminal: whether a stream is one, its size, raw mode, and a
// notice when its size changes.
package terminal

import (
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// Term is a file descriptor that is a terminal. The methods Size, Raw and Restore accept a nil Term and then do nothing.
type Term struct {
	fd    int
	mu    sync.Mutex
	saved *term.State // the mode before Raw; nil while the terminal is not in raw mode
}

// Of returns the terminal behind f, or nil when f is not a terminal.
func Of(f *os.File) *Term {
	if f == nil || !term.IsTerminal(int(f.Fd())) {
		return nil
	}
	return &Term{fd: int(f.Fd())}
}

// Size returns the size in cells, or zeros when the terminal does not report it.
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

// Raw switches to raw mode. The caller must call Restore on every way out.
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

// Restore undoes Raw. It may be called more than once.
func (t *Term) Restore() {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.saved != nil {
		_ = term.Restore(t.fd, t.saved) // it fails only when the terminal is gone, and then there is nothing to restore
		t.saved = nil
	}
}

// ReadPassword reads a line without echo.
func (t *Term) ReadPassword() (string, error) {
	b, err := term.ReadPassword(t.fd)
	return string(b), err
}

// Resized returns a channel that receives a value at every change of the terminal's size, until stop is called.
func Resized() (c <-chan os.Signal, stop func()) {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, unix.SIGWINCH)
	return ch, func() { signal.Stop(ch) }
}
