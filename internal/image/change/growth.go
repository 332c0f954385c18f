package change

import (
	"bytes"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxDepth is the maximum depth of ${a:-${b:-…}}, MaxExpanded the maximum size of an expanded word in bytes.
const (
	MaxDepth    = 32
	MaxExpanded = 1 << 20
)

// Depth returns how deep variables with modifiers are nested in a word, as in ${a:-${b:-c}}, for any escape character, and with or
// without quotes.
func Depth(word string) int {
	if !strings.Contains(word, "${") {
		return 0
	}
	deepest := 0
	for _, escape := range []byte{'\\', '`'} {
		deepest = max(deepest, depth(word, escape, true), depth(word, escape, false))
	}
	return deepest
}

// depth goes through a word as the library does, which calls itself for each level.
func depth(word string, escape byte, quotes bool) (deepest int) {
	var open []byte // what ends each level: } or / of a variable, or a double quote
	braces := 0
	for i := 0; i < len(word); i++ {
		top := byte(0)
		if len(open) > 0 {
			top = open[len(open)-1]
		}
		c := word[i]
		switch {
		case c == top && c == '/':
			open[len(open)-1] = '}' // the pattern ends and the replacement begins
		case c == top:
			open = open[:len(open)-1]
			if c == '}' {
				braces--
			}
		case c == '$':
			stop, end, ok := modifier(word[i+1:])
			if !ok {
				return deepest // the library stops with an error
			}
			i += end
			if stop != 0 {
				open = append(open, stop)
				braces++
				deepest = max(deepest, braces)
			}
		case c == escape && (top != '"' || i+1 < len(word) && strings.IndexByte(`"$`+string(escape), word[i+1]) >= 0):
			i++
		case top == '"':
		case c == '\'' && quotes:
			n := strings.IndexByte(word[i+1:], '\'')
			if n < 0 {
				return deepest
			}
			i += n + 1
		case c == '"' && quotes:
			open = append(open, '"')
		}
	}
	return deepest
}

// modifier reads what follows a $: how many bytes belong to it, and what ends the text of its modifier, or 0 if it has none.
func modifier(s string) (stop byte, end int, ok bool) {
	const special = "@*#?-$!0"
	if !strings.HasPrefix(s, "{") {
		if s != "" && strings.IndexByte(special, s[0]) >= 0 {
			return 0, 1, true
		}
		_, end = variable(s)
		return 0, end, true
	}
	if len(s) == 1 || strings.IndexByte("{}:", s[1]) >= 0 {
		return 0, 0, false
	}
	_, end = variable(s)
	if end == 1 && strings.IndexByte(special, s[1]) >= 0 {
		end = 2
	}
	if end >= len(s) {
		return 0, 0, false
	}
	switch s[end] {
	case '}':
		return 0, end + 1, true
	case ':':
		return '}', min(end+2, len(s)), true
	case '+', '-', '?', '#', '%':
		return '}', end + 1, true
	case '/':
		if strings.HasPrefix(s[end:], "//") {
			end++
		}
		return '/', end + 1, true
	}
	return 0, 0, false
}

// DeepLine returns the first line of a Dockerfile with an instruction that nests variables deeper than MaxDepth, or 0. It is for
// text that the library's parser has not seen, because the parser looks for heredocs in the same way as for variables.
func DeepLine(text []byte, escape byte) int {
	var logical strings.Builder
	first := 0
	number := 0
	for line := range bytes.SplitSeq(text, []byte("\n")) {
		number++
		trimmed := bytes.TrimSpace(line)
		if len(trimmed) == 0 || trimmed[0] == '#' {
			continue // it does not end an instruction
		}
		if first == 0 {
			first = number
		}
		body := bytes.TrimRight(line, " \t\r")
		if n := len(body); body[n-1] == escape && (n == 1 || body[n-2] != escape) {
			logical.Write(body[:n-1])
			continue
		}
		logical.Write(line)
		if Depth(logical.String()) > MaxDepth {
			return first
		}
		logical.Reset()
		first = 0
	}
	if Depth(logical.String()) > MaxDepth {
		return first
	}
	return 0
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
