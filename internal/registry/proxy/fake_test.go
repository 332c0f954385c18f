package proxy

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ply/internal/durable"
	"ply/internal/registry/blobs"
	"ply/internal/registry/blobs/directory"
	"ply/internal/registry/content"
	"ply/internal/registry/metadata/bolt"
	"ply/internal/registry/remote"
	"ply/internal/registry/repository"
	"ply/test/leak"
)

func TestMain(m *testing.M) {
	leak.Main(m, goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"))
}

const imageType = "application/vnd.oci.image.manifest.v1+json"

// fake is an upstream.
type fake struct {
	*httptest.Server
	mu        sync.Mutex
	manifests map[string][]byte // NAME@DIGEST
	tags      map[string]string // NAME:TAG → digest
	blobs     map[string][]byte // NAME@DIGEST
	asked     []string          // METHOD path
	headers   []http.Header
	answer    func(w http.ResponseWriter, r *http.Request) bool // instead; may be nil
}

func newFake(t testing.TB) *fake {
	t.Helper()
	f := &fake{manifests: map[string][]byte{}, tags: map[string]string{}, blobs: map[string][]byte{}}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	return f
}

func sum(b []byte) string { return string(content.SHA256.Of(b)) }

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

func describe(b []byte) string {
	return fmt.Sprintf(`{"mediaType":"application/x","digest":%q,"size":%d}`, sum(b), len(b))
}

// push adds an image and returns its digest.
func (f *fake) push(name, tag string, layers ...[]byte) content.Digest {
	var list []string
	for _, l := range layers {
		list = append(list, describe(l))
	}
	doc := []byte(`{"schemaVersion":2,"mediaType":"` + imageType + `","config":` + list[0] + `,"layers":[` + strings.Join(list[1:], ",") + `]}`)
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range layers {
		f.blobs[name+"@"+sum(l)] = l
	}
	f.manifests[name+"@"+sum(doc)] = doc
	f.tags[name+":"+tag] = sum(doc)
	return content.Digest(sum(doc))
}

func (f *fake) set(answer func(w http.ResponseWriter, r *http.Request) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answer = answer
}

// requests returns what was asked since the last time, without questions for tokens.
func (f *fake) requests() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := f.asked
	f.asked, f.headers = nil, nil
	return list
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.asked = append(f.asked, r.Method+" "+r.URL.Path)
	f.headers = append(f.headers, r.Header.Clone())
	answer := f.answer
	f.mu.Unlock()
	if answer != nil && answer(w, r) {
		return
	}
	f.serve(w, r)
}

func (f *fake) serve(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	path := strings.TrimPrefix(r.URL.Path, "/v2/")
	if name, ok := strings.CutSuffix(path, "/tags/list"); ok {
		tags := []string{}
		for k := range f.tags {
			if t, ok := strings.CutPrefix(k, name+":"); ok {
				tags = append(tags, t)
			}
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"name": name, "tags": tags})
		return
	}
	if name, ref, ok := strings.Cut(path, "/manifests/"); ok {
		if d, ok := f.tags[name+":"+ref]; ok {
			ref = d
		}
		if doc, ok := f.manifests[name+"@"+ref]; ok {
			w.Header().Set("Content-Type", imageType)
			w.Header().Set("Docker-Content-Digest", ref)
			_, _ = w.Write(doc)
			return
		}
	}
	if name, d, ok := strings.Cut(path, "/blobs/"); ok {
		if b, ok := f.blobs[name+"@"+d]; ok {
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
			return
		}
	}
	http.Error(w, `{"errors":[{"code":"UNKNOWN","message":"not here"}]}`, http.StatusNotFound)
}

// world is a proxy of fakes on real stores.
type world struct {
	*testing.T
	*Proxy
	root string
	meta *bolt.Store
	now  time.Time
	mu   sync.Mutex
}

// opaque hides that uploads can be followed.
type opaque struct{ blobs.Store }

func (s opaque) Begin(ctx context.Context, session blobs.Session) (blobs.Upload, error) {
	u, err := s.Store.Begin(ctx, session)
	return struct{ blobs.Upload }{u}, err
}

func (w *world) advance(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
}

func newWorld(t *testing.T, f *fake, edit ...func(*Options)) *world {
	t.Helper()
	return openWorld(t, t.TempDir(), f, edit...)
}

func openWorld(t *testing.T, root string, f *fake, edit ...func(*Options)) *world {
	t.Helper()
	meta, err := bolt.Open(filepath.Join(root, "metadata.db"))
	if err != nil {
		t.Fatal(err)
	}
	store, err := directory.Open(durable.OS, root)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{T: t, root: root, meta: meta, now: time.Now()}
	o := Options{
		Upstreams: []Upstream{{Prefix: "up", Registry: newRemote(t, remote.Options{URL: f.URL})}}, Fresh: time.Minute,
		Spool: filepath.Join(root, "uploads"), Repositories: &repository.Service{Metadata: meta, Blobs: store},
	}
	for _, e := range edit {
		e(&o)
	}
	if w.Proxy, err = Open(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	w.Proxy.now = func() time.Time {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.now
	}
	t.Cleanup(w.close)
	return w
}

func (w *world) close() {
	if w.meta == nil {
		return
	}
	if err := errors.Join(w.Proxy.Close(), w.meta.Close()); err != nil {
		w.Error(err)
	}
	w.meta = nil
}

func newRemote(t testing.TB, o remote.Options) *remote.Registry {
	t.Helper()
	r, err := remote.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (w *world) ok(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) fails(err, class error, what string) {
	w.Helper()
	if !errors.Is(err, class) {
		w.Errorf("%s: %v, want %v", what, err, class)
	}
}

// blob reads a blob as a client does, and compares it.
func (w *world) blob(repo content.Repository, want []byte) error {
	r, size, err := w.OpenBlob(w.Context(), repo, content.Digest(sum(want)))
	if err != nil {
		return err
	}
	defer r.Close()
	got, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want) || size != int64(len(want)) {
		return fmt.Errorf("got %d of %d bytes, the size was %d", len(got), len(want), size)
	}
	return nil
}

// tagged reads a tag as a client does.
func (w *world) tagged(repo content.Repository, tag content.Tag, want content.Digest) error {
	m, payload, err := w.Manifest(w.Context(), repo, "", tag)
	if err != nil {
		return err
	}
	if m.Digest != want || sum(payload) != string(want) {
		return fmt.Errorf("tag %s is %s, want %s", tag, m.Digest, want)
	}
	return nil
}

func (w *world) asked(f *fake, want ...string) {
	w.Helper()
	if got := f.requests(); strings.Join(got, ", ") != strings.Join(want, ", ") {
		w.Errorf("the upstream was asked %q, want %q", got, want)
	}
}

// empty reports whether no blob and no upload is on the disk.
func (w *world) empty() bool {
	found := false
	w.ok(w.o.Repositories.Blobs.Walk(w.Context(), func(content.Digest, int64, time.Time) error {
		found = true
		return nil
	}))
	names, err := filepath.Glob(filepath.Join(w.root, "uploads", "*"))
	w.ok(err)
	return !found && len(names) == 0
}
