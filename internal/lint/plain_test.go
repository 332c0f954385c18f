package lint

import (
	"go/ast"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// clipped are words and phrases of comments that an engineer has to read twice, with what to write instead.
var clipped = []struct {
	pattern *regexp.Regexp
	instead string
}{
	{regexp.MustCompile(`\bhearsay\b|\bheirs\b|\bknock\b|\ba lie\b`), "what happens, without a metaphor"},
	{regexp.MustCompile(`\b[Rr]ows? \d+|\bthe seeds?\b|\b[TBCD]\d{1,2}\b[^"]`), "what the test shows; no number of a list outside of the repository"},
	{regexp.MustCompile(`\bin this wise\b|\bthereof\b|\btherein\b|\bwhereupon\b`), "plain words"},
}

// Comments are plain technical English.
func TestCommentsArePlain(t *testing.T) {
	source(t, true, func(path string, f *ast.File) {
		if strings.Contains(filepath.ToSlash(path), "internal/lint/plain_test.go") {
			return
		}
		for _, group := range f.Comments {
			text := group.Text()
			for _, c := range clipped {
				if m := c.pattern.FindString(text); m != "" {
					t.Errorf("%s: %q in the comment %q: write %s", path, strings.TrimSpace(m), firstLine(text), c.instead)
				}
			}
		}
	})
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}
