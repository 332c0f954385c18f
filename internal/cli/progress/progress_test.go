package progress

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"ply/internal/wire"
)

func message(t *testing.T, s string) *wire.Message {
	t.Helper()
	var m wire.Message
	if err := json.Unmarshal([]byte(s), &m); err != nil {
		t.Fatal(err)
	}
	return &m
}

// The progress text is docker's.
func TestBar(t *testing.T) {
	now := time.Unix(1000, 0)
	for _, c := range []struct {
		msg   string
		width int
		want  string
	}{
		{`{"progressDetail":{}}`, 120, ""},
		{`{"progressDetail":{"current":5}}`, 120, "      5B"},
		{`{"progressDetail":{"current":0,"total":100}}`, 120, "[>" + strings.Repeat(" ", 50) + "]       0B/100B"},
		{`{"progressDetail":{"current":100,"total":100}}`, 120, "[" + strings.Repeat("=", 50) + ">]     100B/100B"},
		{`{"progressDetail":{"current":150,"total":100}}`, 120, "[" + strings.Repeat("=", 50) + ">]     150B"},
		{`{"progressDetail":{"current":1500000,"total":3000000}}`, 100, "   1.5MB/3MB"},
		{`{"progressDetail":{"current":1,"total":4,"units":"files","hidecounts":false}}`, 40, "1/4 files"},
		{`{"progressDetail":{"current":1,"total":4,"hidecounts":true}}`, 40, ""},
		{`{"progressDetail":{"current":25,"total":100,"start":990}}`, 80, "     25B/100B 30s"},
		{`{"progress":"engine's own"}`, 80, "engine's own"},
	} {
		if got := bar(message(t, c.msg), c.width, now); got != c.want {
			t.Errorf("bar(%s, %d) = %q, want %q", c.msg, c.width, got, c.want)
		}
	}
}

// screen is a terminal that knows what the printer sends: text, \n, \r, cursor up and down, clear line.
type screen struct {
	lines []string
	row   int
}

func (s *screen) Write(p []byte) (int, error) {
	text := string(p)
	for text != "" {
		for len(s.lines) <= s.row {
			s.lines = append(s.lines, "")
		}
		var n int
		var cmd byte
		switch {
		case strings.HasPrefix(text, "\x1b["):
			if _, err := fmt.Sscanf(text, "\x1b[%d%c", &n, &cmd); err != nil {
				return 0, err
			}
			switch cmd {
			case 'A':
				s.row -= n
			case 'B':
				s.row += n
			case 'K':
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
			return 0, errors.New("cursor above the screen")
		}
	}
	return len(p), nil
}

// pull is the stream of a pull.
const pull = `{"status":"Pulling from library/mysql","id":"8"}
{"status":"Pulling fs layer","progressDetail":{},"id":"aaa"}
{"status":"Pulling fs layer","progressDetail":{},"id":"bbb"}
{"status":"Downloading","progressDetail":{"current":1,"total":10},"id":"bbb"}
{"status":"Downloading","progressDetail":{"current":2,"total":10},"id":"bbb"}
{"status":"Downloading","progressDetail":{"current":9,"total":10},"id":"aaa"}
{"status":"Pull complete","progressDetail":{},"id":"aaa"}
{"status":"Downloading","progressDetail":{"current":7,"total":10},"id":"bbb"}
{"status":"Digest: sha256:x"}
{"aux":{"ID":"z"}}
`

// Every mode prints the stream of a pull.
func TestPrinters(t *testing.T) {
	size := func() (int, int) { return 60, 24 }
	var s screen
	p := newTTY(&s, size)
	p.now = func() time.Time { return time.Unix(1, 0) } // the clock stands still: a line is drawn once until Close, which must draw the rest
	var aux string
	if err := Show(strings.NewReader(pull), p, func(r json.RawMessage) { aux = string(r) }); err != nil {
		t.Fatal(err)
	}
	want := "8: Pulling from library/mysql\naaa: Pull complete\nbbb: Downloading       7B/10B\nDigest: sha256:x\n"
	if got := strings.Join(s.lines, "\n") + "\n"; got != want {
		t.Errorf("screen:\n%s\nwant:\n%s", got, want)
	}
	if aux != `{"ID":"z"}` {
		t.Errorf("aux %s", aux)
	}
	for mode, want := range map[string]string{
		"plain": "8: Pulling from library/mysql\naaa: Pulling fs layer\nbbb: Pulling fs layer\naaa: Pull complete\nDigest: sha256:x\n",
		"quiet": "",
	} {
		var b bytes.Buffer
		p, err := New(mode, &b, size)
		if err != nil {
			t.Fatal(err)
		}
		if err := Show(strings.NewReader(pull), p, nil); err != nil || b.String() != want {
			t.Errorf("%s: %v\n%s\nwant\n%s", mode, err, b.String(), want)
		}
	}
	var b bytes.Buffer
	j, _ := New("json", &b, nil)
	if err := Show(strings.NewReader(pull), j, nil); err != nil || strings.Count(b.String(), "\n") != 10 {
		t.Errorf("json: %v\n%s", err, b.String())
	}
	if _, err := New("fancy", &b, nil); err == nil {
		t.Error("an unknown mode was accepted")
	}
}

// With more layers than the terminal has lines, a line that scrolled off the screen is not drawn, and no line is drawn over another.
func TestTallPull(t *testing.T) {
	var s screen
	p := newTTY(&s, func() (int, int) { return 40, 3 })
	for i := range 6 {
		if err := p.Print(message(t, fmt.Sprintf(`{"status":"Waiting","progressDetail":{},"id":"l%d"}`, i))); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []string{"l0", "l5"} {
		if err := p.Print(message(t, `{"status":"Done","progressDetail":{},"id":"`+id+`"}`)); err != nil {
			t.Fatal(err)
		}
	}
	if got := strings.Join(s.lines, "|"); got != "l0: Waiting|l1: Waiting|l2: Waiting|l3: Waiting|l4: Waiting|l5: Done" && got != "l0: Waiting|l1: Waiting|l2: Waiting|l3: Waiting|l4: Waiting|l5: Done|" {
		t.Errorf("screen %q", got)
	}
}

// An error message ends the stream, and a stream that is cut is an error.
func TestStreamErrors(t *testing.T) {
	p, _ := New("quiet", nil, nil)
	err := Show(strings.NewReader(`{"errorDetail":{"code":9,"message":"no"},"error":"no"}`), p, nil)
	var se *StreamError
	if !errors.As(err, &se) || se.Code != 9 || se.Message != "no" {
		t.Errorf("got %v", err)
	}
	if err := Show(strings.NewReader(`{"status":`), p, nil); err == nil {
		t.Error("an incomplete stream was accepted")
	}
}
