package dockerfile

import (
	"bytes"
	"encoding/json"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"

	"ply/internal/image/change"
)

// comment is a comment at the end of a line of instructions.
type comment struct {
	line int
	text string
}

// dropComments replaces unquoted comments at the ends of lines by blanks, so that every other byte stays where it is. A comment
// begins with a # after a blank. Those in RUN, in the shell form of CMD and ENTRYPOINT, and in heredocs belong to the shell or to a
// file and stay. A continuation at the end of a comment stays, too.
func dropComments(data []byte) ([]byte, []comment) {
	s := scan{out: bytes.Clone(data), escape: escapeOf(data)}
	for number, start := 1, 0; start < len(s.out); number++ {
		end := len(s.out)
		if i := bytes.IndexByte(s.out[start:], '\n'); i >= 0 {
			end = start + i
		}
		s.line(number, start, end)
		start = end + 1
	}
	return s.out, s.dropped
}

// escapeOf returns the escape character of a Dockerfile.
func escapeOf(data []byte) byte {
	if v, _, _, ok := parser.ParseDirective("escape", data); ok && v == "`" {
		return '`'
	}
	return '\\'
}

// syntaxLine returns the line of the directive syntax, or 0.
func syntaxLine(data []byte) int {
	_, _, loc, ok := parser.DetectSyntax(data)
	if !ok || len(loc) == 0 {
		return 0
	}
	return loc[0].Start.Line
}

// scan is the state between two lines.
type scan struct {
	out     []byte
	escape  byte
	dropped []comment

	inside bool // in an instruction that the last line continued
	keep   bool // its comments belong to a shell
	exec   bool // it may have an exec form: its comments go only if what remains is one
	quote  byte
	text   strings.Builder // the instruction so far
	docs   []parser.Heredoc
}

// line treats out[start:end].
func (s *scan) line(number, start, end int) {
	text := s.out[start:end]
	if len(s.docs) > 0 {
		s.body(text)
		return
	}
	trimmed := bytes.TrimSpace(text)
	if number == 1 {
		trimmed = bytes.TrimPrefix(trimmed, []byte("\xef\xbb\xbf"))
	}
	if len(trimmed) == 0 || trimmed[0] == '#' {
		return // a comment or an empty line does not end an instruction
	}
	if !s.inside {
		s.begin(string(trimmed))
	}
	body, continued := s.continuation(text)
	if at := s.find(body); at >= 0 && !s.keep {
		said := strings.TrimSpace(string(body[at:]))
		if !s.exec || s.isExec(body[:at]) {
			for i := at; i < len(body); i++ {
				body[i] = ' '
			}
			s.dropped = append(s.dropped, comment{number, said})
		}
	}
	s.text.Write(body)
	s.inside = continued
	if !continued {
		s.end()
	}
}

// continuation splits a line from the escape character at its end.
func (s *scan) continuation(text []byte) (body []byte, continued bool) {
	t := bytes.TrimRight(text, " \t\r")
	if n := len(t); n > 0 && t[n-1] == s.escape && (n == 1 || t[n-2] != s.escape) {
		return t[:n-1], true
	}
	// The blank before a comment may follow the escape character: `ENV A=1 \  # first`.
	if at := s.peek(text); at > 0 && !s.keep && !s.exec {
		before := bytes.TrimRight(text[:at], " \t")
		if n := len(before); n > 1 && before[n-1] == s.escape && blank(before[n-2]) {
			return bytes.TrimRight(text, "\r"), true
		}
	}
	return bytes.TrimRight(text, "\r"), false
}

func blank(c byte) bool { return c == ' ' || c == '\t' }

func (s *scan) peek(text []byte) int {
	q := s.quote
	at := s.find(text)
	s.quote = q
	return at
}

// find returns where an unquoted comment begins, or -1, and follows the quotes.
func (s *scan) find(text []byte) int {
	escaped := -1
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == s.escape && s.quote != '\'':
			if s.quote == 0 && i > 0 && blank(text[i-1]) && i+1 < len(text) && blank(text[i+1]) {
				continue // it stands alone, as a continuation does
			}
			i++
			escaped = i
		case s.quote != 0:
			if c == s.quote {
				s.quote = 0
			}
		case c == '"' || c == '\'':
			s.quote = c
		case c == '#' && i > 0 && blank(text[i-1]) && i-1 != escaped:
			return i
		}
	}
	return -1
}

// begin looks at the first line of an instruction.
func (s *scan) begin(line string) {
	s.text.Reset()
	s.quote, s.keep, s.exec = 0, false, false
	name, rest := word(line)
	if name == "ONBUILD" {
		name, rest = word(rest)
	}
	if name == "HEALTHCHECK" {
		for strings.HasPrefix(rest, "--") {
			_, rest = cut(rest)
		}
		name, rest = word(rest)
	}
	switch name {
	case "RUN":
		s.keep = true
	case "CMD", "ENTRYPOINT":
		s.exec = strings.HasPrefix(rest, "[")
		s.keep = !s.exec
	}
}

func word(s string) (name, rest string) {
	name, rest = cut(s)
	return strings.ToUpper(name), rest
}

func cut(s string) (first, rest string) {
	if i := strings.IndexAny(s, " \t"); i >= 0 {
		return s[:i], strings.TrimLeft(s[i:], " \t")
	}
	return s, ""
}

// isExec reports whether the instruction, with the last part, ends in an exec form.
func (s *scan) isExec(last []byte) bool {
	text := s.text.String() + string(last)
	i := strings.IndexByte(text, '[')
	var words []string
	return i >= 0 && json.Unmarshal([]byte(text[i:]), &words) == nil
}

// end looks for the heredocs of a complete instruction.
func (s *scan) end() {
	text := strings.TrimSpace(s.text.String())
	name, rest := word(text)
	if name == "ONBUILD" {
		name, rest = word(rest)
	}
	if name != "RUN" && name != "COPY" && name != "ADD" || !strings.Contains(text, "<<") || change.Depth(text) > change.MaxDepth {
		return
	}
	for strings.HasPrefix(rest, "--") {
		_, rest = cut(rest)
	}
	var words []string
	if strings.HasPrefix(rest, "[") && json.Unmarshal([]byte(rest), &words) == nil {
		return
	}
	lex := shell.NewLex('\\')
	lex.RawQuotes, lex.RawEscapes, lex.SkipUnsetEnv = true, true, true
	words, err := lex.ProcessWords(text, shell.EnvsFromSlice(nil))
	if err != nil {
		return
	}
	for _, w := range words {
		if h := parser.MustParseHeredoc(w); h != nil {
			s.docs = append(s.docs, *h)
		}
	}
}

// body treats a line of a heredoc.
func (s *scan) body(text []byte) {
	line := bytes.TrimRight(text, "\r\n")
	if s.docs[0].Chomp {
		line = bytes.TrimLeft(line, "\t")
	}
	if string(line) == s.docs[0].Name {
		s.docs = s.docs[1:]
	}
}
