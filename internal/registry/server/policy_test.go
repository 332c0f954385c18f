package server

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"ply/internal/record"
	"ply/internal/record/recordtest"
)

// A reload changes the rules while the registry serves: quotas, tags that may not move, copies of other registries.
func TestReload(t *testing.T) {
	_, upstream, _ := start(t, Options{Root: t.TempDir()})
	up := newClient(upstream)
	if _, err := up.image("team/app", "v1", "", []byte("config")); err != nil {
		t.Fatal(err)
	}
	o := Options{Root: t.TempDir()}
	s, address, _ := start(t, o)
	c := newClient(address)
	want := func(method, path, body string, status int, text string) {
		t.Helper()
		r, err := c.want(method, path, []byte(body), nil, status)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(r.body), text) {
			t.Errorf("%s %s: %s, want %q", method, path, r.body, text)
		}
	}
	doc, err := c.image("team/app", "v1", "", []byte("config"))
	if err != nil {
		t.Fatal(err)
	}
	doc2, err := c.image("team/app", "latest", "", []byte("config 2"))
	if err != nil {
		t.Fatal(err)
	}
	want("GET", "/v2/up/team/app/manifests/v1", "", 404, "")

	o.Policy = Policy{Immutable: []string{"team/**:v*"}, Quotas: []string{"team/**=1500"}}
	o.Proxy = Proxy{Upstreams: []string{"up=" + upstream}}
	if err := s.Reload(o); err != nil {
		t.Fatal(err)
	}
	want("PUT", "/v2/team/app/manifests/v1", doc2, 409, "immutable")
	want("PUT", "/v2/team/app/manifests/v1", doc, 201, "")
	want("PUT", "/v2/team/app/manifests/latest", doc, 201, "")
	want("DELETE", "/v2/team/app/manifests/v1", "", 409, "immutable")
	want("DELETE", "/v2/team/app/manifests/"+digestOf(doc), "", 409, "immutable")
	want("DELETE", "/v2/team/app/_ply/repository", "", 409, "immutable")
	want("DELETE", "/v2/team/app/manifests/latest", "", 202, "")
	want("PUT", "/v2/team/app/manifests/v2?tag=v1&tag=x", doc2, 409, "immutable")
	want("GET", "/v2/team/app/manifests/v2", "", 404, "")
	big := strings.Repeat("x", 2000)
	want("POST", "/v2/team/app/blobs/uploads/?digest="+digestOf(big), big, 403, "quota")
	want("POST", "/v2/other/blobs/uploads/?digest="+digestOf(big), big, 201, "")
	want("POST", "/v2/team/app/blobs/uploads/?mount="+digestOf(big)+"&from=other", "", 403, "quota")
	want("GET", "/v2/up/team/app/manifests/v1", "", 200, "config")
	want("PUT", "/v2/up/team/app/manifests/v1", doc, 405, "copy of another registry")
	want("GET", "/metrics", "", 200, `ply_registry_quota_bytes{kind="limit",pattern="team/**"} 1500`)

	// Rules that are wrong change nothing.
	bad := o
	bad.Policy.Quotas = []string{"team"}
	if err := s.Reload(bad); err == nil {
		t.Error("wrong rules were accepted")
	}
	want("PUT", "/v2/team/app/manifests/v1", doc2, 409, "immutable")
	if err := s.Reload(Options{}); err != nil {
		t.Fatal(err)
	}
	want("POST", "/v2/team/app/blobs/uploads/?digest="+digestOf(big), big, 201, "")
	want("PUT", "/v2/team/app/manifests/v1", doc2, 201, "")
}

func digestOf(s string) string {
	d := describe("", []byte(s))
	return d[strings.Index(d, "sha256:"):][:71]
}

// Retention runs when it is time, once for all replicas, and a command reaches it through the socket of the root.
func TestRetentionRuns(t *testing.T) {
	o := Options{Root: t.TempDir(), Policy: Policy{Retention: []string{"team/**:pr-*=1"}, Interval: time.Hour}}
	s, address, _ := start(t, o)
	c := newClient(address)
	tags := func(want string) {
		t.Helper()
		r, err := c.want("GET", "/v2/team/app/tags/list", nil, nil, 200)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(r.body), `"tags":`+want) {
			t.Errorf("tags %s, want %s", r.body, want)
		}
	}
	push := func(tag string) {
		t.Helper()
		if _, err := c.image("team/app", tag, "", []byte("config of "+tag)); err != nil {
			t.Fatal(err)
		}
	}
	for _, tag := range []string{"pr-1", "pr-2", "v1"} {
		push(tag)
	}
	command := func(dryRun bool) (lines []RetentionLine) {
		t.Helper()
		r, err := AskRetention(t.Context(), o, "@someone", dryRun)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		for dec := json.NewDecoder(r); dec.More(); {
			var l RetentionLine
			if err := dec.Decode(&l); err != nil {
				t.Fatal(err)
			}
			lines = append(lines, l)
		}
		return lines
	}
	lines := command(true)
	if len(lines) != 2 || lines[0].Removal == nil || lines[0].Tag != "pr-1" || lines[1].Outcome == nil || lines[1].Outcome.Tags != 1 {
		t.Errorf("a dry run: %+v", lines)
	}
	tags(`["pr-1","pr-2","v1"]`)
	now := time.Now()
	for range 2 {
		if err := s.retainAt(t.Context(), now); err != nil {
			t.Fatal(err)
		}
		tags(`["pr-2","v1"]`)
	}
	push("pr-3")
	if err := s.retainAt(t.Context(), now.Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	tags(`["pr-2","pr-3","v1"]`)
	if err := s.retainAt(t.Context(), now.Add(2*time.Hour)); err != nil {
		t.Fatal(err)
	}
	tags(`["pr-3","v1"]`)
	push("pr-4")
	if lines := command(false); len(lines) != 2 || lines[1].Outcome.Tags != 1 {
		t.Errorf("a command: %+v", lines)
	}
	tags(`["pr-4","v1"]`)
}

func TestRetentionRecord(t *testing.T) {
	b, err := record.Marshal(retentionVersion, retentionRecord{time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)})
	if err != nil {
		t.Fatal(err)
	}
	recordtest.Golden(t, "retention.v1.json", b)
}
