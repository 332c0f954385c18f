package bolt

import (
	"context"
	"sync"
	"sync/atomic"
)

// collecting has the slots of the objects that are being collected, from before it is judged whether they were touched until they are
// durably gone. Who touches such an object waits for that, because until then it can still be read.
type collecting struct {
	some atomic.Int32 // how many there are, so that the others need no mutex

	mu    sync.Mutex
	slots map[*atomic.Int64]chan struct{} // closed at the end
}

// begin says that an object of a slot is being collected, and waits for another one of the same slot.
func (c *collecting) begin(ctx context.Context, slot *atomic.Int64) (end func(), err error) {
	for {
		c.mu.Lock()
		other := c.slots[slot]
		if other == nil {
			if c.slots == nil {
				c.slots = map[*atomic.Int64]chan struct{}{}
			}
			mine := make(chan struct{})
			c.slots[slot] = mine
			c.some.Add(1)
			c.mu.Unlock()
			return func() {
				c.mu.Lock()
				delete(c.slots, slot)
				c.some.Add(-1)
				c.mu.Unlock()
				close(mine)
			}, nil
		}
		c.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// wait returns when no object of the slot is being collected that was judged before.
func (c *collecting) wait(ctx context.Context, slot *atomic.Int64) error {
	if c.some.Load() == 0 {
		return nil
	}
	c.mu.Lock()
	other := c.slots[slot]
	c.mu.Unlock()
	if other == nil {
		return nil
	}
	select {
	case <-other:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
