package server

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ply/internal/registry/notify"
)

// front is an address at which a registry can be down.
func front(t *testing.T, to string) (address string, down *atomic.Bool, asked func(method string) int) {
	t.Helper()
	u, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(u)
	proxy.ErrorLog = nil
	down = &atomic.Bool{}
	var mu sync.Mutex
	methods := map[string]int{}
	f := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		methods[r.Method]++
		mu.Unlock()
		if down.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(f.Close)
	return f.URL, down, func(method string) int {
		mu.Lock()
		defer mu.Unlock()
		return methods[method]
	}
}

// What is pushed is copied soon after, also when the other registry was down and this one was restarted meanwhile; what is there is
// not sent again.
func TestReplicationByEvents(t *testing.T) {
	_, backup, _ := start(t, Options{Root: t.TempDir()})
	address, down, asked := front(t, backup)
	o := Options{Root: t.TempDir(), Replicate: Replicate{Rules: []string{"team/**=" + address + "/copies"}, Deletes: true}}
	_, main, stop := start(t, o)
	a, b := newClient(main), newClient(backup)
	layer := random(300 << 10)
	doc, err := a.image("team/app", "v1", "", []byte("config"), layer)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.image("other/app", "v1", "", []byte("config"), layer); err != nil {
		t.Fatal(err)
	}
	arrived := func(tag, want string) {
		t.Helper()
		eventually(t, func() error {
			got, err := b.pull("copies/team/app", tag)
			if err == nil && got != want {
				err = fmt.Errorf("%s is %s, want %s", tag, got, want)
			}
			return err
		})
	}
	arrived("v1", doc)
	down.Store(true)
	doc2, err := a.image("team/app", "v2", "", []byte("config 2"), layer)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.want("PUT", "/v2/team/app/manifests/v3", []byte(doc), nil, 201); err != nil {
		t.Fatal(err)
	}
	stop()
	puts := asked("PUT")
	down.Store(false)
	_, main, _ = start(t, o)
	a = newClient(main)
	arrived("v2", doc2)
	arrived("v3", doc)
	if n := asked("PUT") - puts; n != 3 { // a config and two manifests
		t.Errorf("%d uploads for one new blob and two new tags", n)
	}
	if r, err := b.do("GET", "/v2/_catalog", nil); err != nil || string(r.body) != `{"repositories":["copies/team/app"]}`+"\n" {
		t.Errorf("the other registry has %s, %v", r.body, err)
	}
	if _, err := a.want("DELETE", "/v2/team/app/manifests/v1", nil, nil, 202); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		_, err := b.want("GET", "/v2/copies/team/app/manifests/v1", nil, nil, 404)
		return err
	})
	arrived("v3", doc)
}

// A comparison finds what was there before there was a rule: tags, indexes with their children, and referrers.
func TestReplicationBySchedule(t *testing.T) {
	root := t.TempDir()
	_, main, stop := start(t, Options{Root: root})
	a := newClient(main)
	doc, err := a.image("team/app", "v1", "", []byte("config"), []byte("layer"))
	if err != nil {
		t.Fatal(err)
	}
	index := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[` + describe("application/vnd.oci.image.manifest.v1+json", []byte(doc)) + `]}`
	if _, err := a.want("PUT", "/v2/team/app/manifests/all", []byte(index), nil, 201); err != nil {
		t.Fatal(err)
	}
	signature := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":` + describe("application/x", []byte("config")) +
		`,"layers":[],"subject":` + describe("application/vnd.oci.image.index.v1+json", []byte(index)) + `}`
	digest := describe("", []byte(signature))
	digest = digest[strings.Index(digest, "sha256:"):][:71]
	if _, err := a.want("PUT", "/v2/team/app/manifests/"+digest, []byte(signature), nil, 201); err != nil {
		t.Fatal(err)
	}
	stop()
	_, backup, _ := start(t, Options{Root: t.TempDir()})
	_, upstream, _ := start(t, Options{Root: t.TempDir()})
	if _, err := newClient(upstream).image("a", "v1", "", []byte("config")); err != nil {
		t.Fatal(err)
	}
	o := Options{Root: root, Proxy: Proxy{Upstreams: []string{"up=" + upstream}}}
	_, main, stop = start(t, o)
	if _, err := newClient(main).want("GET", "/v2/up/a/manifests/v1", nil, nil, 200); err != nil {
		t.Fatal(err)
	}
	stop()
	o.Replicate = Replicate{Rules: []string{"**=" + backup}, Interval: time.Hour}
	s, _, _ := start(t, o)
	b := newClient(backup)
	eventually(t, func() error {
		for _, ref := range []string{"v1", "all", digest} {
			if _, err := b.pull("team/app", ref); err != nil {
				return err
			}
		}
		return nil
	})
	// A copy of a third registry, which lacks its blobs here, is not copied further, and is not waited for.
	eventually(t, func() error {
		g := s.current.join()
		defer g.requests.Done()
		if n := g.replicator.Len(); n > 0 {
			return fmt.Errorf("%d references wait", n)
		}
		return nil
	})
	if _, err := b.want("GET", "/v2/up/a/manifests/v1", nil, nil, 404); err != nil {
		t.Error(err)
	}
}

// Servers are told of events in order, and again until they take them, also after a restart.
func TestWebhooks(t *testing.T) {
	var mu sync.Mutex
	var got []string
	var types []string
	refuse := 2
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		b, _ := io.ReadAll(r.Body)
		if refuse != 0 {
			refuse--
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		types = append(types, r.Header.Get("Content-Type"), r.Header.Get("Authorization"))
		var doc struct {
			Events []struct {
				ID, Action string
				Timestamp  time.Time
				Target     struct{ MediaType, Digest, Repository, Tag, URL string }
				Request    struct{ Method, UserAgent string }
				Actor      struct{ Name string }
			}
		}
		if err := json.Unmarshal(b, &doc); err != nil {
			t.Errorf("%s: %v", b, err)
		}
		for _, e := range doc.Events {
			if e.ID == "" || e.Timestamp.IsZero() || e.Request.Method == "" || e.Target.Digest != "" && !strings.HasSuffix(e.Target.URL, e.Target.Digest) {
				t.Errorf("event %s", b)
			}
			what := e.Target.Tag
			if e.Target.MediaType == "application/octet-stream" {
				what = "blob"
			}
			got = append(got, e.Action+" "+e.Target.Repository+" "+what)
		}
	}))
	defer hook.Close()
	o := Options{Root: t.TempDir(), Webhooks: []notify.Endpoint{{URL: hook.URL + "/events", Headers: map[string]string{"Authorization": "Bearer x"}}}}
	_, address, stop := start(t, o)
	c := newClient(address)
	if _, err := c.image("team/app", "v1", "", []byte("config")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.pull("team/app", "v1"); err != nil {
		t.Fatal(err)
	}
	told := func(want ...string) {
		t.Helper()
		eventually(t, func() error {
			mu.Lock()
			defer mu.Unlock()
			if !slices.Equal(got, want) {
				return fmt.Errorf("told %q, want %q", got, want)
			}
			return nil
		})
	}
	told("push team/app blob", "push team/app v1")
	mu.Lock()
	refuse = -1
	mu.Unlock()
	if _, err := c.want("DELETE", "/v2/team/app/manifests/v1", nil, nil, 202); err != nil {
		t.Fatal(err)
	}
	stop()
	mu.Lock()
	refuse = 0
	mu.Unlock()
	start(t, o)
	told("push team/app blob", "push team/app v1", "delete team/app v1")
	mu.Lock()
	defer mu.Unlock()
	if types[0] != "application/vnd.docker.distribution.events.v1+json" || types[1] != "Bearer x" {
		t.Errorf("headers %q", types[:2])
	}
}
