package remote

import (
	"context"
	"sync/atomic"
	"time"

	"ply/internal/errs"
)

// Retry says how long to wait for a registry that does not answer as it should.
type Retry struct {
	Base     time.Duration // wait before the second try; it doubles with every further try
	Max      time.Duration // upper bound of the wait between two tries
	GiveUp   time.Duration // a download that gets no byte for so long ends, whatever the number of tries
	MaxAfter time.Duration // longest Retry-After that is obeyed; a registry that asks for more gets an error
}

// DefaultRetry is the policy where Options.Retry is zero.
var DefaultRetry = Retry{Base: 250 * time.Millisecond, Max: 15 * time.Second, GiveUp: 2 * time.Minute, MaxAfter: 2 * time.Minute}

const defaultAttempts = 5

// retrier is the client's retry policy with its number of attempts, which can change while requests are under way.
type retrier struct {
	Retry
	attempts atomic.Int64
}

// SetAttempts sets how often a request is tried in a row without progress; 0 means the default, 5.
func (c *Client) SetAttempts(n int) {
	if n <= 0 {
		n = defaultAttempts
	}
	c.retry.attempts.Store(int64(n))
}

// GiveUp is how long a download may get no byte at all.
func (c *Client) GiveUp() time.Duration { return c.retry.GiveUp }

// Wait sleeps before try number try+1: as long as the registry asked for, else a time that doubles with every try. It
// returns err itself when the attempts are used up, and an error of its own when the registry asks for too long a wait.
func (c *Client) Wait(ctx context.Context, err error, try int) error {
	r := &c.retry
	if try >= int(r.attempts.Load()) {
		return err
	}
	pause := min(r.Base<<min(try-1, 16), r.Max)
	if after := RetryAfter(err); after > r.MaxAfter {
		return errs.New(errs.Unavailable, "the registry asks to wait %v before the next try: %w", after, err)
	} else if after > 0 {
		pause = after
	}
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Insist repeats a small request while the registry is busy or drops the connection. It does not repeat a request to an
// address at which nothing answers.
func (c *Client) Insist(ctx context.Context, do func() error) error {
	for try := 1; ; try++ {
		err := do()
		if err == nil || ctx.Err() != nil || !Temporary(err) || Unreachable(err) {
			return err
		}
		if err := c.Wait(ctx, err, try); err != nil {
			return err
		}
	}
}
