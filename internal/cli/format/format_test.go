package format

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
)

// Templates on JSON documents print what docker prints.
func TestDocuments(t *testing.T) {
	const doc = `{"Id":"x","z":1,"a":2.5,"Labels":null,"Cmd":null,"Env":["A=1"],"List":[{"b":1,"a":2},{"a":"<"}],"Big":9007199254740993,"Map":{"k":true},"Html":"\u003ca\u003e \\u003c"}`
	for in, want := range map[string]string{
		`{{.ID}}{{.Id}}`:              "xx",
		`{{json .}}`:                  `{"Id":"x","z":1,"a":2.5,"Labels":null,"Cmd":null,"Env":["A=1"],"List":[{"b":1,"a":2},{"a":"<"}],"Big":9007199254740993,"Map":{"k":true},"Html":"<a> \\u003c"}`,
		`{{json .List}}`:              `[{"b":1,"a":2},{"a":"<"}]`,
		`{{json (slice .List 0 1)}}`:  `[{"a":2,"b":1}]`,
		`{{.Big}}`:                    "9007199254740993",
		`{{eq .z 1}}{{.a}}`:           "true2.5",
		`{{index .Labels "no"}}|`:     "|",
		`{{.Labels.no}}|`:             "<no value>|",
		`{{join .Env ","}}`:           "A=1",
		`{{join .Cmd ","}}|`:          "|",
		`{{len .List}}`:               "2",
		`{{.Nope}}`:                   "!map has no entry",
		`{{.Map.nope}}`:               "!map has no entry",
		`{{title "ab cd"}}`:           "Ab Cd",
		`{{pad "x" 1 2}}|`:            " x  |",
		`{{truncate "äöü" 2}}`:        "äö",
		`{{split "a,b" ","}}`:         "[a b]",
		`{{range .List}}{{.}}{{end}}`: "map[a:2 b:1]map[a:<]",
	} {
		tm, err := Parse(in)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		err = Execute(&b, tm, []byte(doc))
		if text, bad := strings.CutPrefix(want, "!"); bad {
			if err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %q %v, want %s", in, b.String(), err, text)
			}
			continue
		}
		if err != nil || b.String() != want+"\n" {
			t.Errorf("%s: %q %v, want %q", in, b.String(), err, want)
		}
	}
	if err := Inspect(&bytes.Buffer{}, "", []json.RawMessage{json.RawMessage("{")}); err == nil {
		t.Error("a cut document was printed")
	}
	if _, err := Parse("{{"); err == nil || !strings.HasPrefix(err.Error(), "template parsing error") {
		t.Errorf("got %v", err)
	}
}

type row struct {
	RowMark
	B, A string
	l    map[string]string
}

func (r row) Label(k string) string { return r.l[k] }

// Rows are printed as a table, as JSON, or with a template, and a wrong field is an error.
func TestTable(t *testing.T) {
	rows := []row{{A: "1", B: "two words", l: map[string]string{"a.b-c": "v"}}, {A: "<x>", B: "ü"}}
	titles := Titles{"A": "AAA", "B": "BBB"}
	for in, want := range map[string]string{
		"":                                 "AAA       BBB\n1         two words\n<x>       ü\n",
		"table":                            "AAA       BBB\n1         two words\n<x>       ü\n",
		`table {{.B}}\t{{.Label "a.b-c"}}`: "BBB         b c\ntwo words   v\nü           \n",
		`table {{upper .A}}`:               "AAA\n1\n<X>\n",
		"json":                             `{"A":"1","B":"two words"}` + "\n" + `{"A":"\u003cx\u003e","B":"ü"}` + "\n",
		`{{.A}}\t{{json .B}}`:              "1\t\"two words\"\n<x>\t\"ü\"\n",
	} {
		var b bytes.Buffer
		if err := Table(&b, in, "{{.A}}\t{{.B}}", titles, rows); err != nil || b.String() != want {
			t.Errorf("%q: %v\n%q\nwant\n%q", in, err, b.String(), want)
		}
	}
	for _, bad := range []string{"{{.C}}", "{{", "table {{.C}}"} {
		if err := Table(&bytes.Buffer{}, bad, "", titles, []row(nil)); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

// Sizes, ages and IDs are shortened as docker does.
func TestHuman(t *testing.T) {
	if got := Ellipsis("/entrypoint.sh /etc/docker", 20); got != "/entrypoint.sh /etc…" {
		t.Errorf("ellipsis %q", got)
	}
	if got := ShortID("sha256:0123456789abcdef"); got != "0123456789ab" {
		t.Errorf("short %q", got)
	}
	base := time.Unix(1e9, 0)
	for d, want := range map[time.Duration]string{0: "Less than a second ago", 36 * time.Second: "36 seconds ago", 70 * time.Second: "About a minute ago", 65 * time.Minute: "About an hour ago", 50 * time.Hour: "2 days ago", 20 * 24 * time.Hour: "2 weeks ago"} {
		if got := Ago(base, base.Add(-d)); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0B", 999: "999B", 108000000: "108MB", 187654321: "188MB"} {
		if got := Size(n); got != want {
			t.Errorf("Size(%d) = %q", n, got)
		}
	}
}

// writes counts the calls of Write.
type writes struct {
	n, bytes int
	fail     error
}

func (w *writes) Write(p []byte) (int, error) {
	w.n++
	w.bytes += len(p)
	if w.fail != nil {
		return 0, w.fail
	}
	return len(p), nil
}

// A long table is written in large pieces, and an error of the output is reported once.
func TestTablesAreWrittenInLargePieces(t *testing.T) {
	rows := make([][]string, 3000)
	for i := range rows {
		rows[i] = []string{"a cell", "another cell", "the last cell"}
	}
	var out writes
	if err := Columns(&out, 10, rows); err != nil || out.bytes < 100_000 || out.n > 10 {
		t.Errorf("%d bytes in %d writes, %v", out.bytes, out.n, err)
	}
	out.fail = errors.New("closed")
	if err := Columns(&out, 10, rows); err == nil || err.Error() != "closed" {
		t.Errorf("error %v", err)
	}
}

// What an image or a process in a container says does not drive the terminal, and takes no other rows into its cell.
func TestControlCharactersInTables(t *testing.T) {
	var out strings.Builder
	if err := Columns(&out, 3, [][]string{{"PID", "CMD"}, {"1", "\x1b]0;title\a\r\x7f\u009b2Jé日"}, {"2", "\f\vx"}, {"3", "y"}}); err != nil {
		t.Fatal(err)
	}
	const bad = "\ufffd"
	if want := "PID   CMD\n1     " + bad + "]0;title" + bad + bad + bad + bad + "2Jé日\n2     " + bad + bad + "x\n3     y\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
	out.Reset()
	row := textRow{Name: "\x1b[2Ja\tb\rc"}
	if err := Table(&out, "table \x1b[1m{{.Name}}\x1b[0m", "", Titles{"Name": "NAME"}, []textRow{row}); err != nil {
		t.Fatal(err)
	}
	if want := "\x1b[1mNAME\x1b[0m\n\x1b[1m" + bad + "[2Ja" + "   b" + bad + "c\x1b[0m\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
	out.Reset()
	if err := Table(&out, "{{.Name}}", "", nil, []textRow{row}); err != nil || out.String() != row.Name+"\n" {
		t.Errorf("%q %v", out.String(), err)
	}
}

type textRow struct {
	RowMark
	Name string
}
