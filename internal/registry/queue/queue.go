// Package queue keeps work for other parts of the registry until it succeeds: durable, bounded, retried with growing pauses, and
// shared by all replicas.
//
// Invariants: an item is durable when Put returns, and is removed only after it was handled, so it is handled at least once. One that is
// put again while it is being handled is handled again. Two replicas handle one item at the same time only if one of them seems dead.
package queue

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"ply/internal/errs"
	"ply/internal/record"
	"ply/internal/registry/metadata"
)

// Options configure a Queue.
type Options struct {
	Documents metadata.Documents
	Kind      string
	Limit     int           // items of a group
	Workers   int           // of a group; 1 = in the order of their keys, and none passes one that fails
	Lease     time.Duration // how long a replica may handle an item before it counts as dead
	First     time.Duration // pause after the first failure; it doubles with each
	Longest   time.Duration // pause
	// Done is told how an item was handled; may be nil.
	Done func(group string, took time.Duration, err error)
}

// Queue is a set of groups of items. Safe for concurrent use.
type Queue struct {
	o   Options
	now func() time.Time

	mu    sync.Mutex
	wake  map[string]chan struct{}
	count map[string]int // items, about
}

const (
	itemVersion = 1
	page        = 500
	rest        = time.Minute // between two looks for what other replicas have put
	settle      = 20 * time.Millisecond
)

// itemRecord is an item.
type itemRecord struct {
	Payload json.RawMessage `json:"payload"`
	Queued  time.Time       `json:"queued"`
	Tries   int             `json:"tries,omitempty"`
	Next    time.Time       `json:"next"` // not before; in a claim, when it ends
	Error   string          `json:"error,omitempty"`
}

// ErrFull is the error of Put when the group has as many items as it may.
var ErrFull = errs.New(errs.Exhausted, "the queue is full")

// New returns a queue on stored items.
func New(o Options) *Queue {
	return &Queue{o: o, now: time.Now, wake: map[string]chan struct{}{}, count: map[string]int{}}
}

// Put adds an item, or replaces the one with the same key. Groups have no spaces in their names.
func (q *Queue) Put(ctx context.Context, group, key string, payload any) error {
	b, err := json.Marshal(payload)
	if err != nil {
		return errs.New(errs.Internal, "queue %s: %w", q.o.Kind, err)
	}
	now := q.now().UTC()
	v, err := record.Marshal(itemVersion, itemRecord{Payload: b, Queued: now, Next: now})
	if err != nil {
		return err
	}
	q.mu.Lock()
	full := q.count[group] >= q.o.Limit
	q.mu.Unlock()
	if full {
		return ErrFull
	}
	if err := q.o.Documents.PutDocuments(ctx, q.o.Kind, metadata.Document{Key: group + " " + key, Value: v}); err != nil {
		return err
	}
	q.mu.Lock()
	q.count[group]++ // counted anew by each pass
	q.mu.Unlock()
	q.signal(group)
	return nil
}

// Len returns how many items wait, about.
func (q *Queue) Len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := 0
	for _, c := range q.count {
		n += c
	}
	return n
}

// signals returns the channel that tells the group's loop of new items.
func (q *Queue) signals(group string) chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	c := q.wake[group]
	if c == nil {
		c = make(chan struct{}, 1)
		q.wake[group] = c
	}
	return c
}

func (q *Queue) signal(group string) {
	select {
	case q.signals(group) <- struct{}{}:
	default:
	}
}

// Handler handles the payload of an item.
type Handler func(ctx context.Context, key string, payload []byte) error

// Run handles the items of a group until ctx is done. Failed is told about errors of the database.
func (q *Queue) Run(ctx context.Context, group string, handle Handler, failed func(error)) {
	wake := q.signals(group)
	for {
		next, err := q.pass(ctx, group, handle)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			failed(err)
			next = q.now().Add(q.o.First)
		}
		pause := time.NewTimer(min(max(next.Sub(q.now()), settle), rest))
		select {
		case <-ctx.Done():
			pause.Stop()
			return
		case <-wake:
			pause.Stop()
		case <-pause.C:
		}
	}
}

// Drop removes the items of groups that keep does not want.
func (q *Queue) Drop(ctx context.Context, keep func(group string) bool) error {
	for after := ""; ; {
		docs, err := q.o.Documents.Documents(ctx, q.o.Kind, after, page)
		if err != nil {
			return err
		}
		var gone []metadata.Document
		for _, d := range docs {
			after = d.Key
			group, _, _ := strings.Cut(d.Key, " ")
			if keep(group) {
				q.mu.Lock()
				q.count[group]++
				q.mu.Unlock()
				continue
			}
			gone = append(gone, metadata.Document{Key: d.Key})
		}
		if len(gone) > 0 {
			if err := q.o.Documents.PutDocuments(ctx, q.o.Kind, gone...); err != nil {
				return err
			}
		}
		if len(docs) < page {
			return nil
		}
	}
}

// pass handles the items that are due, and returns when the next one is.
func (q *Queue) pass(ctx context.Context, group string, handle Handler) (time.Time, error) {
	far := q.now().Add(rest)
	next := far
	var mu sync.Mutex // of next
	sooner := func(t time.Time) {
		mu.Lock()
		defer mu.Unlock()
		if t.Before(next) {
			next = t
		}
	}
	var work errgroup.Group
	work.SetLimit(q.o.Workers)
	count, stopped := 0, false
	var removed atomic.Int64
	prefix := group + " "
	for after, more := prefix, true; more && !stopped; {
		docs, err := q.o.Documents.Documents(ctx, q.o.Kind, after, page)
		if err != nil {
			return far, errors.Join(err, work.Wait())
		}
		more = len(docs) == page
		for _, d := range docs {
			if !strings.HasPrefix(d.Key, prefix) {
				more = false
				break
			}
			after = d.Key
			count++
			if stopped || ctx.Err() != nil {
				continue
			}
			var r itemRecord
			if err := record.Unmarshal("item "+d.Key, d.Value, itemVersion, &r); err != nil {
				return far, errors.Join(err, work.Wait())
			}
			if r.Next.After(q.now()) {
				sooner(r.Next)
				stopped = q.o.Workers == 1
				continue
			}
			if q.o.Workers == 1 {
				at, err := q.one(ctx, group, d, r, handle, &removed)
				sooner(at)
				stopped = err != nil
				continue
			}
			work.Go(func() error {
				at, err := q.one(ctx, group, d, r, handle, &removed)
				sooner(at)
				_ = err // recorded in the item
				return nil
			})
		}
	}
	err := work.Wait()
	q.mu.Lock()
	if !stopped { // it saw all items; some may have come meanwhile
		q.count[group] = count - int(removed.Load())
	}
	q.mu.Unlock()
	return next, err
}

// one claims and handles an item. It returns when to look at it again.
func (q *Queue) one(ctx context.Context, group string, d metadata.Document, r itemRecord, handle Handler, removed *atomic.Int64) (time.Time, error) {
	now := q.now()
	far := now.Add(rest)
	r.Tries++
	r.Next = now.Add(q.o.Lease).UTC()
	claim, err := record.Marshal(itemVersion, r)
	if err != nil {
		return far, err
	}
	if err := q.o.Documents.SwapDocument(ctx, q.o.Kind, d.Key, d.Value, claim); err != nil {
		return now, nil //nolint:nilerr // another replica has it, or it was put again
	}
	err = handle(ctx, strings.TrimPrefix(d.Key, group+" "), r.Payload)
	if ctx.Err() != nil {
		err = errors.Join(err, context.Cause(ctx))
	}
	if q.o.Done != nil && ctx.Err() == nil {
		q.o.Done(group, q.now().Sub(now), err)
	}
	end := context.WithoutCancel(ctx)
	if err == nil {
		if q.o.Documents.SwapDocument(end, q.o.Kind, d.Key, claim, nil) == nil {
			removed.Add(1)
			q.mu.Lock()
			q.count[group]--
			q.mu.Unlock()
		} // else it was put again
		return far, nil
	}
	r.Error = clip(err.Error())
	r.Next = q.now().Add(q.pause(r.Tries)).UTC()
	if ctx.Err() != nil {
		r.Next = q.now().UTC() // after the restart
	}
	again, merr := record.Marshal(itemVersion, r)
	if merr == nil {
		_ = q.o.Documents.SwapDocument(end, q.o.Kind, d.Key, claim, again) // otherwise it was put again
	}
	return r.Next, err
}

func (q *Queue) pause(tries int) time.Duration {
	return min(q.o.First<<min(tries-1, 20), q.o.Longest)
}

func clip(s string) string {
	if len(s) > 500 {
		return s[:500] + "…"
	}
	return s
}
