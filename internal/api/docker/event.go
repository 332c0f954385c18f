package docker

import (
	"net/http"
	"strings"
	"time"

	"ply/internal/events"
	"ply/internal/oci"
)

// eventAnswer is one line of GET /events; Status, ID and From are of the days before types.
type eventAnswer struct {
	Status string `json:"status,omitempty"`
	ID     string `json:"id,omitempty"`
	From   string `json:"from,omitempty"`
	Type   string
	Action string
	Actor  struct {
		ID         string
		Attributes map[string]string
	}
	Scope    string `json:"scope,omitempty"`
	Time     int64  `json:"time,omitempty"`
	TimeNano int64  `json:"timeNano,omitempty"`
}

func eventOf(e events.Event) eventAnswer {
	a := eventAnswer{Type: e.Type, Action: e.Action, Scope: "local", Time: e.Time.Unix(), TimeNano: e.Time.UnixNano()}
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

// events streams what happens. With since or until, what is remembered comes first.
func (s *server) events(c *call) error {
	since, err := c.time("since")
	if err != nil {
		return err
	}
	until, err := c.time("until")
	if err != nil {
		return err
	}
	filters, err := c.filters("config", "container", "daemon", "event", "image", "label", "network", "node", "plugin",
		"scope", "secret", "service", "type", "volume")
	if err != nil {
		return err
	}
	past, next := s.Events.Listen(c.ctx())
	c.w.Header().Set("Content-Type", "application/json")
	c.w.WriteHeader(http.StatusOK)
	rc := http.NewResponseController(c.w)
	send := func(e events.Event) error {
		if !eventMatches(e, filters) || !until.IsZero() && e.Time.After(until) {
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

// eventMatches: of each filter one value must fit.
func eventMatches(e events.Event, filters map[string][]string) bool {
	for name, values := range filters {
		if len(values) == 0 {
			continue
		}
		ok := false
		for _, v := range values {
			ok = ok || eventFits(e, name, v)
		}
		if name == "label" { // all labels must fit
			ok = true
			for _, v := range values {
				ok = ok && eventFits(e, name, v)
			}
		}
		if !ok {
			return false
		}
	}
	return true
}

func eventFits(e events.Event, filter, v string) bool {
	switch filter {
	case "type":
		return e.Type == v
	case "event":
		return e.Action == v || strings.HasPrefix(e.Action, v+":")
	case "scope":
		return v == "local"
	case "label":
		key, want, hasValue := strings.Cut(v, "=")
		got, ok := e.Attributes[key]
		return ok && (!hasValue || got == want)
	case "image":
		name := e.Attributes["image"]
		if e.Type == "image" {
			name = e.Attributes["name"]
			if e.ID == v || strings.HasPrefix(strings.TrimPrefix(e.ID, "sha256:"), v) {
				return true
			}
		}
		return sameImage(name, v)
	case "container", "volume", "network", "daemon":
		return e.Type == filter && (e.ID == v || e.Attributes["name"] == v || isPrefix(e.ID, v))
	}
	return false // kinds of a cluster that this engine never has
}

// isPrefix reports whether v is a usable prefix of a hex ID.
func isPrefix(id, v string) bool {
	return len(v) >= 4 && strings.HasPrefix(id, v) && oci.IsHex64(id)
}

// sameImage compares names with and without their tag.
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
