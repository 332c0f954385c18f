package server

import (
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"ply/internal/registry/audit"
	"ply/internal/registry/content"
	"ply/internal/registry/metadata"
)

// What goes without a request of a client is in the audit log: tags by retention, manifests and repositories by collections, and what a
// command removes.
func TestRemovalsAreNoted(t *testing.T) {
	o := Options{
		Root: t.TempDir(), Untagged: true, Audit: Audit{Max: 1000},
		Policy: Policy{Retention: []string{"team/**:pr-*=1", "gone:*=1d"}, Interval: time.Hour},
	}
	s, address, _ := start(t, o)
	c := newClient(address)
	digests := map[string]string{}
	push := func(repo, tag string) {
		t.Helper()
		doc, err := c.image(repo, tag, "", []byte("config of "+tag))
		must(t, err)
		digests[tag] = string(content.SHA256.Of([]byte(doc)))
	}
	entries := func() (list []string) {
		t.Helper()
		must(t, s.audit.Close())
		s.openAudit()
		all, _, err := audit.Entries(t.Context(), s.repositories.Metadata, audit.Question{Action: "delete", Limit: 1000})
		must(t, err)
		for _, e := range all {
			list = append(list, fmt.Sprint(e.User, " ", e.Repository, " ", e.Reference, " ", e.Status))
		}
		slices.Sort(list)
		return list
	}
	check := func(want ...string) {
		t.Helper()
		slices.Sort(want)
		if got := entries(); !slices.Equal(got, want) {
			t.Errorf("the log has\n%q\nwant\n%q", got, want)
		}
	}
	for _, tag := range []string{"pr-1", "pr-2", "v1"} {
		push("team/app", tag)
	}
	push("gone", "x")
	push("free", "y")
	must(t, s.retainAt(t.Context(), time.Now()))
	g := s.current.join()
	k := s.keeper(g, g.rules, byRetention)
	k.Now = func() time.Time { return time.Now().Add(48 * time.Hour) }
	_, err := k.Run(t.Context())
	g.requests.Done()
	must(t, err)
	want := []string{
		"@retention team/app pr-1 202", "@retention team/app " + digests["pr-1"] + " 202",
		"@retention gone x 202", "@retention gone " + digests["x"] + " 202", "@retention gone  202",
	}
	check(want...)

	// A collection removes a manifest without a tag, and its repository with it.
	must(t, s.repositories.Metadata.DeleteTag(t.Context(), "free", "y", metadata.Condition{}))
	later := time.Now().Add(time.Hour)
	if r, err := s.Collector().Run(t.Context(), later, later); err != nil || r.Manifests != 1 {
		t.Fatalf("a collection: %+v, %v", r, err)
	}
	want = append(want, "@gc free "+digests["y"]+" 202", "@gc free  202")
	check(want...)

	// A command, beside the process that serves and with the database itself.
	push("team/app", "pr-3")
	r, err := AskRetention(t.Context(), o, "@someone", true)
	must(t, err)
	_, _ = io.Copy(io.Discard, r)
	must(t, r.Close())
	check(want...)
	r, err = AskRetention(t.Context(), o, "@someone", false)
	must(t, err)
	_, _ = io.Copy(io.Discard, r)
	must(t, r.Close())
	want = append(want, "@someone team/app pr-2 202", "@someone team/app "+digests["pr-2"]+" 202")
	check(want...)
	must(t, Noted(s.repositories.Metadata, o, "@other").DeleteManifest(t.Context(), "team/app", content.Digest(digests["v1"])))
	want = append(want, "@other team/app "+digests["v1"]+" 202")
	check(want...)

	// Without a log nothing is noted.
	must(t, Noted(s.repositories.Metadata, Options{}, "@other").DeleteTag(t.Context(), "team/app", "pr-3", metadata.Condition{}))
	check(want...)
}
