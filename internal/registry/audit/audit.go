// Package audit keeps who did what, from where, to which repository, and with what result.
//
// Invariants: entries are added and never changed; the oldest go when there are too many or they are too old. An entry has no password,
// token, header or body. Who records does not wait: an entry is durable within two seconds. What an attacker repeats is one entry with a
// count, and different refusals are bounded by the second and to half of the log, so that a flood of them does not push out what others did.
package audit

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"math"
	"strings"
	"sync"
	"time"

	"ply/internal/record"
	"ply/internal/registry/metadata"
)

// Entry is something that was done, or refused.
type Entry struct {
	Time       time.Time `json:"time"`
	User       string    `json:"user,omitempty"`    // "" = one who did not log in; @ begins the name of a part of the registry, or of a user of the system
	Token      string    `json:"token,omitempty"`   // ID of a personal access token
	Address    string    `json:"address,omitempty"` // of the client
	Action     string    `json:"action"`
	Repository string    `json:"repository,omitempty"`
	Reference  string    `json:"reference,omitempty"` // tag, digest, or what else the action is about
	Status     int       `json:"status,omitempty"`    // of HTTP
	Count      int       `json:"count,omitempty"`     // how often, when more than once
}

func (e *Entry) isRefusal() bool { return e.Status >= 400 }

// Kind is the kind of the documents.
const Kind = "audit"

const (
	entryVersion = 1
	maxPending   = 10_000 // entries that are not durable yet
	maxRefused   = 100    // different refusals of one write
	maxText      = 255    // bytes of a field
	interval     = time.Second
	trimInterval = 10 * time.Minute
	page         = 1000
	maxScan      = 200_000 // entries that a question looks at
	timeout      = 10 * time.Second
	refusalMark  = "f" // of keys
)

// Options configure a Log.
type Options struct {
	Documents metadata.Documents
	Max       int           // entries
	Age       time.Duration // 0 = any
	Failed    func(error)   // entries could not be written
}

// Log is an audit log. Safe for concurrent use.
type Log struct {
	o    Options
	stop chan struct{}
	done chan struct{}

	mu      sync.Mutex
	pending []Entry
	refused map[Entry]int // places in pending
	lost    int
}

// Open opens a log, and closes it with Close.
func Open(o Options) *Log {
	l := &Log{o: o, stop: make(chan struct{}), done: make(chan struct{}), refused: map[Entry]int{}}
	go l.loop()
	return l
}

// Close writes what was recorded.
func (l *Log) Close() error {
	close(l.stop)
	<-l.done
	return l.flush()
}

func clip(s string) string {
	if len(s) > maxText {
		s = s[:maxText]
	}
	return strings.ToValidUTF8(s, "�")
}

// Record adds an entry. It does not wait.
func (l *Log) Record(e Entry) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	e.Time = e.Time.UTC().Truncate(time.Microsecond)
	for _, s := range []*string{&e.User, &e.Token, &e.Address, &e.Action, &e.Repository, &e.Reference} {
		*s = clip(*s)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	same, refused := e, e.isRefusal()
	same.Time = time.Time{}
	if i, ok := l.refused[same]; ok {
		l.pending[i].Count = max(l.pending[i].Count, 1) + 1
		return
	}
	if len(l.pending) >= maxPending || refused && len(l.refused) >= maxRefused {
		l.lost++
		return
	}
	if refused {
		l.refused[same] = len(l.pending)
	}
	l.pending = append(l.pending, e)
}

func (l *Log) loop() {
	defer close(l.done)
	write := time.NewTicker(interval)
	defer write.Stop()
	trimmed := time.Time{}
	for {
		select {
		case <-l.stop:
			return
		case <-write.C:
		}
		err := l.flush()
		if err == nil && time.Since(trimmed) > trimInterval {
			trimmed = time.Now()
			err = l.trim()
		}
		if err != nil && l.o.Failed != nil {
			l.o.Failed(err)
		}
	}
}

// flush makes what was recorded durable. What cannot be written is tried again.
func (l *Log) flush() error {
	l.mu.Lock()
	list, lost := l.pending, l.lost
	l.pending, l.lost = nil, 0
	clear(l.refused)
	l.mu.Unlock()
	all := list
	if lost > 0 {
		all = append(all, Entry{Time: time.Now().UTC().Truncate(time.Microsecond), User: "@audit", Action: "lost", Count: lost})
	}
	if len(all) == 0 {
		return nil
	}
	docs := make([]metadata.Document, len(all))
	for i, e := range all {
		d, err := document(e)
		if err != nil {
			return err
		}
		docs[i] = d
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	err := l.o.Documents.PutDocuments(ctx, Kind, docs...)
	if err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		keep := min(len(list), maxPending-min(len(l.pending), maxPending))
		l.lost += lost + len(list) - keep
		l.pending = append(l.pending, list[len(list)-keep:]...) // places in refused stay right
	}
	return err
}

// key returns a key by which newer entries come first, and which ends with refusalMark for a refusal.
func key(t time.Time, refusal bool) string {
	var b [12]byte
	binary.BigEndian.PutUint64(b[:], uint64(math.MaxInt64-t.UnixNano()))
	_, _ = rand.Read(b[8:])
	if refusal {
		return hex.EncodeToString(b[:]) + refusalMark
	}
	return hex.EncodeToString(b[:])
}

// before returns a key behind all entries that are newer than t.
func before(t time.Time) string { return key(t, false)[:16] }

func isRefusalKey(key string) bool { return len(key) == 24+len(refusalMark) }

func document(e Entry) (metadata.Document, error) {
	b, err := record.Marshal(entryVersion, e)
	return metadata.Document{Key: key(e.Time, e.isRefusal()), Value: b}, err
}

// Write adds an entry to the log of a registry that this process does not serve.
func Write(ctx context.Context, docs interface {
	SwapDocument(ctx context.Context, kind, key string, old, value []byte) error
}, e Entry,
) error {
	e.Time = time.Now().UTC().Truncate(time.Microsecond)
	d, err := document(e)
	if err != nil {
		return err
	}
	return docs.SwapDocument(ctx, Kind, d.Key, nil, d.Value)
}

// trim removes entries that are too old, and the oldest when there are too many. Refusals, of which anyone can make any number, have half
// of the log at most.
func (l *Log) trim() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if l.o.Age > 0 {
		if err := l.remove(ctx, before(time.Now().Add(-l.o.Age))); err != nil {
			return err
		}
	}
	after, kept, refusals := "", 0, 0
	for l.o.Max > 0 {
		docs, err := l.o.Documents.Documents(ctx, Kind, after, page)
		if err != nil || len(docs) == 0 {
			return err
		}
		var gone []metadata.Document
		for _, d := range docs {
			refusal := isRefusalKey(d.Key)
			if kept == l.o.Max || refusal && refusals >= (l.o.Max+1)/2 {
				gone = append(gone, metadata.Document{Key: d.Key})
				continue
			}
			kept++
			if refusal {
				refusals++
			}
		}
		if len(gone) > 0 {
			if err := l.o.Documents.PutDocuments(ctx, Kind, gone...); err != nil {
				return err
			}
		}
		after = docs[len(docs)-1].Key
	}
	return nil
}

// remove removes the entries behind a key.
func (l *Log) remove(ctx context.Context, after string) error {
	for {
		docs, err := l.o.Documents.Documents(ctx, Kind, after, page)
		if err != nil || len(docs) == 0 {
			return err
		}
		for i := range docs {
			docs[i].Value = nil
		}
		if err := l.o.Documents.PutDocuments(ctx, Kind, docs...); err != nil {
			return err
		}
	}
}

// Question says which entries are wanted.
type Question struct {
	User, Repository, Action string    // "" = any
	Since                    time.Time // zero = any
	After                    string    // what the answer before ended with; "" = from the newest
	Limit                    int
}

// Lister lists documents.
type Lister interface {
	Documents(ctx context.Context, kind, after string, limit int) ([]metadata.Document, error)
}

// Entries returns entries, the newest first, and where the next ones begin; "" = there are no more.
func Entries(ctx context.Context, docs Lister, q Question) (list []Entry, next string, err error) {
	list = []Entry{}
	after := q.After
	for seen := 0; seen < maxScan; {
		run, err := docs.Documents(ctx, Kind, after, page)
		if err != nil {
			return nil, "", err
		}
		for _, d := range run {
			var e Entry
			if err := record.Unmarshal("audit entry "+d.Key, d.Value, entryVersion, &e); err != nil {
				return nil, "", err
			}
			if e.Time.Before(q.Since) {
				return list, "", nil
			}
			after = d.Key
			if q.User != "" && e.User != q.User || q.Repository != "" && e.Repository != q.Repository || q.Action != "" && e.Action != q.Action {
				continue
			}
			if list = append(list, e); len(list) >= q.Limit {
				return list, after, nil
			}
		}
		if len(run) < page {
			return list, "", nil
		}
		seen += len(run)
	}
	return list, after, nil
}
