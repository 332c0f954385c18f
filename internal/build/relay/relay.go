// Package relay connects streams with each other: the sockets that builds offer with what serves them.
// A relay that is cancelled closes its streams, so that nothing waits for a peer that does not answer.
package relay

import (
	"context"
	"io"
	"net"
	"sync"
)

// Join copies both directions between two streams until one of them or ctx ends. It closes both.
func Join(ctx context.Context, a, b io.ReadWriteCloser) {
	defer a.Close()
	defer b.Close()
	defer context.AfterFunc(ctx, func() { _, _ = a.Close(), b.Close() })()
	done := make(chan struct{}, 2)
	pipe := func(to io.Writer, from io.Reader) {
		_, _ = io.Copy(to, from) // the end of one direction ends both
		done <- struct{}{}
	}
	go pipe(a, b)
	go pipe(b, a)
	<-done
}

// Listen makes a unix socket and joins each connection to it with a stream that open returns. When open fails, the peer sees the end of its connection.
// end closes the socket and all streams; the end of ctx does not.
func Listen(ctx context.Context, sock string, open func(context.Context) (io.ReadWriteCloser, error)) (end func() error, err error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: sock, Net: "unix"})
	if err != nil {
		return nil, err
	}
	return Serve(ctx, l, open), nil
}

// Serve does the same with a listener that is there already, which it takes over.
func Serve(ctx context.Context, l net.Listener, open func(context.Context) (io.ReadWriteCloser, error)) (end func() error) {
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed
			}
			wg.Go(func() {
				far, err := open(run)
				if err != nil {
					c.Close()
					return
				}
				Join(run, c, far)
			})
		}
	})
	return func() error {
		cancel()
		err := l.Close()
		wg.Wait()
		return err
	}
}
