package e2e

import (
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ply/internal/oci"
	"ply/internal/transfer/remote/remotetest"
)

// cable is the way to a registry. It can be cut, so that nothing listens at its address, and mended.
type cable struct {
	t        *testing.T
	addr, to string

	mu    sync.Mutex
	l     net.Listener
	conns map[net.Conn]bool
}

func newCable(t *testing.T, to string) *cable {
	c := &cable{t: t, addr: "127.0.0.1:0", to: to, conns: map[net.Conn]bool{}}
	c.mend()
	t.Cleanup(c.cut)
	return c
}

func (c *cable) mend() {
	c.t.Helper()
	l, err := net.Listen("tcp", c.addr)
	if err != nil {
		c.t.Fatal(err)
	}
	c.mu.Lock()
	c.l, c.addr = l, l.Addr().String()
	c.mu.Unlock()
	go func() {
		for {
			a, err := l.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("tcp", c.to)
			if err != nil {
				a.Close()
				continue
			}
			c.mu.Lock()
			dead := c.l != l
			c.conns[a], c.conns[b] = true, true
			c.mu.Unlock()
			if dead {
				c.cut()
			}
			for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
				go func() {
					_, _ = io.Copy(way[0], way[1]) // ends when the cable is cut
					way[0].Close()
					way[1].Close()
				}()
			}
		}
	}()
}

func (c *cable) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.l != nil {
		c.l.Close()
		c.l = nil
	}
	for n := range c.conns {
		n.Close()
	}
	clear(c.conns)
}

// A registry that is away in the middle of a pull and of a push ends neither: they say that they wait, go on, and fetch nothing again. With PLY_NIGHTLY it is away
// for a minute.
func TestTransferOutage(t *testing.T) {
	outage := 2 * time.Second
	if os.Getenv("PLY_NIGHTLY") != "" {
		outage = time.Minute
	}
	w := newWorld(t)
	source, target := remotetest.StartFake(t, false), remotetest.StartFake(t, false)
	from, to := newCable(t, source.Addr()), newCable(t, target.Addr())

	pulled := remotetest.Make(t, oci.FormatOCI, noise(120, 7<<20))
	layer := pulled.Layers[0]
	pushed := remotetest.Make(t, oci.FormatOCI, noise(121, 9<<20), noise(122, 5<<20))
	other := remotetest.StartFake(t, false)
	other.Add("app", "1", pushed)
	w.ply("pull", other.Addr()+"/app:1")
	w.ply("tag", other.Addr()+"/app:1", to.addr+"/app:1")
	source.Add("team/app", "1", pulled)
	g := newGate(t, source, layer.Blob, 6<<20)
	var sending atomic.Bool
	hold := make(chan struct{})
	target.Hook = func(rw http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPatch {
			sending.Store(true)
			select { // the other layer, and the rest of this one, meet a registry that is away
			case <-hold:
			case <-r.Context().Done():
			}
		}
		return false
	}
	pull, push := w.start(t, "pull", from.addr+"/team/app:1"), w.start(t, "push", to.addr+"/app:1")
	until(t, func() bool { return w.prefix(layer.Digest) >= 4<<20 && sending.Load() }, func() string { return pull.text() + push.text() })
	from.cut()
	to.cut()
	began := time.Now()
	until(t, func() bool { return g.busy.Load() == 0 }, func() string { return "the registry still answers" })
	had := w.prefix(layer.Digest)
	g.open()
	close(hold)
	g.asked.Store(0)
	pull.await(layer.Digest.Short() + ": Retrying in 5 seconds")
	push.await(": Retrying in 5 seconds")
	time.Sleep(time.Until(began.Add(outage)))
	from.mend()
	to.mend()
	if code := pull.end(); code != 0 {
		t.Errorf("pull: exit code %d:\n%s", code, pull.text())
	}
	if code := push.end(); code != 0 {
		t.Errorf("push: exit code %d:\n%s", code, push.text())
	}
	if got := g.asked.Load(); got > layer.Size-had {
		t.Errorf("after the outage %d bytes were asked for, want %d of %d", got, layer.Size-had, layer.Size)
	}
	w.content(t, from.addr+"/team/app:1", 120, 7<<20)
	if _, data := target.Manifest("app", "1"); data == nil {
		t.Error("the push sent no manifest")
	}
	// A longer wait, which begins after 15 seconds or later, is counted down past 5 as well.
	if n := strings.Count(pull.text(), "Retrying in 5 seconds") - strings.Count(pull.text(), "Retrying in 6 seconds"); n != 1 {
		t.Errorf("%d times a wait that begins with 5 seconds:\n%s", n, pull.text())
	}
}
