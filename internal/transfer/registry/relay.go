package registry

import (
	"sync"

	"ply/internal/transfer"
)

// relay stands between the work and one listener, so that a listener who does not read delays nobody: not the flight that
// others wait for, not an upload. Counters that were not delivered yet are overtaken by later ones; everything else is
// delivered, in order.
type relay struct {
	sink transfer.Sink

	mu     sync.Mutex
	queue  []transfer.Progress
	filled *sync.Cond
	closed bool
	done   chan struct{}
}

func newRelay(sink transfer.Sink) *relay {
	r := &relay{sink: sink, done: make(chan struct{})}
	r.filled = sync.NewCond(&r.mu)
	go r.run()
	return r
}

// maxLag is how far back an undelivered counter is looked for.
const maxLag = 64

// send takes a message; it does not wait for the listener.
func (r *relay) send(p transfer.Progress) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	for i := len(r.queue) - 1; i >= max(0, len(r.queue)-maxLag); i-- {
		q := &r.queue[i]
		if q.ID == p.ID && p.ID != "" {
			if q.Action == p.Action && p.Aux == nil && q.Aux == nil {
				*q = p
				return
			}
			break
		}
	}
	r.queue = append(r.queue, p)
	r.filled.Signal()
}

func (r *relay) run() {
	defer close(r.done)
	for {
		r.mu.Lock()
		for len(r.queue) == 0 && !r.closed {
			r.filled.Wait()
		}
		batch := r.queue
		r.queue = nil
		r.mu.Unlock()
		if len(batch) == 0 {
			return
		}
		for _, p := range batch {
			r.sink(p)
		}
	}
}

// close delivers what is left and ends.
func (r *relay) close() {
	r.mu.Lock()
	r.closed = true
	r.filled.Signal()
	r.mu.Unlock()
	<-r.done
}
