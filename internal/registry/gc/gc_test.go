package gc_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"pgregory.net/rapid"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/registry/blobs"
	"ply/internal/registry/blobs/directory"
	"ply/internal/registry/content"
	"ply/internal/registry/gc"
	"ply/internal/registry/metadata"
	"ply/internal/registry/metadata/bolt"
	"ply/internal/registry/repository"
)

// What is not marked is exactly what a plain search from every tag does not reach.
func TestUnmarkedAgreesWithASearch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 12).Draw(t, "nodes")
		name := func(i int) content.Digest { return content.SHA256.Of(fmt.Append(nil, i)) }
		graph := make([]metadata.Node, n)
		for i := range graph {
			graph[i] = metadata.Node{Digest: name(i), Tagged: rapid.IntRange(0, 5).Draw(t, "tagged") == 0}
			for j := range i { // an index is pushed after its children
				if rapid.IntRange(0, 4).Draw(t, "child") == 0 {
					graph[i].Children = append(graph[i].Children, name(j))
				}
			}
			if rapid.IntRange(0, 2).Draw(t, "referrer") == 0 {
				graph[i].Subject = name(rapid.IntRange(0, n+1).Draw(t, "subject")) // which may be missing
			}
		}
		kept := map[content.Digest]bool{}
		for changed := true; changed; {
			changed = false
			for _, a := range graph {
				for _, b := range graph {
					keep := b.Tagged || kept[b.Subject] && b.Subject != ""
					for _, c := range a.Children {
						keep = keep || kept[a.Digest] && c == b.Digest
					}
					if keep && !kept[b.Digest] {
						kept[b.Digest], changed = true, true
					}
				}
			}
		}
		rest := map[content.Digest]bool{}
		for _, n := range gc.Unmarked(graph) {
			rest[n.Digest] = true
		}
		for _, n := range graph {
			if kept[n.Digest] == rest[n.Digest] {
				t.Fatalf("%s: kept %v, unmarked %v in %+v", n.Digest, kept[n.Digest], rest[n.Digest], graph)
			}
		}
	})
}

type world struct {
	*testing.T
	repository.Service
}

func newWorld(t *testing.T) *world {
	root := t.TempDir()
	meta, err := bolt.Open(filepath.Join(root, "metadata.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := meta.Close(); err != nil {
			t.Error(err)
		}
	})
	store, err := directory.Open(durable.OS, root)
	if err != nil {
		t.Fatal(err)
	}
	return &world{t, repository.Service{Metadata: meta, Blobs: store}}
}

func (w *world) ok(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) blob(repo content.Repository, data string) content.Digest {
	w.Helper()
	d := content.SHA256.Of([]byte(data))
	u, err := w.Begin(w.Context(), repo, "", content.SHA256)
	w.ok(err)
	defer u.Close()
	w.ok(u.Append(w.Context(), strings.NewReader(data), -1))
	w.ok(w.Finish(w.Context(), u, d))
	return d
}

func (w *world) manifest(repo content.Repository, doc string, tags ...content.Tag) content.Digest {
	w.Helper()
	d, _, err := w.PutManifest(w.Context(), repository.Push{Repository: repo, Payload: []byte(doc), Tags: tags})
	w.ok(err)
	return d
}

func (w *world) run(untagged bool, before time.Time) gc.Report {
	w.Helper()
	c := gc.Collector{Metadata: w.Metadata, Blobs: w.Blobs, Untagged: untagged}
	dry := c
	dry.DryRun = true
	_, err := dry.Run(w.Context(), before, before)
	w.ok(err)
	r, err := c.Run(w.Context(), before, before)
	w.ok(err)
	return r
}

func (w *world) has(d content.Digest, want bool) {
	w.Helper()
	_, err := w.Blobs.Stat(w.Context(), d)
	if want && err != nil || !want && !errors.Is(err, errs.NotFound) {
		w.Errorf("%s: %v, want it = %v", d, err, want)
	}
}

func ref(mediaType string, d content.Digest) string {
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":1}`, mediaType, d)
}

func image(config content.Digest, more string) string {
	return `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":` + ref("application/x", config) + `,"layers":[]` + more + `}`
}

func TestRun(t *testing.T) {
	w := newWorld(t)
	later := time.Now().Add(time.Hour)
	used, shared, free := w.blob("a", "used"), w.blob("a", "shared"), w.blob("a", "free")
	w.ok(w.Metadata.Mount(t.Context(), "a", "b", shared))
	child := w.manifest("a", image(used, ""))
	top := w.manifest("a", `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[`+ref("x/y", child)+`]}`, "tag")
	signature := w.manifest("a", image(used, `,"subject":`+ref("x/y", child)))
	loose := w.manifest("a", image(used, `,"artifactType":"application/loose"`))
	w.manifest("b", image(shared, ""), "tag")

	if r := w.run(true, time.Now().Add(-time.Hour)); r != (gc.Report{}) {
		t.Errorf("within the grace time: %+v", r)
	}
	if r := w.run(false, later); r.Manifests != 0 || r.Links != 2 || r.Blobs != 1 || r.Bytes != 4 {
		t.Errorf("unused blobs: %+v", r)
	}
	w.has(free, false)
	w.has(shared, true)
	if _, err := w.Metadata.Link(t.Context(), "a", shared); !errors.Is(err, errs.NotFound) {
		t.Errorf("an unused link of a used blob: %v", err)
	}
	if r := w.run(true, later); r.Manifests != 1 {
		t.Errorf("an untagged manifest: %+v", r)
	}
	for d, want := range map[content.Digest]bool{top: true, child: true, signature: true, loose: false} {
		if _, err := w.Metadata.Manifest(t.Context(), "a", d); (err == nil) != want {
			t.Errorf("%s: %v, want it = %v", d, err, want)
		}
	}
	// Without its tag the index goes, then its child, then what was about the child, then the blobs.
	w.ok(w.Metadata.DeleteTag(t.Context(), "a", "tag", metadata.Condition{}))
	if r := w.run(true, later); r.Manifests != 3 || r.Links != 1 || r.Blobs != 1 {
		t.Errorf("the whole repository: %+v", r)
	}
	w.has(used, false)
	w.has(shared, true)
	if repos, err := w.Metadata.Repositories(t.Context(), "", 10); err != nil || len(repos) != 1 || repos[0] != "b" {
		t.Errorf("catalogue: %v, %v", repos, err)
	}
	// Bytes that a crash left before they were linked.
	u, err := w.Begin(t.Context(), "a", "", content.SHA256)
	w.ok(err)
	w.ok(u.Append(t.Context(), strings.NewReader("orphan"), -1))
	orphan := content.SHA256.Of([]byte("orphan"))
	_, err = u.Store(t.Context(), orphan)
	w.ok(err)
	open, err := w.Begin(t.Context(), "a", "", content.SHA256)
	w.ok(err)
	w.ok(open.Close())
	if r := w.run(false, later); r.Blobs != 1 || r.Uploads != 1 {
		t.Errorf("an orphan and an old upload: %+v", r)
	}
	w.has(orphan, false)
}

// pausing calls before in the middle of a removal.
type pausing struct {
	blobs.Store
	before func()
}

func (p pausing) Remove(ctx context.Context, d content.Digest) error {
	p.before()
	return p.Store.Remove(ctx, d)
}

// A client that pushes a blob at the moment in which its bytes are being removed does not lose it.
func TestPushDuringRemoval(t *testing.T) {
	w := newWorld(t)
	d := w.blob("a", "data")
	w.ok(w.Metadata.DeleteLink(t.Context(), "a", d))
	u, err := w.Begin(t.Context(), "a", "", content.SHA256)
	w.ok(err)
	w.ok(u.Append(t.Context(), strings.NewReader("data"), -1))
	pushed := make(chan error, 1)
	c := gc.Collector{Metadata: w.Metadata, Blobs: pausing{w.Blobs, func() {
		go func() { pushed <- w.Finish(t.Context(), u, d) }()
		select {
		case err := <-pushed: // no one made it wait
			pushed <- err
		case <-time.After(200 * time.Millisecond):
		}
	}}}
	if r, err := c.Run(t.Context(), time.Now().Add(time.Hour), time.Time{}); err != nil || r.Blobs != 1 {
		t.Errorf("collection: %+v, %v", r, err)
	}
	w.ok(<-pushed)
	if r, _, err := w.OpenBlob(t.Context(), "a", d); err != nil {
		t.Errorf("the blob is lost: %v", err)
	} else {
		r.Close()
	}
}

// crowded notes how many objects are being collected at once.
type crowded struct {
	metadata.Store

	mu        sync.Mutex
	now, most int
}

func (c *crowded) count(collect func() (bool, error)) (bool, error) {
	c.mu.Lock()
	c.now++
	c.most = max(c.most, c.now)
	c.mu.Unlock()
	time.Sleep(time.Millisecond)
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.now--
	}()
	return collect()
}

func (c *crowded) CollectManifest(ctx context.Context, repo content.Repository, d content.Digest, before time.Time) (bool, error) {
	return c.count(func() (bool, error) { return c.Store.CollectManifest(ctx, repo, d, before) })
}

func (c *crowded) CollectLink(ctx context.Context, repo content.Repository, d content.Digest, before time.Time) (bool, error) {
	return c.count(func() (bool, error) { return c.Store.CollectLink(ctx, repo, d, before) })
}

// Objects are removed several at once, which share transactions: one at a time, a collection would be slower than clients who push. Each that
// goes is counted once, and an error of one keeps no other.
func TestRemovalsTogether(t *testing.T) {
	w := newWorld(t)
	const n = 100
	child := w.manifest("a", `{"schemaVersion":2,"config":{"mediaType":"application/x","digest":"`+string(w.blob("a", "config"))+`","size":6},"layers":[]}`)
	for i := range n {
		w.blob("a", fmt.Sprint("blob ", i))
		w.manifest("a", fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":%q,"size":1}],"annotations":{"n":"%d"}}`, child, i))
	}
	store := &crowded{Store: w.Metadata}
	later := time.Now().Add(time.Hour)
	c := gc.Collector{Metadata: store, Blobs: w.Blobs, Untagged: true}
	r, err := c.Run(t.Context(), later, later)
	if err != nil || r.Manifests != n+1 || r.Links != n+1 || r.Blobs != n+1 {
		t.Errorf("a collection: %+v, %v", r, err)
	}
	if store.most < 2 || store.most > 8 {
		t.Errorf("%d objects are removed at once", store.most)
	}
}

// watched counts how often a collection looks at a repository, and fails when it reads the whole graph.
type watched struct {
	metadata.Store
	t     *testing.T
	looks int
}

func (w *watched) Loose(ctx context.Context, repo content.Repository, before time.Time, after content.Digest) ([]content.Digest, content.Digest, error) {
	if after == "" {
		w.looks++
	}
	return w.Store.Loose(ctx, repo, before, after)
}

func (w *watched) Graph(context.Context, content.Repository) ([]metadata.Node, error) {
	w.t.Error("the graph of a repository, which can be large, is read into memory")
	return nil, nil
}

// many stores manifests, whatever they refer to.
func (w *world) many(docs []string) {
	w.Helper()
	var g errgroup.Group
	g.SetLimit(256)
	for _, doc := range docs {
		g.Go(func() error {
			parsed, err := content.ParseManifest([]byte(doc), "")
			if err != nil {
				return err
			}
			return w.Metadata.PutManifest(w.Context(), metadata.Write{Repository: "a", Digest: content.SHA256.Of([]byte(doc)), Payload: []byte(doc), Parsed: parsed, Missing: true})
		})
	}
	w.ok(g.Wait())
}

// A long chain of manifests, in which each is free only when another one is gone, and an index with very many children go in one collection, which neither
// looks at the repository for each of them nor reads it into memory.
func TestChain(t *testing.T) {
	w := newWorld(t)
	config := content.SHA256.Of(nil)
	var docs []string
	last := ""
	for i := range 200 {
		doc := image(config, fmt.Sprintf(`,"annotations":{"n":"%d"}`, i))
		switch {
		case i%2 == 1:
			doc = image(config, `,"subject":`+ref("application/vnd.oci.image.manifest.v1+json", content.SHA256.Of([]byte(last))))
		case i > 0: // what refers to it is gone first
			doc = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[],"subject":` + ref("application/vnd.oci.image.manifest.v1+json", content.SHA256.Of([]byte(last))) + `}`
		}
		docs, last = append(docs, doc), doc
	}
	child := ""
	for i := range 100 { // nested indexes
		children := ref("application/x", content.SHA256.Of([]byte(child)))
		if i == 0 {
			list := make([]string, 2500)
			for n := range list {
				doc := image(config, fmt.Sprintf(`,"annotations":{"child":"%d"}`, n))
				docs = append(docs, doc)
				list[n] = ref("application/vnd.oci.image.manifest.v1+json", content.SHA256.Of([]byte(doc)))
			}
			children = strings.Join(list, ",")
		}
		child = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[` + children + `]}`
		docs = append(docs, child)
	}
	w.many(docs)
	store := &watched{Store: w.Metadata, t: t}
	c := gc.Collector{Metadata: store, Blobs: w.Blobs, Untagged: true}
	later := time.Now().Add(time.Hour)
	dry := gc.Collector{Metadata: w.Metadata, Blobs: w.Blobs, Untagged: true, DryRun: true}
	if r, err := dry.Run(t.Context(), later, later); err != nil || r.Manifests != len(docs) {
		t.Errorf("without removing: %+v, %v; want %d manifests", r, err, len(docs))
	}
	if r, err := c.Run(t.Context(), later, later); err != nil || r.Manifests != len(docs) || store.looks > 3 {
		t.Errorf("%+v, %v; want %d manifests; %d looks", r, err, len(docs), store.looks)
	}
}
