package pull

import (
	"context"
	"sync"
)

// keyed is a set of locks, one per key. The zero value works.
type keyed[K comparable] struct {
	mu    sync.Mutex
	locks map[K]*keyLock
}

type keyLock struct {
	slot  chan struct{}
	users int // who has the lock or waits for it
}

// lock waits for the lock of a key. The unlock that it returns may be called more than once.
func (k *keyed[K]) lock(ctx context.Context, key K) (unlock func(), err error) {
	k.mu.Lock()
	if k.locks == nil {
		k.locks = map[K]*keyLock{}
	}
	l := k.locks[key]
	if l == nil {
		l = &keyLock{slot: make(chan struct{}, 1)}
		k.locks[key] = l
	}
	l.users++
	k.mu.Unlock()
	leave := func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(k.locks, key)
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
