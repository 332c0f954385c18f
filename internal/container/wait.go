package container

import (
	"context"
	"time"
)

// waiter is a request to be told when a condition of the container holds.
type waiter struct {
	c    *ctr
	cond WaitCondition
	ch   chan Exit // capacity 1
}

// Wait returns a channel that receives one Exit when the condition holds; it is registered before Wait returns. The
// channel is closed without a value when ctx ends first. Errors: NotFound, Invalid for an unknown condition.
func (s *Service) Wait(ctx context.Context, ref string, cond WaitCondition) (<-chan Exit, error) {
	switch cond {
	case "":
		cond = WaitNotRunning
	case WaitNotRunning, WaitNextExit, WaitRemoved:
	default:
		return nil, invalid("invalid condition: %q", clip(string(cond)))
	}
	c, err := s.find(ref)
	if err != nil {
		return nil, err
	}
	w := c.wait(cond)
	out := make(chan Exit, 1)
	// The goroutine ends with the request at the latest.
	go func() {
		defer close(out)
		select {
		case e := <-w.ch:
			out <- e
		case <-ctx.Done():
			w.cancel()
		case <-s.env.run.Done():
			w.cancel()
		}
	}()
	return out, nil
}

// wait registers a waiter. A condition that holds already is answered at once.
func (c *ctr) wait(cond WaitCondition) *waiter {
	w := &waiter{c: c, cond: cond, ch: make(chan Exit, 1)}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case cond == WaitNotRunning && c.life == nil && c.rec.State.Status != StatusRestarting,
		cond == WaitRemoved && c.done.Err() != nil:
		w.ch <- c.lastExit()
		return w
	}
	c.waiters[w] = struct{}{}
	return w
}

// cancel ends the wait without an answer.
func (w *waiter) cancel() {
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	delete(w.c.waiters, w)
}

// await reports whether the answer came within d, or the container was removed; a negative d is no limit. It takes the
// waiter's only answer.
func (w *waiter) await(ctx context.Context, d time.Duration) bool {
	var late <-chan time.Time
	if d >= 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		late = t.C
	}
	select {
	case <-w.ch:
		return true
	case <-w.c.done.Done(): // --rm
		return true
	case <-late:
	case <-ctx.Done():
	}
	return false
}

// lastExit returns how the last run ended; c.mu is held.
func (c *ctr) lastExit() Exit {
	st := &c.rec.State
	at := st.Finished
	if at.IsZero() {
		at = time.Now()
	}
	return Exit{Code: st.ExitCode, OOMKilled: st.OOMKilled, At: at} // Error is empty: why a start failed is returned to its caller
}

// notify answers those who wait for one of the conditions; c.mu is held.
func (c *ctr) notify(e Exit, conds ...WaitCondition) {
	for w := range c.waiters {
		for _, cond := range conds {
			if w.cond == cond {
				w.ch <- e
				delete(c.waiters, w)
				break
			}
		}
	}
}
