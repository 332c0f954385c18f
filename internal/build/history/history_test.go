package history

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"ply/internal/build/ops"
	"ply/internal/build/solver"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/record"
	"ply/internal/record/recordtest"
)

func open(t *testing.T, dir string, change ...func(*Options)) *History {
	t.Helper()
	o := Options{Dir: dir}
	for _, f := range change {
		f(&o)
	}
	h, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func vertex(name string) *ops.Vertex {
	return &ops.Vertex{Digest: oci.DigestOf([]byte(name)), Name: name}
}

// output returns the bytes that a step printed.
func output(t *testing.T, h *History, id string) string {
	t.Helper()
	var b bytes.Buffer
	if _, err := h.Log(t.Context(), id, func(l *Line) error { b.Write(l.Data); return nil }); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// A build is there while it runs, after it, and after a restart, with every byte of its log.
func TestBuildIsRemembered(t *testing.T) {
	dir := t.TempDir()
	h := open(t, dir)
	var seen []string
	ctx, stop := context.WithCancel(t.Context())
	h.Watch(ctx, func(r *Record) { seen = append(seen, r.Status()) })
	b := h.Begin(Record{Tags: []string{"a:1"}, Name: "a:1"})
	v, w := vertex("[1/2] RUN make"), vertex("[2/2] COPY . /")
	b.Start(v)
	text := "plain\n" + strings.Repeat("\x00\xff\n12 o 3\n", 1000) + "no newline"
	b.Log(v, false, []byte(text[:100]))
	b.Log(v, true, []byte(text[100:]))
	if r, err := h.Get(b.ID()[:8]); err != nil || r.Status() != "running" || output(t, h, b.ID()) != text {
		t.Errorf("while it runs: %v, %v", r, err)
	}
	if _, err := h.Remove(b.ID()); !errors.Is(err, errs.Conflict) {
		t.Errorf("removing a build that runs: %v, want a conflict", err)
	}
	b.Done(v, solver.Outcome{Took: 2 * time.Second, Miss: "the instruction changed"})
	b.Start(w)
	b.Done(w, solver.Outcome{Cached: true})
	if err := b.End([]oci.ImageID{"sha256:" + oci.ImageID(strings.Repeat("1", 64))}, nil, nil); err != nil {
		t.Fatal(err)
	}
	stop()
	for range 2 {
		r, err := h.Get(b.ID())
		if err != nil {
			t.Fatal(err)
		}
		done, cached := r.Counts()
		if r.Status() != "completed" || done != 2 || cached != 1 || r.Steps[0].Miss != "the instruction changed" || r.LogCut {
			t.Errorf("record %+v", r)
		}
		if got := output(t, h, b.ID()); got != text {
			t.Errorf("the log has %d bytes, want %d", len(got), len(text))
		}
		h = open(t, dir)
	}
	var plain bytes.Buffer
	if err := h.WriteLog(t.Context(), b.ID(), &plain); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"#1 [1/2] RUN make\n#1 0.0", "plain\n", "no newline\n#1 DONE 2.0s\n\n#2 [2/2] COPY . /\n#2 CACHED\n"} {
		if !strings.Contains(plain.String(), want) {
			t.Errorf("the text of the log lacks %q:\n%.200q", want, plain.String())
		}
	}
	if fmt.Sprint(seen) != "[running completed]" {
		t.Errorf("watched %v", seen)
	}
	if _, err := h.Remove(b.ID()); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("%v is left of a removed build", left)
	}
}

// A build that the engine did not survive is there with what it had printed.
func TestInterruptedBuildIsRemembered(t *testing.T) {
	dir := t.TempDir()
	h := open(t, dir)
	b := h.Begin(Record{Name: "x", Tags: []string{"x"}})
	v := vertex("RUN sleep")
	b.Log(v, false, []byte("before the end\n"))
	b.Done(v, solver.Outcome{}) // the end of a step is written at once
	f, err := os.OpenFile(h.path(b.ID(), ".log"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("o 12 0 500\ncut"); err != nil {
		t.Fatal(err)
	}
	f.Close()
	h = open(t, dir)
	r, err := h.Get(b.ID())
	if err != nil || r.Status() != "failed" || r.Name != "x" || len(r.Steps) != 1 || r.Ended.IsZero() {
		t.Fatalf("record %+v, %v", r, err)
	}
	var got strings.Builder
	if _, err := h.Log(t.Context(), b.ID(), func(l *Line) error { got.Write(l.Data); return nil }); !errors.Is(err, errs.DataLoss) || got.String() != "before the end\n" {
		t.Errorf("log %q, %v", got.String(), err)
	}
}

// The number, the bytes and the age of builds are bounded, and the latest build stays.
func TestHistoryIsBounded(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Options)
		want   int
	}{
		"number": {func(o *Options) { o.MaxCount = 3 }, 3},
		"bytes":  {func(o *Options) { o.MaxBytes = 40_000 }, 3},
		"age":    {func(o *Options) { o.MaxAge = time.Nanosecond }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			h := open(t, t.TempDir(), c.change)
			var last string
			for range 6 {
				b := h.Begin(Record{})
				b.Log(vertex("v"), false, bytes.Repeat([]byte("x"), 10_000))
				if err := b.End(nil, nil, nil); err != nil {
					t.Fatal(err)
				}
				last = b.ID()
			}
			list, err := h.List()
			if err != nil || len(list) != c.want || list[0].ID != last {
				t.Errorf("%d builds are left, want %d; the latest first", len(list), c.want)
			}
		})
	}
	h := open(t, t.TempDir(), func(o *Options) { o.MaxBytes = 1000 })
	b := h.Begin(Record{})
	b.Log(vertex("v"), false, bytes.Repeat([]byte("x"), 10_000))
	if err := b.End(nil, nil, nil); err != nil || !b.Record().LogCut {
		t.Errorf("a log above the limit: %v, want one that says that it was cut", err)
	}
}

// Steps of a build report at the same time.
func TestConcurrentSteps(t *testing.T) {
	h := open(t, t.TempDir())
	b := h.Begin(Record{ID: "abc"})
	if b.ID() != "abc" || h.Begin(Record{ID: "abc"}).ID() == "abc" {
		t.Error("an ID is taken when it is free, and only then")
	}
	var wg sync.WaitGroup
	for n := range 20 {
		wg.Go(func() {
			v := vertex(fmt.Sprint("step ", n))
			b.Start(v)
			for range 50 {
				b.Log(v, false, []byte("line\n"))
			}
			b.Done(v, solver.Outcome{})
			_, _ = h.List()
		})
	}
	wg.Wait()
	if err := errors.Join(b.End(nil, nil, context.Canceled), b.End(nil, nil, nil)); err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(output(t, h, "abc"), "line\n"); got != 1000 {
		t.Errorf("%d lines, want 1000", got)
	}
	if r, _ := h.Get("abc"); r.Status() != "canceled" {
		t.Errorf("status %s", r.Status())
	}
}

// Paths and prefixes that are not IDs lead nowhere.
func TestForeignIDs(t *testing.T) {
	h := open(t, t.TempDir())
	for range 2 {
		if err := h.Begin(Record{ID: NewID()}).End(nil, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []string{"", "..", "../x", "/etc/passwd", strings.Repeat("a", 65), "A"} {
		if _, err := h.Get(id); !errors.Is(err, errs.NotFound) {
			t.Errorf("%q: %v", id, err)
		}
	}
	if b := h.Begin(Record{ID: "../escape"}); !isID(b.ID()) {
		t.Errorf("the ID %q was taken", b.ID())
	}
}

func FuzzReadLog(f *testing.F) {
	f.Add([]byte("b 0 0 2\n{}\ns 1 0 4\nname\no 2 0 3\nabc\nd 3 0 4\nDONE\n"))
	f.Add([]byte("o 2 0 99999999999\nabc\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		name := filepath.Join(t.TempDir(), "x.log")
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		n := 0
		_ = readLog(name, func(fr *frame) error { n += len(fr.data); return nil })
		if n > len(data) {
			t.Errorf("%d bytes were read from %d", n, len(data))
		}
	})
}

func TestRecordGolden(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	r := &Record{
		ID: "abc", Name: "a:1", Tags: []string{"a:1"}, Target: "final", File: "Dockerfile", Platforms: []string{"linux/amd64"}, Options: map[string]string{"build-arg:A": "1"}, Started: at, Ended: at.Add(time.Second),
		Error: "it failed", Canceled: true, Images: []oci.ImageID{"sha256:" + oci.ImageID(strings.Repeat("1", 64))}, Answers: map[string]string{"image.name": "a:1"},
		Steps:    []Step{{Digest: "sha256:" + oci.Digest(strings.Repeat("2", 64)), Name: "RUN make", Started: at, Took: time.Second, Cached: true, Miss: "the instruction changed", Error: "exit code: 1", Done: true}},
		Warnings: []string{"careful"}, LogSize: 7, LogCut: true,
	}
	recordtest.Filled(t, r)
	data, err := record.Marshal(Version, r)
	if err != nil {
		t.Fatal(err)
	}
	recordtest.Golden(t, "build.v1.json", data)
	recordtest.Decodes(t, "build.v1.json", Version, *r)
	if !json.Valid(data) {
		t.Error("not JSON")
	}
}
