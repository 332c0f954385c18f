package queue

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ply/internal/errs"
	"ply/internal/record"
	"ply/internal/record/recordtest"
	"ply/internal/registry/metadata"
	"ply/internal/registry/metadata/bolt"
)

// memory keeps documents, for tests with a clock of their own.
type memory struct {
	mu   sync.Mutex
	docs map[string]string
}

func (m *memory) Document(context.Context, string, string) ([]byte, error) { return nil, errs.NotFound }

func (m *memory) Documents(_ context.Context, _, after string, limit int) (list []metadata.Document, _ error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for k, v := range m.docs {
		if k > after {
			list = append(list, metadata.Document{Key: k, Value: []byte(v)})
		}
	}
	slices.SortFunc(list, func(a, b metadata.Document) int { return strings.Compare(a.Key, b.Key) })
	return list[:min(limit, len(list))], nil
}

func (m *memory) PutDocuments(_ context.Context, _ string, docs ...metadata.Document) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range docs {
		if d.Value == nil {
			delete(m.docs, d.Key)
		} else {
			m.docs[d.Key] = string(d.Value)
		}
	}
	return nil
}

func (m *memory) SwapDocument(_ context.Context, _, key string, old, value []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.docs[key] != string(old) {
		return errs.New(errs.Precondition, "changed")
	}
	if value == nil {
		delete(m.docs, key)
	} else {
		m.docs[key] = string(value)
	}
	return nil
}

func options(d metadata.Documents, workers int) Options {
	return Options{Documents: d, Kind: "test", Limit: 100, Workers: workers, Lease: time.Minute, First: time.Second, Longest: time.Minute}
}

// Items are handled in order, are tried again with growing pauses, and none passes one that fails.
func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := New(options(&memory{docs: map[string]string{}}, 1))
		begun := time.Now()
		var seen []string
		failures := 3
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			q.Run(ctx, "g", func(_ context.Context, key string, payload []byte) error {
				seen = append(seen, fmt.Sprintf("%s%s@%v", key, payload, time.Since(begun).Round(time.Second)))
				if key == "b" && failures > 0 {
					failures--
					return errors.New("no")
				}
				return nil
			}, func(err error) { t.Error(err) })
		}()
		for i, k := range []string{"a", "b", "c"} {
			if err := q.Put(ctx, "g", k, i); err != nil {
				t.Fatal(err)
			}
		}
		if err := q.Put(ctx, "other", "x", 9); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if got := strings.Join(seen, " "); got != "a0@0s b1@0s b1@1s b1@3s b1@7s c2@7s" {
			t.Errorf("handled %s", got)
		}
		if q.Len() != 1 {
			t.Errorf("%d items are left", q.Len())
		}
		cancel()
		<-done
	})
}

// With several workers an item that fails does not hold up the others.
func TestWorkers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := New(options(&memory{docs: map[string]string{}}, 4))
		var mu sync.Mutex
		seen := map[string]int{}
		ctx, cancel := context.WithCancel(t.Context())
		for i := range 10 {
			if err := q.Put(ctx, "g", fmt.Sprint(i), i); err != nil {
				t.Fatal(err)
			}
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			q.Run(ctx, "g", func(_ context.Context, key string, _ []byte) error {
				mu.Lock()
				defer mu.Unlock()
				seen[key]++
				if key == "3" {
					return errors.New("no")
				}
				return nil
			}, func(err error) { t.Error(err) })
		}()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		mu.Lock()
		if q.Len() != 1 || len(seen) != 10 || seen["0"] != 1 || seen["3"] < 3 {
			t.Errorf("handled %v, left %d", seen, q.Len())
		}
		mu.Unlock()
		cancel()
		<-done
	})
}

// An item that is put again while it is being handled is handled again.
func TestPutAgain(t *testing.T) {
	q := New(options(&memory{docs: map[string]string{}}, 1))
	ctx, cancel := context.WithCancel(t.Context())
	if err := q.Put(ctx, "g", "k", 1); err != nil {
		t.Fatal(err)
	}
	seen := make(chan string, 10)
	var once sync.Once
	done := make(chan struct{})
	go func() {
		defer close(done)
		q.Run(ctx, "g", func(_ context.Context, _ string, payload []byte) error {
			once.Do(func() {
				time.Sleep(2 * time.Millisecond) // the time is a part of an item
				if err := q.Put(ctx, "g", "k", 2); err != nil {
					t.Error(err)
				}
			})
			seen <- string(payload)
			return nil
		}, func(err error) { t.Error(err) })
	}()
	for _, want := range []string{"1", "2"} {
		select {
		case got := <-seen:
			if got != want {
				t.Errorf("handled %s, want %s", got, want)
			}
		case <-time.After(time.Minute):
			t.Errorf("%s was not handled", want)
		}
	}
	cancel()
	<-done
}

// Two replicas share the items, and what one has not done survives its end.
func TestReplicas(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metadata.db")
	store, err := bolt.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	first := New(options(store, 2))
	const n = 40
	for i := range n {
		if err := first.Put(t.Context(), "g", fmt.Sprint(i), i); err != nil {
			t.Fatal(err)
		}
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	if store, err = bolt.Open(path); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	seen := map[string]int{}
	all := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 2 {
		q := New(options(store, 2))
		wg.Go(func() {
			q.Run(ctx, "g", func(_ context.Context, key string, _ []byte) error {
				mu.Lock()
				defer mu.Unlock()
				if seen[key]++; len(seen) == n {
					select {
					case <-all:
					default:
						close(all)
					}
				}
				return nil
			}, func(err error) { t.Error(err) })
		})
	}
	<-all
	cancel()
	wg.Wait()
	for k, times := range seen {
		if times != 1 {
			t.Errorf("item %s was handled %d times", k, times)
		}
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
}

// The number of items is right when all are done, without another pass.
func TestLen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := New(options(&memory{docs: map[string]string{}}, 4))
		ctx, cancel := context.WithCancel(t.Context())
		for i := range 3 {
			if err := q.Put(ctx, "g", fmt.Sprint(i), i); err != nil {
				t.Fatal(err)
			}
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			q.Run(ctx, "g", func(context.Context, string, []byte) error { return nil }, func(err error) { t.Error(err) })
		}()
		synctest.Wait()
		if q.Len() != 0 {
			t.Errorf("%d items wait", q.Len())
		}
		cancel()
		<-done
	})
}

func TestFull(t *testing.T) {
	o := options(&memory{docs: map[string]string{}}, 1)
	o.Limit = 2
	q := New(o)
	for i, want := range []error{nil, nil, ErrFull} {
		if err := q.Put(t.Context(), "g", fmt.Sprint(i), i); !errors.Is(err, want) {
			t.Errorf("item %d: %v, want %v", i, err, want)
		}
	}
	if err := q.Put(t.Context(), "h", "0", 0); err != nil {
		t.Errorf("another group: %v", err)
	}
	if err := q.Drop(t.Context(), func(group string) bool { return group == "h" }); err != nil {
		t.Fatal(err)
	}
	docs, _ := o.Documents.Documents(t.Context(), "test", "", 10)
	if len(docs) != 1 || docs[0].Key != "h 0" {
		t.Errorf("left: %v", docs)
	}
}

func TestRecord(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	b, err := record.Marshal(itemVersion, itemRecord{Payload: []byte(`{"a":1}`), Queued: now, Tries: 2, Next: now, Error: "no"})
	if err != nil {
		t.Fatal(err)
	}
	recordtest.Golden(t, "item.v1.json", b)
}
