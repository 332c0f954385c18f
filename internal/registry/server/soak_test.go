package server

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"ply/internal/registry/content"
	"ply/internal/registry/gc"
)

var (
	soak  = flag.Duration("registry.soak", 2*time.Second, "how long TestCollectionWhileServing runs")
	pause = flag.Duration("registry.pause", 50*time.Millisecond, "time between two collections of TestCollectionWhileServing")
)

// running knows when the operations that run now were begun. What is older than all of them can be collected; so a collection of the
// test needs no grace time that a slow machine would exceed.
type running struct {
	mu    sync.Mutex
	begun map[int]time.Time
	next  int
}

func (r *running) begin() (end func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	id := r.next
	r.next++
	r.begun[id] = time.Now()
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.begun, id)
	}
}

func (r *running) oldest() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := time.Now()
	for _, b := range r.begun {
		if b.Before(t) {
			t = b
		}
	}
	return t
}

// Eight clients push, pull, move, delete and share images, while collections run one after another. No request fails, and nothing that
// a tag leads to is lost.
func TestCollectionWhileServing(t *testing.T) {
	s, url, _ := start(t, Options{Root: t.TempDir(), Untagged: true})
	ctx, cancel := context.WithTimeout(t.Context(), *soak)
	defer cancel()
	run := &running{begun: map[int]time.Time{}}
	shared := make([][]byte, 12)
	for i := range shared {
		shared[i] = random(1000 + 10_000*i)
	}
	var wg sync.WaitGroup
	models := make([]map[string]string, 8) // by writer: tag → manifest
	for w := range models {
		models[w] = map[string]string{}
		wg.Go(func() {
			c := newClient(url)
			for n := 0; ctx.Err() == nil && !t.Failed(); n++ {
				end := run.begin()
				if err := c.step(w, n, models[w], shared); err != nil {
					t.Errorf("writer %d: %v", w, err)
				}
				end()
			}
		})
	}
	var total gc.Report
	wg.Go(func() {
		for ctx.Err() == nil {
			before := run.oldest()
			r, err := s.Collector().Run(t.Context(), before, before)
			if err != nil {
				t.Error(err)
			}
			total.Manifests += r.Manifests
			total.Links += r.Links
			total.Blobs += r.Blobs
			time.Sleep(*pause)
		}
	})
	wg.Wait()
	later := time.Now().Add(time.Hour)
	if _, err := s.Collector().Run(t.Context(), later, later); err != nil {
		t.Fatal(err)
	}
	c := newClient(url)
	needed := map[string]bool{}
	for w, model := range models {
		for tag, want := range model {
			if doc, err := c.pull(repoOf(w), tag); err != nil || doc != want {
				t.Errorf("writer %d, tag %s: %v", w, tag, err)
			}
		}
	}
	// What is left is what the tags lead to. A second collection finds nothing.
	r, err := s.Collector().Run(t.Context(), later, later)
	if err != nil || r != (gc.Report{}) {
		t.Errorf("a second collection: %+v, %v", r, err)
	}
	err = s.repositories.Blobs.Walk(t.Context(), func(d content.Digest, _ int64, _ time.Time) error {
		needed[string(d)] = true
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if total.Blobs == 0 || total.Manifests == 0 {
		t.Errorf("the collections removed nothing while the registry served: %+v", total)
	}
	t.Logf("collected while serving: %+v; %d blobs are left", total, len(needed))
}

// Two writers share a repository, each with tags of its own.
func repoOf(writer int) string { return fmt.Sprintf("soak/r%d", writer/2) }

// step does one thing that clients do and keeps the model up to date.
func (c *client) step(w, n int, model map[string]string, shared [][]byte) error {
	repo, tag := repoOf(w), fmt.Sprintf("w%d-%d", w, rand.IntN(4))
	pick := func() []byte { return shared[rand.IntN(len(shared))] }
	switch op := rand.IntN(10); {
	case op < 4: // an image
		doc, err := c.image(repo, tag, "", random(200), pick(), pick())
		if err == nil {
			model[tag] = doc
		}
		return err
	case op < 5: // an index, and something about its child
		child, err := c.image(repo, tag+"-tmp", "", random(100), pick())
		if err != nil {
			return err
		}
		d := describe("application/vnd.oci.image.manifest.v1+json", []byte(child))
		index := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[` + d + `]}`
		if _, err := c.want("PUT", "/v2/"+repo+"/manifests/"+tag, []byte(index), nil, 201); err != nil {
			return err
		}
		model[tag] = index
		if _, err := c.want("DELETE", "/v2/"+repo+"/manifests/"+tag+"-tmp", nil, nil, 202); err != nil {
			return err
		}
		about := `,"subject":` + d
		signature := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":` + describe("application/x", []byte("{}")) + `,"layers":[]` + about + `}`
		if err := c.blob(repo, []byte("{}")); err != nil {
			return err
		}
		if _, err := c.want("PUT", "/v2/"+repo+"/manifests/"+string(content.SHA256.Of([]byte(signature))), []byte(signature), nil, 201); err != nil {
			return err
		}
		_, err = c.pull(repo, string(content.SHA256.Of([]byte(signature))))
		return err
	case op < 6: // a deletion
		if model[tag] == "" {
			return nil
		}
		delete(model, tag)
		_, err := c.want("DELETE", "/v2/"+repo+"/manifests/"+tag, nil, nil, 202)
		return err
	case op < 7: // an upload that is given up
		r, err := c.want("POST", "/v2/"+repo+"/blobs/uploads/", nil, nil, 202)
		if err == nil {
			_, err = c.want("PATCH", r.header.Get("Location"), random(1000), nil, 202)
		}
		return err
	case op < 8: // the lists
		if _, err := c.want("GET", "/v2/_catalog", nil, nil, 200); err != nil {
			return err
		}
		_, err := c.want("GET", "/v2/"+repo+"/tags/list", nil, nil, 200, 404)
		return err
	default:
		if model[tag] == "" {
			return nil
		}
		doc, err := c.pull(repo, tag)
		if err == nil && doc != model[tag] {
			err = fmt.Errorf("tag %s is another manifest", tag)
		}
		return err
	}
}
