package transfer

import "sync"

// Relay delivers progress to one listener from a goroutine of its own, so that a listener that is slow or stops reading does not
// delay the transfer. While a report waits, a newer report of the same layer and state replaces it. Everything else is
// delivered in order.
type Relay struct {
	sink Sink

	mu     sync.Mutex // guards queue and closed
	queue  []Progress
	filled *sync.Cond // signalled when queue or closed changes
	closed bool
	done   chan struct{} // closed when everything is delivered
}

// NewRelay starts a relay. The caller calls Close.
func NewRelay(sink Sink) *Relay {
	r := &Relay{sink: sink, done: make(chan struct{})}
	r.filled = sync.NewCond(&r.mu)
	go r.run()
	return r
}

// maxLag bounds how many waiting reports Send looks through for one to replace.
const maxLag = 64

// Send queues a report. It does not wait for the listener. After Close it does nothing.
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

// Close delivers the reports that wait and ends the relay.
func (r *Relay) Close() {
	r.mu.Lock()
	r.closed = true
	r.filled.Signal()
	r.mu.Unlock()
	<-r.done
}
