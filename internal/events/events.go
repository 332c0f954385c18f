// Package events is the typed bus on which services tell what happened; `events` and the API listen.
package events

import (
	"context"
	"sync"
	"time"
)

// Event is one thing that happened, in docker's words: type container, image, volume, network, daemon.
type Event struct {
	Type       string
	Action     string
	ID         string
	Attributes map[string]string
	Time       time.Time
}

// keep is how many past events a late listener can still get, as in docker.
const keep = 256

// Bus carries events. The zero value works; safe for concurrent use. A slow listener loses events, never delays a publisher.
type Bus struct {
	mu        sync.Mutex
	past      []Event
	listeners map[chan Event]struct{}
}

// Publish tells everybody. Time is filled in when zero.
func (b *Bus) Publish(e Event) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.past) == keep {
		b.past = append(b.past[:0], b.past[1:]...)
	}
	b.past = append(b.past, e)
	for c := range b.listeners {
		select {
		case c <- e:
		default:
		}
	}
}

// Listen gives the past events that are kept and a channel of all that follow, until ctx ends.
func (b *Bus) Listen(ctx context.Context) (past []Event, next <-chan Event) {
	c := make(chan Event, 1024)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.listeners == nil {
		b.listeners = map[chan Event]struct{}{}
	}
	b.listeners[c] = struct{}{}
	context.AfterFunc(ctx, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.listeners, c)
	})
	return append([]Event(nil), b.past...), c
}
