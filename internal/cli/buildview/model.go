package buildview

import (
	"bytes"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"ply/internal/wire"
)

// model is what is known of a build.
type model struct {
	order    []*vertex // as they began
	byDigest map[string]*vertex
	steps    map[string]*step // by vertex
	all      []*step          // in order
	warnings []wire.BuildWarning
	failed   *vertex // the first that failed for a reason of its own
}

// vertex is one operation.
type vertex struct {
	wire.BuildVertex
	statuses []*wire.BuildStatus
	byID     map[string]int
	log      spool
	tail     tail
	step     *step
}

// step is one instruction of the image.
type step struct{ wire.BuildInstruction }

func newModel() *model {
	return &model{byDigest: map[string]*vertex{}, steps: map[string]*step{}}
}

func (m *model) close() {
	for _, v := range m.order {
		v.log.close()
	}
}

func (m *model) vertex(digest string) *vertex {
	v := m.byDigest[digest]
	if v == nil {
		v = &vertex{BuildVertex: wire.BuildVertex{Digest: digest}, byID: map[string]int{}}
		v.step = m.steps[digest]
		m.byDigest[digest] = v
		m.order = append(m.order, v)
	}
	return v
}

// apply takes over what happened.
func (m *model) apply(e *wire.BuildEvents) {
	for _, x := range e.Vertexes {
		v := m.vertex(x.Digest)
		v.BuildVertex = x
		if x.Completed != nil && x.Error == "" {
			v.log.close()
		}
		if x.Error != "" && m.failed == nil {
			m.failed = v
		}
	}
	for _, x := range e.Statuses {
		v := m.vertex(x.Vertex)
		if i, ok := v.byID[x.ID]; ok {
			v.statuses[i] = x
			continue
		}
		v.byID[x.ID] = len(v.statuses)
		v.statuses = append(v.statuses, x)
	}
	for i := range e.Logs {
		x := &e.Logs[i]
		v := m.vertex(x.Vertex)
		v.log.write(x.Data)
		v.tail.write(x.Data)
	}
	m.warnings = append(m.warnings, e.Warnings...)
	for _, x := range e.Steps {
		m.applyStep(x)
	}
}

func (m *model) applyStep(x wire.BuildInstruction) *step {
	for _, s := range m.all {
		if s.Index == x.Index && s.Platform == x.Platform && s.Vertex == x.Vertex && s.Text == x.Text {
			s.BuildInstruction = x
			return s
		}
	}
	s := &step{x}
	m.all = append(m.all, s)
	if x.Vertex != "" && m.steps[x.Vertex] == nil {
		m.steps[x.Vertex] = s
		if v := m.byDigest[x.Vertex]; v != nil {
			v.step = s
		}
	}
	return s
}

// printFailed prints the whole output of the step that failed.
func (m *model) printFailed(w io.Writer) error {
	if m.failed == nil || m.failed.log.size == 0 {
		return nil
	}
	const rule = "------\n"
	if _, err := io.WriteString(w, rule+" > "+clean(m.failed.Name)+":\n"); err != nil {
		return err
	}
	if err := m.failed.log.copyTo(w); err != nil {
		return err
	}
	end := rule
	if m.failed.log.last != '\n' {
		end = "\n" + rule
	}
	_, err := io.WriteString(w, end)
	return err
}

// took returns how long a vertex has run by now.
func (v *vertex) took(now time.Time) time.Duration {
	if v.Started == nil {
		return 0
	}
	if v.Completed != nil {
		now = *v.Completed
	}
	return max(0, now.Sub(*v.Started))
}

// maxTail is how much of an unfinished line is kept, in bytes.
const maxTail = 4 << 10

// tail keeps the last lines of an output.
type tail struct {
	lines []string
	part  []byte // of a line that has not ended
}

const tailLines = 6

func (t *tail) write(p []byte) {
	for {
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			t.part = append(t.part, p...)
			if over := len(t.part) - maxTail; over > 0 {
				t.part = append(t.part[:0], t.part[over:]...)
			}
			return
		}
		t.part = append(t.part, p[:i]...)
		t.lines = append(t.lines, visible(string(t.part)))
		if len(t.lines) > tailLines {
			t.lines = append(t.lines[:0], t.lines[1:]...)
		}
		t.part, p = t.part[:0], p[i+1:]
	}
}

// last returns at most n lines; the last one may be unfinished.
func (t *tail) last(n int) []string {
	out := append([]string(nil), t.lines...)
	if len(t.part) > 0 {
		out = append(out, visible(string(t.part)))
	}
	return out[max(0, len(out)-n):]
}

// visible returns what a terminal shows of a line at its end: what follows the last carriage return, without control sequences.
func visible(s string) string {
	s = strings.TrimRight(s, "\r")
	if i := strings.LastIndexByte(s, '\r'); i >= 0 {
		s = s[i+1:]
	}
	return clean(s)
}

// clean removes control sequences and control characters; a tab becomes blanks.
func clean(s string) string {
	plain := true
	for i := 0; i < len(s) && plain; i++ {
		plain = s[i] >= ' ' && s[i] < 0x7f
	}
	if plain {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		if s[i] == 0x1b {
			i = skipSequence(s, i)
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		i += n
		switch {
		case r == '\t':
			b.WriteString("    ")
		case r == '\n':
			b.WriteByte(' ')
		case unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == utf8.RuneError && n == 1:
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// skipSequence returns the index after the escape sequence at i.
func skipSequence(s string, i int) int {
	i++
	if i >= len(s) {
		return i
	}
	switch s[i] {
	case '[': // to the final byte
		for i++; i < len(s) && (s[i] < 0x40 || s[i] > 0x7e); i++ {
		}
		return min(i+1, len(s))
	case ']', 'P', 'X', '^', '_': // to the terminator
		for i++; i < len(s); i++ {
			if s[i] == 0x07 {
				return i + 1
			}
			if s[i] == 0x1b && i+1 < len(s) && s[i+1] == '\\' {
				return i + 2
			}
		}
		return i
	}
	return i + 1
}
