package buildview

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ply/internal/wire"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// moment is what happens at a time after the start of a build.
type moment struct {
	after time.Duration
	wire.BuildEvents
}

// script makes the events of a build.
type script struct{ list []moment }

func (s *script) at(ms int) *wire.BuildEvents {
	s.list = append(s.list, moment{after: time.Duration(ms) * time.Millisecond})
	return &s.list[len(s.list)-1].BuildEvents
}

func (s *script) begin(ms int, digest, name string) {
	at := start.Add(time.Duration(ms) * time.Millisecond)
	s.at(ms).Vertexes = []wire.BuildVertex{{Digest: digest, Name: name, Started: &at}}
}

func (s *script) end(from, ms int, digest, name string, change func(*wire.BuildVertex)) {
	begin, at := start.Add(time.Duration(from)*time.Millisecond), start.Add(time.Duration(ms)*time.Millisecond)
	v := wire.BuildVertex{Digest: digest, Name: name, Started: &begin, Completed: &at}
	if change != nil {
		change(&v)
	}
	s.at(ms).Vertexes = []wire.BuildVertex{v}
}

func (s *script) log(ms int, digest, text string) {
	s.at(ms).Logs = []wire.BuildLog{{Vertex: digest, Stream: 1, Data: []byte(text), Timestamp: start.Add(time.Duration(ms) * time.Millisecond)}}
}

func (s *script) step(ms, index int, text, vertex, state, image string, cached bool) {
	s.at(ms).Steps = []wire.BuildInstruction{{Index: index, Total: 4, Text: text, Vertex: vertex, State: state, Image: image, Cached: cached, Base: index == 1}}
}

func image(n int) string { return fmt.Sprintf("sha256:%012x%052x", n, n) }

// stages is a build with another stage, a pull, output before its turn, cached steps, hostile output and a warning. It ends well, or with
// a step that fails.
func stages(fails bool) *script {
	s := &script{}
	s.begin(0, "df", "[internal] load build definition from Dockerfile")
	s.end(0, 5, "df", "[internal] load build definition from Dockerfile", nil)
	s.at(6).Warnings = []wire.BuildWarning{{
		Short: []byte("JSONArgsRecommended: JSON arguments recommended for CMD (line 4)"), URL: "https://docs.docker.com/go/dockerfile/rule/json-args-recommended/",
		SourceInfo: &wire.BuildWarningFile{Filename: "Dockerfile", Data: []byte("FROM a\nRUN x\nCOPY --from=b /b /\nCMD sh\n")}, Range: []wire.BuildWarningSpan{{Start: wire.BuildPosition{Line: 4}}},
	}}
	for i, text := range []string{"FROM a", "RUN make \\\n  all", "COPY --from=b /b /", "CMD sh"} {
		s.step(7, i+1, text, []string{"from", "run", "copy", ""}[i], wire.StepPlanned, "", false)
	}
	s.step(8, 1, "FROM a", "from", wire.StepStarted, "", false)
	s.begin(8, "from", "[stage-1 1/3] FROM docker.io/library/a:latest")
	done := start.Add(900 * time.Millisecond)
	s.at(300).Statuses = []*wire.BuildStatus{{ID: "l", Vertex: "from", Name: "sha256:" + strings.Repeat("ab", 32), Current: 1 << 20, Total: 3 << 20, Timestamp: start}}
	s.at(900).Statuses = []*wire.BuildStatus{{ID: "l", Vertex: "from", Name: "sha256:" + strings.Repeat("ab", 32), Current: 3 << 20, Total: 3 << 20, Timestamp: start, Completed: &done}}
	s.end(8, 1000, "from", "[stage-1 1/3] FROM docker.io/library/a:latest", nil)
	s.begin(1000, "run", "[stage-1 2/3] RUN make   all")
	s.begin(1000, "b", "[b 2/2] RUN build-b")
	s.at(1001).Statuses = []*wire.BuildStatus{{ID: "container", Vertex: "run", Container: strings.Repeat("c", 64)}}
	s.log(1100, "run", "before its turn\n") // the first step is not reported yet
	s.step(1200, 1, "FROM a", "from", wire.StepDone, image(1), false)
	s.step(1201, 2, "RUN make \\\n  all", "run", wire.StepStarted, "", false)
	s.log(1300, "b", "b one\nb tw")
	s.log(1400, "run", "cc \x1b[31mred\x1b[0m\x1b[2J\tmain.c\nunfinished")
	s.log(1500, "b", "o\n")
	for i := range 8 {
		s.log(1600+i, "run", fmt.Sprintf(" line %d\n", i))
	}
	s.end(1000, 2500, "b", "[b 2/2] RUN build-b", func(v *wire.BuildVertex) { v.Miss = "the instruction changed" })
	if fails {
		s.end(1000, 3000, "run", "[stage-1 2/3] RUN make   all", func(v *wire.BuildVertex) { v.Error = "exit code: 2" })
		return s
	}
	s.end(1000, 3000, "run", "[stage-1 2/3] RUN make   all", func(v *wire.BuildVertex) { v.Miss = "input 1 (context) changed" })
	s.step(3001, 2, "RUN make \\\n  all", "run", wire.StepDone, image(2), false)
	s.step(3002, 3, "COPY --from=b /b /", "copy", wire.StepStarted, "", false)
	s.end(3003, 3003, "copy", "[stage-1 3/3] COPY --from=b /b /", func(v *wire.BuildVertex) { v.Cached = true })
	s.step(3004, 3, "COPY --from=b /b /", "copy", wire.StepDone, image(3), true)
	s.step(3005, 4, "CMD sh", "", wire.StepStarted, "", false)
	s.step(3006, 4, "CMD sh", "", wire.StepDone, image(4), false)
	return s
}

func outcome(fails bool) *wire.BuildDone {
	if fails {
		return &wire.BuildDone{Error: &wire.BuildError{Message: "exit code: 2"}}
	}
	return &wire.BuildDone{Images: []string{image(4)}, Tags: []string{"name:latest"}}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
	}
}

// The views of one build that ends well and of one that fails.
func TestViews(t *testing.T) {
	for _, c := range []struct {
		name, mode string
		fails      bool
		explain    bool
	}{{"plain", "plain", false, true}, {"plain-failed", "plain", true, false}, {"rawjson", "rawjson", false, false}, {"quiet", "quiet", false, false}, {"quiet-failed", "quiet", true, false}} {
		var b bytes.Buffer
		v, err := New(Options{Mode: c.mode, Out: &b, Log: &b, Explain: c.explain})
		if err != nil {
			t.Fatal(err)
		}
		for i := range stages(c.fails).list {
			if err := v.Show(&stages(c.fails).list[i].BuildEvents); err != nil {
				t.Fatal(err)
			}
		}
		if err := v.Close(outcome(c.fails)); err != nil {
			t.Fatal(err)
		}
		golden(t, c.name+".golden", b.String())
	}
}

// The lines of rawjson are the events, so that a program can read them.
func TestRawJSONIsReadable(t *testing.T) {
	var b bytes.Buffer
	v, err := New(Options{Mode: "rawjson", Out: &b})
	if err != nil {
		t.Fatal(err)
	}
	sent := stages(false).list
	for i := range sent {
		if err := v.Show(&sent[i].BuildEvents); err != nil {
			t.Fatal(err)
		}
	}
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	if len(lines) != len(sent) {
		t.Fatalf("%d lines for %d events", len(lines), len(sent))
	}
	for i, l := range lines {
		var e wire.BuildEvents
		if err := json.Unmarshal([]byte(l), &e); err != nil {
			t.Errorf("%s: %v", l, err)
		}
		if len(e.Logs) > 0 && string(e.Logs[0].Data) != string(sent[i].Logs[0].Data) {
			t.Errorf("log %q, sent %q", e.Logs[0].Data, sent[i].Logs[0].Data)
		}
	}
}

// screen is a terminal that knows what the view sends: text, \n, \r, cursor up, clear line.
type screen struct {
	t     *testing.T
	lines []string
	row   int
	ended bool // the view has ended: what follows is output of commands, with all its sequences
}

func (s *screen) Write(p []byte) (int, error) {
	for text := string(p); text != ""; {
		for len(s.lines) <= s.row {
			s.lines = append(s.lines, "")
		}
		var n int
		var cmd byte
		switch {
		case strings.HasPrefix(text, "\x1b["):
			_, err := fmt.Sscanf(text, "\x1b[%d%c", &n, &cmd)
			if s.ended && (err != nil || cmd != 'A' && cmd != 'K' || n == 0) {
				text = text[1:]
				continue
			}
			if err != nil || cmd != 'A' && cmd != 'K' {
				s.t.Errorf("unknown sequence in %.20q", text)
				return 0, os.ErrInvalid
			}
			if cmd == 'A' {
				s.row -= n
			} else {
				s.lines[s.row] = ""
			}
			text = text[strings.IndexByte(text, cmd)+1:]
		case text[0] == '\n':
			s.row++
			text = text[1:]
		case text[0] == '\r':
			text = text[1:]
		default:
			end := strings.IndexAny(text, "\x1b\n\r")
			if end < 0 {
				end = len(text)
			}
			s.lines[s.row] += text[:end]
			text = text[end:]
		}
		if s.row < 0 {
			s.t.Error("cursor above the screen")
			return 0, os.ErrInvalid
		}
	}
	return len(p), nil
}

// The terminal view at several moments, on a wide terminal and on one with few lines: nothing of a command's output moves the cursor.
func TestTTY(t *testing.T) {
	for _, c := range []struct {
		name          string
		width, height int
		fails         bool
	}{{"tty", 100, 40, false}, {"tty-small", 60, 8, false}, {"tty-failed", 100, 40, true}} {
		s := &screen{t: t}
		now := start
		v := stillTTY(Options{Out: s, Size: func() (int, int) { return c.width, c.height }, Explain: true}, func() time.Time { return now })
		var shots strings.Builder
		list := stages(c.fails).list
		for i := range list {
			now = start.Add(list[i].after)
			if err := v.Show(&list[i].BuildEvents); err != nil {
				t.Fatal(err)
			}
			v.draw(false)
			for _, l := range s.lines {
				if n := len([]rune(l)); n > c.width {
					t.Fatalf("%s: a line of %d cells: %q", c.name, n, l)
				}
			}
			if n := len(s.lines); n > c.height {
				t.Fatalf("%s: %d lines", c.name, n)
			}
			if ms := list[i].after.Milliseconds(); ms == 300 || ms == 1607 || ms == 2500 {
				fmt.Fprintf(&shots, "after %s\n%s\n", list[i].after, strings.Join(s.lines, "\n"))
			}
		}
		v.draw(true)
		s.ended = true
		if err := v.Close(outcome(c.fails)); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&shots, "at the end\n%s\n", strings.Join(s.lines, "\n"))
		golden(t, c.name+".golden", shots.String())
	}
}

// Output of any size is printed completely when the step fails.
func TestNoOutputIsLost(t *testing.T) {
	for _, mode := range []string{"quiet", "tty", "plain"} {
		var b bytes.Buffer
		o := Options{Mode: mode, Out: &b, Log: &b}
		if mode == "tty" {
			o.Size = func() (int, int) { return 80, 24 }
		}
		v, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		s := &script{}
		s.begin(0, "r", "[1/1] RUN x")
		s.step(0, 1, "RUN x", "r", wire.StepStarted, "", false)
		var want strings.Builder
		for i := range 3000 {
			text := fmt.Sprintf("%d %s\n", i, strings.Repeat("x", 1000))
			want.WriteString(text)
			s.log(1, "r", text)
		}
		s.end(0, 2, "r", "[1/1] RUN x", func(v *wire.BuildVertex) { v.Error = "exit code: 1" })
		for i := range s.list {
			if err := v.Show(&s.list[i].BuildEvents); err != nil {
				t.Fatal(err)
			}
		}
		if err := v.Close(outcome(true)); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(b.String(), want.String()) {
			t.Errorf("%s: the output of %d bytes is not in the %d printed", mode, want.Len(), b.Len())
		}
	}
}

// An unknown mode is an error, and so is a terminal view without a terminal.
func TestModes(t *testing.T) {
	for mode, ok := range map[string]bool{"auto": true, "plain": true, "rawjson": true, "quiet": true, "tty": false, "fancy": false} {
		if _, err := New(Options{Mode: mode}); (err == nil) != ok {
			t.Errorf("%s: %v", mode, err)
		}
	}
}
