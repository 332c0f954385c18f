package transfer

import (
	"sync"
)

// Relay stands between the work and one listener, so that a listener who does not read delays nobody: not the flight that
// others wait for, not an upload. Counters that were not delivered yet are overtaken by later ones; everything else is
// delivered, in order.
type Relay struct {
	sink Sink

	mu     sync.Mutex
	queue  []Progress
	filled *sync.Cond
	closed bool
	done   chan struct{}
}

func NewRelay(sink Sink) *Relay {
	r := &Relay{sink: sink, done: make(chan struct{})}
	r.filled = sync.NewCond(&r.mu)
	go r.run()
	return r
}

// maxLag is how far back an undelivered counter is looked for.
const maxLag = 64

// Send takes a message; it does not wait for the listener.
func (r *Relay) Send(p Progress) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	for i := len(r.queue) - 1; i >= max(0, len(r.queue)-maxLag); i-- {
		q := &r.queue[i]
		if q.Layer == p.Layer && p.Layer != "" {
			if q.State == p.State {
				*q = p
				return
			}
			break
		}
	}
	r.queue = append(r.queue, p)
	r.filled.Signal()
}

func (r *Relay) run() {
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

// Close delivers what is left and ends.
func (r *Relay) Close() {
	r.mu.Lock()
	r.closed = true
	r.filled.Signal()
	r.mu.Unlock()
	<-r.done
}
