package supervise

import (
	"bytes"
	"testing"
	"time"

	"ply/internal/container/shim"
)

// chunks returns the bytes of each stream in a queue of chunks.
func chunks(t *testing.T, queue []byte) (out [shim.Ended]string) {
	t.Helper()
	for r := bytes.NewReader(queue); r.Len() > 0; {
		stream, n, err := shim.ReadChunkHeader(r)
		if err != nil {
			t.Fatal(err)
		}
		data := make([]byte, n)
		if _, err := r.Read(data); err != nil {
			t.Fatal(err)
		}
		out[stream] += string(data)
	}
	return out
}

// What follows a position is sent again, for the streams that the client reads.
func TestBacklogPositions(t *testing.T) {
	b := &backlog{}
	b.add(shim.Stdout, []byte("before"))
	b.begin()
	if b.has(shim.Stdout, 5) || !b.has(shim.Stdout, 6) || b.has(shim.Stdout, 7) || !b.has(shim.Stderr, 0) {
		t.Error("begins with output that was not kept")
	}
	b.add(shim.Stdout, []byte("one"))
	b.add(shim.Stderr, []byte("bad"))
	b.add(shim.Stdout, []byte("two"))
	all := func(byte) bool { return true }
	for _, tc := range []struct {
		stdout, stderr int64
		out, err       string
	}{{6, 0, "onetwo", "bad"}, {8, 3, "etwo", ""}, {9, 2, "two", "d"}, {12, 3, "", ""}} {
		got := chunks(t, b.appendTo(nil, [shim.Ended]int64{shim.Stdout: tc.stdout, shim.Stderr: tc.stderr}, all))
		if got[shim.Stdout] != tc.out || got[shim.Stderr] != tc.err {
			t.Errorf("from %d,%d: %q", tc.stdout, tc.stderr, got)
		}
	}
	got := chunks(t, b.appendTo(nil, [shim.Ended]int64{shim.Stdout: 6}, func(s byte) bool { return s == shim.Stdout }))
	if got[shim.Stdout] != "onetwo" || got[shim.Stderr] != "" {
		t.Errorf("stdout only: %q", got)
	}
}

// The memory is bounded: without a client that is away the oldest output goes, and with one the process waits until it is back, or does not come.
func TestBacklogIsBounded(t *testing.T) {
	for name, returns := range map[string]bool{"returns": true, "does not return": false} {
		t.Run(name, func(t *testing.T) {
			p := &process{clients: map[*client]struct{}{}}
			p.out.begin()
			p.out.limit = 300 * time.Millisecond
			piece := bytes.Repeat([]byte("x"), 32<<10)
			for range 3 * window / len(piece) {
				p.store(shim.Stdout, piece)
			}
			if p.out.size != window || p.out.has(shim.Stdout, 2*window-1) || !p.out.has(shim.Stdout, 2*window) {
				t.Errorf("keeps %d bytes from %d on", p.out.size, p.out.first[shim.Stdout])
			}
			gone := make(chan struct{})
			if returns {
				p.out.limit = time.Hour
			}
			p.await(&client{}, "a", func() { close(gone) })
			stored := make(chan struct{})
			go func() {
				defer close(stored)
				for range 2 * window / len(piece) {
					p.store(shim.Stdout, piece)
				}
			}()
			for full := false; !full; time.Sleep(time.Millisecond) {
				select {
				case <-stored:
					if returns {
						t.Fatal("the process did not wait")
					}
				default:
				}
				p.mu.Lock()
				full = p.out.full() || len(p.out.away) == 0
				p.mu.Unlock()
			}
			if returns {
				select {
				case <-stored:
					t.Error("the process did not wait")
				case <-time.After(50 * time.Millisecond):
				}
				p.mu.Lock()
				if !p.out.has(shim.Stdout, 2*window) {
					t.Error("output that the client may lack was discarded")
				}
				p.out.returned("another")
				p.out.returned("a")
				p.mu.Unlock()
			} else {
				<-gone
			}
			<-stored
			if p.awaited() != nil || p.out.size != window {
				t.Errorf("keeps %d bytes", p.out.size)
			}
		})
	}
}

// A client that has said that it leaves is not waited for, also when a write to it fails after that.
func TestAClientThatLeftIsNotWaitedFor(t *testing.T) {
	p := &process{}
	p.await(&client{departed: true}, "a", func() { t.Error("it was waited for") })
	if p.awaited() != nil {
		t.Error("the process waits for a client that has left")
	}
	p.await(&client{}, "b", func() {})
	if p.awaited() == nil {
		t.Error("the process does not wait for a client whose connection broke")
	}
	p.mu.Lock()
	p.out.returned("b")
	p.mu.Unlock()
}
