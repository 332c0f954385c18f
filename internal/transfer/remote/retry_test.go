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
