package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/registry/api"
	"ply/internal/registry/blobs"
	"ply/internal/registry/blobs/directory"
	"ply/internal/registry/content"
	"ply/internal/registry/metadata/bolt"
	"ply/internal/registry/repository"
)

// world is a registry on loopback.
type world struct {
	*testing.T
	url  string
	repo *repository.Service
	root string
}

func newWorld(t *testing.T, edit ...func(*api.Options)) *world {
	t.Helper()
	root := t.TempDir()
	meta, err := bolt.Open(filepath.Join(root, "metadata.db"))
	if err != nil {
		t.Fatal(err)
	}
	store, err := directory.Open(durable.OS, root)
	if err != nil {
		t.Fatal(err)
	}
	o := api.Options{Repositories: &repository.Service{Metadata: meta, Blobs: store}}
	for _, e := range edit {
		e(&o)
	}
	server := httptest.NewServer(api.New(o))
	t.Cleanup(func() {
		server.Close()
		if err := meta.Close(); err != nil {
			t.Error(err)
		}
	})
	return &world{t, server.URL, o.Repositories, root}
}

type answer struct {
	*http.Response
	body string
}

// do makes a request. Headers are "Name: value".
func (w *world) do(method, path, body string, headers ...string) answer {
	w.Helper()
	return w.send(method, path, strings.NewReader(body), headers...)
}

func (w *world) send(method, path string, body io.Reader, headers ...string) answer {
	w.Helper()
	r, err := http.NewRequestWithContext(w.Context(), method, w.url+path, body)
	if err != nil {
		w.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Add(name, value)
	}
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		w.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.Fatal(err)
	}
	return answer{resp, string(b)}
}

// want makes a request and checks the status and, for an error, its code.
func (w *world) want(status int, code, method, path, body string, headers ...string) answer {
	w.Helper()
	a := w.do(method, path, body, headers...)
	w.check(a, status, code, method+" "+path)
	return a
}

func (w *world) check(a answer, status int, code, what string) {
	w.Helper()
	if a.StatusCode != status {
		w.Errorf("%s: status %d, want %d\n%s", what, a.StatusCode, status, a.body)
		return
	}
	if a.Header.Get("Docker-Distribution-Api-Version") != "registry/2.0" {
		w.Errorf("%s: no Docker-Distribution-Api-Version", what)
	}
	if status < 400 || strings.HasPrefix(what, "HEAD") {
		return
	}
	var e struct {
		Errors []struct{ Code, Message string }
	}
	if err := json.Unmarshal([]byte(a.body), &e); err != nil || len(e.Errors) != 1 || e.Errors[0].Code != code || e.Errors[0].Message == "" || !strings.HasSuffix(a.body, "\n") {
		w.Errorf("%s: %q (%v), want the code %s", what, a.body, err, code)
	}
}

func (w *world) header(a answer, name, want string) {
	w.Helper()
	if got := a.Header.Get(name); got != want {
		w.Errorf("%s %s: %s is %q, want %q", a.Request.Method, a.Request.URL.Path, name, got, want)
	}
}

func sum(s string) string { return string(content.SHA256.Of([]byte(s))) }

func (w *world) push(repo string, data ...string) {
	w.Helper()
	for _, d := range data {
		w.want(201, "", "POST", "/v2/"+repo+"/blobs/uploads/?digest="+sum(d), d)
	}
}

const (
	imageType  = "application/vnd.oci.image.manifest.v1+json"
	indexType  = "application/vnd.oci.image.index.v1+json"
	dockerType = "application/vnd.docker.distribution.manifest.v2+json"
)

func desc(mediaType, data string) string {
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, mediaType, sum(data), len(data))
}

func image(more string, blobs ...string) string {
	layers := []string{}
	for _, b := range blobs[1:] {
		layers = append(layers, desc("application/vnd.oci.image.layer.v1.tar", b))
	}
	return `{"schemaVersion":2,"mediaType":"` + imageType + `","config":` + desc("application/vnd.oci.image.config.v1+json", blobs[0]) + `,"layers":[` + strings.Join(layers, ",") + `]` + more + `}`
}

func (w *world) put(repo, ref, doc string) answer {
	w.Helper()
	return w.want(201, "", "PUT", "/v2/"+repo+"/manifests/"+ref, doc, "Content-Type: "+imageType)
}

func TestBase(t *testing.T) {
	w := newWorld(t)
	for _, path := range []string{"/v2/", "/v2"} {
		if a := w.want(200, "", "GET", path, ""); a.body != "{}" {
			t.Errorf("%s: %q", path, a.body)
		}
		w.want(200, "", "HEAD", path, "")
	}
	w.want(405, "UNSUPPORTED", "POST", "/v2/", "")
	a := w.want(405, "UNSUPPORTED", "POST", "/v2/a/tags/list", "")
	w.header(a, "Allow", "GET, HEAD")
	for _, path := range []string{"/v2/x", "/v2/a/nothing/b", "/v2/tags/list", "/v2/manifests/x", "/v2//", "/v20/_catalog", "/v2/a/_other/repository"} {
		w.want(404, "NOT_FOUND", "GET", path, "")
	}
}

func TestNames(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"A", "a/../b", "a//b", "..", "a_", "-a", "a..b", "%D0%B0", strings.Repeat("a", 256), "a%00b", "a%20b", "_ply"} {
		w.want(400, "NAME_INVALID", "GET", "/v2/"+name+"/tags/list", "")
		w.want(400, "NAME_INVALID", "POST", "/v2/"+name+"/blobs/uploads/", "")
	}
	w.want(404, "NOT_FOUND", "GET", "/v2/a%2fb/tags/list", "")
	// A repository may be named like a part of the protocol.
	for _, name := range []string{"blobs", "manifests/x", "a/blobs/uploads", "tags/list", "v2", "referrers", "a/tags/list"} {
		w.push(name, "config")
		w.put(name, "list", image("", "config"))
		if a := w.want(200, "", "GET", "/v2/"+name+"/manifests/list", ""); a.body != image("", "config") {
			t.Errorf("%s: %q", name, a.body)
		}
		if a := w.want(200, "", "GET", "/v2/"+name+"/tags/list", ""); a.body != `{"name":"`+name+`","tags":["list"]}`+"\n" {
			t.Errorf("%s: %q", name, a.body)
		}
	}
}

func TestUploads(t *testing.T) {
	w := newWorld(t)
	const data = "0123456789"
	begin := func(query string) string {
		t.Helper()
		a := w.want(202, "", "POST", "/v2/a/blobs/uploads/"+query, "")
		l := a.Header.Get("Location")
		if strings.Contains(l, "?") || !strings.HasPrefix(l, "/v2/a/blobs/uploads/") || a.Header.Get("Docker-Upload-UUID") == "" || a.Header.Get("Range") != "0-0" {
			t.Errorf("POST: %v", a.Header)
		}
		return l
	}
	stored := func(a answer, data string, algorithm content.Algorithm) {
		t.Helper()
		d := string(algorithm.Of([]byte(data)))
		w.header(a, "Location", "/v2/a/blobs/"+d)
		w.header(a, "Docker-Content-Digest", d)
		if got := w.want(200, "", "GET", "/v2/a/blobs/"+d, ""); got.body != data {
			t.Errorf("blob is %q, want %q", got.body, data)
		}
		w.want(202, "", "DELETE", "/v2/a/blobs/"+d, "")
	}
	t.Run("post", func(*testing.T) {
		stored(w.want(201, "", "POST", "/v2/a/blobs/uploads/?digest="+sum(data), data), data, content.SHA256)
		w.want(400, "DIGEST_INVALID", "POST", "/v2/a/blobs/uploads/?digest="+sum("x"), data)
		w.want(404, "BLOB_UNKNOWN", "GET", "/v2/a/blobs/"+sum("x"), "")
		w.want(400, "DIGEST_INVALID", "POST", "/v2/a/blobs/uploads/?digest=md5:abc", data)
		w.want(400, "DIGEST_INVALID", "POST", "/v2/a/blobs/uploads/?digest=", data)
		d512 := content.SHA512.Of([]byte(data))
		stored(w.want(201, "", "POST", "/v2/a/blobs/uploads/?digest="+string(d512), data), data, content.SHA512)
	})
	t.Run("post and put", func(*testing.T) {
		stored(w.want(201, "", "PUT", begin("")+"?digest="+sum(data), data), data, content.SHA256)
		stored(w.want(201, "", "PUT", begin("")+"?digest="+sum(""), ""), "", content.SHA256)
		// A client may append the digest to what it was given.
		l := begin("")
		w.want(202, "", "PATCH", l, data)
		stored(w.want(201, "", "PUT", l+"?digest="+strings.Replace(sum(data), ":", "%3A", 1), ""), data, content.SHA256)
	})
	t.Run("chunks", func(*testing.T) {
		for _, last := range []bool{false, true} {
			l := begin("")
			a := w.want(202, "", "PATCH", l, data[:4], "Content-Range: 0-3")
			w.header(a, "Range", "0-3")
			w.header(a, "Location", l)
			w.header(w.want(204, "", "GET", l, ""), "Range", "0-3")
			a = w.want(416, "BLOB_UPLOAD_INVALID", "PATCH", l, data[5:], "Content-Range: 5-9")
			w.header(a, "Range", "0-3")
			w.want(416, "BLOB_UPLOAD_INVALID", "PATCH", l, data[:4], "Content-Range: 0-3")
			w.want(416, "BLOB_UPLOAD_INVALID", "PUT", l+"?digest="+sum(data), data[5:], "Content-Range: 5-9")
			if last {
				a = w.want(201, "", "PUT", l+"?digest="+sum(data), data[4:], "Content-Range: 4-9")
			} else {
				w.header(w.want(202, "", "PATCH", l, data[4:], "Content-Range: bytes 4-9/10"), "Range", "0-9")
				a = w.want(201, "", "PUT", l+"?digest="+sum(data), "")
			}
			stored(a, data, content.SHA256)
			w.want(404, "BLOB_UPLOAD_UNKNOWN", "PATCH", l, data)
			w.want(404, "BLOB_UPLOAD_UNKNOWN", "PUT", l+"?digest="+sum(data), "")
		}
	})
	t.Run("streams", func(*testing.T) {
		l := begin("")
		for i := range 2 { // without a length
			a := w.send("PATCH", l, io.MultiReader(strings.NewReader(data[5*i:5*i+5])))
			w.check(a, 202, "", "PATCH")
		}
		stored(w.want(201, "", "PUT", l+"?digest="+sum(data), ""), data, content.SHA256)
		l = begin("")
		w.check(w.send("PATCH", l, io.MultiReader(strings.NewReader(data)), "Content-Range: 0-9"), 202, "", "a stream with a range")
		w.check(w.send("PATCH", l, io.MultiReader(strings.NewReader("short")), "Content-Range: 10-19"), 400, "BLOB_UPLOAD_INVALID", "a short stream")
		w.header(w.want(204, "", "GET", l, ""), "Range", "0-14")
		w.check(w.send("PATCH", l, io.MultiReader(strings.NewReader("too long")), "Content-Range: 15-16"), 400, "BLOB_UPLOAD_INVALID", "a long stream")
	})
	t.Run("bad ranges", func(*testing.T) {
		l := begin("")
		for _, r := range []string{"x", "0", "-1-3", "3-", "0-3-5", "0x0-3", "99999999999999999999-3", "0--3"} {
			w.want(400, "BLOB_UPLOAD_INVALID", "PATCH", l, data[:4], "Content-Range: "+r)
		}
		for _, r := range []string{"0-4", "0-2"} {
			w.want(400, "SIZE_INVALID", "PATCH", l, data[:4], "Content-Range: "+r)
		}
		w.header(w.want(204, "", "GET", l, ""), "Range", "0-0")
	})
	t.Run("sha512", func(*testing.T) {
		d := string(content.SHA512.Of([]byte(data)))
		l := begin("?digest-algorithm=sha512")
		w.want(202, "", "PATCH", l, data)
		stored(w.want(201, "", "PUT", l+"?digest="+d, ""), data, content.SHA512)
		l = begin("") // a client that does not announce it
		w.want(202, "", "PATCH", l, data)
		stored(w.want(201, "", "PUT", l+"?digest="+d, ""), data, content.SHA512)
		w.want(400, "DIGEST_INVALID", "POST", "/v2/a/blobs/uploads/?digest-algorithm=md5", "")
	})
	t.Run("ends", func(*testing.T) {
		l := begin("")
		w.want(202, "", "PATCH", l, data)
		w.want(204, "", "DELETE", l, "")
		w.want(404, "BLOB_UPLOAD_UNKNOWN", "GET", l, "")
		w.want(404, "BLOB_UPLOAD_UNKNOWN", "DELETE", l, "")
		l = begin("")
		w.want(202, "", "PATCH", l, data)
		w.want(400, "DIGEST_INVALID", "PUT", l, "")
		w.want(400, "DIGEST_INVALID", "PUT", l+"?digest=sha256:x", "")
		w.want(400, "DIGEST_INVALID", "PUT", l+"?digest="+sum("other"), "")
		w.want(404, "BLOB_UPLOAD_UNKNOWN", "GET", l, "")
		w.want(404, "BLOB_UNKNOWN", "HEAD", "/v2/a/blobs/"+sum(data), "")
	})
	t.Run("of others", func(*testing.T) {
		l := begin("")
		for _, other := range []string{strings.Replace(l, "/v2/a/", "/v2/b/", 1), "/v2/a/blobs/uploads/" + blobs.NewID(), "/v2/a/blobs/uploads/x", "/v2/a/blobs/uploads/..%5cx"} {
			for _, method := range []string{"GET", "PATCH", "DELETE"} {
				w.want(404, "BLOB_UPLOAD_UNKNOWN", method, other, "")
			}
			w.want(404, "BLOB_UPLOAD_UNKNOWN", "PUT", other+"?digest="+sum(""), "")
		}
		w.want(204, "", "DELETE", l, "")
	})
}

func TestMount(t *testing.T) {
	w := newWorld(t)
	w.push("a", "data")
	mounted := func(a answer, repo string) {
		t.Helper()
		w.header(a, "Location", "/v2/"+repo+"/blobs/"+sum("data"))
		w.want(200, "", "GET", "/v2/"+repo+"/blobs/"+sum("data"), "")
	}
	mounted(w.want(201, "", "POST", "/v2/b/blobs/uploads/?mount="+sum("data")+"&from=a", ""), "b")
	mounted(w.want(201, "", "POST", "/v2/c/blobs/uploads/?mount="+sum("data"), ""), "c")
	for _, query := range []string{"mount=" + sum("none") + "&from=a", "mount=" + sum("none"), "mount=" + sum("data") + "&from=nowhere"} {
		a := w.want(202, "", "POST", "/v2/d/blobs/uploads/?"+query, "")
		if !strings.HasPrefix(a.Header.Get("Location"), "/v2/d/blobs/uploads/") {
			t.Errorf("%s: %v", query, a.Header)
		}
	}
	w.want(404, "BLOB_UNKNOWN", "GET", "/v2/d/blobs/"+sum("data"), "")
	w.want(400, "DIGEST_INVALID", "POST", "/v2/d/blobs/uploads/?mount=x&from=a", "")
	w.want(400, "NAME_INVALID", "POST", "/v2/d/blobs/uploads/?from=..&mount="+sum("data"), "")
	// A blob that one repository deleted is gone there, whoever still has it.
	w.want(202, "", "DELETE", "/v2/a/blobs/"+sum("data"), "")
	w.want(200, "", "GET", "/v2/b/blobs/"+sum("data"), "")
	for _, method := range []string{"GET", "HEAD", "DELETE"} {
		w.want(404, "BLOB_UNKNOWN", method, "/v2/a/blobs/"+sum("data"), "")
	}
}

func TestBlobs(t *testing.T) {
	w := newWorld(t)
	w.push("a", "0123456789")
	path := "/v2/a/blobs/" + sum("0123456789")
	etag := `"` + sum("0123456789") + `"`
	for _, method := range []string{"GET", "HEAD"} {
		a := w.want(200, "", method, path, "")
		w.header(a, "Content-Length", "10")
		w.header(a, "Content-Type", "application/octet-stream")
		w.header(a, "Docker-Content-Digest", sum("0123456789"))
		w.header(a, "ETag", etag)
		w.header(a, "Accept-Ranges", "bytes")
		w.want(304, "", method, path, "", "If-None-Match: "+etag)
		w.want(200, "", method, path, "", `If-None-Match: "x"`)
	}
	for header, body := range map[string]string{"bytes=2-4": "234", "bytes=8-": "89", "bytes=-3": "789", "bytes=5-100": "56789"} {
		if a := w.want(206, "", "GET", path, "", "Range: "+header); a.body != body {
			t.Errorf("%s: %q", header, a.body)
		}
	}
	if a := w.do("GET", path, "", "Range: bytes=20-30"); a.StatusCode != 416 {
		t.Errorf("a range behind the end: %d", a.StatusCode)
	}
	if a := w.want(200, "", "GET", path, "", "Range: bytes=0-1", `If-Range: "x"`); a.body != "0123456789" {
		t.Errorf("If-Range of other content: %q", a.body)
	}
	for _, d := range []string{"sha256:x", "x", "sha256:" + strings.Repeat("A", 64)} {
		w.want(400, "DIGEST_INVALID", "GET", "/v2/a/blobs/"+d, "")
	}
	// Bytes that the disk lost are reported as missing, so that a client pushes them again.
	d := content.SHA256.Of([]byte("0123456789"))
	if err := w.repo.Blobs.Remove(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	w.want(404, "BLOB_UNKNOWN", "HEAD", path, "")
	w.want(404, "BLOB_UNKNOWN", "GET", path, "")
	w.push("a", "0123456789")
	w.want(200, "", "HEAD", path, "")
}

func TestManifests(t *testing.T) {
	w := newWorld(t)
	w.push("a", "config", "layer")
	doc := image("", "config", "layer")
	a := w.put("a", "v1", doc)
	w.header(a, "Location", "/v2/a/manifests/"+sum(doc))
	w.header(a, "Docker-Content-Digest", sum(doc))
	for _, ref := range []string{"v1", sum(doc)} {
		for _, method := range []string{"GET", "HEAD"} {
			a := w.want(200, "", method, "/v2/a/manifests/"+ref, "", "Accept: application/vnd.example")
			w.header(a, "Content-Type", imageType)
			w.header(a, "Content-Length", fmt.Sprint(len(doc)))
			w.header(a, "Docker-Content-Digest", sum(doc))
			w.want(304, "", method, "/v2/a/manifests/"+ref, "", `If-None-Match: "`+sum(doc)+`"`)
			if method == "GET" && a.body != doc {
				t.Errorf("%s: %q", ref, a.body)
			}
		}
	}
	t.Run("byte by byte", func(t *testing.T) {
		for _, c := range []struct{ contentType, doc string }{
			{dockerType, "{\n   \"schemaVersion\": 2,\n   \"mediaType\": \"" + dockerType + "\",\n   \"config\": " + desc("application/x", "config") + ",\n   \"layers\": []\n}"},
			{indexType, `{"schemaVersion":2,"manifests":[` + desc(imageType, doc) + `]}  `},
			{"application/vnd.docker.distribution.manifest.list.v2+json", `{"manifests":[],"schemaVersion":2}`},
			{"application/vnd.example.thing+json", `{"thing":[1,2.50,"é"]}`},
			{imageType, image(`,"artifactType":"application/x","unknown":{"a":1}`, "config")},
		} {
			a := w.want(201, "", "PUT", "/v2/a/manifests/byte", c.doc, "Content-Type: "+c.contentType)
			w.header(a, "Docker-Content-Digest", sum(c.doc))
			a = w.want(200, "", "GET", "/v2/a/manifests/byte", "")
			w.header(a, "Content-Type", c.contentType)
			if a.body != c.doc {
				t.Errorf("%s came back as %q", c.doc, a.body)
			}
		}
	})
	t.Run("refused", func(t *testing.T) {
		for _, c := range []struct{ ref, doc, contentType, code string }{
			{"x", "", imageType, "MANIFEST_INVALID"},
			{"x", "[]", imageType, "MANIFEST_INVALID"},
			{"x", `{"schemaVersion":2`, imageType, "MANIFEST_INVALID"},
			{"x", doc, indexType, "MANIFEST_INVALID"},
			{sum("other"), doc, imageType, "DIGEST_INVALID"},
			{"sha256:bad", doc, imageType, "DIGEST_INVALID"},
			{strings.Repeat("a", 129), doc, imageType, "TAG_INVALID"},
			{".x", doc, imageType, "TAG_INVALID"},
			{"x?tag=-bad", doc, imageType, "TAG_INVALID"},
		} {
			w.want(400, c.code, "PUT", "/v2/a/manifests/"+c.ref, c.doc, "Content-Type: "+c.contentType)
		}
		for _, doc := range []string{image("", "config", "absent"), `{"schemaVersion":2,"mediaType":"` + indexType + `","manifests":[` + desc(imageType, "absent") + `]}`} {
			a := w.want(404, "MANIFEST_BLOB_UNKNOWN", "PUT", "/v2/a/manifests/x", doc)
			if !strings.Contains(a.body, sum("absent")) {
				t.Errorf("does not name what is missing: %s", a.body)
			}
		}
		w.want(404, "MANIFEST_BLOB_UNKNOWN", "PUT", "/v2/other/manifests/x", doc) // the blobs are in another repository
		w.want(404, "MANIFEST_UNKNOWN", "GET", "/v2/a/manifests/x", "")
		big := image(`,"annotations":{"x":"`+strings.Repeat("x", content.MaxManifest)+`"}`, "config")
		w.want(413, "SIZE_INVALID", "PUT", "/v2/a/manifests/x", big)
		w.check(w.send("PUT", "/v2/a/manifests/x", io.MultiReader(strings.NewReader(big))), 413, "SIZE_INVALID", "PUT without a length")
		large := image(`,"annotations":{"x":"`+strings.Repeat("x", 4<<20)+`"}`, "config")
		w.put("a", "large", large)
	})
	t.Run("unknown", func(*testing.T) {
		for _, ref := range []string{"none", sum("none"), ".bad", "sha256:bad"} {
			w.want(404, "MANIFEST_UNKNOWN", "GET", "/v2/a/manifests/"+ref, "")
			w.want(404, "", "HEAD", "/v2/a/manifests/"+ref, "")
		}
		w.want(404, "NAME_UNKNOWN", "GET", "/v2/nowhere/manifests/latest", "")
	})
	t.Run("tags", func(t *testing.T) {
		a := w.want(201, "", "PUT", "/v2/a/manifests/"+sum(doc)+"?tag=1.2.3&tag=1.2&tag=1", doc)
		if got := a.Header.Values("OCI-Tag"); !slices.Equal(got, []string{"1.2.3", "1.2", "1"}) {
			t.Errorf("OCI-Tag: %v", got)
		}
		for _, tag := range []string{"1.2.3", "1.2", "1"} {
			w.header(w.want(200, "", "HEAD", "/v2/a/manifests/"+tag, ""), "Docker-Content-Digest", sum(doc))
		}
		w.want(414, "TAG_INVALID", "PUT", "/v2/a/manifests/"+sum(doc)+"?x"+strings.Repeat("&tag=t", 101), doc)
		d := string(content.SHA512.Of([]byte(doc)))
		w.header(w.want(201, "", "PUT", "/v2/a/manifests/"+d+"?tag=long", doc), "Docker-Content-Digest", d)
		w.header(w.want(200, "", "GET", "/v2/a/manifests/long", ""), "Docker-Content-Digest", d)
	})
	t.Run("conditions", func(*testing.T) {
		other := image(`,"artifactType":"application/other"`, "config")
		put := func(status int, doc string, header string) {
			t.Helper()
			w.want(status, "DENIED", "PUT", "/v2/a/manifests/guarded", doc, header)
		}
		put(412, doc, `If-Match: "`+sum(doc)+`"`)
		put(412, doc, `If-Match: *`)
		put(201, doc, `If-None-Match: *`)
		put(412, other, `If-None-Match: *`)
		put(412, other, `If-Match: "`+sum(other)+`"`)
		put(201, other, `If-Match: "x", "`+sum(doc)+`"`)
		w.want(400, "UNSUPPORTED", "PUT", "/v2/a/manifests/guarded", doc, `If-None-Match: "`+sum(doc)+`"`)
		w.want(412, "DENIED", "DELETE", "/v2/a/manifests/guarded", "", `If-Match: "`+sum(doc)+`"`)
		w.want(202, "", "DELETE", "/v2/a/manifests/guarded", "", `If-Match: "`+sum(other)+`"`)
		w.want(412, "DENIED", "GET", "/v2/a/manifests/v1", "", `If-Match: "x"`)
	})
}

func TestDelete(t *testing.T) {
	w := newWorld(t)
	w.push("a", "config", "layer")
	one, two := image("", "config"), image("", "config", "layer")
	w.put("a", "x", one)
	w.put("a", "y", one)
	w.put("a", "z", two)
	w.want(202, "", "DELETE", "/v2/a/manifests/x", "")
	w.want(404, "MANIFEST_UNKNOWN", "GET", "/v2/a/manifests/x", "")
	w.want(404, "MANIFEST_UNKNOWN", "DELETE", "/v2/a/manifests/x", "")
	w.want(200, "", "GET", "/v2/a/manifests/"+sum(one), "")
	w.want(202, "", "DELETE", "/v2/a/manifests/"+sum(one), "")
	w.want(404, "MANIFEST_UNKNOWN", "GET", "/v2/a/manifests/y", "")
	w.want(202, "", "DELETE", "/v2/a/manifests/"+sum(two), "")
	w.want(404, "NAME_UNKNOWN", "GET", "/v2/a/tags/list", "")
	if a := w.want(200, "", "GET", "/v2/_catalog", ""); a.body != `{"repositories":[]}`+"\n" {
		t.Errorf("catalogue: %s", a.body)
	}
	w.put("a", "x", one)
	w.put("a", "y", two)
	w.want(202, "", "DELETE", "/v2/a/_ply/repository", "")
	w.want(404, "NAME_UNKNOWN", "DELETE", "/v2/a/_ply/repository", "")
	w.want(404, "BLOB_UNKNOWN", "GET", "/v2/a/blobs/"+sum("config"), "")
	w.want(404, "NAME_UNKNOWN", "GET", "/v2/a/manifests/x", "")

	off := newWorld(t, func(o *api.Options) { o.NoDelete = true })
	off.push("a", "config")
	off.put("a", "x", one)
	for _, path := range []string{"manifests/x", "manifests/" + sum(one), "blobs/" + sum("config"), "_ply/repository"} {
		off.want(405, "UNSUPPORTED", "DELETE", "/v2/a/"+path, "")
	}
	off.want(200, "", "GET", "/v2/a/manifests/x", "")
	readOnly := newWorld(t, func(o *api.Options) { o.ReadOnly = true })
	readOnly.want(405, "UNSUPPORTED", "POST", "/v2/a/blobs/uploads/", "")
	readOnly.want(405, "UNSUPPORTED", "PUT", "/v2/a/manifests/x", one)
	readOnly.want(200, "", "GET", "/v2/_catalog", "")
}

func TestLists(t *testing.T) {
	w := newWorld(t)
	if a := w.want(200, "", "GET", "/v2/_catalog", ""); a.body != "{\"repositories\":[]}\n" {
		t.Errorf("an empty catalogue: %q", a.body)
	}
	w.push("mhk/ubuntu", "config")
	w.put("mhk/ubuntu", "1.3", image("", "config"))
	if a := w.want(200, "", "GET", "/v2/_catalog", ""); a.body != "{\"repositories\":[\"mhk/ubuntu\"]}\n" {
		t.Errorf("catalogue: %q", a.body)
	}
	var want []string
	for i := range 11 {
		tag := fmt.Sprintf("t%02d", i)
		want = append(want, tag)
	}
	want = append(want, "A", "_", "a.b")
	w.want(201, "", "PUT", "/v2/mhk/ubuntu/manifests/"+sum(image("", "config"))+"?tag="+strings.Join(want, "&tag="), image("", "config"))
	want = append(want, "1.3")
	slices.Sort(want)
	var got []string
	pages := 0
	for path := "/v2/mhk/ubuntu/tags/list?n=4"; path != ""; pages++ {
		a := w.want(200, "", "GET", path, "")
		var list struct{ Tags []string }
		if err := json.Unmarshal([]byte(a.body), &list); err != nil {
			t.Fatal(err)
		}
		got = append(got, list.Tags...)
		path = ""
		if l := a.Header.Get("Link"); l != "" {
			path = strings.TrimSuffix(strings.TrimPrefix(l, "<"), `>; rel="next"`)
		}
	}
	if !slices.Equal(got, want) || pages != 4 {
		t.Errorf("%d pages: %v, want %v", pages, got, want)
	}
	a := w.want(200, "", "GET", "/v2/mhk/ubuntu/tags/list?n=0", "")
	if a.body != `{"name":"mhk/ubuntu","tags":[]}`+"\n" || a.Header.Get("Link") != "" {
		t.Errorf("n=0: %q %v", a.body, a.Header)
	}
	if a := w.want(200, "", "GET", "/v2/mhk/ubuntu/tags/list?last=t09&n=100", ""); !strings.Contains(a.body, `["t10"]`) || a.Header.Get("Link") != "" {
		t.Errorf("behind t09: %q", a.body)
	}
	for _, n := range []string{"-1", "x", "1e3", "99999999999999999999"} {
		w.want(400, "PAGINATION_NUMBER_INVALID", "GET", "/v2/mhk/ubuntu/tags/list?n="+n, "")
		w.want(400, "PAGINATION_NUMBER_INVALID", "GET", "/v2/_catalog?n="+n, "")
	}
	for _, last := range []string{"%00", "..%2f..", "%ff", strings.Repeat("x", 5000)} {
		w.want(200, "", "GET", "/v2/mhk/ubuntu/tags/list?last="+last, "")
		w.want(200, "", "GET", "/v2/_catalog?last="+last, "")
	}
	w.want(404, "NAME_UNKNOWN", "GET", "/v2/nowhere/tags/list", "")
	w.push("b", "config")
	w.put("b", "x", image("", "config"))
	a = w.want(200, "", "GET", "/v2/_catalog?n=1", "")
	w.header(a, "Link", `</v2/_catalog?last=b&n=1>; rel="next"`)
	if a := w.want(200, "", "GET", "/v2/_catalog?last=b&n=1", ""); a.body != "{\"repositories\":[\"mhk/ubuntu\"]}\n" || a.Header.Get("Link") != "" {
		t.Errorf("the last page: %q %v", a.body, a.Header)
	}
}

func TestReferrers(t *testing.T) {
	w := newWorld(t)
	list := func(query string) (digests []string, a answer) {
		t.Helper()
		a = w.want(200, "", "GET", "/v2/a/referrers/"+query, "")
		w.header(a, "Content-Type", indexType)
		var i struct {
			SchemaVersion int
			MediaType     string
			Manifests     []struct {
				Digest, ArtifactType, MediaType string
				Size                            int
				Annotations                     map[string]string
			}
		}
		if err := json.Unmarshal([]byte(a.body), &i); err != nil || i.SchemaVersion != 2 || i.MediaType != indexType || i.Manifests == nil {
			t.Errorf("%s: %q, %v", query, a.body, err)
		}
		for _, m := range i.Manifests {
			digests = append(digests, m.Digest+" "+m.ArtifactType+" "+m.Annotations["k"])
		}
		slices.Sort(digests)
		return digests, a
	}
	if l, _ := list(sum("nothing")); len(l) != 0 {
		t.Errorf("of nothing: %v", l)
	}
	w.want(400, "DIGEST_INVALID", "GET", "/v2/a/referrers/bad", "")
	w.push("a", "config", "layer")
	subject := image("", "config")
	about := `,"subject":` + desc(imageType, subject) + `,"annotations":{"k":"v"}`
	byConfig := image(about, "config", "layer")
	byType := image(about+`,"artifactType":"application/sbom"`, "config")
	index := `{"schemaVersion":2,"mediaType":"` + indexType + `","manifests":[]` + about + `}`
	// Referrers may come before their subject.
	w.header(w.put("a", sum(byConfig), byConfig), "OCI-Subject", sum(subject))
	w.put("a", "subject", subject)
	w.header(w.put("a", "tagged", byType), "OCI-Subject", sum(subject))
	w.header(w.want(201, "", "PUT", "/v2/a/manifests/"+sum(index), index), "OCI-Subject", sum(subject))
	want := []string{sum(byConfig) + " application/vnd.oci.image.config.v1+json v", sum(byType) + " application/sbom v", sum(index) + "  v"}
	slices.Sort(want)
	l, a := list(sum(subject))
	if !slices.Equal(l, want) || a.Header.Get("OCI-Filters-Applied") != "" {
		t.Errorf("referrers = %v, want %v", l, want)
	}
	l, a = list(sum(subject) + "?artifactType=application/sbom")
	if len(l) != 1 || a.Header.Get("OCI-Filters-Applied") != "artifactType" {
		t.Errorf("filtered: %v %v", l, a.Header)
	}
	if l, _ := list(sum(subject) + "?artifactType=application/none"); len(l) != 0 {
		t.Errorf("filtered to nothing: %v", l)
	}
	// What a client keeps under a fallback tag changes nothing about the list.
	fallback := `{"schemaVersion":2,"mediaType":"` + indexType + `","manifests":[` + desc(imageType, byConfig) + `]}`
	w.want(201, "", "PUT", "/v2/a/manifests/"+string(content.FallbackTag(content.Digest(sum(subject)))), fallback)
	if l, _ := list(sum(subject)); !slices.Equal(l, want) {
		t.Errorf("with a fallback tag: %v", l)
	}
	w.want(202, "", "DELETE", "/v2/a/manifests/"+sum(byConfig), "")
	if l, _ := list(sum(subject)); len(l) != 2 {
		t.Errorf("after a deletion: %v", l)
	}
}

// A list of referrers that is too large for a manifest comes in pages.
func TestReferrersInPages(t *testing.T) {
	w := newWorld(t)
	w.push("a", "config")
	want := map[string]bool{}
	for i := range 8 {
		doc := image(fmt.Sprintf(`,"subject":%s,"annotations":{"i":"%d","x":"%s"}`, desc(imageType, "subject"), i, strings.Repeat("x", 200_000)), "config")
		want[sum(doc)] = true
		w.put("a", sum(doc), doc)
	}
	pages := 0
	for path := "/v2/a/referrers/" + sum("subject"); path != ""; pages++ {
		a := w.want(200, "", "GET", path, "")
		if len(a.body) > 4<<20 {
			t.Errorf("a page of %d bytes", len(a.body))
		}
		var i struct{ Manifests []struct{ Digest string } }
		if err := json.Unmarshal([]byte(a.body), &i); err != nil {
			t.Fatal(err)
		}
		for _, m := range i.Manifests {
			if !want[m.Digest] {
				t.Errorf("%s twice, or not asked for", m.Digest)
			}
			delete(want, m.Digest)
		}
		path = ""
		if l := a.Header.Get("Link"); l != "" {
			path = strings.TrimSuffix(strings.TrimPrefix(l, "<"), `>; rel="next"`)
		}
	}
	if len(want) != 0 || pages < 2 {
		t.Errorf("%d pages, not listed: %v", pages, want)
	}
}

// received waits until an upload has a file of some bytes.
func (w *world) received(id string, size int64) {
	w.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		has := false
		_ = filepath.WalkDir(w.root, func(path string, _ fs.DirEntry, _ error) error { // files come and go
			fi, err := os.Stat(path)
			has = has || err == nil && strings.Contains(path, id) && fi.Mode().IsRegular() && fi.Size() >= size
			return nil
		})
		if has {
			return
		}
		if time.Now().After(deadline) {
			w.Fatalf("upload %s has not %d bytes", id, size)
		}
	}
}

// A client that goes away in the middle of a chunk can go on where the registry stopped.
func TestCutUpload(t *testing.T) {
	w := newWorld(t)
	data := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	l := w.want(202, "", "POST", "/v2/a/blobs/uploads/", "").Header.Get("Location")
	ctx, cancel := context.WithCancel(t.Context())
	pr, pw := io.Pipe()
	r, err := http.NewRequestWithContext(ctx, "PATCH", w.url+l, pr)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		resp, err := http.DefaultTransport.RoundTrip(r)
		if err == nil {
			resp.Body.Close()
			t.Error("a request that was cut off was answered")
		}
	}()
	if _, err := pw.Write(data[:len(data)/2]); err != nil {
		t.Fatal(err)
	}
	w.received(filepath.Base(l), 4096) // else the request could begin after those that follow
	cancel()
	pw.CloseWithError(context.Canceled) // the transport waits for the body
	<-done
	var end int
	a := w.want(204, "", "GET", l, "")
	if _, err := fmt.Sscanf(a.Header.Get("Range"), "0-%d", &end); err != nil || end >= len(data)/2 {
		t.Fatalf("Range is %q", a.Header.Get("Range"))
	}
	from := end + 1
	if end == 0 {
		from = 0
	}
	w.want(202, "", "PATCH", l, string(data[from:]), fmt.Sprintf("Content-Range: %d-%d", from, len(data)-1))
	w.want(201, "", "PUT", l+"?digest="+sum(string(data)), "")
	if got := w.want(200, "", "GET", "/v2/a/blobs/"+sum(string(data)), ""); got.body != string(data) {
		t.Error("the blob differs")
	}
}

// forgetful is a store whose uploads cannot be closed.
type forgetful struct{ blobs.Store }

type forgetfulUpload struct{ blobs.Upload }

func (f forgetful) Begin(ctx context.Context, s blobs.Session) (blobs.Upload, error) {
	u, err := f.Store.Begin(ctx, s)
	return forgetfulUpload{u}, err
}

func (f forgetful) Resume(ctx context.Context, id string) (blobs.Upload, error) {
	u, err := f.Store.Resume(ctx, id)
	return forgetfulUpload{u}, err
}

func (u forgetfulUpload) Close() error {
	return errors.Join(u.Upload.Close(), errs.New(errs.Unavailable, "the last bytes cannot be kept"))
}

// A client is not told that a chunk was received whose bytes another replica will not find.
func TestChunkThatIsNotKept(t *testing.T) {
	w := newWorld(t)
	l := w.want(202, "", "POST", "/v2/a/blobs/uploads/", "").Header.Get("Location")
	kept := w.repo.Blobs
	w.repo.Blobs = forgetful{kept}
	for _, headers := range [][]string{nil, {"Content-Range: 0-3"}} {
		a := w.want(503, "UNAVAILABLE", "PATCH", l, "data", headers...)
		for _, name := range []string{"Range", "Location"} {
			w.header(a, name, "")
		}
		if a.Header.Get("Retry-After") == "" {
			t.Error("it does not say when to come again")
		}
		w.repo.Blobs = kept
		w.want(204, "", "DELETE", l, "")
		l = w.want(202, "", "POST", "/v2/a/blobs/uploads/", "").Header.Get("Location")
		w.repo.Blobs = forgetful{kept}
	}
	w.want(503, "UNAVAILABLE", "POST", "/v2/a/blobs/uploads/", "")
}
