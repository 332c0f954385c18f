package remote

import (
	"context"
	"errors"
	"net/http"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"ply/internal/errs"
)

func TestWaitDoublesAndEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(Options{Attempts: 4, Retry: Retry{Base: time.Second, Max: 3 * time.Second, MaxAfter: time.Minute}})
		busy := errors.New("busy")
		for try, want := range []time.Duration{1 * time.Second, 2 * time.Second, 3 * time.Second} {
			start := time.Now()
			if err := c.Wait(t.Context(), busy, try+1); err != nil || time.Since(start) != want {
				t.Errorf("after try %d: waited %v, %v; want %v", try+1, time.Since(start), err, want)
			}
		}
		if err := c.Wait(t.Context(), busy, 4); !errors.Is(err, busy) {
			t.Errorf("after the last try: %v, want the error itself", err)
		}
		c.SetAttempts(0)
		if err := c.Wait(t.Context(), busy, 4); err != nil {
			t.Errorf("after try 4 of the default 5: %v", err)
		}
		start := time.Now()
		if err := c.Wait(t.Context(), &Error{Status: http.StatusTooManyRequests, RetryAfter: 30 * time.Second}, 1); err != nil || time.Since(start) != 30*time.Second {
			t.Errorf("Retry-After of 30 s: waited %v, %v", time.Since(start), err)
		}
		if err := c.Wait(t.Context(), &Error{Status: http.StatusTooManyRequests, RetryAfter: time.Hour}, 1); !errors.Is(err, errs.Unavailable) {
			t.Errorf("Retry-After of an hour: %v, want class Unavailable", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := c.Wait(ctx, busy, 1); !errors.Is(err, context.Canceled) {
			t.Errorf("with a cancelled context: %v", err)
		}
	})
}

// A transfer that has begun survives an outage of a minute, says what it waits for, and ends.
func TestOutlast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(Options{})
		gone := errs.New(errs.Unavailable, "dial: %w", syscall.ECONNREFUSED)
		start, told := time.Now(), []int(nil)
		tries := 0
		err := c.Persist(t.Context(), func() bool { return tries > 0 }, func(s int) { told = append(told, s) }, func() error {
			tries++
			return gone
		})
		if took := time.Since(start); !errors.Is(err, syscall.ECONNREFUSED) || tries != 5 || took < time.Minute || took > 2*time.Minute {
			t.Errorf("%d tries in %v: %v", tries, took, err)
		}
		if len(told) != 65 || told[0] != 5 || told[4] != 1 || told[5] != 15 || told[20] != 45 || told[64] != 1 {
			t.Errorf("told %v", told)
		}
		tries = 0
		if err := c.Persist(t.Context(), func() bool { return false }, nil, func() error { tries++; return gone }); err == nil || tries != 1 {
			t.Errorf("a transfer that has not begun: %d tries, %v", tries, err)
		}
		c.SetAttempts(1)
		tries = 0
		if err := c.Persist(t.Context(), func() bool { return true }, nil, func() error { tries++; return gone }); err == nil || tries != 1 {
			t.Errorf("one attempt: %d tries, %v", tries, err)
		}
		c.SetAttempts(0)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		start = time.Now()
		if err := c.Outlast(ctx, gone, 4, func(int) {}); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 2*time.Second {
			t.Errorf("a cancelled wait: %v after %v", err, time.Since(start))
		}
	})
}

func TestInsist(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(Options{Attempts: 3})
		for name, tc := range map[string]struct {
			err   error
			calls int
		}{
			"success":            {nil, 1},
			"a busy registry":    {&Error{Status: http.StatusServiceUnavailable}, 3},
			"a refusal":          {&Error{Status: http.StatusForbidden}, 1},
			"nothing listens":    {errs.New(errs.Unavailable, "dial: %w", syscall.ECONNREFUSED), 1},
			"a dropped request":  {errs.New(errs.Unavailable, "read: %w", syscall.ECONNRESET), 3},
			"bytes of no use":    {errs.New(errs.Invalid, "digest"), 1},
			"a missing manifest": {&Error{Status: http.StatusNotFound}, 1},
		} {
			calls := 0
			err := c.Insist(t.Context(), func() error { calls++; return tc.err })
			if calls != tc.calls || !errors.Is(err, tc.err) {
				t.Errorf("%s: %d calls, %v; want %d calls", name, calls, err, tc.calls)
			}
		}
	})
}
