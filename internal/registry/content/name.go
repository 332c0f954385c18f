package content

import (
	"strings"

	"ply/internal/errs"
)

// Repository is the name of a repository: components of lower-case letters and digits, separated by slashes.
type Repository string

// Tag is a name for a manifest in a repository.
type Tag string

// Limits of names.
const (
	MaxRepository = 255 // bytes
	MaxTag        = 128 // bytes
)

// ParseRepository returns s as the name of a repository. The error's class is errs.Invalid when it is not well formed.
func ParseRepository(s string) (Repository, error) {
	if s == "" || len(s) > MaxRepository {
		return "", errs.New(errs.Invalid, "invalid repository name %q: want 1 to %d bytes", clip(s), MaxRepository)
	}
	for part := range strings.SplitSeq(s, "/") {
		if !isComponent(part) {
			return "", errs.New(errs.Invalid, "invalid repository name %q: a component must be lower-case letters and digits, separated by one of . _ __ or any number of -", clip(s))
		}
	}
	return Repository(s), nil
}

// isComponent matches [a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*.
func isComponent(s string) bool {
	alnum := func(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }
	if s == "" || !alnum(s[0]) || !alnum(s[len(s)-1]) {
		return false
	}
	for i := 0; i < len(s); {
		if alnum(s[i]) {
			i++
			continue
		}
		from := i
		for i < len(s) && s[i] == s[from] {
			i++
		}
		n := i - from
		switch s[from] {
		case '.':
			if n > 1 {
				return false
			}
		case '_':
			if n > 2 {
				return false
			}
		case '-':
		default:
			return false
		}
		if !alnum(s[i]) { // there is a next one: the last byte is alphanumeric
			return false
		}
	}
	return true
}

func (r Repository) String() string { return string(r) }

// ParseTag returns s as a tag. The error's class is errs.Invalid when it is not well formed.
func ParseTag(s string) (Tag, error) {
	if s == "" || len(s) > MaxTag {
		return "", errs.New(errs.Invalid, "invalid tag %q: want 1 to %d bytes", clip(s), MaxTag)
	}
	for i := range len(s) {
		c := s[i]
		word := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_'
		if !word && (i == 0 || c != '.' && c != '-') {
			return "", errs.New(errs.Invalid, "invalid tag %q: want letters, digits, _, . and -, and neither . nor - first", clip(s))
		}
	}
	return Tag(s), nil
}

func (t Tag) String() string { return string(t) }

// FallbackTag returns the tag under which clients keep the list of referrers of a manifest at registries that have no
// referrers API.
func FallbackTag(subject Digest) Tag {
	hex := subject.Hex()
	return Tag(string(subject.Algorithm()) + "-" + hex[:min(len(hex), 64)])
}
