package filter

import (
	"path"
	"regexp"
	"strings"
)

// Text returns a key that accepts an item when one of its texts contains a value. A value may be a regular expression.
func Text[T any](texts func(T) []string) Key[T] {
	return func(_ string, values []string) (Match[T], error) {
		if len(values) == 0 {
			return nil, nil
		}
		patterns := make([]*regexp.Regexp, 0, len(values))
		for _, v := range values {
			if re, err := regexp.Compile(v); err == nil { // otherwise only plain text
				patterns = append(patterns, re)
			}
		}
		return func(item T) bool {
			for _, text := range texts(item) {
				for _, v := range values {
					if strings.Contains(text, v) {
						return true
					}
				}
				for _, re := range patterns {
					if re.MatchString(text) {
						return true
					}
				}
			}
			return false
		}, nil
	}
}

// Globs reports whether one of the shell patterns matches one of the texts. A malformed pattern matches nothing; see ValidGlob.
func Globs(patterns []string, texts ...string) bool {
	for _, p := range patterns {
		for _, t := range texts {
			if ok, _ := path.Match(p, t); ok {
				return true
			}
		}
	}
	return false
}

// ValidGlob returns why a pattern of Globs is malformed, or nil.
func ValidGlob(pattern string) error {
	_, err := path.Match(pattern, "")
	return err
}
