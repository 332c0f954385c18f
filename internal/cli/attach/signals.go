package attach

import (
	"context"
	"net/url"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"ply/internal/cli/client"
)

// ProxySignals forwards the signals that this process receives to a container, until stop is called. When it returns, the signals that end a terminal's
// programs are caught; the others are once all is closed.
//
// Go's runtime hands each signal that it is to catch from thread to thread. For all of them that takes as long as the creation of a container, so it is done
// beside other work: the caller waits for all when the container's program may run. Nothing waits for the end of the catching.
func ProxySignals(ctx context.Context, c *client.Client, id string) (all <-chan struct{}, stop func()) {
	ch := make(chan os.Signal, 128)
	signal.Notify(ch, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	caught := make(chan struct{})
	go func() {
		signal.Notify(ch)
		close(caught)
	}()
	done := make(chan struct{})
	go func() {
		for {
			select {
			case s := <-ch:
				if name := forwarded(s); name != "" {
					q := url.Values{"signal": {name}}
					_ = c.Do(ctx, client.Request{Method: "POST", Path: "/containers/" + id + "/kill", Query: q}, nil)
				}
			case <-done:
				<-caught
				signal.Stop(ch)
				return
			}
		}
	}()
	return caught, func() { close(done) }
}

// forwarded returns the name of a signal without SIG, or "" for a signal that is meant for this process only.
func forwarded(s os.Signal) string {
	n, ok := s.(syscall.Signal)
	if !ok {
		return ""
	}
	switch n {
	case unix.SIGCHLD, unix.SIGPIPE, unix.SIGWINCH:
		return ""
	case unix.SIGURG:
		return "" // the Go runtime sends it to itself
	}
	name := unix.SignalName(n)
	if len(name) > 3 {
		return name[3:]
	}
	return strconv.Itoa(int(n))
}
