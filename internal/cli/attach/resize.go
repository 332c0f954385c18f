package attach

import (
	"context"
	"net/url"
	"strconv"

	"ply/internal/cli/client"
	"ply/internal/cli/terminal"
)

// FollowSize sends the size of term to path, the resize endpoint of a container or an exec: now, and at every change until stop
// is called. With redraw, it first sends a size that differs by one cell, so that a program that already runs draws its screen
// again.
func FollowSize(ctx context.Context, c *client.Client, term *terminal.Term, path string, redraw bool) (stop func()) {
	send := func(more int) error {
		w, h := term.Size()
		if w == 0 && h == 0 {
			return nil
		}
		w, h = w+more, h+more
		q := url.Values{"w": {strconv.Itoa(w)}, "h": {strconv.Itoa(h)}}
		return c.Do(ctx, client.Request{Method: "POST", Path: path, Query: q}, nil)
	}
	if redraw {
		_ = send(1)
	}
	_ = send(0) // it fails when the container has ended, which the wait reports
	ch, off := terminal.Resized()
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-ch:
				_ = send(0)
			case <-done:
				return
			}
		}
	}()
	return func() { off(); close(done) }
}
