package policy

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ply/internal/errs"
	"ply/internal/registry/content"
	"ply/internal/registry/metadata"
	"ply/internal/registry/metadata/bolt"
)

func open(t *testing.T) *bolt.Store {
	t.Helper()
	s, err := bolt.Open(filepath.Join(t.TempDir(), "metadata.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestParse(t *testing.T) {
	for s, ok := range map[string]bool{
		"a=5": true, "a/**:pr-*=5": true, "**:*=30d": true, "a:v?=5/30d": true, "a=30d/5": true,
		"a": false, "a=": false, "a=0": false, "a=-1": false, "a=x": false, "a=5/6/7": false, "A=5": false, "a:[=5": false, "a:x/y=5": false, "=5": false,
	} {
		if r, err := ParseRetention(s); (err == nil) != ok || err != nil && !errors.Is(err, errs.Invalid) {
			t.Errorf("ParseRetention(%q) = %+v, %v", s, r, err)
		}
	}
	for s, ok := range map[string]bool{"a=5G": true, "**=0": true, "a/**=1500": true, "a": false, "a=x": false, "a=-5": false, "a*=5": false} {
		if q, err := ParseQuota(s); (err == nil) != ok || err != nil && !errors.Is(err, errs.Invalid) {
			t.Errorf("ParseQuota(%q) = %+v, %v", s, q, err)
		}
	}
	for _, c := range []struct {
		rule, repo, tag string
		want            bool
	}{
		{"a/**:v*", "a/b", "v1", true}, {"a/**:v*", "a/b", "latest", false}, {"a/**:v*", "b", "v1", false}, {"a", "a", "x", true},
		{"a:v?", "a", "v1", true}, {"a:v?", "a", "v10", false}, {"a:v1.*", "a", "v1.2.3", true},
	} {
		tags, err := ParseTags(c.rule)
		if err != nil || tags.Matches(content.Repository(c.repo), content.Tag(c.tag)) != c.want {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func put(t *testing.T, s *bolt.Store, repo content.Repository, doc string, tags ...content.Tag) content.Digest {
	t.Helper()
	mediaType := "application/x"
	if strings.Contains(doc, "schemaVersion") {
		mediaType = ""
	}
	m, err := content.ParseManifest([]byte(doc), mediaType)
	if err != nil {
		t.Fatal(err)
	}
	d := content.SHA256.Of([]byte(doc))
	if err := s.PutManifest(t.Context(), metadata.Write{Repository: repo, Digest: d, Payload: []byte(doc), Parsed: m, Tags: tags, Missing: true}); err != nil {
		t.Fatal(err)
	}
	return d
}

// Writers at the same time do not exceed a quota together, and what is not stored is given back.
func TestQuota(t *testing.T) {
	s := open(t)
	for _, repo := range []content.Repository{"te", "team", "team/a", "team/b", "team-x", "z"} {
		if err := s.PutLink(t.Context(), metadata.Link{Repository: repo, Digest: content.SHA256.Of([]byte(repo)), Size: 1000}); err != nil {
			t.Fatal(err)
		}
	}
	put(t, s, "team/a", `{"a":1}`)
	rule, err := ParseQuota("team/**=5007") // three links and a manifest are there
	if err != nil {
		t.Fatal(err)
	}
	q := NewQuotas(s, []Quota{rule})
	if _, err := q.Reserve(t.Context(), "team/c", 2001); !errors.Is(err, errs.Forbidden) {
		t.Errorf("one byte too many: %v", err)
	}
	if _, err := q.Reserve(t.Context(), "z", 1<<40); err != nil {
		t.Errorf("a repository without a quota: %v", err)
	}
	var wg sync.WaitGroup
	var got atomic.Int64
	var mu sync.Mutex
	var releases []func()
	for i := range 50 {
		wg.Go(func() {
			release, err := q.Reserve(t.Context(), content.Repository(fmt.Sprint("team/", i)), 100)
			if err == nil {
				got.Add(1)
				mu.Lock()
				releases = append(releases, release)
				mu.Unlock()
			} else if !errors.Is(err, errs.Forbidden) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got.Load() != 20 {
		t.Errorf("%d of 50 writers got 100 of 2000 bytes", got.Load())
	}
	for _, r := range releases[:5] {
		r()
		r()
	}
	if _, err := q.Reserve(t.Context(), "team/c", 501); !errors.Is(err, errs.Forbidden) {
		t.Errorf("more than was given back: %v", err)
	}
	if _, err := q.Reserve(t.Context(), "team/c", 500); err != nil {
		t.Errorf("what was given back: %v", err)
	}
	// What is deleted counts after a while.
	if err := s.DeleteLink(t.Context(), "team/b", content.SHA256.Of([]byte("team/b"))); err != nil {
		t.Fatal(err)
	}
	later := time.Now().Add(time.Hour)
	q.now = func() time.Time { return later }
	if _, err := q.Reserve(t.Context(), "team/c", 3000); err != nil {
		t.Errorf("after a deletion: %v", err)
	}
	if u := q.Usage()["team/**"]; u != [2]int64{5007, 5007} {
		t.Errorf("usage %v", u)
	}
}

func (k *Keeper) removed(t *testing.T) string {
	t.Helper()
	var list []string
	k.Removed = func(_ context.Context, r Removal) { list = append(list, string(r.Repository)+":"+string(r.Tag)) }
	o, err := k.Run(t.Context())
	if err != nil || o.Tags != len(list) {
		t.Errorf("%+v, %v", o, err)
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}

// The newest tags and the young ones stay; what no rule matches, and what may not move, stays too.
func TestRetention(t *testing.T) {
	s := open(t)
	for i := range 5 {
		put(t, s, "team/a", fmt.Sprintf(`{"pr":%d}`, i), content.Tag(fmt.Sprint("pr-", i)))
		put(t, s, "team/a", fmt.Sprintf(`{"v":%d}`, i), content.Tag(fmt.Sprint("v", i)))
		put(t, s, "other", fmt.Sprintf(`{"pr":%d}`, i), content.Tag(fmt.Sprint("pr-", i)))
		time.Sleep(2 * time.Millisecond) // tags differ in their times
	}
	rules := func(list ...string) (out []Retention) {
		for _, s := range list {
			r, err := ParseRetention(s)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, r)
		}
		return out
	}
	fixed, err := ParseTags("team/**:pr-1")
	if err != nil {
		t.Fatal(err)
	}
	k := &Keeper{Store: s, Rules: rules("team/**:pr-*=2", "**:v*=30d"), Immutable: Immutable{fixed}, DryRun: true}
	if got := k.removed(t); got != "team/a:pr-0 team/a:pr-2" {
		t.Errorf("a dry run names %s", got)
	}
	if got := k.removed(t); got != "team/a:pr-0 team/a:pr-2" {
		t.Errorf("a second dry run names %s", got)
	}
	k.Now = func() time.Time { return time.Now().Add(31 * 24 * time.Hour) }
	if got := k.removed(t); got != "team/a:pr-0 team/a:pr-2 team/a:v0 team/a:v1 team/a:v2 team/a:v3 team/a:v4" {
		t.Errorf("a month later it names %s", got)
	}
	k.Rules = rules("team/**:pr-*=2/30d")
	k.Now = nil
	if got := k.removed(t); got != "" {
		t.Errorf("young tags: %s", got)
	}
	k.Rules, k.DryRun = rules("team/**:pr-*=2"), false
	if got := k.removed(t); got != "team/a:pr-0 team/a:pr-2" {
		t.Errorf("it removed %s", got)
	}
	tags, err := s.Tags(t.Context(), "team/a", "", 100)
	if err != nil || fmt.Sprint(tags) != "[pr-1 pr-3 pr-4 v0 v1 v2 v3 v4]" {
		t.Errorf("left: %v, %v", tags, err)
	}
	if _, err := s.Manifest(t.Context(), "team/a", content.SHA256.Of([]byte(`{"pr":0}`))); !errors.Is(err, errs.NotFound) {
		t.Errorf("the manifest of a removed tag: %v", err)
	}
	if _, err := s.Manifest(t.Context(), "other", content.SHA256.Of([]byte(`{"pr":0}`))); err != nil {
		t.Errorf("a manifest of another repository: %v", err)
	}
}

// What only a removed tag led to goes with it: children of its index and referrers; what another tag leads to stays.
func TestRetentionCollects(t *testing.T) {
	s := open(t)
	child := func(name string) string {
		return `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"x","size":1,"digest":"` +
			string(content.SHA256.Of([]byte(name))) + `"},"layers":[]}`
	}
	desc := func(d content.Digest) string { return `{"mediaType":"x","size":1,"digest":"` + string(d) + `"}` }
	only, shared := put(t, s, "a", child("only")), put(t, s, "a", child("shared"), "stays")
	index := put(t, s, "a", `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[`+desc(only)+`,`+desc(shared)+`]}`, "pr-1")
	signature := put(t, s, "a", `{"schemaVersion":2,"config":`+desc(shared)+`,"layers":[],"subject":`+desc(index)+`}`)
	r, err := ParseRetention("a:pr-*=1d")
	if err != nil {
		t.Fatal(err)
	}
	k := &Keeper{Store: s, Rules: []Retention{r}, Now: func() time.Time { return time.Now().Add(48 * time.Hour) }}
	o, err := k.Run(t.Context())
	if err != nil || o != (Outcome{Tags: 1, Manifests: 3}) {
		t.Errorf("%+v, %v", o, err)
	}
	for d, want := range map[content.Digest]bool{only: false, shared: true, index: false, signature: false} {
		if _, err := s.Manifest(t.Context(), "a", d); (err == nil) != want {
			t.Errorf("manifest %s: %v", d, err)
		}
	}
}

// moving pushes a tag again while retention looks at the repository.
type moving struct {
	metadata.Store
	again func()
}

func (m *moving) Tag(ctx context.Context, repo content.Repository, tag content.Tag) (metadata.Tag, error) {
	t, err := m.Store.Tag(ctx, repo, tag)
	if m.again != nil {
		m.again()
		m.again = nil
	}
	return t, err
}

// A tag that is pushed again, with the same content or another, after retention has read its age stays.
func TestRetentionMovedOn(t *testing.T) {
	for _, doc := range []string{`{"a":1}`, `{"a":2}`} {
		s := open(t)
		put(t, s, "a", `{"a":1}`, "old")
		time.Sleep(2 * time.Millisecond) // tags differ in their times
		r, err := ParseRetention("a=1d")
		if err != nil {
			t.Fatal(err)
		}
		k := &Keeper{
			Store: &moving{s, func() { put(t, s, "a", doc, "old") }}, Rules: []Retention{r},
			Now: func() time.Time { return time.Now().Add(48 * time.Hour) },
		}
		if o, err := k.Run(t.Context()); err != nil || o.Tags != 0 {
			t.Errorf("%+v, %v", o, err)
		}
	}
}
