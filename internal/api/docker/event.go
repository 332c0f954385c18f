package docker

import (
	"net/http"
	"strings"
	"time"

	"ply/internal/errs"
	"ply/internal/events"
	"ply/internal/filter"
	"ply/internal/oci"
	"ply/internal/wire"
)

func eventOf(e events.Event) wire.Event {
	a := wire.Event{Type: e.Type, Action: e.Action, Scope: "local", Time: e.Time.Unix(), TimeNano: e.Time.UnixNano()}
	a.Actor.ID, a.Actor.Attributes = e.ID, e.Attributes
	if a.Actor.Attributes == nil {
		a.Actor.Attributes = map[string]string{}
	}
	switch e.Type {
	case "container":
		a.Status, a.ID, a.From = e.Action, e.ID, e.Attributes["image"]
	case "image":
		a.Status, a.ID = e.Action, e.ID
	}
	return a
}

// eventHandlers serves the stream of events.
type eventHandlers struct{ bus Events }

func (h eventHandlers) routes(add adder) { add(get, "/events", h.stream) }

// stream sends events as they happen. With since or until it first sends the past events that the bus still has.
func (h eventHandlers) stream(c *call) error {
	since, err := c.time("since")
	if err != nil {
		return err
	}
	until, err := c.time("until")
	if err != nil {
		return err
	}
	if !until.IsZero() && since.Unix() > until.Unix() {
		return errs.New(errs.Invalid, "`since` time (%s) cannot be after `until` time (%s)", c.get("since"), c.get("until"))
	}
	filters, err := c.filters()
	if err != nil {
		return err
	}
	matches, err := eventFilters.Compile(filters)
	if err != nil {
		return err
	}
	done, err := c.wait()
	if err != nil {
		return err
	}
	defer done()
	past, next := h.bus.Listen(c.ctx())
	c.w.Header().Set("Content-Type", "application/json")
	c.w.WriteHeader(http.StatusOK)
	rc := http.NewResponseController(c.w)
	send := func(e events.Event) error {
		if !matches(e) || !until.IsZero() && e.Time.After(until) {
			return nil
		}
		b, err := encode(eventOf(e))
		if err == nil {
			_, err = c.w.Write(b)
		}
		return err
	}
	if c.q.Get("since") != "" || !until.IsZero() {
		for _, e := range past {
			if e.Time.Before(since) {
				continue
			}
			if err := send(e); err != nil {
				return err
			}
		}
	}
	if err := rc.Flush(); err != nil {
		return err
	}
	var end <-chan time.Time
	if !until.IsZero() {
		timer := time.NewTimer(time.Until(until))
		defer timer.Stop()
		end = timer.C
	}
	for {
		select {
		case <-c.ctx().Done():
			return nil
		case <-end:
			return nil
		case e := <-next:
			if err := send(e); err != nil {
				return err
			}
			if err := rc.Flush(); err != nil {
				return err
			}
		}
	}
}

// eventFilters are the conditions of GET /events.
var eventFilters = filter.Table[events.Event]{
	"type":  filter.Exact(func(e events.Event) string { return e.Type }),
	"event": filter.Any(func(e events.Event, v string) bool { return e.Action == v || strings.HasPrefix(e.Action, v+":") }),
	"scope": filter.Exact(func(events.Event) string { return "local" }),
	"label": filter.Labels(func(e events.Event) map[string]string { return e.Attributes }),
	"image": filter.Any(ofImage),

	"container": filter.Any(ofObject("container")),
	"daemon":    filter.Any(ofObject("daemon")),
	"network":   filter.Any(ofObject("network")),
	"volume":    filter.Any(ofObject("volume")),

	// Docker has these kinds of objects, this engine does not.
	"config":  filter.Any(ofObject("config")),
	"node":    filter.Any(ofObject("node")),
	"plugin":  filter.Any(ofObject("plugin")),
	"secret":  filter.Any(ofObject("secret")),
	"service": filter.Any(ofObject("service")),
}

// ofObject returns a test for events about an object of the given kind, by its name, its ID or a prefix of the ID.
func ofObject(kind string) func(events.Event, string) bool {
	return func(e events.Event, v string) bool {
		return e.Type == kind && (e.ID == v || e.Attributes["name"] == v || isPrefix(e.ID, v))
	}
}

// ofImage reports whether an event is about an image, or about a container of that image.
func ofImage(e events.Event, v string) bool {
	if e.Type != "image" {
		return sameImage(e.Attributes["image"], v)
	}
	return e.ID == v || strings.HasPrefix(strings.TrimPrefix(e.ID, "sha256:"), v) || sameImage(e.Attributes["name"], v)
}

// isPrefix reports whether v is a prefix of an ID and long enough to identify it.
func isPrefix(id, v string) bool {
	return len(v) >= 4 && strings.HasPrefix(id, v) && oci.IsHex64(id)
}

// sameImage reports whether name is the image v. A v without a tag is every tag of its repository.
func sameImage(name, v string) bool {
	if name == "" {
		return false
	}
	if name == v {
		return true
	}
	a, err := oci.ParseReference(name)
	if err != nil {
		return false
	}
	b, err := oci.ParseReference(v)
	if err != nil {
		return false
	}
	if b.Tag() == "" && b.Digest() == "" {
		return a.Name() == b.Name()
	}
	return a.WithDefaultTag().String() == b.String()
}
