package source

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"ply/internal/build/ops"
	"ply/internal/errs"
	"ply/internal/oci"
)

// requests is a server that remembers what it was asked.
type requests struct {
	*httptest.Server
	mu   sync.Mutex
	list []*http.Request
}

func serve(t *testing.T, handle func(w http.ResponseWriter, r *http.Request)) *requests {
	t.Helper()
	s := &requests{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.list = append(s.list, r)
		s.mu.Unlock()
		handle(w, r)
	}))
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

func (s *requests) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.list)
}

func (s *requests) last() *http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.list[len(s.list)-1]
}

// at returns the address with another name for the same host.
func (s *requests) at(host, path string) string {
	u, _ := url.Parse(s.URL)
	return "http://" + host + ":" + u.Port() + path
}

const modified = "Sat, 03 Feb 2024 04:05:06 GMT"

func TestHTTPFile(t *testing.T) {
	w := newWorld(t, Limits{})
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if d := r.URL.Query().Get("disposition"); d != "" {
			w.Header().Set("Content-Disposition", d)
		}
		if r.URL.Path != "/undated" {
			w.Header().Set("Last-Modified", modified)
		}
		switch r.URL.Path {
		case "/chunked":
			w.(http.Flusher).Flush()
		case "/zipped":
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			_, _ = io.WriteString(z, "content")
			_ = z.Close()
			return
		}
		_, _ = io.WriteString(w, "content")
	})
	for _, c := range []struct {
		path, file string
		op         ops.HTTP
		mode       int64
		name       string
	}{
		{path: "/a/b.txt", name: "b.txt", mode: 0o600},
		{path: "/a/b.txt?x=/y", name: "b.txt", mode: 0o600},
		{path: "/", name: "download", mode: 0o600},
		{path: "/chunked", name: "chunked", mode: 0o600},
		{path: "/zipped", name: "zipped", mode: 0o600},
		{path: "/x?disposition=" + url.QueryEscape(`attachment; filename="there.bin"`), name: "there.bin", mode: 0o600},
		{path: "/x?disposition=" + url.QueryEscape(`attachment; filename="../../etc/passwd"`), name: "passwd", mode: 0o600},
		{path: "/x?disposition=" + url.QueryEscape(`attachment; filename=".."`), name: "download", mode: 0o600},
		{path: "/x?disposition=" + url.QueryEscape(`attachment; filename=".wh.etc"`), name: "download", mode: 0o600},
		{path: "/y?disposition=" + url.QueryEscape(`attachment; filename="there.bin"`), op: ops.HTTP{Filename: "mine", Mode: 0o4755, UID: 7, GID: 8}, name: "mine", mode: 0o4755},
		{path: "/undated", name: "undated", mode: 0o600},
	} {
		op := c.op
		op.URL = s.URL + c.path
		if op.Mode == 0 {
			op.Mode = -1
		}
		r, err := w.build().HTTP(t.Context(), &op, nil)
		if err != nil {
			t.Errorf("%s: %v", c.path, err)
			continue
		}
		files := w.files(r)
		e, ok := files[c.name]
		when := time.Date(2024, 2, 3, 4, 5, 6, 0, time.UTC)
		if c.path == "/undated" {
			when = time.Unix(0, 0)
		}
		if !ok || len(files) != 1 || e.data != "content" || e.Mode != c.mode || e.Uid != op.UID || e.Gid != op.GID || !e.ModTime.Equal(when) {
			t.Errorf("%s: %+v", c.path, files)
		}
	}
	if tm, err := w.build().Time(t.Context(), &ops.HTTP{URL: s.URL + "/a/b.txt", Mode: -1}); err != nil || tm.Format(http.TimeFormat) != modified {
		t.Errorf("time %v, %v", tm, err)
	}
}

// A file is sent again only if it has changed.
func TestHTTPRevalidation(t *testing.T) {
	content, tag, sent := "one", `"1"`, 0
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Last-Modified", modified)
		if r.URL.Path != "/dated" {
			w.Header().Set("ETag", tag)
		}
		switch {
		case r.URL.Path == "/dated" && r.Header.Get("If-Modified-Since") == modified,
			r.URL.Path == "/tagged" && strings.Contains(r.Header.Get("If-None-Match"), tag):
			w.WriteHeader(http.StatusNotModified)
			return
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(content)))
		if r.URL.Path == "/deaf" && r.Header.Get("If-None-Match") != "" && tag == `"1"` {
			return // announces the same tag and a body, which nobody needs
		}
		sent++
		_, _ = io.WriteString(w, content)
	})
	for _, path := range []string{"/tagged", "/dated", "/deaf"} {
		w := newWorld(t, Limits{})
		content, tag, sent = "one", `"1"`, 0
		op := &ops.HTTP{URL: s.URL + path, Mode: -1}
		get := func() (oci.Digest, string) {
			t.Helper()
			r, err := w.build().HTTP(t.Context(), op, nil)
			if err != nil {
				t.Fatal(path, err)
			}
			return r.Key, w.files(r)[strings.TrimPrefix(path, "/")].data
		}
		first, _ := get()
		if again, data := get(); again != first || data != "one" || sent != 1 {
			t.Errorf("%s: the second build has key %v and %q after %d bodies", path, again == first, data, sent)
		}
		if path == "/dated" {
			continue
		}
		content, tag = "two", `"2"`
		if changed, data := get(); changed == first || data != "two" || sent != 2 {
			t.Errorf("%s: a changed file: same key %v, %q after %d bodies", path, changed == first, data, sent)
		}
	}
}

// In one build an address means one content.
func TestHTTPOncePerBuild(t *testing.T) {
	w, n := newWorld(t, Limits{}), 0
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) { n++; _, _ = fmt.Fprint(w, n) })
	b := w.build()
	op := &ops.HTTP{URL: s.URL + "/f", Mode: -1}
	one, err := b.HTTP(t.Context(), op, nil)
	two, err2 := b.HTTP(t.Context(), op, nil)
	if err != nil || err2 != nil || one.Key != two.Key || n != 1 {
		t.Errorf("%v %v, %d requests", err, err2, n)
	}
}

// uploading is a client that sends files itself.
type uploading struct {
	*world
	asked []string
}

func (u *uploading) Upload(_ context.Context, path string) (io.ReadCloser, error) {
	u.asked = append(u.asked, path)
	return io.NopCloser(strings.NewReader("sent by the client")), nil
}

func TestHTTPUpload(t *testing.T) {
	w := newWorld(t, Limits{})
	op := &ops.HTTP{URL: "http://buildkit-session/abc", Mode: -1}
	u := &uploading{world: w}
	b := w.For(u, nil)
	one, err := b.HTTP(t.Context(), op, nil)
	two, err2 := b.HTTP(t.Context(), op, nil)
	if err != nil || err2 != nil || one.Key != two.Key || len(u.asked) != 1 || u.asked[0] != "/abc" {
		t.Errorf("%v %v, asked for %q", err, err2, u.asked)
	}
	if want := oci.DigestOf([]byte("sent by the client")); one.Origin != string(want) {
		t.Errorf("the file is %s, want %s", one.Origin, want)
	}
	if _, err := w.build().HTTP(t.Context(), op, nil); !errors.Is(err, errs.Unimplemented) {
		t.Errorf("a client that sends no files: %v", err)
	}
}

func TestHTTPChecksum(t *testing.T) {
	w := newWorld(t, Limits{})
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "content") })
	good, bad := oci.DigestOf([]byte("content")), oci.DigestOf([]byte("other"))
	if _, err := w.build().HTTP(t.Context(), &ops.HTTP{URL: s.URL + "/f", Mode: -1, Checksum: bad}, nil); !errors.Is(err, errs.Precondition) || len(w.keys) > 0 || len(w.tars) > 0 {
		t.Errorf("a wrong digest: %v, %d records", err, len(w.keys))
	}
	one, err := w.build().HTTP(t.Context(), &ops.HTTP{URL: s.URL + "/f", Mode: -1, Checksum: good}, nil)
	if err != nil {
		t.Fatal(err)
	}
	n := s.count()
	two, err := w.build().HTTP(t.Context(), &ops.HTTP{URL: s.URL + "/f", Mode: -1, Checksum: good}, nil)
	if err != nil || two.Key != one.Key || s.count() != n {
		t.Errorf("the server was asked for a file that is known by its digest: %v", err)
	}
	if _, err := w.build().HTTP(t.Context(), &ops.HTTP{URL: s.URL + "/f", Mode: -1, Checksum: bad}, nil); !errors.Is(err, errs.Precondition) {
		t.Errorf("a wrong digest of a file that is here: %v", err)
	}
}

func TestHTTPBounds(t *testing.T) {
	const limit = 1 << 20
	w := newWorld(t, Limits{Bytes: limit, Quiet: 500 * time.Millisecond, MinRate: 100})
	var full [limit]byte
	for i := range full {
		full[i] = byte(i * i >> 8)
	}
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/full": // the benign twin
			_, _ = w.Write(full[:])
		case "/announced":
			w.Header().Set("Content-Length", "1000000000000")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		case "/endless":
			for r.Context().Err() == nil {
				_, _ = w.Write(full[:4096])
			}
		case "/bomb":
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			for range 64 {
				_, _ = z.Write(make([]byte, limit))
			}
			_ = z.Close()
		case "/slow", "/slow-chunks":
			if r.URL.Path == "/slow" {
				w.Header().Set("Content-Length", "1000")
			}
			for i := 0; i < 1000 && r.Context().Err() == nil; i++ {
				_, _ = w.Write(full[:1])
				w.(http.Flusher).Flush()
				time.Sleep(50 * time.Millisecond)
			}
		case "/short":
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write(full[:10])
		case "/silent":
			<-r.Context().Done()
		case "/br":
			w.Header().Set("Content-Encoding", "br")
			_, _ = w.Write(full[:10])
		case "/loop":
			http.Redirect(w, r, "/loop", http.StatusFound)
		default:
			http.NotFound(w, r)
		}
	})
	if _, err := w.build().HTTP(t.Context(), &ops.HTTP{URL: s.URL + "/full", Mode: -1}, nil); err != nil {
		t.Errorf("a file of the largest size: %v", err)
	}
	n := len(w.keys)
	for path, want := range map[string]error{
		"/announced": errs.Invalid, "/endless": errs.Invalid, "/bomb": errs.Invalid, "/slow": errs.Unavailable, "/slow-chunks": errs.Unavailable,
		"/short": errs.Unavailable, "/silent": errs.Unavailable, "/br": errs.Unimplemented, "/loop": errs.Unavailable, "/none": errs.NotFound,
	} {
		start := time.Now()
		_, err := w.build().HTTP(t.Context(), &ops.HTTP{URL: s.URL + path, Mode: -1}, nil)
		if !errors.Is(err, want) || time.Since(start) > 20*time.Second {
			t.Errorf("%s: %v after %s", path, err, time.Since(start))
		}
	}
	if len(w.keys) != n {
		t.Errorf("a failed fetch was remembered")
	}
	if _, err := w.build().HTTP(t.Context(), &ops.HTTP{URL: "file:///etc/passwd", Mode: -1}, nil); !errors.Is(err, errs.Invalid) {
		t.Errorf("another scheme: %v", err)
	}
}

// No name, address or redirect leads to a link-local address or a metadata service; the same goes well with one that leads to loopback.
func TestHTTPFence(t *testing.T) {
	w := newWorld(t, Limits{})
	w.hosts["meta.test"] = []netip.Addr{netip.MustParseAddr("169.254.169.254")}
	w.hosts["mapped.test"] = []netip.Addr{netip.MustParseAddr("::ffff:169.254.169.254")}
	var s *requests
	s = serve(t, func(w http.ResponseWriter, r *http.Request) {
		if to := r.URL.Query().Get("to"); to != "" {
			http.Redirect(w, r, to, http.StatusFound)
			return
		}
		_, _ = io.WriteString(w, "reached "+r.Host)
	})
	benign := s.at("friend.test", "/f")
	for _, u := range []string{benign, s.URL + "/?to=" + url.QueryEscape(benign)} {
		if r, err := w.build().HTTP(t.Context(), &ops.HTTP{URL: u, Filename: "f", Mode: -1}, nil); err != nil || !strings.HasPrefix(w.files(r)["f"].data, "reached friend.test") {
			t.Errorf("%s: %v", u, err)
		}
	}
	for _, target := range []string{
		s.at("meta.test", "/latest"), s.at("mapped.test", "/latest"), "http://169.254.169.254/latest", "http://[fe80::1]/", "http://[::ffff:169.254.169.254]/", "http://0.0.0.0/",
	} {
		for _, u := range []string{target, s.URL + "/?to=" + url.QueryEscape(target)} {
			if _, err := w.build().HTTP(t.Context(), &ops.HTTP{URL: u, Mode: -1}, nil); !errors.Is(err, errs.Forbidden) {
				t.Errorf("%s: %v", u, err)
			}
		}
	}
	if _, err := w.build().HTTP(t.Context(), &ops.HTTP{URL: s.URL + "/?to=file:///etc/passwd", Mode: -1}, nil); !errors.Is(err, errs.Forbidden) {
		t.Errorf("a redirect to a file: %v", err)
	}
}

func TestHTTPSecrets(t *testing.T) {
	w := newWorld(t, Limits{})
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if to := r.URL.Query().Get("to"); to != "" {
			http.Redirect(w, r, to, http.StatusFound)
			return
		}
		if r.URL.Path == "/refused" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = io.WriteString(w, "content")
	})
	w.secrets["HTTP_AUTH_HEADER_a.test"] = "Basic c2VjcmV0LXdvcmQ="
	w.secrets["HTTP_AUTH_TOKEN_b.test"] = "secret-word"
	w.secrets["named"] = "Digest secret-word"
	for _, c := range []struct {
		op   ops.HTTP
		want string
	}{
		{ops.HTTP{URL: s.at("a.test", "/f")}, "Basic c2VjcmV0LXdvcmQ="},
		{ops.HTTP{URL: s.at("b.test", "/f")}, "Bearer secret-word"},
		{ops.HTTP{URL: s.at("c.test", "/f")}, ""},
		{ops.HTTP{URL: s.at("c.test", "/f"), HeaderSecret: "named"}, "Digest secret-word"},
		{ops.HTTP{URL: s.at("a.test", "/?to="+url.QueryEscape(s.at("c.test", "/g")))}, ""}, // the other host does not learn it
		{ops.HTTP{URL: s.at("a.test", "/?to=/g")}, "Basic c2VjcmV0LXdvcmQ="},
	} {
		c.op.Mode = -1
		if _, err := w.build().HTTP(t.Context(), &c.op, nil); err != nil {
			t.Errorf("%s: %v", c.op.URL, err)
		}
		if got := s.last().Header.Get("Authorization"); got != c.want {
			t.Errorf("%s: authorization %q, want %q", c.op.URL, got, c.want)
		}
	}
	for _, op := range []ops.HTTP{{URL: s.at("a.test", "/f"), HeaderSecret: "none"}, {URL: s.at("a.test", "/f"), HeaderSecret: "lines"}} {
		w.secrets["lines"] = "x\r\nHost: other"
		if _, err := w.build().HTTP(t.Context(), &op, nil); err == nil {
			t.Errorf("secret %s: no error", op.HeaderSecret)
		}
	}
	_, err := w.build().HTTP(t.Context(), &ops.HTTP{URL: strings.Replace(s.URL, "//", "//user:secret-word@", 1) + "/refused", Mode: -1}, nil)
	if !errors.Is(err, errs.Unauthorized) || strings.Contains(err.Error(), "secret-word") {
		t.Errorf("a refused request with a password in its address: %v", err)
	}
	w.noWords("secret-word", "c2VjcmV0LXdvcmQ=")
}
