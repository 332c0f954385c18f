package logfile

import (
	"sync"
	"time"
)

// ring holds records that wait to be written, so that a slow disk does not stop the container: the log mode non-blocking. A record for which
// there is no room is dropped and counted. At least one record fits, whatever its size.
type ring struct {
	limit int64 // bytes of lines

	mu     sync.Mutex
	more   sync.Cond
	queue  []Message
	size   int64
	lost   int64
	last   time.Time
	closed bool

	done chan struct{} // closed when everything is written
}

// newRing starts a goroutine that calls write until close.
func newRing(limit int64, write func([]Message)) *ring {
	r := &ring{limit: limit, done: make(chan struct{})}
	r.more.L = &r.mu
	go func() {
		defer close(r.done)
		for {
			r.mu.Lock()
			for len(r.queue) == 0 && !r.closed {
				r.more.Wait()
			}
			list := r.queue
			r.queue, r.size = nil, 0
			r.mu.Unlock()
			if len(list) == 0 {
				return
			}
			write(list)
		}
	}()
	return r
}

// put adds records. It keeps copies of the pieces.
func (r *ring) put(stream byte, pieces [][]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range pieces {
		if r.closed || r.size+int64(len(p)) > r.limit && len(r.queue) > 0 {
			r.lost++
			continue
		}
		r.last = after(r.last)
		r.queue = append(r.queue, Message{Time: r.last, Stream: stream, Line: append([]byte(nil), p...)})
		r.size += int64(len(p))
	}
	r.more.Signal()
}

// close waits until the records are written.
func (r *ring) close() {
	r.mu.Lock()
	r.closed = true
	r.more.Signal()
	r.mu.Unlock()
	<-r.done
}

// dropped returns the number of records for which there was no room.
func (r *ring) dropped() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lost
}

// after returns the time now, or one that is later than last if now is not.
func after(last time.Time) time.Time {
	now := time.Now().Round(0)
	if !now.After(last) {
		now = last.Add(1)
	}
	return now
}
