package logfile

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"ply/internal/container/shim"
)

// What the fast decoder accepts has the meaning that package json gives it.
func FuzzWritten(f *testing.F) {
	for _, m := range goldenMessages {
		f.Add(bytes.TrimSuffix(new(jsonFormat).encode(nil, m), []byte("\n")))
	}
	for _, s := range []string{
		`{"log":"a","stream":"stdout","time":"2026-03-04T05:06:07Z"}`,
		`{"log":"\ud83d\ude00","stream":"stdout","time":"2026-03-04T05:06:07Z"}`,
		`{"log":"\\","stream":"stderr","time":"2026-03-04T05:06:07.5+02:00"}`,
		`{"log":"a\\\"","stream":"stdout","time":"2026-03-04T05:06:07Z"}`,
		`{"log":"a","stream":"stdout","time":"2026-03-04T05:06:07Z","x":"}`,
		`{"log":"\`, `{"log":"\u12","stream":"stdout","time":"2026-03-04T05:06:07Z"}`,
		"{\"log\":\"a\x01\xff\",\"stream\":\"stdout\",\"time\":\"2026-03-04T05:06:07Z\"}",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		whole := bytes.Clone(b)
		got, ok := new(jsonFormat).decode(b)
		if !ok {
			if !bytes.Equal(b, whole) {
				t.Errorf("%q: not decoded, but changed to %q", whole, b)
			}
			return
		}
		b = whole
		var want struct {
			Log    string    `json:"log"`
			Stream string    `json:"stream"`
			Time   time.Time `json:"time"`
		}
		if err := json.Unmarshal(b, &want); err != nil {
			t.Fatalf("%q: decoded, but %v", b, err)
		}
		if string(got.Line) != want.Log || got.Stream != streamOf(want.Stream) || !got.Time.Equal(want.Time) {
			t.Errorf("%q: %q, want %q", b, got, want)
		}
	})
}

// Every record of the writer is decoded by the fast decoder.
func TestWrittenDecodesWhatIsEncoded(t *testing.T) {
	var all []byte
	for i := range 256 {
		all = append(all, byte(i))
	}
	lines := [][]byte{all, []byte("é\u2028\u2029\ufffd<&>\\\"\"\\\n"), {}, []byte(`\`), []byte(`\\`)}
	for _, m := range goldenMessages {
		lines = append(lines, m.Line)
	}
	for _, line := range lines {
		for _, stream := range []byte{shim.Stdout, shim.Stderr} {
			m := Message{Time: time.Date(2026, 3, 4, 5, 6, 7, 89, time.UTC), Stream: stream, Line: line}
			b := bytes.TrimSuffix(new(jsonFormat).encode(nil, m), []byte("\n"))
			got, ok := new(jsonFormat).decode(bytes.Clone(b))
			if want := string([]rune(string(line))); !ok || string(got.Line) != want || got.Stream != stream || !got.Time.Equal(m.Time) {
				t.Errorf("%q: %q, %v", b, got, ok)
			}
		}
	}
}

// BenchmarkNext decodes a record of a line of 100 bytes.
func BenchmarkNext(b *testing.B) {
	rec := new(jsonFormat).encode(nil, Message{Time: time.Now(), Stream: shim.Stdout, Line: append(bytes.Repeat([]byte("x"), 99), '\n')})
	b.SetBytes(100)
	f, buf := new(jsonFormat), make([]byte, len(rec))
	for b.Loop() {
		copy(buf, rec) // decoding changes it
		if _, _, ok := f.next(buf); !ok {
			b.Fatal("not decoded")
		}
	}
}
