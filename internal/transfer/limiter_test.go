package transfer_test

import (
	"context"
	"errors"
	"testing"

	"ply/internal/transfer"
)

func TestLimiter(t *testing.T) {
	l := transfer.NewLimiter(1)
	waited := 0
	release, err := l.Acquire(t.Context(), func() { waited++ })
	if err != nil || waited != 0 {
		t.Fatalf("Acquire of a free slot waited %d times, %v", waited, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, err = l.Acquire(ctx, func() { waited++; cancel() })
	if !errors.Is(err, context.Canceled) || waited != 1 {
		t.Errorf("Acquire while the slot is taken waited %d times, %v; want once and a cancelled context", waited, err)
	}
	release()
	release() // a second call does not free a second slot
	first, err := l.Acquire(t.Context(), func() { t.Error("waited for a free slot") })
	if err != nil {
		t.Fatal(err)
	}
	// A new maximum applies from the next Acquire on. Slots taken earlier do not count.
	l.SetMax(2)
	if l.Max() != 2 {
		t.Errorf("Max() = %d after SetMax(2)", l.Max())
	}
	for range 2 {
		if _, err := l.Acquire(t.Context(), func() { t.Error("waited for a free slot") }); err != nil {
			t.Fatal(err)
		}
	}
	first()
}
