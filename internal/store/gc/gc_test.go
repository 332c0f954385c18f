package gc

import (
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestMarkStopsAtAnError(t *testing.T) {
	boom := errors.New("boom")
	live, err := Mark([]int{1}, func(n int) ([]int, error) {
		if n == 3 {
			return nil, boom
		}
		return []int{n + 1}, nil
	})
	if !errors.Is(err, boom) || live != nil {
		t.Errorf("Mark = %v, %v; want no picture and the error", live, err)
	}
}

// On random graphs, Sweep returns exactly the nodes that a simple fixpoint computation finds unreachable and that keep does not protect.
func TestAgainstFixpoint(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 30).Draw(t, "n")
		edges := map[int][]int{}
		for range rapid.IntRange(0, 60).Draw(t, "edges") {
			a := rapid.IntRange(0, n-1).Draw(t, "from")
			edges[a] = append(edges[a], rapid.IntRange(0, n-1).Draw(t, "to"))
		}
		roots := rapid.SliceOf(rapid.IntRange(0, n-1)).Draw(t, "roots")
		kept := rapid.SliceOf(rapid.IntRange(0, n-1)).Draw(t, "kept")
		want := map[int]bool{}
		for _, r := range roots {
			want[r] = true
		}
		for changed := true; changed; {
			changed = false
			for a := range want {
				for _, b := range edges[a] {
					changed = changed || !want[b]
					want[b] = true
				}
			}
		}
		live, err := Mark(roots, func(n int) ([]int, error) { return edges[n], nil })
		if err != nil || len(live) != len(want) {
			t.Fatalf("Mark found %d nodes, %v; want %d", len(live), err, len(want))
		}
		all := make([]int, n)
		for i := range all {
			all[i] = i
		}
		dead := Sweep(all, live, func(n int) bool { return slices.Contains(kept, n) })
		for _, x := range all {
			if gone := slices.Contains(dead, x); gone != (!want[x] && !slices.Contains(kept, x)) {
				t.Fatalf("node %d: swept %v, reachable %v", x, gone, want[x])
			}
		}
	})
}
