package server

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ply/internal/errs"
	"ply/internal/registry/auth"
	"ply/internal/registry/blobs/s3/s3test"
	"ply/internal/registry/content"
	"ply/internal/registry/gc"
	"ply/internal/registry/metadata/postgres/postgrestest"
)

var replicasSoak = flag.Duration("registry.replicas", 2*time.Second, "how long TestReplicas runs")

// replicas returns the options of registries that share an empty database and an empty bucket.
func replicas(t *testing.T) Options {
	t.Helper()
	shared.once.Do(func() {
		if shared.database, shared.err = postgrestest.Start(); shared.err == nil {
			shared.storage, shared.err = s3test.Start()
		}
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	remote := shared.storage.Bucket(t)
	return Options{Root: t.TempDir(), Database: shared.database.Database(t), S3: &remote}
}

// replica starts one of them, with a root of its own.
func replica(t *testing.T, o Options) (*Server, string) {
	t.Helper()
	o.Root = t.TempDir()
	s, url, _ := start(t, o)
	return s, url
}

// Eight clients push, pull, move, delete and share images at two replicas, each request at one of them, while both collect and the S3
// server is busy now and then. No request fails, nothing that a tag leads to is lost, and nothing is left that nothing leads to.
func TestReplicas(t *testing.T) {
	o := replicas(t)
	o.Untagged = true
	one, url := replica(t, o)
	two, more := replica(t, o)
	var requests atomic.Int64
	shared.storage.Inject(func(r *http.Request) s3test.Fault {
		if strings.Contains(r.URL.Path, o.S3.Bucket) && requests.Add(1)%15 == 0 {
			return []s3test.Fault{s3test.Busy, s3test.Reset, s3test.Slow}[rand.IntN(3)]
		}
		return s3test.None
	})
	defer shared.storage.Inject(nil)
	ctx, cancel := context.WithTimeout(t.Context(), *replicasSoak)
	defer cancel()
	run := &running{begun: map[int]time.Time{}}
	blobs := make([][]byte, 12)
	for i := range blobs {
		blobs[i] = random(1000 + 10_000*i)
	}
	models := make([]map[string]string, 8) // by writer: tag → manifest
	var collected, refused atomic.Int64
	limit := time.Now().Add(*replicasSoak + time.Minute)
	enough := func() bool {
		return t.Failed() || ctx.Err() != nil && (collected.Load() > 0 || time.Now().After(limit))
	}
	var wg sync.WaitGroup
	for w := range models {
		models[w] = map[string]string{}
		wg.Go(func() {
			c := newClient(url, more)
			defer c.http.CloseIdleConnections()
			for n := 0; !enough(); n++ {
				end := run.begin()
				if err := c.step(w, n, models[w], blobs); err != nil {
					t.Errorf("writer %d: %v", w, err)
				}
				end()
			}
		})
	}
	for _, s := range []*Server{one, two} {
		wg.Go(func() {
			for !enough() {
				before := run.oldest()
				r, err := s.Collector().Run(t.Context(), before, before)
				if errors.Is(err, errs.Conflict) {
					refused.Add(1)
				} else if err != nil {
					t.Errorf("collection: %v", err)
				}
				collected.Add(int64(r.Links + r.Manifests + r.Blobs))
				time.Sleep(*pause)
			}
		})
	}
	wg.Wait()
	c := newClient(url, more)
	defer c.http.CloseIdleConnections()
	later := time.Now().Add(time.Hour)
	if _, err := two.Collector().Run(t.Context(), later, later); err != nil {
		t.Fatal(err)
	}
	for w, model := range models {
		for tag, want := range model {
			if doc, err := c.pull(repoOf(w), tag); err != nil || doc != want {
				t.Errorf("writer %d, tag %s: %v", w, tag, err)
			}
		}
	}
	if r, err := one.Collector().Run(t.Context(), later, later); err != nil || r != (gc.Report{}) {
		t.Errorf("a second collection: %+v, %v", r, err)
	}
	stored := 0
	err := one.repositories.Blobs.Walk(t.Context(), func(d content.Digest, _ int64, _ time.Time) error {
		stored++
		holders, err := two.repositories.Metadata.Holders(t.Context(), d, "", 1)
		if err == nil && len(holders) == 0 {
			t.Errorf("no repository has blob %s", d)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	for _, f := range shared.storage.Files(t, o.S3.Bucket) {
		if !strings.HasPrefix(f, "blobs/") {
			t.Errorf("left in the bucket: %s", f)
		}
	}
	if collected.Load() == 0 {
		t.Error("the collections removed nothing while the replicas served")
	}
	t.Logf("%d objects collected while serving, %d collections found another one; %d blobs are left, %d requests to S3", collected.Load(), refused.Load(), stored, requests.Load())
}

// A replica that is killed in the middle of pushes leaves uploads that its clients resume at another replica, or begin again; what it
// acknowledged is there, and nothing else.
func TestKilledReplica(t *testing.T) {
	o := replicas(t)
	_, second := replica(t, o)
	p := &pushed{blobs: map[string][]byte{}, tags: map[string]string{}}
	open := make([]*resumable, 4)
	url, kill := child(t, o)
	c := newClient(url)
	var wg sync.WaitGroup
	for i := range open {
		wg.Go(func() {
			for {
				if open[i] == nil {
					open[i] = &resumable{data: random(1 + rand.IntN(600_000))}
				}
				if err := open[i].send(c, p); err != nil {
					return
				}
				open[i] = nil
			}
		})
	}
	eventually(t, func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		if len(p.tags) < 4 {
			return fmt.Errorf("%d images", len(p.tags))
		}
		return nil
	})
	kill()
	wg.Wait()
	c.http.CloseIdleConnections()
	c = newClient(second)
	defer c.http.CloseIdleConnections()
	if err := p.verify(c); err != nil {
		t.Fatal(err)
	}
	resumed := 0
	var mu sync.Mutex
	for _, r := range open {
		wg.Go(func() {
			if r.location != "" {
				mu.Lock()
				resumed++
				mu.Unlock()
			}
			for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
				err := r.send(c, p)
				if err == nil {
					return
				}
				if errors.Is(err, errBroken) || time.Now().After(deadline) {
					t.Error(err)
					return
				}
				if errors.Is(err, errLost) {
					r.location = ""
				}
			}
		})
	}
	wg.Wait()
	if err := p.verify(c); err != nil {
		t.Error(err)
	}
	if resumed == 0 {
		t.Error("no upload was open: the test shows nothing")
	}
	t.Logf("%d blobs, %d uploads were open", len(p.blobs), resumed)
}

// polite checks that answers 503 say when to come again.
type polite struct {
	http.RoundTripper
	t *testing.T
}

func (p polite) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := p.RoundTripper.RoundTrip(r)
	if err == nil && resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") == "" {
		p.t.Errorf("%s %s: 503 without Retry-After", r.Method, r.URL)
	}
	return resp, err
}

// PostgreSQL is restarted and killed, and S3 answers nothing but 503, one after the other and both at once, while clients push and pull: each request succeeds
// or is answered 503, and nothing acknowledged is lost.
func TestOutages(t *testing.T) {
	o := replicas(t)
	_, url := replica(t, o)
	_, more := replica(t, o)
	c := newClient(url, more)
	defer c.http.CloseIdleConnections()
	c.http.Transport = polite{c.http.Transport, t}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var busy, pushed atomic.Int64
	tags := make([]map[string]string, 4)
	for w := range tags {
		tags[w] = map[string]string{}
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				tag := fmt.Sprintf("t%d", n)
				doc, err := c.image(fmt.Sprintf("r%d", w), tag, "", random(100), random(2000))
				if err == nil {
					tags[w][tag] = doc
					pushed.Add(1)
					_, err = c.pull(fmt.Sprintf("r%d", w), tag)
				}
				if err != nil && strings.Contains(err.Error(), "status 503") {
					busy.Add(1)
				} else if err != nil {
					t.Errorf("writer %d: %v", w, err)
					return
				}
			}
		})
	}
	progress := func() {
		at := pushed.Load()
		eventually(t, func() error {
			if pushed.Load() < at+4 {
				return errors.New("no image is pushed any more")
			}
			return nil
		})
	}
	// storage makes S3 busy, until a client was told so or the other outage is over.
	defer shared.storage.Inject(nil)
	storage := func(other func() error) func() error {
		return func() error {
			at := busy.Load()
			shared.storage.Inject(func(r *http.Request) s3test.Fault {
				if strings.Contains(r.URL.Path, o.S3.Bucket) {
					return s3test.Busy
				}
				return s3test.None
			})
			defer shared.storage.Inject(nil)
			if other != nil {
				return other()
			}
			eventually(t, func() error {
				if busy.Load() == at {
					return errors.New("no client is told that S3 is busy")
				}
				return nil
			})
			return nil
		}
	}
	restart := func(end func() error) func() error {
		return func() error { return errors.Join(end(), shared.database.Run()) }
	}
	progress()
	for _, outage := range []func() error{
		restart(shared.database.Shutdown), restart(shared.database.Kill), storage(nil), storage(restart(shared.database.Kill)),
	} {
		if err := outage(); err != nil {
			t.Fatal(err)
		}
		progress()
	}
	stop()
	wg.Wait()
	for w := range tags {
		for tag, want := range tags[w] {
			if doc, err := c.pull(fmt.Sprintf("r%d", w), tag); err != nil || doc != want {
				t.Errorf("r%d:%s: %v", w, tag, err)
			}
		}
	}
	t.Logf("%d images, %d answers 503", pushed.Load(), busy.Load())
}

// S3 that stays busy is a clean error, and clients that redirect are sent to the bucket. Users of one replica can log in at another.
func TestReplicaBehaviour(t *testing.T) {
	o := replicas(t)
	o.Redirect = true
	one, url := replica(t, o)
	_, more := replica(t, o)
	users, end, err := OpenUsers(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	users.Cost = 4
	if _, err := users.Add("root", "secret", []auth.Grant{{Subject: "root", Pattern: "**", Role: auth.Admin}}); err != nil {
		t.Fatal(err)
	}
	if err := end.Close(); err != nil {
		t.Fatal(err)
	}
	c := newClient(url)
	c.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	other := newClient(more)
	for _, c := range []*client{c, other} {
		defer c.http.CloseIdleConnections()
		eventually(t, func() error {
			_, err := c.want("GET", "/v2/", nil, nil, 401)
			return err
		})
	}
	login := []string{"Authorization: Basic cm9vdDpzZWNyZXQ="}
	data := random(300_000)
	d := string(content.SHA256.Of(data))
	if _, err := c.want("POST", "/v2/a/blobs/uploads/?digest="+d, data, login, 201); err != nil {
		t.Fatal(err)
	}
	r, err := c.want("GET", "/v2/a/blobs/"+d, nil, login, 307)
	if err != nil || !strings.HasPrefix(r.header.Get("Location"), o.S3.Endpoint) {
		t.Errorf("Location %q, %v", r.header.Get("Location"), err)
	}
	if r, err = other.want("GET", "/v2/a/blobs/"+d, nil, login, 200); err != nil || string(r.body) != string(data) {
		t.Errorf("followed: %d bytes, %v", len(r.body), err)
	}
	if _, err := c.want("GET", "/v2/b/blobs/"+d, nil, login, 404); err != nil {
		t.Errorf("through another repository: %v", err)
	}
	shared.storage.Inject(func(r *http.Request) s3test.Fault {
		if strings.Contains(r.URL.Path, o.S3.Bucket) {
			return s3test.Busy
		}
		return s3test.None
	})
	defer shared.storage.Inject(nil)
	r, err = c.want("POST", "/v2/a/blobs/uploads/?digest="+string(content.SHA256.Of([]byte("x"))), []byte("x"), login, 503)
	if err != nil || r.header.Get("Retry-After") == "" {
		t.Errorf("while S3 is busy: %v, %v", r.header, err)
	}
	if _, err := c.want("GET", "/readyz", nil, nil, 503); err != nil {
		t.Error(err)
	}
	shared.storage.Inject(nil)
	if _, err := c.want("GET", "/readyz", nil, nil, 200); err != nil {
		t.Error(err)
	}
	if one.IsOpen() {
		t.Error("the registry is open")
	}
}
