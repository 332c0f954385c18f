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
	Later    time.Duration // wait before the third try of a transfer that has begun; it triples with every further try, up to MaxLater. 0 = as others
	MaxLater time.Duration
	GiveUp   time.Duration // a download that gets no byte for so long ends, whatever the number of tries
	MaxAfter time.Duration // longest Retry-After that is obeyed; a registry that asks for more gets an error
}

// DefaultRetry is the policy where Options.Retry is zero.
//
// With five attempts the waits of a transfer that has begun are 65 seconds, so that it survives an outage of a minute.
var DefaultRetry = Retry{Base: 250 * time.Millisecond, Max: 15 * time.Second, Later: 5 * time.Second, MaxLater: time.Minute,
	GiveUp: 2 * time.Minute, MaxAfter: 2 * time.Minute}

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
	return c.pause(ctx, err, try, min(c.retry.Base<<min(try-1, 16), c.retry.Max), func(int) {})
}

// Outlast is Wait for a transfer that has begun: it waits longer, so that the transfer survives an outage of the registry. It calls tell with the seconds that
// are left of a wait of a second or more, once a second.
func (c *Client) Outlast(ctx context.Context, err error, try int, tell func(seconds int)) error {
	r := &c.retry
	if r.Later == 0 || try < 2 {
		return c.pause(ctx, err, try, min(r.Base<<min(try-1, 16), r.Max), tell)
	}
	wait := r.Later
	for n := 2; n < try && wait < r.MaxLater; n++ {
		wait *= 3
	}
	return c.pause(ctx, err, try, min(wait, r.MaxLater), tell)
}

// pause sleeps for the given time before the next try, or for as long as the registry asked.
func (c *Client) pause(ctx context.Context, err error, try int, pause time.Duration, tell func(seconds int)) error {
	r := &c.retry
	if try >= int(r.attempts.Load()) {
		return err
	}
	if after := RetryAfter(err); after > r.MaxAfter {
		return errs.New(errs.Unavailable, "the registry asks to wait %v before the next try: %w", after, err)
	} else if after > 0 {
		pause = after
	}
	t := time.NewTimer(pause)
	defer t.Stop()
	second := time.NewTicker(time.Second)
	defer second.Stop()
	for left := pause; ; left -= time.Second {
		if left >= time.Second/2 && pause >= time.Second {
			tell(int(left.Round(time.Second) / time.Second))
		}
		select {
		case <-second.C:
		case <-t.C:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Insist repeats a small request while the registry is busy or drops the connection. It does not repeat a request to an
// address at which nothing answers.
func (c *Client) Insist(ctx context.Context, do func() error) error {
	return c.Persist(ctx, func() bool { return false }, nil, do)
}

// Persist is Insist for a request of a transfer that may have begun: then it waits as Outlast, also while nothing answers.
func (c *Client) Persist(ctx context.Context, begun func() bool, tell func(seconds int), do func() error) error {
	for try := 1; ; try++ {
		err := do()
		if err == nil || ctx.Err() != nil || !Temporary(err) {
			return err
		}
		switch {
		case begun():
			err = c.Outlast(ctx, err, try, tell)
		case !Unreachable(err):
			err = c.Wait(ctx, err, try)
		}
		if err != nil {
			return err
		}
	}
}
