package content

import (
	"strings"

	"ply/internal/errs"
)

// Pattern stands for repositories. A component * stands for any one component, and ** at the end for any number of components, none
// included.
type Pattern string

// ParsePattern returns s as a pattern. The error's class is errs.Invalid when it is none.
func ParsePattern(s string) (Pattern, error) {
	parts := strings.Split(s, "/")
	for i, p := range parts {
		if p == "*" || p == "**" && i == len(parts)-1 {
			continue
		}
		if _, err := ParseRepository(p); err != nil {
			return "", errs.New(errs.Invalid, "pattern %q: want a repository whose components may be *, and whose last one may be **", s)
		}
	}
	return Pattern(s), nil
}

// Matches reports whether the pattern stands for a repository.
func (pattern Pattern) Matches(repo Repository) bool {
	p, r := strings.Split(string(pattern), "/"), strings.Split(string(repo), "/")
	for i, part := range p {
		if part == "**" && i == len(p)-1 {
			return true
		}
		if i >= len(r) || part != "*" && part != r[i] {
			return false
		}
	}
	return len(p) == len(r)
}
