package server

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"ply/internal/registry/content"
)

// start serves a root until the test ends, or until the returned function is called.
func start(t testing.TB, o Options) (s *Server, url string, stop func()) {
	t.Helper()
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		if err := errors.Join(s.http.Close(), <-served, s.Close()); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return s, "http://" + l.Addr().String(), stop
}

// client is a client of the registry that reports what it did not expect.
type client struct {
	url  string
	http *http.Client
	more []string // further replicas, any of which a request may reach
}

func newClient(url string, more ...string) *client {
	return &client{more: more, url: url, http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}, Timeout: 2 * time.Minute}}
}

type reply struct {
	status int
	header http.Header
	body   []byte
}

func (c *client) do(method, path string, body []byte, header ...string) (reply, error) {
	url := c.url
	if n := mathrand.IntN(len(c.more) + 1); n > 0 {
		url = c.more[n-1]
	}
	r, err := http.NewRequest(method, url+path, bytes.NewReader(body)) //nolint:noctx // the client has a timeout
	if err != nil {
		return reply{}, err
	}
	for _, h := range header {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Set(name, value)
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, b}, err
}

// want makes a request and returns an error unless the status is one of those given.
func (c *client) want(method, path string, body []byte, header []string, statuses ...int) (reply, error) {
	r, err := c.do(method, path, body, header...)
	if err != nil {
		return r, err
	}
	for _, s := range statuses {
		if r.status == s {
			return r, nil
		}
	}
	return r, fmt.Errorf("%s %s: status %d: %s", method, path, r.status, r.body)
}

// blob pushes a blob as clients do: it asks first, and then uploads it in one of the ways there are.
func (c *client) blob(repo string, data []byte) error {
	d := string(content.SHA256.Of(data))
	r, err := c.want("HEAD", "/v2/"+repo+"/blobs/"+d, nil, nil, 200, 404)
	if err != nil || r.status == 200 {
		return err
	}
	way := mathrand.IntN(4)
	switch way {
	case 0:
		_, err := c.want("POST", "/v2/"+repo+"/blobs/uploads/?digest="+d, data, nil, 201)
		return err
	case 1:
		r, err := c.want("POST", "/v2/"+repo+"/blobs/uploads/?mount="+d, nil, nil, 201, 202)
		if err != nil || r.status == 201 {
			return err
		}
		_, err = c.want("PUT", r.header.Get("Location")+"?digest="+d, data, nil, 201)
		return err
	}
	r, err = c.want("POST", "/v2/"+repo+"/blobs/uploads/", nil, nil, 202)
	if err != nil {
		return err
	}
	location := r.header.Get("Location")
	if way == 3 {
		half := len(data) / 2
		if _, err := c.want("PATCH", location, data[:half], []string{fmt.Sprintf("Content-Range: 0-%d", half-1)}, 202); err != nil {
			return err
		}
		data = data[half:]
	}
	if _, err := c.want("PATCH", location, data, nil, 202); err != nil {
		return err
	}
	_, err = c.want("PUT", location+"?digest="+d, nil, nil, 201)
	return err
}

func describe(mediaType string, data []byte) string {
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, mediaType, content.SHA256.Of(data), len(data))
}

// image pushes an image with these layers and returns its manifest.
func (c *client) image(repo, tag, more string, layers ...[]byte) (string, error) {
	list := make([]string, len(layers))
	for i, l := range layers {
		if err := c.blob(repo, l); err != nil {
			return "", err
		}
		list[i] = describe("application/vnd.oci.image.layer.v1.tar", l)
	}
	doc := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":` + list[0] + `,"layers":[` + strings.Join(list[1:], ",") + `]` + more + `}`
	_, err := c.want("PUT", "/v2/"+repo+"/manifests/"+tag, []byte(doc), nil, 201)
	return doc, err
}

// pull reads a manifest and everything below it, and checks every byte.
func (c *client) pull(repo, ref string) (string, error) {
	r, err := c.want("GET", "/v2/"+repo+"/manifests/"+ref, nil, nil, 200)
	if err != nil {
		return "", err
	}
	if d := string(content.SHA256.Of(r.body)); r.header.Get("Docker-Content-Digest") != d {
		return "", fmt.Errorf("manifest %s:%s is %s, said to be %s", repo, ref, d, r.header.Get("Docker-Content-Digest"))
	}
	var doc struct {
		Config    *struct{ Digest string }
		Layers    []struct{ Digest string }
		Manifests []struct{ Digest string }
	}
	if err := json.Unmarshal(r.body, &doc); err != nil {
		return "", err
	}
	for _, m := range doc.Manifests {
		if _, err := c.pull(repo, m.Digest); err != nil {
			return "", err
		}
	}
	if doc.Config != nil {
		doc.Layers = append(doc.Layers, *doc.Config)
	}
	for _, l := range doc.Layers {
		b, err := c.want("GET", "/v2/"+repo+"/blobs/"+l.Digest, nil, nil, 200)
		if err != nil {
			return "", fmt.Errorf("%s:%s: %w", repo, ref, err)
		}
		if d := string(content.SHA256.Of(b.body)); d != l.Digest {
			return "", fmt.Errorf("%s:%s: blob %s has the content of %s", repo, ref, l.Digest, d)
		}
	}
	return string(r.body), nil
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

// eventually waits until check succeeds.
func eventually(t *testing.T, check func() error) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}
