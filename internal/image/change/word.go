package change

import (
	"strings"

	"ply/internal/errs"
)

// splitWords splits text at blanks outside quotes. It keeps quotes and backslashes, which expand removes. For text without a word
// it returns one empty word.
func splitWords(s string) []string {
	var words []string
	var quote byte
	start := -1
	for i := 0; i < len(s); i++ {
		c := s[i]
		if quote == 0 && (c == ' ' || c == '\t') {
			if start >= 0 {
				words = append(words, s[start:i])
				start = -1
			}
			continue
		}
		if start < 0 {
			start = i
		}
		switch {
		case c == '\\' && quote != '\'':
			i++ // the next character is part of the word
		case quote == 0 && (c == '"' || c == '\''):
			quote = c
		case c == quote:
			quote = 0
		}
	}
	if start >= 0 {
		words = append(words, s[start:])
	}
	if len(words) == 0 {
		return []string{""}
	}
	return words
}

// maxNesting is the maximum depth of ${a:-${b:-…}}, maxExpanded the maximum size of an expanded word in bytes.
const (
	maxNesting  = 32
	maxExpanded = 1 << 20
)

// expand removes quotes and backslashes and replaces variables by their values.
func (a *applier) expand(word string) (string, error) {
	e := expander{s: word, env: a.lookup}
	out, err := e.run(0, 0)
	if err == nil && len(out) > maxExpanded {
		err = errs.New(errs.Invalid, "value grows beyond %d bytes", maxExpanded)
	}
	return out, err
}

func (a *applier) lookup(name string) (string, bool) {
	for _, e := range a.cfg.Env {
		if k, v, _ := strings.Cut(e, "="); k == name {
			return v, true
		}
	}
	return "", false
}

type expander struct {
	s   string
	i   int
	env func(string) (string, bool)
}

// run expands the text before the byte until, which it does not read; 0 means the end of the text.
func (e *expander) run(until byte, depth int) (string, error) {
	if depth > maxNesting {
		return "", errs.New(errs.Invalid, "variables are nested deeper than %d", maxNesting)
	}
	var b strings.Builder
	for e.i < len(e.s) && b.Len() <= maxExpanded {
		c := e.s[e.i]
		if until != 0 && c == until {
			return b.String(), nil
		}
		var part string
		var err error
		switch c {
		case '\'':
			part, err = e.single()
		case '"':
			part, err = e.double(depth)
		case '$':
			part, err = e.variable(depth)
		case '\\':
			if e.i+1 < len(e.s) {
				part = e.s[e.i+1 : e.i+2]
			}
			e.i += 2
		default:
			part = e.s[e.i : e.i+1]
			e.i++
		}
		if err != nil {
			return "", err
		}
		b.WriteString(part)
	}
	if until != 0 && e.i >= len(e.s) {
		return "", errs.New(errs.Invalid, "missing %q", until)
	}
	return b.String(), nil
}

func (e *expander) single() (string, error) {
	body, tail, ok := strings.Cut(e.s[e.i+1:], "'")
	if !ok {
		return "", errs.New(errs.Invalid, "unexpected end of statement while looking for matching single-quote")
	}
	e.i = len(e.s) - len(tail)
	return body, nil
}

func (e *expander) double(depth int) (string, error) {
	var b strings.Builder
	e.i++
	for e.i < len(e.s) && b.Len() <= maxExpanded {
		switch c := e.s[e.i]; c {
		case '"':
			e.i++
			return b.String(), nil
		case '$':
			part, err := e.variable(depth)
			if err != nil {
				return "", err
			}
			b.WriteString(part)
		case '\\':
			e.i++
			if e.i < len(e.s) {
				if n := e.s[e.i]; n != '"' && n != '$' && n != '\\' {
					b.WriteByte('\\')
				}
				b.WriteByte(e.s[e.i])
				e.i++
			}
		default:
			b.WriteByte(c)
			e.i++
		}
	}
	return "", errs.New(errs.Invalid, "unexpected end of statement while looking for matching double-quote")
}

// variable expands $name or ${…}. A $ before anything else stays a $.
func (e *expander) variable(depth int) (string, error) {
	e.i++
	if e.i < len(e.s) && e.s[e.i] == '{' {
		e.i++
		return e.braced(depth)
	}
	name := e.name()
	if name == "" {
		return "$", nil
	}
	v, _ := e.env(name)
	return v, nil
}

func (e *expander) name() string {
	start := e.i
	for e.i < len(e.s) {
		c := e.s[e.i]
		letter := c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		digit := c >= '0' && c <= '9'
		if !letter && !(digit && e.i > start) {
			break
		}
		e.i++
	}
	return e.s[start:e.i]
}

func (e *expander) braced(depth int) (string, error) {
	name := e.name()
	if name == "" {
		return "", errs.New(errs.Invalid, "${…} without a variable's name")
	}
	v, set := e.env(name)
	if e.i >= len(e.s) {
		return "", errs.New(errs.Invalid, "${%s has no closing brace", name)
	}
	if e.s[e.i] == '}' {
		e.i++
		return v, nil
	}
	if e.s[e.i] == ':' {
		e.i++
		set = v != "" // with a colon, an empty variable counts as not set
	}
	if e.i >= len(e.s) {
		return "", errs.New(errs.Invalid, "${%s has no closing brace", name)
	}
	op := e.s[e.i]
	if !strings.ContainsRune("-+?", rune(op)) {
		return "", errs.New(errs.Invalid, "unsupported modifier (%s) in substitution of %s", string(op), name)
	}
	e.i++
	word, err := e.run('}', depth+1)
	if err != nil {
		return "", err
	}
	e.i++
	switch {
	case op == '+' && set, op == '-' && !set:
		return word, nil
	case op == '+':
		return "", nil
	case op == '?' && !set:
		return "", errs.New(errs.Invalid, "%s: %s", name, clip(word))
	}
	return v, nil
}
