package change

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxDepth is the maximum depth of ${a:-${b:-…}}, MaxExpanded the maximum size of an expanded word in bytes.
const (
	MaxDepth    = 32
	MaxExpanded = 1 << 20
)

// maxModifiers is the maximum number of ${name…} with a modifier in one text. Braces in quotes can hide their depth, but not their
// number, and each level needs some stack.
const maxModifiers = 10_000

// Depth returns how deep variables with modifiers are nested in text, as in ${a:-${b:-c}}.
func Depth(text string) int {
	depth, deepest, modifiers := 0, 0, 0
	for i := 0; i < len(text); i++ {
		switch {
		case text[i] == '}' && depth > 0:
			depth--
		case text[i] == '$' && i+1 < len(text) && text[i+1] == '{':
			name, end := variable(text[i+1:])
			_ = name
			i += end
			depth++
			deepest = max(deepest, depth)
			if i+1 < len(text) && text[i+1] != '}' {
				modifiers++
			}
		}
	}
	if modifiers > maxModifiers {
		return modifiers
	}
	return deepest
}

// Growth returns an upper bound of the size of a word after its expansion, in bytes, when value returns the size of a variable's
// value. Sizes beyond 1 TiB are 1 TiB.
func Growth(word string, value func(name string) int) int {
	const most = 1 << 40
	total := len(word)
	after := 0 // what the variables behind the current one can grow to
	// From the end, because the text behind ${name//pattern/ may be repeated for each byte of the value.
	for i := len(word) - 1; i >= 0; i-- {
		if word[i] != '$' {
			continue
		}
		name, end := variable(word[i+1:])
		n := value(name)
		if rest := word[i+1+end:]; strings.HasPrefix(word[i+1:], "{") && strings.HasPrefix(rest, "/") {
			n = (n + 1) * (1 + len(word) + after)
		}
		after = min(after+n, most)
		total = min(total+n, most)
	}
	return total
}

// variable returns the name at the start of s, what follows a $, perhaps with an opening brace, and where the name ends.
func variable(s string) (name string, end int) {
	start := 0
	if strings.HasPrefix(s, "{") {
		start = 1
	}
	end = start
	for end < len(s) {
		r, n := utf8.DecodeRuneInString(s[end:])
		if r != '_' && !unicode.IsLetter(r) && !unicode.IsDigit(r) {
			break
		}
		end += n
	}
	return s[start:end], end
}
