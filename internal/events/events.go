// Package events is the bus on which the services publish what happened. The command `events` and the API listen to it.
package events

import (
	"context"
	"slices"
	"sync"
	"time"
)

// Event is one thing that happened. Type is container, image, volume, network or daemon; Action is docker's word for what
// happened.
type Event struct {
	Type       string
	Action     string
	ID         string
	Attributes map[string]string
	Time       time.Time
}

const (
	// maxPast is how many past events a new listener can still receive, as in docker.
	maxPast = 256
	// maxPending is how many events a listener can be behind before it loses new ones.
	maxPending = 1024
)

// Bus carries events. The zero value works. Safe for concurrent use. A slow listener loses events and never delays a
// publisher.
type Bus struct {
	mu        sync.Mutex
	past      []Event // oldest first, at most maxPast
	listeners map[chan Event]struct{}
}

// Publish sends an event to every listener. Time is set when it is zero.
func (b *Bus) Publish(e Event) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.past) == maxPast {
		b.past = slices.Delete(b.past, 0, 1)
	}
	b.past = append(b.past, e)
	for c := range b.listeners {
		select {
		case c <- e:
		default: // the listener is too far behind
		}
	}
}

// Listen returns the past events that are kept, and a channel of all events that follow until ctx ends. Together they hold
// every event once, in the order of publication. The channel is not closed: a listener waits for ctx too.
func (b *Bus) Listen(ctx context.Context) (past []Event, next <-chan Event) {
	c := make(chan Event, maxPending)
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
	return slices.Clone(b.past), c
}
