package names

import (
	"regexp"
	"slices"
	"testing"
)

func TestLists(t *testing.T) {
	word := regexp.MustCompile(`^[a-z]{2,20}$`)
	for _, l := range [][]string{adjectives, surnames} {
		if !slices.IsSorted(l) || len(slices.Compact(slices.Clone(l))) != len(l) {
			t.Error("list is not sorted or has duplicates")
		}
		for _, w := range l {
			if !word.MatchString(w) {
				t.Errorf("word %q", w)
			}
		}
	}
	if !slices.Contains(adjectives, "festive") || !slices.Contains(surnames, "varahamihira") {
		t.Error("the seed's name cannot come out")
	}
}

func TestNew(t *testing.T) {
	plain := regexp.MustCompile(`^[a-z]+_[a-z]+$`)
	numbered := regexp.MustCompile(`^[a-z]+_[a-z]+[0-9]+$`)
	for try := range 40 {
		n := New(try)
		if re := plain; try <= 3 && !re.MatchString(n) || try > 3 && !numbered.MatchString(n) {
			t.Errorf("New(%d) = %q", try, n)
		}
	}
}
