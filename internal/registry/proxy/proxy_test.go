package proxy

import (
	"bytes"
	"io"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"

	"ply/internal/errs"
	"ply/internal/record"
	"ply/internal/record/recordtest"
	"ply/internal/registry/content"
	"ply/internal/registry/metadata"
	"ply/internal/registry/remote"
)

// What was pulled once is served again, and tags are asked for again when they are not fresh any more.
func TestPull(t *testing.T) {
	f := newFake(t)
	config, layer := random(100), random(3<<20)
	d := f.push("a/b", "v1", config, layer)
	w := newWorld(t, f)
	w.ok(w.tagged("up/a/b", "v1", d))
	w.ok(w.blob("up/a/b", config))
	w.ok(w.blob("up/a/b", layer))
	w.asked(f, "GET /v2/a/b/manifests/v1", "GET /v2/a/b/blobs/"+sum(config), "GET /v2/a/b/blobs/"+sum(layer))
	pull := func() {
		t.Helper()
		w.ok(w.tagged("up/a/b", "v1", d))
		w.ok(w.blob("up/a/b", config))
		w.ok(w.blob("up/a/b", layer))
	}
	pull()
	w.asked(f)
	w.advance(2 * time.Minute)
	pull()
	w.asked(f, "HEAD /v2/a/b/manifests/v1")
	pull()
	w.asked(f)

	// The tag moves.
	d2 := f.push("a/b", "v1", config)
	w.ok(w.tagged("up/a/b", "v1", d))
	w.advance(2 * time.Minute)
	w.ok(w.tagged("up/a/b", "v1", d2))
	w.asked(f, "HEAD /v2/a/b/manifests/v1", "GET /v2/a/b/manifests/v1")
	if _, _, err := w.Manifest(t.Context(), "up/a/b", d, ""); err != nil {
		t.Errorf("the manifest that the tag left: %v", err)
	}
	w.asked(f)

	// The upstream is down: everything that is here is served, and the upstream is not asked each time.
	for what, answer := range map[string]func(http.ResponseWriter, *http.Request) bool{
		"busy":    func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(503); return true },
		"limited": func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(429); return true },
		"cut off": func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) },
	} {
		f.set(answer)
		f.requests()
		w.advance(2 * time.Minute)
		w.ok(w.tagged("up/a/b", "v1", d2))
		w.ok(w.tagged("up/a/b", "v1", d2))
		w.ok(w.blob("up/a/b", layer))
		if n := len(f.requests()); n > 2 { // a dropped connection is tried once more
			t.Errorf("%s: %d requests", what, n)
		}
		err := w.tagged("up/a/b", "v2", d2)
		w.fails(err, errs.Unavailable, what+": a tag that is not here")
		w.fails(w.blob("up/a/b", random(10)), errs.Unavailable, what+": a blob that is not here")
		if tags, _, err := w.Tags(t.Context(), "up/a/b", "", 10); err != nil || len(tags) != 1 {
			t.Errorf("%s: tags %v, %v", what, tags, err)
		}
	}
	f.set(nil)
	f.requests()
	w.advance(2 * time.Minute)
	w.ok(w.tagged("up/a/b", "v1", d2))
	w.asked(f, "HEAD /v2/a/b/manifests/v1")

	// The tag is removed.
	f.mu.Lock()
	delete(f.tags, "a/b:v1")
	f.mu.Unlock()
	w.advance(2 * time.Minute)
	w.fails(w.tagged("up/a/b", "v1", d2), errs.NotFound, "a tag that was removed")
	f.set(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(503); return true })
	w.fails(w.tagged("up/a/b", "v1", d2), errs.Unavailable, "a tag that was removed, while the upstream is down")
	f.set(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(401); return true })
	w.fails(w.tagged("up/a/c", "v1", d2), errs.NotFound, "a repository that is not allowed")
}

// Everything survives a restart while the upstream is down.
func TestRestart(t *testing.T) {
	f := newFake(t)
	config, layer := random(100), random(2<<20)
	d := f.push("a", "v1", config, layer)
	root := t.TempDir()
	w := openWorld(t, root, f)
	w.ok(w.tagged("up/a", "v1", d))
	w.ok(w.blob("up/a", layer))
	kept := w.Size()
	w.close()
	f.set(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(503); return true })
	w = openWorld(t, root, f)
	w.ok(w.tagged("up/a", "v1", d))
	w.ok(w.blob("up/a", layer))
	if w.Size() != kept || kept < 2<<20 {
		t.Errorf("keeps %d bytes, before the restart %d", w.Size(), kept)
	}
}

// Many clients cost one request; a client that reads slowly, and one that leaves, do not disturb the others.
func TestSingleFlight(t *testing.T) {
	for _, hidden := range []bool{false, true} {
		t.Run("spool "+strconv.FormatBool(hidden), func(t *testing.T) {
			f := newFake(t)
			layer := random(5<<20 + 17)
			f.push("a", "v1", layer)
			w := newWorld(t, f, func(o *Options) {
				if hidden {
					o.Repositories.Blobs = opaque{o.Repositories.Blobs}
				}
			})
			gate := make(chan struct{})
			f.set(func(rw http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path != "/v2/a/blobs/"+sum(layer) {
					return false
				}
				rw.Header().Set("Content-Length", strconv.Itoa(len(layer)))
				_, _ = rw.Write(layer[:2<<20])
				_ = http.NewResponseController(rw).Flush()
				<-gate
				_, _ = rw.Write(layer[2<<20:])
				return true
			})
			d := content.Digest(sum(layer))
			slow, _, err := w.OpenBlob(t.Context(), "up/a", d)
			w.ok(err)
			one := make([]byte, 1)
			if _, err := io.ReadFull(slow, one); err != nil {
				t.Fatal(err)
			}
			leaves, _, err := w.OpenBlob(t.Context(), "up/a", d)
			w.ok(err)
			// The first bytes arrive while the upstream has not sent the others.
			first := make([]byte, 1<<20)
			if _, err := io.ReadFull(leaves, first); err != nil || !bytes.Equal(first, layer[:1<<20]) {
				t.Errorf("the first bytes: %v", err)
			}
			w.ok(leaves.Close())
			var wg sync.WaitGroup
			failed := make(chan error, 20)
			for range 20 {
				wg.Go(func() { failed <- w.blob("up/a", layer) })
			}
			close(gate)
			wg.Wait()
			for range 20 {
				w.ok(<-failed)
			}
			rest, err := io.ReadAll(slow)
			if err != nil || !bytes.Equal(append(one, rest...), layer) {
				t.Errorf("the slow client got %d bytes: %v", len(rest)+1, err)
			}
			w.ok(slow.Close())
			w.ok(w.blob("up/a", layer))
			w.asked(f, "GET /v2/a/blobs/"+sum(layer))
		})
	}
}

// Many clients ask for a tag at the same time.
func TestSingleFlightOfTags(t *testing.T) {
	f := newFake(t)
	d := f.push("a", "v1", random(10))
	w := newWorld(t, f)
	gate := make(chan struct{})
	f.set(func(http.ResponseWriter, *http.Request) bool { <-gate; return false })
	failed := make(chan error, 20)
	for range 20 {
		go func() { failed <- w.tagged("up/a", "v1", d) }()
	}
	time.Sleep(50 * time.Millisecond) // those who come later find the tag fresh
	close(gate)
	for range 20 {
		w.ok(<-failed)
	}
	w.asked(f, "GET /v2/a/manifests/v1")
}

// A download goes on where it broke off.
func TestBreak(t *testing.T) {
	for _, ranges := range []bool{true, false} {
		f := newFake(t)
		layer := random(3 << 20)
		f.push("a", "v1", layer)
		w := newWorld(t, f)
		cut := 2
		f.set(func(rw http.ResponseWriter, r *http.Request) bool {
			if !ranges {
				r.Header.Del("Range")
			}
			if cut--; cut < 0 {
				return false
			}
			rw.Header().Set("Content-Length", strconv.Itoa(len(layer)))
			_, _ = rw.Write(layer[:1<<20])
			panic(http.ErrAbortHandler)
		})
		if ranges {
			cut = 1
		}
		w.ok(w.blob("up/a", layer))
	}
}

// The bytes of a blob that is here because of another repository are not fetched again, if the upstream has it in this one, too.
func TestAdopt(t *testing.T) {
	f := newFake(t)
	layer := random(1 << 20)
	f.push("a", "v1", layer)
	f.push("b", "v1", layer)
	w := newWorld(t, f)
	w.ok(w.blob("up/a", layer))
	f.requests()
	w.ok(w.blob("up/b", layer))
	w.asked(f, "HEAD /v2/b/blobs/"+sum(layer))
	w.fails(w.blob("up/c", layer), errs.NotFound, "a repository that has no such blob")
	w.asked(f, "HEAD /v2/c/blobs/"+sum(layer))
	// The upstream is down, and its manifest refers to the blob.
	d := f.push("d", "v1", layer)
	w.ok(w.tagged("up/d", "v1", d))
	f.set(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(503); return true })
	w.ok(w.blob("up/d", layer))
	w.fails(w.blob("up/e", layer), errs.Unavailable, "a repository without a manifest that refers to the blob")
}

// Bytes that were pushed here do not reach those who know their digest, whatever an upstream says that it has.
func TestAdoptNothingPrivate(t *testing.T) {
	f := newFake(t)
	secret := random(1000)
	w := newWorld(t, f)
	u, err := w.o.Repositories.Begin(t.Context(), "private/repo", "", content.SHA256)
	w.ok(err)
	w.ok(u.Append(t.Context(), bytes.NewReader(secret), -1))
	w.ok(w.o.Repositories.Finish(t.Context(), u, content.Digest(sum(secret))))
	f.set(func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Length", "1000")
		if r.Method == http.MethodGet {
			_, _ = w.Write(random(1000))
		}
		return true
	})
	if err := w.blob("up/a", secret); err == nil {
		t.Error("an upstream that only knows the digest of a private blob made it public")
	}
}

func TestLocate(t *testing.T) {
	f := newFake(t)
	w := newWorld(t, f, func(o *Options) {
		o.Upstreams = append(o.Upstreams, Upstream{Prefix: "docker.io", Hub: true, Registry: newRemote(t, remote.Options{URL: "https://hub.example"})})
		o.Mirror = "docker.io"
	})
	w.ok(w.o.Repositories.Metadata.PutManifest(t.Context(), metadata.Write{
		Repository: "library/mine", Digest: content.SHA256.Of([]byte("{}")), Payload: []byte("{}"), Parsed: &content.Manifest{MediaType: "application/x"}, Missing: true,
	}))
	for _, c := range []struct {
		repo, ns string
		pushing  bool
		want     content.Repository
	}{
		{"docker.io/library/busybox", "", false, "docker.io/library/busybox"},
		{"docker.io/busybox", "", false, "docker.io/library/busybox"},
		{"docker.io/me/app", "", false, "docker.io/me/app"},
		{"library/busybox", "", false, "docker.io/library/busybox"},
		{"me/app", "", false, "docker.io/me/app"},
		{"me/app", "", true, "me/app"},
		{"library/mine", "", false, "library/mine"},
		{"library/mine", "docker.io", false, "docker.io/library/mine"},
		{"library/mine", "hub.example", true, "docker.io/library/mine"},
		{"x/y", "up", false, "up/x/y"},
		{"x/y", "elsewhere", false, "docker.io/x/y"},
		{"up/x/y", "", false, "up/x/y"},
		{"upper/x", "", false, "docker.io/upper/x"},
	} {
		if got, err := w.Locate(t.Context(), content.Repository(c.repo), c.ns, c.pushing); err != nil || got != c.want {
			t.Errorf("%+v is at %s, %v", c, got, err)
		}
	}
	for repo, want := range map[content.Repository]bool{"docker.io/a": true, "docker.io": false, "up/x": true, "upper/x": false, "library/mine": false} {
		if got := w.Covers(repo); got != want {
			t.Errorf("covers %s: %v", repo, got)
		}
	}
}

// What was not used for longest goes first, with its bytes; what is being read stays readable.
func TestEviction(t *testing.T) {
	f := newFake(t)
	const size = 1 << 20
	var layers [][]byte
	for range 6 {
		layers = append(layers, random(size))
	}
	f.push("a", "v1", layers...)
	var evicted int64
	w := newWorld(t, f, func(o *Options) {
		o.Size = 4 * size
		o.Events.Evicted = func(n int64) { evicted += n }
	})
	for i := range 3 {
		w.ok(w.blob("up/a", layers[i]))
		w.advance(time.Second)
	}
	w.ok(w.blob("up/a", layers[0])) // now the second is the oldest
	open, _, err := w.OpenBlob(t.Context(), "up/a", content.Digest(sum(layers[1])))
	w.ok(err)
	w.Proxy.keep.mu.Lock()
	delete(w.Proxy.keep.uses, useKey("up/a", content.Digest(sum(layers[1])))) // as if it had been opened long ago
	w.Proxy.keep.mu.Unlock()
	w.advance(time.Second)
	w.ok(w.blob("up/a", layers[3]))
	w.ok(w.blob("up/a", layers[4]))
	f.requests()
	here := func(i int) bool {
		_, err := w.o.Repositories.Blobs.Stat(t.Context(), content.Digest(sum(layers[i])))
		return err == nil
	}
	if here(1) || !here(0) || !here(4) || evicted == 0 || w.Size() > 4*size {
		t.Errorf("here: %v %v %v %v %v; evicted %d, kept %d", here(0), here(1), here(2), here(3), here(4), evicted, w.Size())
	}
	b, err := io.ReadAll(open)
	if err != nil || !bytes.Equal(b, layers[1]) {
		t.Errorf("a running download of an evicted blob: %d bytes, %v", len(b), err)
	}
	w.ok(open.Close())
	w.ok(w.blob("up/a", layers[1]))
	w.asked(f, "GET /v2/a/blobs/"+sum(layers[1]))
	large := random(5 * size)
	f.push("a", "v2", large)
	w.fails(w.blob("up/a", large), errs.Exhausted, "a blob that is larger than the bound")
}

// A reader that is no file keeps its blob from being evicted.
func TestEvictionSparesReaders(t *testing.T) {
	f := newFake(t)
	const size = 1 << 20
	layers := [][]byte{random(size), random(size), random(size)}
	f.push("a", "v1", layers...)
	w := newWorld(t, f, func(o *Options) { o.Size = 2 * size })
	w.ok(w.blob("up/a", layers[0]))
	unpin := w.keep.pin("up/a", content.Digest(sum(layers[0])))
	w.advance(time.Second)
	w.ok(w.blob("up/a", layers[1]))
	w.ok(w.blob("up/a", layers[2]))
	if _, err := w.o.Repositories.Blobs.Stat(t.Context(), content.Digest(sum(layers[0]))); err != nil {
		t.Errorf("a blob that was being read is gone: %v", err)
	}
	unpin()
}

func TestRecord(t *testing.T) {
	b, err := record.Marshal(useVersion, useRecord{Size: 7, Manifest: true, Used: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)})
	if err != nil {
		t.Fatal(err)
	}
	recordtest.Golden(t, "use.v1.json", b)
}
