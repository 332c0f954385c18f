package transfer

import (
	"context"
	"sync"
	"sync/atomic"
)

// Limiter lets a number of layers be transferred at a time; the others wait, in the order in which they came. Safe for
// concurrent use.
type Limiter struct {
	slots atomic.Pointer[chan struct{}]
}

// NewLimiter returns a limiter that lets n in at a time.
func NewLimiter(n int) *Limiter {
	l := &Limiter{}
	l.SetMax(n)
	return l
}

// SetMax changes the number. Holders of a slot keep it and do not count against the new number.
func (l *Limiter) SetMax(n int) {
	if n == l.Max() {
		return
	}
	slots := make(chan struct{}, n)
	l.slots.Store(&slots)
}

// Max returns how many are let in at a time.
func (l *Limiter) Max() int {
	if slots := l.slots.Load(); slots != nil {
		return cap(*slots)
	}
	return 0
}

// Acquire takes a slot. It calls waiting once when it has to wait. The caller calls release, which may be called more
// than once.
func (l *Limiter) Acquire(ctx context.Context, waiting func()) (release func(), err error) {
	slots := *l.slots.Load()
	select {
	case slots <- struct{}{}:
	default:
		waiting()
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return sync.OnceFunc(func() { <-slots }), nil
}
