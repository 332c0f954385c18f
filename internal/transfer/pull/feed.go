package pull

import (
	"sync"
	"time"

	"ply/internal/transfer"
)

// feed reports the progress of one flight to all pulls that wait for it. A pull that joins later gets the last state at once.
type feed struct {
	mu    sync.Mutex
	next  int // key of the next sink
	sinks map[int]transfer.Sink
	last  transfer.Progress
	at    time.Time // when last was reported
	begun bool      // bytes of the layer are here
	kept  int64     // bytes of the download that an earlier pull fetched
}

// tellEvery is the shortest time between two reports of a number that grows.
const tellEvery = 100 * time.Millisecond

// say reports a state.
func (f *feed) say(state transfer.State, current, total int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = transfer.Progress{State: state, Current: current, Total: total}
	if state == transfer.LayerDownloading {
		f.last.Kept = f.kept
	}
	f.at = time.Now()
	f.begun = f.begun || current > 0 && state.Counts() || state == transfer.LayerPulled
	for _, s := range f.sinks {
		s(f.last)
	}
}

// count reports a number that grows, not more often than tellEvery. It always reports the first and the last value.
func (f *feed) count(state transfer.State, current, total int64) {
	f.mu.Lock()
	due := f.last.State != state || time.Since(f.at) >= tellEvery || current == total
	f.mu.Unlock()
	if due {
		f.say(state, current, total)
	}
}

// found notes how many bytes of the download an earlier pull fetched.
func (f *feed) found(kept int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.kept = kept
}

// hasBegun reports whether bytes of the layer have arrived.
func (f *feed) hasBegun() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.begun
}

// join adds a listener, which calls the layer id. leave removes it.
func (f *feed) join(id string, sink transfer.Sink) (leave func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sinks == nil {
		f.sinks = map[int]transfer.Sink{}
	}
	n := f.next
	f.next++
	to := func(p transfer.Progress) {
		p.Layer = id
		sink(p)
	}
	f.sinks[n] = to
	if f.last.State != 0 {
		to(f.last)
	}
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.sinks, n)
	}
}
