package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
)

// serve serves h on a socket and returns its address.
func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	sock := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(h)
	srv.Listener.Close()
	srv.Listener = l
	srv.Start()
	t.Cleanup(srv.Close)
	return "unix://" + sock
}

// The client speaks the version of the engine, at most its own newest, and refuses an engine that is too old.
func TestVersionIsNegotiated(t *testing.T) {
	for server, want := range map[string]string{"1.41": "/v1.41/info", "1.51": "/v1.51/info", "1.99": "/v1.51/info", "": "/v1.24/info", "1.9": "!"} {
		var asked string
		host := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if server != "" {
				w.Header().Set("Api-Version", server)
			}
			if r.URL.Path != "/_ping" {
				asked = r.URL.Path
			}
			io.WriteString(w, "{}")
		})
		c, err := New(Options{Host: host})
		if err != nil {
			t.Fatal(err)
		}
		err = c.Do(context.Background(), Request{Path: "/info"}, &struct{}{})
		if want == "!" {
			if err == nil || !strings.Contains(err.Error(), "too old") {
				t.Errorf("server %s: %v", server, err)
			}
			continue
		}
		if err != nil || asked != want {
			t.Errorf("server %q: asked %s, %v, want %s", server, asked, err, want)
		}
	}
}

// Errors of the engine keep their text, whatever the form of the answer, and an absent engine is recognised.
func TestErrors(t *testing.T) {
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.51")
		switch {
		case strings.HasSuffix(r.URL.Path, "/json"):
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(404)
			io.WriteString(w, `{"message":"No such container: x"}`)
		case strings.HasSuffix(r.URL.Path, "/text"):
			w.WriteHeader(500)
			io.WriteString(w, "plain trouble\n")
		case strings.HasSuffix(r.URL.Path, "/none"):
			w.WriteHeader(503)
		}
	})
	c, err := New(Options{Host: host})
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"/json": "Error response from daemon: No such container: x", "/text": "Error response from daemon: plain trouble",
		"/none": "Error response from daemon: request returned Service Unavailable for API route GET /v1.51/none",
	} {
		err := c.Do(context.Background(), Request{Path: path}, nil)
		if err == nil || err.Error() != want || IsNotFound(err) != (path == "/json") {
			t.Errorf("%s: %v, want %s", path, err, want)
		}
	}
	c, err = New(Options{Host: "unix://" + filepath.Join(t.TempDir(), "none")})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Ping(context.Background())
	var ce *ConnectError
	if !errors.As(err, &ce) || !ce.Absent() || !strings.HasPrefix(err.Error(), "Cannot connect to the ply daemon at unix://") {
		t.Errorf("absent socket: %v", err)
	}
}

// Values of -H get their default ports, and what is not supported is refused.
func TestHosts(t *testing.T) {
	for in, want := range map[string]string{
		"unix:///a": "unix /a", "tcp://h:1": "tcp h:1", "tcp://h": "tcp h:2375", "https://h/": "tcp h:2376", "tcp://[::1]": "tcp [::1]:2375",
		"tcp://": "tcp 127.0.0.1:2375", "unix://": "!", "ssh://a": "ssh ssh://a", "a": "!", "tcp://h/p": "!",
	} {
		n, a, err := SplitHost(in)
		if (err != nil) != (want == "!") || err == nil && n+" "+a != want {
			t.Errorf("SplitHost(%q) = %s %s %v, want %s", in, n, a, err, want)
		}
	}
}

// Demux separates the streams, and a stream that is cut or malformed is an error.
func TestDemux(t *testing.T) {
	frame := func(stream byte, size int, s string) string {
		return string([]byte{stream, 0, 0, 0, byte(size >> 24), byte(size >> 16), byte(size >> 8), byte(size)}) + s
	}
	var out, errw bytes.Buffer
	if err := Demux(&out, &errw, strings.NewReader(frame(1, 2, "ab")+frame(2, 1, "e")+frame(1, 0, "")+frame(1, 1, "c"))); err != nil || out.String() != "abc" || errw.String() != "e" {
		t.Errorf("%q %q %v", out.String(), errw.String(), err)
	}
	for name, in := range map[string]string{"cut header": "\x01\x00", "cut body": frame(1, 5, "ab"), "unknown": frame(9, 1, "x"), "engine error": frame(3, 4, "oops"), "huge": frame(1, 1<<31, "x")} {
		if err := Demux(io.Discard, io.Discard, strings.NewReader(in)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// Requests and hijacked connections work over TLS, and an unknown authority is refused.
func TestTLS(t *testing.T) {
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.51")
		if strings.HasSuffix(r.URL.Path, "/attach") {
			conn, rw, _ := w.(http.Hijacker).Hijack()
			defer conn.Close()
			io.WriteString(conn, "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
			b, _ := io.ReadAll(rw)
			conn.Write(bytes.ToUpper(b))
			return
		}
		io.WriteString(w, `{"ID":"x"}`)
	}))
	defer srv.Close()
	pool := x509.NewCertPool()
	pool.AddCert(srv.Certificate())
	host := "tcp://" + srv.Listener.Addr().String()
	c, err := New(Options{Host: host, TLS: &tls.Config{RootCAs: pool}})
	if err != nil {
		t.Fatal(err)
	}
	var out struct{ ID string }
	if err := c.Do(context.Background(), Request{Path: "/info"}, &out); err != nil || out.ID != "x" {
		t.Fatal(out, err)
	}
	conn, err := c.Hijack(context.Background(), Request{Path: "/attach"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "over tls")
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(conn); string(b) != "OVER TLS" {
		t.Errorf("%q %v", b, err)
	}
	c, _ = New(Options{Host: host, TLS: &tls.Config{}})
	if _, err := c.Ping(context.Background()); err == nil {
		t.Error("an unknown authority was trusted")
	}
}

// The trace shows the source of an import without user name and password.
func TestTraceHidesCredentials(t *testing.T) {
	var asked string
	host := serve(t, func(w http.ResponseWriter, r *http.Request) { asked = r.URL.Query().Get("fromSrc") })
	for from, want := range map[string]string{
		"http://host/a.tar":             "http%3A%2F%2Fhost%2Fa.tar",
		"http://user:secret@host/a.tar": "http%3A%2F%2Fhost%2Fa.tar",
		"http://user:%zz@host/a.tar":    "%E2%80%A6",
		"http://host/a.tar?sig=secret":  "http%3A%2F%2Fhost%2Fa.tar",
	} {
		var trace strings.Builder
		c, err := New(Options{Host: host, Trace: func(s string) { trace.WriteString(s) }})
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.Open(t.Context(), Request{Method: "POST", Path: "/images/create", Query: url.Values{"fromSrc": {from}}})
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if asked != from || !strings.Contains(trace.String(), "/images/create?fromSrc="+want+":") {
			t.Errorf("%s: asked %s, trace %s", from, asked, &trace)
		}
	}
}
