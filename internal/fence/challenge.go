package fence

import (
	"net/http"
	"strings"
)

// Challenge is one scheme that a server offers in WWW-Authenticate.
type Challenge struct {
	Scheme string            // lower case
	Params map[string]string // keys lower case
}

// Challenges parses all WWW-Authenticate headers as RFC 9110, section 11.6.1, defines them: a header may have several schemes,
// quoted commas and escapes. It skips what is malformed.
func Challenges(h http.Header) []Challenge {
	var list []Challenge
	for _, v := range h.Values("Www-Authenticate") {
		if len(v) > 16<<10 {
			continue
		}
		list = append(list, parseHeader(v)...)
	}
	return list
}

func parseHeader(s string) []Challenge {
	var list []Challenge
	for {
		s = strings.TrimLeft(s, " \t,")
		word, rest := token(s)
		if word == "" {
			return list
		}
		trimmed := strings.TrimLeft(rest, " \t")
		if value, after, ok := paramValue(trimmed); ok && len(list) > 0 {
			c := &list[len(list)-1]
			if key := strings.ToLower(word); c.Params[key] == "" {
				c.Params[key] = value
			}
			s = after
			continue
		}
		list = append(list, Challenge{Scheme: strings.ToLower(word), Params: map[string]string{}})
		s = trimmed
		// The token68 form ("Negotiate abc==") has no parameters, and no scheme that is used here has it.
		if tok, after := token68(s); tok != "" && (after == "" || strings.HasPrefix(strings.TrimLeft(after, " \t"), ",")) {
			s = after
		}
	}
}

// paramValue parses "= value", where value is a token or a quoted string.
func paramValue(s string) (value, rest string, ok bool) {
	s, ok = strings.CutPrefix(s, "=")
	if !ok {
		return "", "", false
	}
	s = strings.TrimLeft(s, " \t")
	if !strings.HasPrefix(s, `"`) {
		value, rest = token(s)
		return value, rest, value != ""
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
			if i < len(s) {
				b.WriteByte(s[i])
			}
		case '"':
			return b.String(), s[i+1:], true
		default:
			b.WriteByte(s[i])
		}
	}
	return "", "", false
}

func token(s string) (word, rest string) {
	i := 0
	for i < len(s) && isTokenChar(s[i]) {
		i++
	}
	return s[:i], s[i:]
}

func token68(s string) (word, rest string) {
	i := 0
	for i < len(s) && (isTokenChar(s[i]) || s[i] == '/') {
		i++
	}
	for i < len(s) && s[i] == '=' {
		i++
	}
	return s[:i], s[i:]
}

func isTokenChar(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}
