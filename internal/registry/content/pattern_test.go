package content

import (
	"errors"
	"testing"

	"ply/internal/errs"
)

func TestMatches(t *testing.T) {
	for _, c := range []struct {
		pattern, repo string
		want          bool
	}{
		{"a", "a", true}, {"a", "b", false}, {"a", "a/b", false}, {"a/*", "a/b", true}, {"a/*", "a", false}, {"a/*", "a/b/c", false},
		{"a/**", "a/b/c", true}, {"a/**", "a", true}, {"a/**", "ab", false}, {"**", "a/b", true}, {"*/b", "a/b", true}, {"*/b", "a/c", false},
		{"*", "a", true}, {"*", "a/b", false}, {"a/*/c", "a/b/c", true}, {"a/*/c", "a/b/b/c", false},
	} {
		if got := Pattern(c.pattern).Matches(Repository(c.repo)); got != c.want {
			t.Errorf("Matches(%s, %s) = %v", c.pattern, c.repo, got)
		}
	}
	for s, ok := range map[string]bool{"a": true, "**": true, "a/*/b": true, "a/**": true, "**/a": false, "a*": false, "": false, "a//b": false, "A": false, "../x": false} {
		if _, err := ParsePattern(s); (err == nil) != ok || err != nil && !errors.Is(err, errs.Invalid) {
			t.Errorf("ParsePattern(%q): %v", s, err)
		}
	}
}
