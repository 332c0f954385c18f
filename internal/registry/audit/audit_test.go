package audit

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ply/internal/errs"
	"ply/internal/record"
	"ply/internal/record/recordtest"
	"ply/internal/registry/metadata"
	"ply/internal/registry/metadata/bolt"
)

func open(t *testing.T, o Options) (*Log, *failing) {
	t.Helper()
	file, err := bolt.Open(filepath.Join(t.TempDir(), "metadata.db"))
	if err != nil {
		t.Fatal(err)
	}
	docs := &failing{Store: file}
	o.Documents = docs
	l := Open(o)
	t.Cleanup(func() {
		if err := errors.Join(l.Close(), file.Close()); err != nil {
			t.Error(err)
		}
	})
	return l, docs
}

// failing is a database that does not answer when it is told so.
type failing struct {
	metadata.Store
	mu   sync.Mutex
	down bool
}

func (f *failing) PutDocuments(ctx context.Context, kind string, docs ...metadata.Document) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return errs.New(errs.Unavailable, "down")
	}
	return f.Store.PutDocuments(ctx, kind, docs...)
}

func (f *failing) set(down bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = down
}

func (l *Log) entries(t *testing.T, q Question) []Entry {
	t.Helper()
	if err := l.flush(); err != nil {
		t.Fatal(err)
	}
	if q.Limit == 0 {
		q.Limit = 1 << 20
	}
	list, _, err := Entries(t.Context(), l.o.Documents, q)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestEntries(t *testing.T) {
	l, docs := open(t, Options{})
	begun := time.Now().Add(-time.Hour).Truncate(time.Second)
	for i := range 2500 {
		l.Record(Entry{Time: begun.Add(time.Duration(i) * time.Second), User: fmt.Sprintf("u%d", i%2), Action: "push", Repository: fmt.Sprintf("r%d", i%5)})
		if i%1000 == 0 {
			l.entries(t, Question{})
		}
	}
	all := l.entries(t, Question{})
	if len(all) != 2500 {
		t.Fatalf("%d entries", len(all))
	}
	for i, e := range all {
		if i > 0 && all[i-1].Time.Before(e.Time) {
			t.Fatal("the newest do not come first")
		}
	}
	if list := l.entries(t, Question{User: "u1", Repository: "r3", Action: "push"}); len(list) != 250 || list[0].User != "u1" || list[0].Repository != "r3" {
		t.Errorf("%d entries", len(list))
	}
	if list := l.entries(t, Question{Action: "delete"}); len(list) != 0 {
		t.Errorf("%d entries", len(list))
	}
	if list := l.entries(t, Question{Since: begun.Add(2490 * time.Second)}); len(list) != 10 {
		t.Errorf("%d entries", len(list))
	}
	// Pages.
	n, after := 0, ""
	for {
		list, next, err := Entries(t.Context(), docs, Question{User: "u0", Limit: 7, After: after})
		if err != nil {
			t.Fatal(err)
		}
		n += len(list)
		if after = next; next == "" {
			break
		}
	}
	if n != 1250 {
		t.Errorf("pages have %d entries", n)
	}
	if err := Write(t.Context(), docs, Entry{User: "@root", Action: "add user"}); err != nil {
		t.Fatal(err)
	}
	if list := l.entries(t, Question{Limit: 1}); list[0].Action != "add user" {
		t.Errorf("%+v", list)
	}
}

// What is refused again and again is one entry; a flood of different refusals is bounded, and does not touch what others do.
func TestFlood(t *testing.T) {
	l, _ := open(t, Options{})
	same := Entry{Address: "192.0.2.1", Action: "login", Status: 401}
	for i := range 50_000 {
		l.Record(same)
		l.Record(Entry{Address: fmt.Sprintf("192.0.2.%d", i), Action: "pull", Status: 401})
	}
	l.Record(Entry{User: "alice", Action: "push", Status: 201})
	sum, pushed := 0, false
	list := l.entries(t, Question{})
	for _, e := range list {
		if e.Action == "push" {
			pushed = true
			continue
		}
		sum += max(e.Count, 1)
	}
	if sum != 100_000 || !pushed || len(list) > 10*maxRefused {
		t.Errorf("%d entries count %d refusals, want 100000; the push is there: %v", len(list), sum, pushed)
	}
	for range maxPending + 100 {
		l.Record(Entry{User: "alice", Action: "push", Repository: strings.Repeat("a", 10_000), Status: 201})
	}
	list = l.entries(t, Question{User: "alice", Limit: 3})
	if len(list[0].Repository) != maxText {
		t.Errorf("a repository of %d bytes", len(list[0].Repository))
	}
}

// While the database does not answer, entries wait.
func TestUnavailable(t *testing.T) {
	l, docs := open(t, Options{})
	docs.set(true)
	for i := range 100 {
		l.Record(Entry{User: "alice", Action: "push", Reference: fmt.Sprint(i)})
		_ = l.flush()
	}
	l.Record(Entry{Action: "login", Status: 401})
	_ = l.flush()
	l.Record(Entry{Action: "login", Status: 401})
	docs.set(false)
	if list := l.entries(t, Question{}); len(list) < 101 {
		t.Errorf("%d entries", len(list))
	}
}

// While the database does not answer and no more entries can wait, what is refused is counted as lost.
func TestFull(t *testing.T) {
	l, docs := open(t, Options{})
	docs.set(true)
	for i := range maxPending {
		l.Record(Entry{User: "alice", Action: "push", Reference: fmt.Sprint(i)})
	}
	for range 3 {
		l.Record(Entry{Action: "login", Status: 401})
	}
	docs.set(false)
	list := l.entries(t, Question{})
	if i := slices.IndexFunc(list, func(e Entry) bool { return e.Action == "lost" }); i < 0 || list[i].Count != 3 {
		t.Errorf("%d entries, of which none says that 3 are lost", len(list))
	}
}

// The oldest go.
func TestTrim(t *testing.T) {
	l, _ := open(t, Options{Max: 1500, Age: 50 * time.Minute})
	begun := time.Now().Add(-time.Hour).Truncate(time.Second)
	for i := range 3600 {
		l.Record(Entry{Time: begun.Add(time.Duration(i) * time.Second), Action: "push"})
	}
	l.entries(t, Question{})
	l.o.Max = 0
	if err := l.trim(); err != nil {
		t.Fatal(err)
	}
	if n := len(l.entries(t, Question{})); n < 2990 || n > 3000 {
		t.Errorf("%d entries are left for their age", n)
	}
	l.o.Max = 1500
	if err := l.trim(); err != nil {
		t.Fatal(err)
	}
	list := l.entries(t, Question{})
	if len(list) != 1500 || time.Since(list[1499].Time) > 26*time.Minute {
		t.Errorf("%d entries are left", len(list))
	}
}

// A flood of refusals that goes on does not push out what was done: refusals have half of the log at most.
func TestTrimOfFlood(t *testing.T) {
	l, docs := open(t, Options{Max: 3000})
	begun := time.Now().Add(-time.Hour).Truncate(time.Second)
	add := func(from, to int, e Entry) {
		t.Helper()
		for i := from; i < to; i++ {
			e.Time, e.Reference = begun.Add(time.Duration(i)*time.Second), fmt.Sprint(i)
			l.Record(e)
			if i%maxRefused == 0 || i == to-1 {
				l.entries(t, Question{Limit: 1})
			}
		}
	}
	count := func(action string) int { t.Helper(); return len(l.entries(t, Question{Action: action})) }
	add(0, 1400, Entry{User: "alice", Action: "push", Status: 201})
	add(1400, 4000, Entry{Action: "read", Status: 401})
	if err := l.trim(); err != nil {
		t.Fatal(err)
	}
	if pushes, refusals := count("push"), count("read"); pushes != 1400 || refusals != 1500 {
		t.Errorf("%d pushes and %d refusals are left, want 1400 and 1500", pushes, refusals)
	}
	add(4000, 6000, Entry{User: "alice", Action: "push", Status: 201})
	if err := l.trim(); err != nil {
		t.Fatal(err)
	}
	if pushes, refusals := count("push"), count("read"); pushes != 2000 || refusals != 1000 {
		t.Errorf("%d pushes and %d refusals are left, want 2000 and 1000", pushes, refusals)
	}
	// The order of time stays, whatever the entries are.
	for list, after := []Entry(nil), ""; ; {
		next, more, err := Entries(t.Context(), docs, Question{Limit: 7, After: after})
		if err != nil {
			t.Fatal(err)
		}
		if list = append(list, next...); more == "" {
			if !slices.IsSortedFunc(list, func(a, b Entry) int { return b.Time.Compare(a.Time) }) || len(list) != 3000 {
				t.Errorf("%d entries are not in order", len(list))
			}
			break
		}
		after = more
	}
}

func TestRecord(t *testing.T) {
	b, err := record.Marshal(entryVersion, Entry{time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC), "alice", "ABCDEFGHIJ", "192.0.2.1", "push", "team/app", "v1", 201, 2})
	if err != nil {
		t.Fatal(err)
	}
	recordtest.Golden(t, "entry.v1.json", b)
}
