package container

import (
	"fmt"
	"sync/atomic"
	"time"

	"ply/internal/cli/command"
	"ply/internal/cli/format"
)

// shows reports whether the user sees how much has been copied.
func (f *cpFlags) shows(inv *command.Invocation) bool { return !f.quiet && inv.ErrTerm != nil }

// counter counts the bytes that are written to it.
type counter struct{ n atomic.Int64 }

func (c *counter) Write(p []byte) (int, error) { c.n.Add(int64(len(p))); return len(p), nil }

func (c *counter) total() int64 { return c.n.Load() }

// showCount shows the value of n on the terminal until done is called.
func (f *cpFlags) showCount(inv *command.Invocation, what string, n *counter) (done func()) {
	if !f.shows(inv) {
		return func() {}
	}
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		t := time.NewTicker(200 * time.Millisecond)
		defer t.Stop()
		for {
			select {
			case <-stop:
				fmt.Fprint(inv.Err, "\r\x1b[2K")
				return
			case <-t.C:
				fmt.Fprintf(inv.Err, "\r\x1b[2K%s%s", what, format.Size4(n.total()))
			}
		}
	}()
	return func() { close(stop); <-ended }
}
