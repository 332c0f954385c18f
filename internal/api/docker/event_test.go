package docker

import (
	"strings"
	"testing"
	"time"

	"ply/internal/events"
)

var eventStart = events.Event{Type: "container", Action: "start", ID: string(ctrWeb), Attributes: map[string]string{"image": "busybox"}, Time: moment}

func TestEventFilters(t *testing.T) {
	image := events.Event{Type: "image", Action: "pull", ID: "busybox:latest", Attributes: map[string]string{"name": "busybox:latest"}}
	labelled := events.Event{Type: "container", Action: "health_status: healthy", ID: string(ctrOld), Attributes: map[string]string{"name": "db", "tier": "back", "image": "r.example/db:2"}}
	for _, tc := range []struct {
		filters map[string][]string
		want    string // of s, i, l
	}{
		{nil, "sil"},
		{map[string][]string{"type": {"image"}}, "i"},
		{map[string][]string{"type": {"image", "container"}}, "sil"},
		{map[string][]string{"event": {"start"}}, "s"},
		{map[string][]string{"event": {"health_status"}}, "l"},
		{map[string][]string{"container": {"db"}}, "l"},
		{map[string][]string{"container": {string(ctrWeb)[:12]}}, "s"},
		{map[string][]string{"container": {string(ctrWeb)[:2]}}, ""},
		{map[string][]string{"image": {"busybox"}}, "si"},
		{map[string][]string{"image": {"r.example/db"}}, "l"},
		{map[string][]string{"image": {"r.example/db:1"}}, ""},
		{map[string][]string{"label": {"tier"}}, "l"},
		{map[string][]string{"label": {"tier=back", "name=db"}}, "l"},
		{map[string][]string{"label": {"tier=back", "name=x"}}, ""},
		{map[string][]string{"scope": {"local"}}, "sil"},
		{map[string][]string{"scope": {"swarm"}}, ""},
		{map[string][]string{"plugin": {"x"}}, ""},
		{map[string][]string{"type": {"container"}, "event": {"start"}}, "s"},
	} {
		match, err := eventFilters.Compile(tc.filters)
		if err != nil {
			t.Errorf("%v: %v", tc.filters, err)
			continue
		}
		got := ""
		for name, e := range map[string]events.Event{"s": eventStart, "i": image, "l": labelled} {
			if match(e) {
				got += name
			}
		}
		if len(got) != len(tc.want) || strings.Trim(got, tc.want) != "" {
			t.Errorf("%v: %q, want %q", tc.filters, got, tc.want)
		}
	}
}

func TestEventsOfThePast(t *testing.T) {
	w := newWorld(t)
	for i := range 5 {
		e := eventStart
		e.Time = moment.Add(time.Duration(i) * time.Second)
		w.bus.Publish(e)
	}
	for query, want := range map[string]int{
		"since=1772600768&until=1772600770":                     2, // each is .00000089 later
		"since=1772600768.000000891&until=1772600771":           2,
		"since=2026-03-04T05:06:07Z&until=2026-03-04T05:06:08Z": 1,
		"until=1772600769":                                      2,
	} {
		rec := w.do("GET", "/v1.51/events?"+query, nil)
		if got := strings.Count(rec.Body.String(), "\n"); rec.Code != 200 || got != want {
			t.Errorf("%s: %d events, want %d", query, got, want)
		}
	}
}
