package transfer_test

import (
	"slices"
	"testing"

	"ply/internal/transfer"
)

func TestEveryStateHasItsOwnName(t *testing.T) {
	var names []string
	for _, s := range transfer.States() {
		name := s.String()
		if name == "" || slices.Contains(names, name) {
			t.Errorf("state %d is called %q", s, name)
		}
		names = append(names, name)
	}
	if len(names) < 25 {
		t.Errorf("only %d states", len(names))
	}
	if got := transfer.State(0).String(); got != "State(0)" {
		t.Errorf("the zero state is called %q", got)
	}
}
