package memory

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

func TestShares(t *testing.T) {
	p := NewPool(4*step, 8*step)
	a, b := p.Share(), p.Share()
	for i, c := range []struct {
		s    *Share
		n    int64
		want bool
	}{
		{a, 1, true}, {a, 3 * step, true}, {b, step + 1, false}, {b, step, true}, {a, 4 * step, false}, {a, step, true}, {b, 3 * step, true}, {b, 0, true}, {a, 4 * step, true},
	} {
		if got := c.s.Fit(c.n); got != c.want {
			t.Errorf("%d: Fit(%d) = %v", i, c.n, got)
		}
	}
	a.Close()
	a.Close()
	if a.Fit(1) || !b.Fit(4*step) {
		t.Error("a closed share holds memory")
	}
	b.Close()
	if p.free != p.size {
		t.Errorf("%d of %d bytes are free at the end", p.free, p.size)
	}
}

func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPool(4*step, 8*step)
		full := p.Share()
		full.Fit(4 * step)
		first, err := p.Turn(t.Context())
		if err != nil || !first.Fit(8*step) || first.Fit(9*step) {
			t.Fatalf("a turn does not have exactly its size: %v", err)
		}
		if p.TryTurn() != nil {
			t.Error("TryTurn returns a second turn")
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		mine := errors.New("mine")
		var second *Share
		go func() {
			if _, err := p.Turn(ctx); !errors.Is(err, mine) {
				t.Errorf("a cancelled wait ended with %v", err)
			}
			second, _ = p.Turn(t.Context())
		}()
		synctest.Wait()
		cancel(mine)
		synctest.Wait()
		if second != nil {
			t.Error("two turns at a time")
		}
		first.Close()
		first.Close()
		synctest.Wait()
		if second == nil {
			t.Fatal("the second turn never came")
		}
		second.Close()
		third := p.TryTurn()
		if third == nil {
			t.Fatal("TryTurn returns nothing")
		}
		third.Close()
		full.Close()
	})
}
