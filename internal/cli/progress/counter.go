package progress

import (
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"ply/internal/cli/format"
)

// Counter counts the bytes that are written to it. It is the progress of a copy, whose end is not known.
type Counter struct{ n atomic.Int64 }

// Write counts p.
func (c *Counter) Write(p []byte) (int, error) { c.n.Add(int64(len(p))); return len(p), nil }

// Total returns the number of bytes so far.
func (c *Counter) Total() int64 { return c.n.Load() }

// Show shows the number of bytes behind what on the terminal w, until done is called.
func (c *Counter) Show(w io.Writer, what string) (done func()) {
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		t := time.NewTicker(200 * time.Millisecond)
		defer t.Stop()
		for {
			select {
			case <-stop:
				fmt.Fprint(w, "\r\x1b[2K")
				return
			case <-t.C:
				fmt.Fprintf(w, "\r\x1b[2K%s%s", what, format.Size4(c.Total()))
			}
		}
	}()
	return func() { close(stop); <-ended }
}
