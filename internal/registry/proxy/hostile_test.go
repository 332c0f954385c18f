package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"ply/internal/errs"
	"ply/internal/registry/content"
	"ply/internal/registry/remote"
)

// An upstream sends wrong bytes, too many, too few, or no end. No client gets a whole body, nothing is kept, and the next try succeeds.
func TestHostileBlobs(t *testing.T) {
	layer := random(2<<20 + 5)
	wrong := append(bytes.Clone(layer[:len(layer)-1]), layer[len(layer)-1]^1)
	path := "/v2/a/blobs/" + sum(layer)
	send := func(b []byte, announce bool) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != path {
				return false
			}
			if announce {
				w.Header().Set("Content-Length", strconv.Itoa(len(b)))
			}
			_, _ = w.Write(b[:len(b)/2])
			_ = http.NewResponseController(w).Flush()
			_, _ = w.Write(b[len(b)/2:])
			return true
		}
	}
	for _, hidden := range []bool{false, true} {
		for name, c := range map[string]struct {
			answer func(http.ResponseWriter, *http.Request) bool
			good   bool
		}{
			"wrong last byte":            {send(wrong, true), false},
			"wrong last byte, unlimited": {send(wrong, false), false},
			"announces more":             {send(append(bytes.Clone(layer), 1), true), false},
			"sends more":                 {send(append(bytes.Clone(layer), 1), false), false},
			"announces less":             {send(layer[:1<<20], true), false},
			"sends less":                 {send(layer[:1<<20], false), false},
			"endless": {func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path != path {
					return false
				}
				for {
					if _, err := w.Write(layer); err != nil {
						return true
					}
				}
			}, false},
			"nothing wrong":    {send(layer, true), true},
			"without a length": {send(layer, false), true},
		} {
			t.Run(fmt.Sprint(name, " ", hidden), func(t *testing.T) {
				f := newFake(t)
				d := f.push("a", "v1", layer)
				w := newWorld(t, f, func(o *Options) {
					if hidden {
						o.Repositories.Blobs = opaque{o.Repositories.Blobs}
					}
				})
				w.ok(w.tagged("up/a", "v1", d))
				f.set(c.answer)
				r, size, err := w.OpenBlob(t.Context(), "up/a", content.Digest(sum(layer)))
				var got []byte
				if err == nil {
					got, err = io.ReadAll(r)
					w.ok(r.Close())
				}
				if c.good {
					if err != nil || !bytes.Equal(got, layer) {
						t.Errorf("%d bytes, %v", len(got), err)
					}
					return
				}
				if err == nil || len(got) > 0 && int64(len(got)) >= size {
					t.Errorf("the client got %d bytes of %d, %v", len(got), size, err)
				}
				w.quiet()
				if !w.empty() {
					t.Error("something was kept")
				}
				if w.Size() > 1000 { // the manifest
					t.Errorf("counts %d bytes", w.Size())
				}
				f.set(nil)
				w.ok(w.blob("up/a", layer))
			})
		}
	}
}

// quiet waits until no download runs.
func (w *world) quiet() {
	w.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		w.Proxy.mu.Lock()
		n := len(w.downloads)
		w.Proxy.mu.Unlock()
		if n == 0 {
			return
		}
		if time.Now().After(deadline) {
			w.Fatal("a download does not end")
		}
	}
}

func TestHostileManifests(t *testing.T) {
	f := newFake(t)
	d := f.push("a", "v1", random(10))
	other := f.push("a", "v2", random(10))
	w := newWorld(t, f)
	for name, answer := range map[string]func(http.ResponseWriter, *http.Request){
		"another digest": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Docker-Content-Digest", string(d))
			_, _ = w.Write(f.manifests["a@"+string(other)])
		},
		"too long": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(bytes.Repeat([]byte(" "), content.MaxManifest+1))
		},
		"no manifest": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) },
		"schema 1": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"schemaVersion":1,"fsLayers":[]}`))
		},
		"a range": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(206) },
	} {
		f.set(func(w http.ResponseWriter, r *http.Request) bool { answer(w, r); return true })
		if _, _, err := w.Manifest(t.Context(), "up/a", d, ""); err == nil || errors.Is(err, errs.NotFound) {
			t.Errorf("%s by digest: %v", name, err)
		}
		if err := w.tagged("up/a", "v1", d); err == nil {
			t.Errorf("%s by tag was accepted", name)
		}
	}
	f.set(nil)
	w.ok(w.tagged("up/a", "v1", d))
}

// Credentials stay at the upstream and at a token server that it may name; redirects do not lead into private places.
func TestHostileRedirects(t *testing.T) {
	layer := random(1 << 10)
	var elsewhere *fake
	for name, c := range map[string]struct {
		location func() string
		good     bool
	}{
		"metadata service": {func() string { return "http://169.254.169.254/latest/meta-data/" }, false},
		"metadata by name": {func() string { return "http://metadata.test/" }, false},
		"link-local":       {func() string { return "http://[fe80::1]/" }, false},
		"another scheme":   {func() string { return "file:///etc/passwd" }, false},
		"no location":      {func() string { return "" }, false},
		"itself":           {func() string { return "" }, false},
		"another host":     {func() string { return elsewhere.URL + "/v2/a/blobs/" + sum(layer) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			elsewhere = newFake(t)
			elsewhere.push("a", "v1", layer)
			f.push("a", "v1", layer)
			tried := false
			w := newWorld(t, f, func(o *Options) {
				o.Upstreams[0].Registry = newRemote(t, remote.Options{
					URL: f.URL, Credentials: remote.Credentials{Username: "me", Password: "secret"},
					Lookup: func(context.Context, string) ([]netip.Addr, error) {
						return []netip.Addr{netip.MustParseAddr("169.254.169.254")}, nil
					},
					Connect: func(ctx context.Context, network, addr string) (net.Conn, error) {
						tried = tried || !strings.HasPrefix(addr, "127.0.0.1:")
						var d net.Dialer
						return d.DialContext(ctx, network, addr)
					},
				})
			})
			f.set(func(rw http.ResponseWriter, r *http.Request) bool {
				if _, _, ok := r.BasicAuth(); !ok {
					rw.Header().Set("WWW-Authenticate", `Basic realm="x"`)
					rw.WriteHeader(401)
					return true
				}
				to := c.location()
				if name == "itself" {
					to = r.URL.String()
				}
				rw.Header().Set("Location", to)
				rw.WriteHeader(307)
				return true
			})
			err := w.blob("up/a", layer)
			if (err == nil) != c.good || tried {
				t.Errorf("%v, connected elsewhere: %v", err, tried)
			}
			for _, h := range elsewhere.headers {
				if h.Get("Authorization") != "" {
					t.Error("credentials followed a redirect")
				}
			}
			if c.good && len(elsewhere.headers) == 0 {
				t.Error("the redirect was not followed")
			}
		})
	}
}

// The upstream wants a token; its server may be at its own host, and at no other one.
func TestTokens(t *testing.T) {
	f := newFake(t)
	foreign := newFake(t)
	d := f.push("a", "v1", random(10))
	f.push("b", "v1", random(20))
	issued := 0
	realm := f.URL + "/token"
	f.set(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			user, password, _ := r.BasicAuth()
			if user != "me" || password != "secret" || r.FormValue("service") != "s" {
				w.WriteHeader(401)
				return true
			}
			issued++
			fmt.Fprintf(w, `{"token":"token-of-%s","expires_in":300}`, r.FormValue("scope"))
			return true
		}
		name, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/")
		if r.Header.Get("Authorization") == "Bearer token-of-repository:"+name+":pull" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+realm+`",service="s",scope="repository:other:pull,push"`)
		w.WriteHeader(401)
		return true
	})
	proxy := func(c remote.Credentials) *world {
		return newWorld(t, f, func(o *Options) {
			o.Upstreams[0].Registry = newRemote(t, remote.Options{URL: f.URL, Credentials: c})
			o.Fresh = 0
		})
	}
	w := proxy(remote.Credentials{Username: "me", Password: "secret"})
	for range 3 {
		w.ok(w.tagged("up/a", "v1", d))
	}
	if issued != 1 {
		t.Errorf("%d tokens for one repository", issued)
	}
	_, _, err := w.Manifest(t.Context(), "up/b", "", "v1")
	w.ok(err)
	if issued != 2 {
		t.Errorf("%d tokens for two repositories", issued)
	}
	w = proxy(remote.Credentials{Username: "me", Password: "wrong"})
	w.fails(w.tagged("up/a", "v1", d), errs.NotFound, "wrong credentials")
	realm = strings.Replace(foreign.URL, "127.0.0.1", "localhost", 1) + "/token"
	w = proxy(remote.Credentials{Username: "me", Password: "secret"})
	if err := w.tagged("up/a", "v1", d); err == nil || len(foreign.requests()) != 0 {
		t.Errorf("a token server of another domain: %v", err)
	}
}
