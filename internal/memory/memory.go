// Package memory limits the memory that all layers together take while they are unpacked and until they are committed: what
// grows with the names of a layer, and the buffers of its writer.
//
// Invariants: what was granted never exceeds the sizes of the pool and of one turn. Nothing waits for memory of the pool, so holders of it
// cannot wait for each other. The holder of a turn waits for nothing but the file system.
package memory

import (
	"context"
	"sync"

	"ply/internal/errs"
	"ply/internal/host"
)

// turnSize is the size of a turn at least: enough for a layer of a usual size.
const turnSize = 16 << 20

// Process returns the pool of this process: a sixteenth of the memory that it may use. A turn may take an eighth.
var Process = sync.OnceValue(func() *Pool {
	turn := max(turnSize, host.MemoryLimit()/8)
	return NewPool(turn/2, turn)
})

// Pool is an amount of memory. Safe for concurrent use.
type Pool struct {
	size, large int64 // of the pool and of a turn
	turn        chan struct{}

	mu   sync.Mutex
	free int64
}

// NewPool returns a pool of size bytes, of which a turn may take large bytes.
func NewPool(size, large int64) *Pool {
	return &Pool{size: size, large: large, free: size, turn: make(chan struct{}, 1)}
}

// Share returns a share of the pool that has no memory yet.
func (p *Pool) Share() *Share { return &Share{pool: p} }

// Turn waits until no one else has a turn, and returns a share that takes its memory from elsewhere than the pool. It is for what does not fit into the pool. The caller closes it soon.
func (p *Pool) Turn(ctx context.Context) (*Share, error) {
	select {
	case p.turn <- struct{}{}:
		return &Share{pool: p, turn: true}, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// TryTurn is Turn for those who must not wait. It returns nil when another one has the turn.
func (p *Pool) TryTurn() *Share {
	select {
	case p.turn <- struct{}{}:
		return &Share{pool: p, turn: true}
	default:
		return nil
	}
}

// Share is what one user has of a pool. It is not safe for concurrent use.
type Share struct {
	pool   *Pool
	turn   bool
	closed bool
	has    int64
}

// step is by how much shares grow, so that they do not lock the pool too often.
const step = 64 << 10

// Fit makes the share large enough for n bytes, or gives back what exceeds them. It reports whether there was enough memory; if
// there was not, the share stays as it was.
func (s *Share) Fit(n int64) bool {
	n = (n + step - 1) / step * step
	switch {
	case n == s.has:
		return true
	case s.closed:
		return false
	case s.turn:
		if n > s.pool.large {
			return false
		}
	default:
		s.pool.mu.Lock()
		defer s.pool.mu.Unlock()
		if n-s.has > s.pool.free {
			return false
		}
		s.pool.free -= n - s.has
	}
	s.has = n
	return true
}

// Close gives everything back. A second call does nothing.
func (s *Share) Close() {
	if s.closed {
		return
	}
	s.Fit(0)
	s.closed = true
	if s.turn {
		<-s.pool.turn
	}
}

// Exhausted returns the error for a layer that needs more memory than the pool can grant.
func (p *Pool) Exhausted(what string) error {
	return errs.New(errs.Exhausted, "%s needs more than %d MiB of memory", what, p.large>>20).
		WithHint("An eighth of the memory that the engine may use is for this. Give it more, or use an image with fewer and shorter names.")
}
