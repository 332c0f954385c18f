package namespace_test

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"

	"ply/internal/network/namespace"
)

// A list that changes interrupted is asked for again, and not for ever. Another error is returned at once.
func TestWhole(t *testing.T) {
	other := errors.New("other")
	for _, c := range []struct {
		interrupted int
		then        error
		want        error
		calls       int
	}{
		{0, nil, nil, 1},
		{3, nil, nil, 4},
		{3, other, other, 4},
		{1 << 20, nil, netlink.ErrDumpInterrupted, 50},
	} {
		calls := 0
		all, err := namespace.Whole(func() ([]int, error) {
			if calls++; calls <= c.interrupted {
				return []int{1}, netlink.ErrDumpInterrupted
			}
			return []int{1, 2}, c.then
		})
		if !errors.Is(err, c.want) || calls != c.calls || err == nil && len(all) != 2 {
			t.Errorf("%d interruptions: %v, %v after %d calls; want %v after %d", c.interrupted, all, err, calls, c.want, c.calls)
		}
	}
}

func TestHasLink(t *testing.T) {
	for name, want := range map[string]bool{"lo": true, "no-such-link": false} {
		if got, err := namespace.HasLink(name); got != want || err != nil {
			t.Errorf("HasLink(%q) = %v, %v", name, got, err)
		}
	}
}
