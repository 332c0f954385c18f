package logfile

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/container/shim"
	"ply/internal/durable"
	"ply/internal/durable/powercut"
	"ply/internal/errs"
	"ply/test/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

func newLog(t testing.TB, driver string) shim.Log {
	return shim.Log{Driver: driver, Path: filepath.Join(t.TempDir(), "c.log"), MaxFiles: 1}
}

func write(t testing.TB, l shim.Log, stream byte, parts ...string) {
	t.Helper()
	w, err := Create(l)
	if err != nil {
		t.Fatal(err)
	}
	s := w.Stream(stream)
	for _, p := range parts {
		if n, err := s.Write([]byte(p)); n != len(p) || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
	}
	if err := errors.Join(s.Close(), w.Close()); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, l shim.Log, o ReadOptions) (lines []string) {
	t.Helper()
	o.Stdout, o.Stderr = true, true
	err := Read(t.Context(), l, o, one(func(m Message) error {
		lines = append(lines, string(m.Line))
		return nil
	}))
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

// one calls visit for each record of a list.
func one(visit func(Message) error) func([]Message) error {
	return func(list []Message) error {
		for _, m := range list {
			m.Line = bytes.Clone(m.Line)
			if err := visit(m); err != nil {
				return err
			}
		}
		return nil
	}
}

var drivers = []string{JSONFile, Local}

func TestRoundTrip(t *testing.T) {
	long := strings.Repeat("x", maxPiece)
	for _, d := range drivers {
		for _, c := range []struct{ parts, want []string }{
			{[]string{"a\n"}, []string{"a\n"}},
			{[]string{"a\nb\n", "c\n"}, []string{"a\n", "b\n", "c\n"}},
			{[]string{"a", "b", "c\nd"}, []string{"abc\n", "d"}},
			{[]string{"\n\n"}, []string{"\n", "\n"}},
			{[]string{"\"\\<&>\t\r\x1b\u2028é\n"}, []string{"\"\\<&>\t\r\x1b\u2028é\n"}},
			{[]string{long + "y\n"}, []string{long, "y\n"}},
			{[]string{long[1:] + "\n"}, []string{long[1:] + "\n"}},
			{[]string{"q", long + long + "\n"}, []string{"q" + long[1:], long, "x\n"}},
			{[]string{""}, nil},
		} {
			l := newLog(t, d)
			write(t, l, shim.Stdout, c.parts...)
			if got := read(t, l, ReadOptions{Tail: -1}); fmt.Sprintf("%q", got) != fmt.Sprintf("%q", c.want) {
				t.Errorf("%s %.40q: got %.80q, want %.80q", d, c.parts, got, c.want)
			}
		}
	}
}

func TestLongLinesAreSplitAsDockerSplitsThem(t *testing.T) {
	for _, d := range drivers {
		l := newLog(t, d)
		write(t, l, shim.Stdout, strings.Repeat("x", 40000)+"\n")
		var sizes []int
		for _, line := range read(t, l, ReadOptions{Tail: -1}) {
			sizes = append(sizes, len(line))
		}
		if !slices.Equal(sizes, []int{16384, 16384, 7233}) {
			t.Errorf("%s: records of %v bytes", d, sizes)
		}
	}
}

// The times of one writer's records strictly increase, even when the clock stands still or is set back.
func TestTimesIncrease(t *testing.T) {
	l := newLog(t, JSONFile)
	w, err := Create(l)
	if err != nil {
		t.Fatal(err)
	}
	last := time.Now().Add(time.Hour).Round(0)
	w.last = last
	s := w.Stream(shim.Stdout)
	_, _ = s.Write([]byte("a\nb\n"))
	_, _ = s.Write([]byte("c\n"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	n := 0
	err = Read(t.Context(), l, ReadOptions{Stdout: true, Tail: -1}, one(func(m Message) error {
		if !m.Time.After(last) {
			t.Errorf("record %q of %v after one of %v", m.Line, m.Time, last)
		}
		last = m.Time
		n++
		return nil
	}))
	if err != nil || n != 3 {
		t.Errorf("%d records, %v", n, err)
	}
}

// A reader sees no record twice while the log is rotated and compressed.
func TestReadingDuringRotations(t *testing.T) {
	l := newLog(t, Local)
	l.MaxSize, l.MaxFiles, l.Compress = 400, 30, true
	w, err := Create(l)
	if err != nil {
		t.Fatal(err)
	}
	s := w.Stream(shim.Stdout)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				_, _ = fmt.Fprintf(s, "%d\n", i)
			}
		}
	}()
	for deadline := time.Now().Add(300 * time.Millisecond); time.Now().Before(deadline) && !t.Failed(); {
		last := -1
		for _, line := range read(t, l, ReadOptions{Tail: -1}) {
			n, err := strconv.Atoi(strings.TrimSpace(line))
			if err != nil || n <= last {
				t.Errorf("record %q after %d", line, last)
				break
			}
			last = n
		}
	}
	close(stop)
	<-stopped
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// Other programs read this format.
func TestJSONFileFormat(t *testing.T) {
	when := time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC)
	got := string(new(jsonFormat).encode(nil, Message{Time: when, Stream: shim.Stderr, Line: []byte("a\"\\\n\x00<\xff\u2029é")}))
	want := `{"log":"a\"\\\n\u0000\u003c\ufffd\u2029é","stream":"stderr","time":"2026-01-02T03:04:05.0000006Z"}` + "\n"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if !json.Valid([]byte(got)) {
		t.Error("it is no JSON")
	}
}

func TestLocalFormat(t *testing.T) {
	m := Message{Time: time.Unix(1, 2), Stream: shim.Stdout, Line: []byte("hi\n")}
	got := localFormat{}.encode(nil, m)
	want := []byte("\x00\x00\x00\x12\x0a\x06stdout\x10\x82\x94\xeb\xdc\x03\x1a\x02hi\x00\x00\x00\x12")
	if !bytes.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	raw := Message{Time: time.Unix(1, 2), Stream: shim.Stderr, Line: []byte{0, 0xff, 0xfe}}
	back, n, ok := localFormat{}.next(localFormat{}.encode(nil, raw))
	if !ok || n == 0 || !bytes.Equal(back.Line, raw.Line) || back.Stream != shim.Stderr || !back.Time.Equal(raw.Time) {
		t.Errorf("binary line came back as %+v", back)
	}
}

func TestTail(t *testing.T) {
	for _, d := range drivers {
		for _, maxSize := range []int64{0, 2000} {
			l := newLog(t, d)
			l.MaxSize, l.MaxFiles, l.Compress = maxSize, 100, maxSize > 0
			var all []string
			for i := range 400 {
				all = append(all, fmt.Sprintf("line %d\n", i))
			}
			write(t, l, shim.Stdout, all...)
			for _, n := range []int{0, 1, 2, 17, 399, 400, 401, 1000} {
				want := all[max(0, len(all)-n):]
				if got := read(t, l, ReadOptions{Tail: n}); strings.Join(got, "") != strings.Join(want, "") {
					t.Errorf("%s, size %d: tail %d gave %d lines, want %d", d, maxSize, n, len(got), len(want))
				}
			}
		}
	}
}

func TestTailOfBigFile(t *testing.T) {
	for _, d := range drivers {
		l := newLog(t, d)
		var b strings.Builder
		for i := range 40_000 {
			fmt.Fprintf(&b, "line %d\n", i)
		}
		write(t, l, shim.Stdout, b.String())
		for _, n := range []int{1, 3, 5000} {
			got := read(t, l, ReadOptions{Tail: n})
			if len(got) != n || got[n-1] != "line 39999\n" || got[0] != fmt.Sprintf("line %d\n", 40_000-n) {
				t.Errorf("%s: tail %d gave %d lines", d, n, len(got))
			}
		}
	}
}

func TestSinceUntilAndStreams(t *testing.T) {
	l := newLog(t, JSONFile)
	write(t, l, shim.Stdout, "a\n")
	write(t, l, shim.Stderr, "b\n")
	var at []time.Time
	err := Read(t.Context(), l, ReadOptions{Stdout: true, Stderr: true, Tail: -1}, one(func(m Message) error {
		at = append(at, m.Time)
		return nil
	}))
	if err != nil || len(at) != 2 || !at[1].After(at[0]) {
		t.Fatalf("times %v, %v", at, err)
	}
	if got := read(t, l, ReadOptions{Tail: -1, Since: at[1]}); len(got) != 1 || got[0] != "b\n" {
		t.Errorf("since: %q", got)
	}
	if got := read(t, l, ReadOptions{Tail: -1, Until: at[0]}); len(got) != 1 || got[0] != "a\n" {
		t.Errorf("until: %q", got)
	}
	n := 0
	if err := Read(t.Context(), l, ReadOptions{Stderr: true, Tail: -1}, one(func(m Message) error { n++; return nil })); err != nil || n != 1 {
		t.Errorf("stderr only: %d records, %v", n, err)
	}
}

func TestFollowAcrossRotations(t *testing.T) {
	for _, d := range drivers {
		for _, c := range []struct {
			files    int
			compress bool
		}{{50, false}, {50, true}} {
			l := newLog(t, d)
			l.MaxSize, l.MaxFiles, l.Compress = 3000, c.files, c.compress
			w, err := Create(l)
			if err != nil {
				t.Fatal(err)
			}
			s := w.Stream(shim.Stdout)
			var want strings.Builder
			emit := func(i int) {
				line := fmt.Sprintf("line %d\n", i)
				want.WriteString(line)
				_, _ = s.Write([]byte(line))
			}
			for i := range 10 {
				emit(i)
			}
			ended := make(chan struct{})
			done := make(chan error, 1)
			var got strings.Builder
			go func() {
				done <- Read(context.Background(), l, ReadOptions{Stdout: true, Tail: -1, Follow: true, Ended: ended}, one(func(m Message) error {
					got.Write(m.Line)
					return nil
				}))
			}()
			for i := 10; i < 600; i++ {
				emit(i)
				if i%50 == 0 {
					time.Sleep(2 * time.Millisecond) // let the reader run
				}
			}
			if err := errors.Join(s.Close(), w.Close()); err != nil {
				t.Fatal(err)
			}
			close(ended)
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if got.String() != want.String() {
				t.Errorf("%s %+v: followed %d lines of 600", d, c, strings.Count(got.String(), "\n"))
			}
			if st, err := os.Stat(l.Path); err != nil || st.Size() > l.MaxSize {
				t.Errorf("%s: %v, %v", d, st, err)
			}
		}
	}
}

// A rotation between two steps of a listing must not show a file and its compressed copy.
func TestListingDuringARotation(t *testing.T) {
	l := newLog(t, JSONFile)
	l.MaxSize, l.MaxFiles = 200, 5
	write(t, l, shim.Stdout, "one\n", "two\n", "three\n", "four\n", "five\n", "six\n")
	r := &reader{opts: l}
	listings := 0
	files, err := openStable(func() ([]file, error) {
		files, err := r.list()
		if listings++; listings == 1 && err == nil {
			err = errors.Join(compress(l.Path+".1"), os.Rename(l.Path+".2", l.Path+".3"), os.Rename(l.Path+".1.gz", l.Path+".2.gz"))
		}
		return files, err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer closeFiles(files)
	var names []string
	for _, f := range files {
		names = append(names, strings.TrimPrefix(f.Name(), l.Path))
	}
	if want := []string{".3", ".2.gz", ""}; !slices.Equal(names, want) {
		t.Errorf("files %q, want %q", names, want)
	}
	if got := read(t, l, ReadOptions{Tail: -1}); strings.Join(got, "") != "one\ntwo\nthree\nfour\nfive\nsix\n" {
		t.Errorf("%q", got)
	}
}

func TestFollowWaits(t *testing.T) {
	l := newLog(t, JSONFile)
	w, err := Create(l)
	if err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 10)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Read(ctx, l, ReadOptions{Stdout: true, Tail: 0, Follow: true}, one(func(m Message) error {
			lines <- string(m.Line)
			return nil
		}))
	}()
	s := w.Stream(shim.Stdout)
	// With Tail 0 the reader starts at the end of the log, at some moment. Write until it sees a record.
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for seen := false; !seen; {
		select {
		case <-tick.C:
			_, _ = s.Write([]byte("x\n"))
		case <-lines:
			seen = true
		}
	}
	go func() {
		for range lines {
		}
	}()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Read = %v", err)
	}
	close(lines)
	until := time.Now().Add(50 * time.Millisecond)
	if err := Read(t.Context(), l, ReadOptions{Stdout: true, Tail: 0, Follow: true, Until: until}, one(func(Message) error { return nil })); err != nil {
		t.Errorf("follow until = %v", err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestTornEndIsCutOff(t *testing.T) {
	for _, d := range drivers {
		l := newLog(t, d)
		write(t, l, shim.Stdout, "one\n", "two\n")
		whole, err := os.ReadFile(l.Path)
		if err != nil {
			t.Fatal(err)
		}
		half := len(whole) / 2
		for cut := half + 1; cut < len(whole); cut++ {
			if err := os.WriteFile(l.Path, whole[:cut], 0o600); err != nil {
				t.Fatal(err)
			}
			if got := read(t, l, ReadOptions{Tail: -1}); len(got) != 1 {
				t.Fatalf("%s cut at %d: a reader sees %q", d, cut, got)
			}
			write(t, l, shim.Stdout, "three\n")
			if got := read(t, l, ReadOptions{Tail: -1}); strings.Join(got, "") != "one\nthree\n" {
				t.Fatalf("%s cut at %d: %q", d, cut, got)
			}
		}
	}
}

func TestDamagedRecordsArePassedOver(t *testing.T) {
	l := newLog(t, JSONFile)
	text := "garbage\n" + `{"log":"a\n","stream":"stdout","time":"2026-01-01T00:00:00Z"}` + "\n{}\n" + strings.Repeat("z", 3*maxRecord) + "\n" +
		`{"log":"b\n","stream":"stdout","time":"2026-01-01T00:00:01Z"}` + "\n"
	if err := os.WriteFile(l.Path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := read(t, l, ReadOptions{Tail: -1}); strings.Join(got, "") != "a\nb\n" {
		t.Errorf("%q", got)
	}
}

// A length that no record has, in a damaged file, must not make the reader wait for that many bytes.
func TestImpossibleLengthIsSkipped(t *testing.T) {
	for _, size := range []uint32{maxRecord + 1, 1<<32 - 1} {
		buf := append(binary.BigEndian.AppendUint32(nil, size), "more bytes"...)
		if _, n, ok := (localFormat{}).next(buf); n != len(buf) || ok {
			t.Errorf("length %d: skipped %d of %d bytes, %v", size, n, len(buf), ok)
		}
	}
}

// A disk that takes only a part of a record leaves no part of it in the file.
func TestPartlyWrittenRecordIsRemoved(t *testing.T) {
	l := newLog(t, JSONFile)
	w, err := Create(l)
	if err != nil {
		t.Fatal(err)
	}
	s := w.Stream(shim.Stdout)
	_, _ = s.Write([]byte("one\n"))
	st, err := os.Stat(l.Path)
	if err != nil {
		t.Fatal(err)
	}
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	signal.Ignore(unix.SIGXFSZ)
	defer signal.Reset(unix.SIGXFSZ)
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: uint64(st.Size()) + 10, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	_, _ = s.Write([]byte("lost\n"))
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	if now, err := os.Stat(l.Path); err != nil || now.Size() != st.Size() {
		t.Errorf("the file has %d bytes, %d before, %v", now.Size(), st.Size(), err)
	}
	_, _ = s.Write([]byte("two\n"))
	if n, err := w.Lost(); n != 1 || !errors.Is(err, unix.EFBIG) {
		t.Errorf("Lost = %d, %v", n, err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if got := read(t, l, ReadOptions{Tail: -1}); strings.Join(got, "") != "one\ntwo\n" {
		t.Errorf("%q", got)
	}
}

func TestSingleFileStartsOver(t *testing.T) {
	l := newLog(t, JSONFile)
	l.MaxSize = 1000
	var parts []string
	for i := range 100 {
		parts = append(parts, fmt.Sprintf("line %d\n", i))
	}
	write(t, l, shim.Stdout, parts...)
	got := read(t, l, ReadOptions{Tail: -1})
	if len(got) == 0 || len(got) > 20 || got[len(got)-1] != "line 99\n" {
		t.Errorf("%q", got)
	}
}

func TestFullDiskDropsWholeRecords(t *testing.T) {
	l := newLog(t, JSONFile)
	w, err := Create(l)
	if err != nil {
		t.Fatal(err)
	}
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	good := w.f
	s := w.Stream(shim.Stdout)
	_, _ = s.Write([]byte("one\n"))
	w.f = full
	if n, err := s.Write([]byte("lost\nlost\n")); n != 10 || err != nil {
		t.Errorf("Write = %d, %v: the container must not notice", n, err)
	}
	w.f = good
	_, _ = s.Write([]byte("two\n"))
	if n, err := w.Lost(); n != 2 || err == nil {
		t.Errorf("Lost = %d, %v", n, err)
	}
	if err := errors.Join(w.Close(), full.Close()); err != nil {
		t.Fatal(err)
	}
	if got := read(t, l, ReadOptions{Tail: -1}); strings.Join(got, "") != "one\ntwo\n" {
		t.Errorf("%q", got)
	}
}

func TestParseOptions(t *testing.T) {
	for _, c := range []struct {
		driver string
		opts   map[string]string
		want   shim.Log
		words  string
	}{
		{"", nil, shim.Log{Driver: JSONFile, MaxFiles: 1}, ""},
		{"json-file", map[string]string{"max-size": "10m", "max-file": "3", "compress": "true"}, shim.Log{Driver: JSONFile, MaxSize: 10 << 20, MaxFiles: 3, Compress: true}, ""},
		{"json-file", map[string]string{"max-size": "-1"}, shim.Log{Driver: JSONFile, MaxFiles: 1}, ""},
		{"local", nil, shim.Log{Driver: Local, MaxSize: 20_000_000, MaxFiles: 5, Compress: true}, ""},
		{"none", nil, shim.Log{Driver: None, MaxFiles: 1}, ""},
		{"syslog", nil, shim.Log{}, "no log driver named 'syslog'"},
		{"none", map[string]string{"x": "1"}, shim.Log{}, "unknown log opt 'x'"},
		{"json-file", map[string]string{"colour": "1"}, shim.Log{}, "unknown log opt 'colour'"},
		{"local", map[string]string{"tag": "1"}, shim.Log{}, "unknown log opt 'tag'"},
		{"json-file", map[string]string{"tag": "{{.Name}}", "labels": "a,b", "env": "C", "env-regex": "^D", "labels-regex": "x.*", "cache-disabled": "true", "mode": "blocking"},
			shim.Log{Driver: JSONFile, MaxFiles: 1}, ""},
		{"json-file", map[string]string{"tag": "{{.Name"}, shim.Log{}, "log opt tag: "},
		{"json-file", map[string]string{"env-regex": "("}, shim.Log{}, "log opt env-regex: invalid regular expression"},
		{"json-file", map[string]string{"cache-disabled": "perhaps"}, shim.Log{}, "log opt cache-disabled: invalid value"},
		{"json-file", map[string]string{"max-size": "big"}, shim.Log{}, "max-size"},
		{"json-file", map[string]string{"max-size": "0"}, shim.Log{}, "max-size"},
		{"json-file", map[string]string{"max-file": "0", "max-size": "1m"}, shim.Log{}, "max-file"},
		{"json-file", map[string]string{"max-file": "3"}, shim.Log{Driver: JSONFile, MaxFiles: 3}, ""},
		{"json-file", map[string]string{"compress": "true", "max-size": "1m"}, shim.Log{}, "compress cannot be true"},
		{"json-file", map[string]string{"mode": "non-blocking"}, shim.Log{Driver: JSONFile, MaxFiles: 1, Buffer: 1 << 20}, ""},
		{"local", map[string]string{"mode": "non-blocking", "max-buffer-size": "4k"}, shim.Log{Driver: Local, MaxSize: 20_000_000, MaxFiles: 5, Compress: true, Buffer: 4096}, ""},
		{"json-file", map[string]string{"mode": "fast"}, shim.Log{}, "logging mode not supported: fast"},
		{"json-file", map[string]string{"max-buffer-size": "4k"}, shim.Log{}, "max-buffer-size option is only supported with 'mode=non-blocking'"},
		{"json-file", map[string]string{"mode": "non-blocking", "max-buffer-size": "0"}, shim.Log{}, "max-buffer-size"},
	} {
		got, err := ParseOptions(c.driver, c.opts)
		if c.words == "" && (err != nil || !reflect.DeepEqual(got, c.want)) {
			t.Errorf("ParseOptions(%q, %v) = %+v, %v, want %+v", c.driver, c.opts, got, err, c.want)
		}
		if c.words != "" && (err == nil || !strings.Contains(err.Error(), c.words)) {
			t.Errorf("ParseOptions(%q, %v): %v, want %q", c.driver, c.opts, err, c.words)
		}
	}
	if err := Read(t.Context(), shim.Log{Driver: None}, ReadOptions{}, nil); !errors.Is(err, errs.Unimplemented) {
		t.Errorf("reading of none: %v", err)
	}
	if got := read(t, newLog(t, JSONFile), ReadOptions{Tail: 5}); got != nil {
		t.Errorf("a log that was never written: %q", got)
	}
}

func FuzzNext(f *testing.F) {
	for _, d := range drivers {
		f.Add(d == Local, formatOf(d, nil).encode(nil, Message{Time: time.Unix(1, 2), Line: []byte("x\n")}))
	}
	f.Add(true, []byte("\x00\x00\x00\x02\x1a\xff\x00\x00\x00\x02"))
	f.Fuzz(func(t *testing.T, local bool, data []byte) {
		driver := JSONFile
		if local {
			driver = Local
		}
		format := formatOf(driver, nil)
		if _, rest := decode(nil, bytes.Clone(data), format); len(rest) > len(data) {
			t.Errorf("rest of %d is %d", len(data), len(rest))
		}
		if size, _ := format.back(data, 3); size > len(data) {
			t.Errorf("back gave %d of %d", size, len(data))
		}
		if n := format.whole(data, true); n > len(data) {
			t.Errorf("whole gave %d of %d", n, len(data))
		}
	})
}

func BenchmarkWrite(b *testing.B) {
	for _, d := range drivers {
		b.Run(d, func(b *testing.B) {
			l := newLog(b, d)
			l.MaxSize, l.MaxFiles = 64<<20, 2
			w, err := Create(l)
			if err != nil {
				b.Fatal(err)
			}
			data := bytes.Repeat([]byte("a line of some length, as programs print them\n"), 600)
			s := w.Stream(shim.Stdout)
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				_, _ = s.Write(data)
			}
			if err := w.Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// The records of a log that was closed survive a power cut, in rotated and compressed files too.
func TestClosedLogSurvivesPowerCut(t *testing.T) {
	for _, kind := range powercut.Kinds {
		for _, compress := range []bool{false, true} {
			disk := powercut.New(t, kind)
			opts := shim.Log{Driver: JSONFile, Path: filepath.Join(disk.Dir, "log"), MaxSize: 2000, MaxFiles: 4, Compress: compress}
			w, err := Create(opts)
			if err != nil {
				t.Fatal(err)
			}
			s := w.Stream(shim.Stdout)
			for i := range 50 {
				fmt.Fprintln(s, "line", i)
			}
			if err := errors.Join(s.Close(), w.Close(), durable.OS.SyncDir(disk.Dir)); err != nil {
				t.Fatal(err)
			}
			before := read(t, opts, ReadOptions{Tail: -1})
			disk.Cut(kind.Cuts()[len(kind.Cuts())-1])
			disk.Restart()
			if after := read(t, opts, ReadOptions{Tail: -1}); len(before) < 20 || !slices.Equal(after, before) {
				t.Errorf("%s, compress %v: %d records before the cut, %d after it", kind, compress, len(before), len(after))
			}
		}
	}
}
