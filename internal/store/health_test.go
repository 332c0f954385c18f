package store

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"ply/internal/errs"
	"ply/internal/oci"
)

func TestHealthFindsDamageAndForgetsIt(t *testing.T) {
	w := newWorld(t, 0)
	_, chain := w.image("one", 1, 2)
	h := w.s.Health
	if err := h.Check(t.Context(), chain); err != nil {
		t.Fatalf("Check of sound layers = %v", err)
	}
	top := chain.ID()
	w.layers.damage(chain[1])
	if err := h.Check(t.Context(), chain); err != nil {
		t.Errorf("Check within VerifyEvery = %v, want no second read", err)
	}
	h.expire()
	if err := h.Check(t.Context(), chain); !errors.Is(err, errs.DataLoss) {
		t.Errorf("Check of a damaged layer = %v, want class DataLoss", err)
	}
	if got := h.State(t.Context(), chain); got != LayerDamaged {
		t.Errorf("State of the damaged layer = %v", got)
	}
	if got := h.State(t.Context(), chain[:1]); got != LayerPresent {
		t.Errorf("State of the sound layer = %v", got)
	}
	h.Replaced(top)
	if got := h.State(t.Context(), chain); got != LayerPresent {
		t.Errorf("State after Replaced = %v", got)
	}
	// A layer that somebody else has written again is found sound by the next check.
	if err := h.Check(t.Context(), chain); !errors.Is(err, errs.DataLoss) {
		t.Errorf("Check = %v, want class DataLoss", err)
	}
	w.layers.repair(chain[1])
	if err := h.Check(t.Context(), chain); err != nil || h.State(t.Context(), chain) != LayerPresent {
		t.Errorf("Check after the repair = %v, state %v", err, h.State(t.Context(), chain))
	}
}

// expire makes Health read every layer again.
func (h *Health) expire() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id := range h.read {
		h.read[id] = time.Now().Add(-2 * VerifyEvery)
	}
}

func TestHealthReportsAMissingLayer(t *testing.T) {
	w := newWorld(t, 0)
	_, chain := w.image("one", 1)
	absent := append(chain[:1:1], diffID(9))
	if err := w.s.Health.Check(t.Context(), absent); !errors.Is(err, errs.NotFound) {
		t.Errorf("Check = %v, want class NotFound", err)
	}
	if got := w.s.Health.State(t.Context(), absent); got != LayerMissing {
		t.Errorf("State = %v, want missing", got)
	}
}

func TestHealthReadsFewLayersAtATime(t *testing.T) {
	w := newWorld(t, 0)
	_, chain := w.image("one", 1, 2, 3, 4, 5, 6, 7, 8)
	w.s.Health.slots = make(chan struct{}, 2)
	now, most := make(chan int, 1), 0
	now <- 0
	w.layers.verify = func(oci.DiffID) error {
		n := <-now + 1
		most = max(most, n)
		now <- n
		time.Sleep(time.Millisecond)
		now <- <-now - 1
		return nil
	}
	if err := w.s.Health.Check(t.Context(), chain); err != nil {
		t.Fatal(err)
	}
	if most > 2 {
		t.Errorf("%d layers were read at a time, want at most 2", most)
	}
}

func TestHealthCheckEndsWithItsContext(t *testing.T) {
	w := newWorld(t, 0)
	_, chain := w.image("one", 1, 2)
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		w.s.Health.slots = make(chan struct{}, 1)
		w.layers.verify = func(oci.DiffID) error { <-ctx.Done(); return ctx.Err() }
		done := make(chan error, 1)
		go func() { done <- w.s.Health.Check(ctx, chain) }()
		synctest.Wait()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Check = %v, want it cancelled", err)
		}
		if got := w.s.Health.State(t.Context(), chain); got != LayerPresent {
			t.Errorf("State after a cancelled check = %v, want no damage", got)
		}
	})
}
