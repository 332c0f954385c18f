package registry

import (
	"context"
	"sync"
)

// limiter lets n holders in at a time, in the order in which they came.
type limiter struct {
	slots chan struct{}
}

func newLimiter(n int) *limiter { return &limiter{make(chan struct{}, n)} }

// acquire takes a slot; waiting is called once when there is none free now.
func (l *limiter) acquire(ctx context.Context, waiting func()) (release func(), err error) {
	select {
	case l.slots <- struct{}{}:
	default:
		waiting()
		select {
		case l.slots <- struct{}{}:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return sync.OnceFunc(func() { <-l.slots }), nil
}

// keyed is one lock a key. The zero value works.
type keyed[K comparable] struct {
	mu   sync.Mutex
	held map[K]*keyLock
}

type keyLock struct {
	slot  chan struct{}
	users int
}

// lock waits for the key; the unlock it returns may be called more than once.
func (k *keyed[K]) lock(ctx context.Context, key K) (unlock func(), err error) {
	k.mu.Lock()
	if k.held == nil {
		k.held = map[K]*keyLock{}
	}
	l := k.held[key]
	if l == nil {
		l = &keyLock{slot: make(chan struct{}, 1)}
		k.held[key] = l
	}
	l.users++
	k.mu.Unlock()
	leave := func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(k.held, key)
		}
	}
	select {
	case l.slot <- struct{}{}:
		return sync.OnceFunc(func() { <-l.slot; leave() }), nil
	case <-ctx.Done():
		leave()
		return nil, context.Cause(ctx)
	}
}
