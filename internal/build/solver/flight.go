package solver

import (
	"context"
	"sync"

	"ply/internal/oci"
)

// flight is the work on one key, which all builds that want it at the same time share.
type flight struct {
	done   chan struct{}
	rec    *Record
	err    error
	cancel context.CancelFunc

	mu      sync.Mutex
	waiters int
	sinks   map[int]func([]byte, bool)
	next    int
}

// log passes output to all builds that wait.
func (f *flight) log(stderr bool, data []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, sink := range f.sinks {
		sink(data, stderr)
	}
}

// once calls work, unless a flight with the key is under way, whose result it waits for. It reports whether this caller did the work. The work ends when nobody waits for
// it any more. With join unset the caller insists on work of its own.
func (s *Solver) once(ctx context.Context, key oci.Digest, join bool, sink func([]byte, bool), work func(context.Context, func(bool, []byte)) (*Record, error)) (*Record, bool, error) {
	s.mu.Lock()
	f := s.flights[key]
	own := f == nil || !join
	if own {
		f = &flight{done: make(chan struct{}), sinks: map[int]func([]byte, bool){}}
		var run context.Context
		// The work outlives the build that started it while another build waits.
		run, f.cancel = context.WithCancel(context.WithoutCancel(ctx))
		if join {
			s.flights[key] = f
		}
		go func() {
			f.rec, f.err = work(run, f.log)
			f.cancel()
			s.mu.Lock()
			if s.flights[key] == f {
				delete(s.flights, key)
			}
			s.mu.Unlock()
			close(f.done)
		}()
	}
	id := f.join(sink)
	s.mu.Unlock()
	select {
	case <-f.done:
		f.leave(id)
		return f.rec, own, f.err
	case <-ctx.Done():
	}
	s.mu.Lock()
	last := f.leave(id)
	if last && s.flights[key] == f {
		delete(s.flights, key) // a later build must not wait for work that ends
	}
	s.mu.Unlock()
	if last {
		f.cancel()
		<-f.done // what it used is free when the job ends
	}
	return nil, own, context.Cause(ctx)
}

func (f *flight) join(sink func([]byte, bool)) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.waiters++
	f.next++
	if sink != nil {
		f.sinks[f.next] = sink
	}
	return f.next
}

// leave reports whether the waiter was the last one.
func (f *flight) leave(id int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.waiters--
	delete(f.sinks, id)
	return f.waiters == 0
}
