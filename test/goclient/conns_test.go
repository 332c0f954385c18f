package goclient

import (
	"context"
	"net"
	"net/http/httptrace"
	"sync"
	"testing"
	"time"
)

// conns are the connections to plyd that a client has dialed.
type conns struct {
	path   string
	mu     sync.Mutex
	dialed int
	open   map[*conn]bool // whether a request uses it; hijacked ones stay in use
}

type conn struct {
	*net.UnixConn // with CloseWrite, for hijacked streams
	all           *conns
}

func (c *conn) Close() error {
	c.all.mu.Lock()
	delete(c.all.open, c)
	c.all.mu.Unlock()
	return c.UnixConn.Close()
}

// dial is the dialer of a client. The address is that of the daemon, whatever the client asks for.
func (a *conns) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	raw, err := (&net.Dialer{}).DialContext(ctx, "unix", a.path)
	if err != nil {
		return nil, err
	}
	c := &conn{UnixConn: raw.(*net.UnixConn), all: a}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.dialed++
	a.open[c] = true
	return c, nil
}

// traced returns a context whose request says when it takes a connection and when it returns it.
func (a *conns) traced(ctx context.Context) context.Context {
	var mu sync.Mutex
	var used []*conn // more than one if the client retries
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) {
			c := info.Conn.(*conn)
			mu.Lock()
			used = append(used, c)
			mu.Unlock()
			a.use(c, true)
		},
		PutIdleConn: func(err error) {
			mu.Lock()
			defer mu.Unlock()
			if err == nil && len(used) > 0 {
				a.use(used[len(used)-1], false)
			}
		},
	})
}

func (a *conns) use(c *conn, used bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.open[c]; ok {
		a.open[c] = used
	}
}

// count returns how many connections were dialed until now, after the client has put back or closed those that its calls used.
func (a *conns) count(t *testing.T) int {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		a.mu.Lock()
		busy := 0
		for _, used := range a.open {
			if used {
				busy++
			}
		}
		n := a.dialed
		a.mu.Unlock()
		if busy == 0 {
			return n
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d connections stay in use", busy, n)
		}
	}
}
