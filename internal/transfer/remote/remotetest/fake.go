package remotetest

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"

	"ply/internal/oci"
)

// Fake is a small registry in the process of the test. It counts requests and bytes. Hook can answer requests in its place.
type Fake struct {
	*httptest.Server
	// Hook gets every request first and returns true if it has answered. It is set before the first request.
	Hook func(w http.ResponseWriter, r *http.Request) bool

	mu        sync.Mutex
	blobs     map[string][]byte // repo + "@" + digest
	manifests map[string]stored // repo + ":" + tag, repo + "@" + digest
	uploads   map[string]*fakeUpload
	started   int // uploads, ever
	log       []string
	served    map[string]int64 // bytes of blobs sent, by digest
	received  int64            // bytes of uploads
}

type stored struct {
	mediaType string
	data      []byte
}

type fakeUpload struct {
	repo string
	data []byte
}

// StartFake runs a fake on loopback until the test ends. With tls it uses https and a certificate that nobody trusts.
func StartFake(t testing.TB, tls bool) *Fake {
	t.Helper()
	f := &Fake{blobs: map[string][]byte{}, manifests: map[string]stored{}, uploads: map[string]*fakeUpload{}, served: map[string]int64{}}
	f.Server = httptest.NewUnstartedServer(http.HandlerFunc(f.serve))
	f.Config.ErrorLog = nil
	if tls {
		f.StartTLS()
	} else {
		f.Start()
	}
	t.Cleanup(f.Close)
	return f
}

// Addr returns host:port.
func (f *Fake) Addr() string { return f.Listener.Addr().String() }

// Add stores an image.
func (f *Fake) Add(repo, tag string, img *Image) {
	for _, l := range img.Layers {
		f.AddBlob(repo, l.Blob)
	}
	f.AddBlob(repo, img.Config)
	f.AddManifest(repo, tag, img.ManifestType, img.Manifest)
}

// AddBlob stores a blob.
func (f *Fake) AddBlob(repo string, b []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.blobs[repo+"@"+string(oci.DigestOf(b))] = b
}

// AddManifest stores a manifest under a tag ("" = none) and its digest.
func (f *Fake) AddManifest(repo, tag, mediaType string, data []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.manifests[repo+"@"+string(oci.DigestOf(data))] = stored{mediaType, data}
	if tag != "" {
		f.manifests[repo+":"+tag] = stored{mediaType, data}
	}
}

// Manifest returns the manifest under a tag.
func (f *Fake) Manifest(repo, tag string) (mediaType string, data []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.manifests[repo+":"+tag]
	return s.mediaType, s.data
}

// Blob returns a blob, or nil.
func (f *Fake) Blob(repo string, d oci.Digest) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.blobs[repo+"@"+string(d)]
}

// DropBlobs removes every blob and manifest.
func (f *Fake) DropBlobs() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.blobs)
	clear(f.manifests)
}

// Served returns how many bytes of a blob were sent so far.
func (f *Fake) Served(d oci.Digest) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.served[string(d)]
}

// Received returns how many bytes of blobs were received so far.
func (f *Fake) Received() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.received
}

// Log returns "METHOD path" of the requests so far, as far as it starts with prefix.
func (f *Fake) Log(prefix string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for _, l := range f.log {
		if strings.HasPrefix(l, prefix) {
			out = append(out, l)
		}
	}
	return out
}

// Forget clears the log and the counts.
func (f *Fake) Forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.log, f.received = nil, 0
	clear(f.served)
}

func (f *Fake) serve(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.log = append(f.log, r.Method+" "+r.URL.Path)
	f.mu.Unlock()
	if f.Hook != nil && f.Hook(w, r) {
		return
	}
	f.Answer(w, r)
}

// Answer answers a request as without a Hook.
func (f *Fake) Answer(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	path := strings.TrimPrefix(r.URL.Path, "/v2/")
	if path == "" {
		return
	}
	if repo, rest, ok := cut(path, "/manifests/"); ok {
		f.manifest(w, r, repo, rest)
	} else if repo, rest, ok := cut(path, "/blobs/uploads/"); ok {
		f.upload(w, r, repo, rest)
	} else if repo, rest, ok := cut(path, "/blobs/"); ok {
		f.blob(w, r, repo, rest)
	} else {
		Refuse(w, http.StatusNotFound, "NAME_UNKNOWN", "repository name not known to registry")
	}
}

func cut(path, sep string) (repo, rest string, ok bool) {
	i := strings.LastIndex(path, sep)
	if i < 0 {
		return "", "", false
	}
	return path[:i], path[i+len(sep):], true
}

// Refuse answers with an error as registries send it.
func Refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"errors":[{"code":%q,"message":%q}]}`, code, message)
}

func (f *Fake) manifest(w http.ResponseWriter, r *http.Request, repo, ref string) {
	key := repo + ":" + ref
	if strings.Contains(ref, ":") {
		key = repo + "@" + ref
	}
	if r.Method == http.MethodPut {
		data, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		f.AddManifest(repo, ref, r.Header.Get("Content-Type"), data)
		w.Header().Set("Docker-Content-Digest", string(oci.DigestOf(data)))
		w.WriteHeader(http.StatusCreated)
		return
	}
	f.mu.Lock()
	s, ok := f.manifests[key]
	f.mu.Unlock()
	if !ok {
		Refuse(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "manifest unknown")
		return
	}
	w.Header().Set("Content-Type", s.mediaType)
	w.Header().Set("Docker-Content-Digest", string(oci.DigestOf(s.data)))
	w.Header().Set("Content-Length", strconv.Itoa(len(s.data)))
	if r.Method == http.MethodGet {
		_, _ = w.Write(s.data)
	}
}

func (f *Fake) blob(w http.ResponseWriter, r *http.Request, repo, digest string) {
	f.mu.Lock()
	b, ok := f.blobs[repo+"@"+digest]
	f.mu.Unlock()
	if !ok {
		Refuse(w, http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown to registry")
		return
	}
	from, end := Range(r, len(b))
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(end-from))
	if r.Header.Get("Range") != "" {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, end-1, len(b)))
		w.WriteHeader(http.StatusPartialContent)
	}
	if r.Method == http.MethodGet {
		n, _ := w.Write(b[from:end])
		f.CountServed(digest, n)
	}
}

// CountServed adds to Served, for a Hook that sends a blob itself.
func (f *Fake) CountServed(digest string, n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.served[digest] += int64(n)
}

// Range returns the range that a request asks for, or the whole blob when it asks for none.
func Range(r *http.Request, size int) (from, end int) {
	end = size
	v, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes=")
	if !ok {
		return 0, size
	}
	a, b, _ := strings.Cut(v, "-")
	from, _ = strconv.Atoi(a)
	if n, err := strconv.Atoi(b); err == nil && n+1 < size {
		end = n + 1
	}
	return min(from, end), end
}

func (f *Fake) upload(w http.ResponseWriter, r *http.Request, repo, id string) {
	q := r.URL.Query()
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.Method == http.MethodPost {
		if b, ok := f.blobs[q.Get("from")+"@"+q.Get("mount")]; ok && q.Get("mount") != "" {
			f.blobs[repo+"@"+q.Get("mount")] = b
			w.WriteHeader(http.StatusCreated)
			return
		}
		f.started++
		id = strconv.Itoa(f.started)
		f.uploads[id] = &fakeUpload{repo: repo}
		f.where(w, repo, id)
		w.WriteHeader(http.StatusAccepted)
		return
	}
	u := f.uploads[id]
	if u == nil || q.Get("_state") != "a&b" {
		Refuse(w, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")
		return
	}
	switch r.Method {
	case http.MethodGet:
		f.where(w, repo, id)
		w.Header().Set("Range", fmt.Sprintf("0-%d", max(0, len(u.data)-1)))
		w.WriteHeader(http.StatusNoContent)
	case http.MethodDelete:
		delete(f.uploads, id)
		w.WriteHeader(http.StatusNoContent)
	case http.MethodPatch, http.MethodPut:
		f.take(w, r, u, repo, id)
	}
}

// take appends the body of a request to an upload, also the part before an error. The caller holds mu; take unlocks it while it
// reads.
func (f *Fake) take(w http.ResponseWriter, r *http.Request, u *fakeUpload, repo, id string) {
	f.mu.Unlock()
	var b bytes.Buffer
	n, err := io.Copy(&b, r.Body)
	f.mu.Lock()
	u.data = append(u.data, b.Bytes()...)
	f.received += n
	if err != nil {
		panic(http.ErrAbortHandler) // the part that was read is kept, and the connection breaks
	}
	f.where(w, repo, id)
	if r.Method == http.MethodPatch {
		w.Header().Set("Range", fmt.Sprintf("0-%d", max(0, len(u.data)-1)))
		w.WriteHeader(http.StatusAccepted)
		return
	}
	if d := r.URL.Query().Get("digest"); d != string(oci.DigestOf(u.data)) {
		Refuse(w, http.StatusBadRequest, "DIGEST_INVALID", "provided digest did not match uploaded content")
		return
	}
	f.blobs[repo+"@"+string(oci.DigestOf(u.data))] = u.data
	delete(f.uploads, id)
	w.WriteHeader(http.StatusCreated)
}

// where sets a relative Location. Its query is a state that the client must send back unchanged.
func (f *Fake) where(w http.ResponseWriter, repo, id string) {
	w.Header().Set("Location", "/v2/"+repo+"/blobs/uploads/"+id+"?_state=a%26b")
}
