package events

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

func publish(b *Bus, from, to int) {
	for i := from; i < to; i++ {
		b.Publish(Event{Type: "container", Action: "start", ID: fmt.Sprint(i)})
	}
}

func TestListenersGetEveryEventInOrder(t *testing.T) {
	var b Bus
	_, one := b.Listen(t.Context())
	_, two := b.Listen(t.Context())
	publish(&b, 0, 100)
	for i := range 100 {
		for _, c := range []<-chan Event{one, two} {
			if e := <-c; e.ID != fmt.Sprint(i) || e.Type != "container" || e.Action != "start" {
				t.Fatalf("event %d is %+v", i, e)
			}
		}
	}
}

func TestTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b Bus
		_, c := b.Listen(t.Context())
		at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
		b.Publish(Event{Time: at})
		b.Publish(Event{})
		if e := <-c; !e.Time.Equal(at) {
			t.Errorf("a time that was set has become %s", e.Time)
		}
		if e := <-c; !e.Time.Equal(time.Now()) {
			t.Errorf("the time of an event without one is %s, want now", e.Time)
		}
	})
}

// A listener that comes late receives the last events that are kept, oldest first.
func TestPastIsBounded(t *testing.T) {
	var b Bus
	if past, _ := b.Listen(t.Context()); len(past) != 0 {
		t.Errorf("%d events before the first", len(past))
	}
	for _, n := range []int{3, maxPast, maxPast + 1, 3 * maxPast} {
		var b Bus
		publish(&b, 0, n)
		past, _ := b.Listen(t.Context())
		if want := min(n, maxPast); len(past) != want {
			t.Fatalf("of %d events %d are kept, want %d", n, len(past), want)
		}
		for i, e := range past {
			if want := fmt.Sprint(n - len(past) + i); e.ID != want {
				t.Fatalf("of %d events, past event %d is %s, want %s", n, i, e.ID, want)
			}
		}
	}
}

// The past that a listener received is its own.
func TestPastIsACopy(t *testing.T) {
	var b Bus
	publish(&b, 0, maxPast)
	past, _ := b.Listen(t.Context())
	publish(&b, 1000, 1010)
	if past[0].ID != "0" || past[maxPast-1].ID != fmt.Sprint(maxPast-1) {
		t.Errorf("later events changed the past: %s … %s", past[0].ID, past[maxPast-1].ID)
	}
}

// No event is missing or doubled between the past and the channel, whenever a listener comes.
func TestPastAndChannelJoin(t *testing.T) {
	var b Bus
	const n = 200 // fewer than maxPast
	done := make(chan struct{})
	go func() { defer close(done); publish(&b, 0, n) }()
	for range 20 {
		past, next := b.Listen(t.Context())
		i := 0
		for _, e := range past {
			if e.ID != fmt.Sprint(i) {
				t.Fatalf("past event %d is %s", i, e.ID)
			}
			i++
		}
		for ; i < n; i++ {
			if e := <-next; e.ID != fmt.Sprint(i) {
				t.Fatalf("event %d is %s", i, e.ID)
			}
		}
	}
	<-done
}

// A listener that does not read delays neither publishers nor other listeners, and keeps its first events.
func TestSlowListenerLosesEvents(t *testing.T) {
	var b Bus
	_, slow := b.Listen(t.Context())
	_, fast := b.Listen(t.Context())
	n := 2 * maxPending
	for i := range n {
		publish(&b, i, i+1)
		if e := <-fast; e.ID != fmt.Sprint(i) {
			t.Fatalf("event %d of the fast listener is %s", i, e.ID)
		}
	}
	if len(slow) != maxPending {
		t.Errorf("%d events wait for the slow listener, want %d", len(slow), maxPending)
	}
	for i := range maxPending {
		if e := <-slow; e.ID != fmt.Sprint(i) {
			t.Fatalf("event %d of the slow listener is %s", i, e.ID)
		}
	}
	publish(&b, n, n+1)
	if e := <-slow; e.ID != fmt.Sprint(n) {
		t.Errorf("after it has caught up, the slow listener receives %s", e.ID)
	}
}

func TestEndOfContextEndsListening(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b Bus
		ctx, cancel := context.WithCancel(t.Context())
		_, ended := b.Listen(ctx)
		_, other := b.Listen(t.Context())
		publish(&b, 0, 1)
		cancel()
		synctest.Wait()
		if len(b.listeners) != 1 {
			t.Errorf("%d listeners are left, want 1", len(b.listeners))
		}
		publish(&b, 1, 2)
		if len(ended) != 1 || len(other) != 2 {
			t.Errorf("%d and %d events, want 1 and 2", len(ended), len(other))
		}
		dead, cancel := context.WithCancel(t.Context())
		cancel()
		b.Listen(dead)
		synctest.Wait()
		if len(b.listeners) != 1 {
			t.Error("a context that had ended before left a listener")
		}
	})
}
