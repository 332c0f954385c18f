package docker

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// reuser is a client that keeps one connection. It counts how often it had to make another, and how many answers said that they
// are the last of their connection.
type reuser struct {
	http.Client
	dials, lasts atomic.Int32
}

// check fails the test if a connection broke, which shows as a connection that no answer announced.
func (c *reuser) check(t *testing.T, what string) {
	t.Helper()
	if dials, want := c.dials.Load(), c.lasts.Load()+1; dials > want {
		t.Errorf("%s: %d connections, want %d", what, dials, want)
	}
}

func newReuser(t *testing.T, sock string) *reuser {
	c := &reuser{}
	transport := &http.Transport{MaxConnsPerHost: 1, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		c.dials.Add(1)
		return (&net.Dialer{}).DialContext(ctx, "unix", sock)
	}}
	c.Transport = transport
	t.Cleanup(transport.CloseIdleConnections)
	return c
}

// send sends a request and reads the whole answer.
func (c *reuser) send(t *testing.T, method, path string, body io.Reader, header http.Header) (status int, answer string, err error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://engine"+path, body)
	if err != nil {
		t.Fatal(err)
	}
	r.Header = header.Clone()
	resp, err := c.Do(r)
	if err != nil {
		return 0, "", err
	}
	if resp.Close {
		c.lasts.Add(1)
	}
	b, err := io.ReadAll(resp.Body)
	if cerr := resp.Body.Close(); err == nil {
		err = cerr
	}
	return resp.StatusCode, string(b), err
}

// logged collects what net/http logs.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// chunked hides the length of a body, so that it is sent in chunks.
type chunked struct{ io.Reader }

// A body that a handler does not read, or of which it reads a part, leaves the connection usable, on every route.
func TestConnectionsAreReusedAfterUnreadBodies(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	log := &logged{}
	sock := w.serveWith(t, slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	bodies := []struct {
		name string
		body func() io.Reader
	}{
		{"an empty object", func() io.Reader { return strings.NewReader("{}") }},
		{"chunks", func() io.Reader { return chunked{strings.NewReader("{}")} }},
		{"100 KiB", func() io.Reader { return strings.NewReader(strings.Repeat("x", 100<<10)) }},
		{"100 KiB in chunks", func() io.Reader { return chunked{strings.NewReader(strings.Repeat("x", 100<<10))} }},
	}
	queries := map[string]string{"/images/create": "?fromImage=busybox&tag=latest", "/commit": "?container=web", "/images/load": "?quiet=1"}
	header := http.Header{"Content-Type": {"application/json"}, authHeader: {"e30="}}
	for _, rt := range w.api.routes {
		if rt.method != post && rt.method != put && rt.method != remove {
			continue
		}
		switch rt.pattern {
		case "/containers/{id}/attach", "/exec/{id}/start", "/session", "/grpc":
			continue // they take the connection over
		}
		path := strings.NewReplacer("{id}", "web", "{name...}", "busybox", "{name}", "data").Replace(rt.pattern)
		path = "/v1.51" + path + queries[rt.pattern]
		for _, b := range bodies {
			c := newReuser(t, sock)
			for range 3 {
				if _, _, err := c.send(t, rt.method, path, b.body(), header); err != nil {
					t.Errorf("%s %s with %s: %v", rt.method, path, b.name, err)
				}
				if status, _, err := c.send(t, get, "/_ping", nil, nil); err != nil || status != http.StatusOK {
					t.Errorf("%s %s with %s: the next request: %d, %v", rt.method, path, b.name, status, err)
				}
			}
			c.check(t, fmt.Sprintf("%s %s with %s", rt.method, path, b.name))
			if lasts := c.lasts.Load(); lasts > 0 && rt.pattern != "/images/load" {
				t.Errorf("%s %s with %s ends its connection", rt.method, path, b.name)
			}
			c.CloseIdleConnections()
		}
	}
	if text := log.String(); strings.Contains(text, "panic") {
		t.Errorf("the server panicked:\n%.2000s", text)
	}
}

// 250 pulls, pushes, loads and imports, each with a request after it, meet no broken connection.
func TestManyTransfersBreakNoConnection(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	log := &logged{}
	c := newReuser(t, w.serveWith(t, slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))))
	header := http.Header{"Content-Type": {"application/json"}, authHeader: {"e30="}}
	for range 50 {
		for _, call := range []struct{ path, body, want string }{
			{"/images/create?fromImage=busybox&tag=latest", "{}", "Pull complete"},
			{"/images/r.example:5000/mhk/ubuntu/push?tag=1.3", "{}", "digest"},
			{"/images/load", "an archive that is read whole", "Loaded image"},
			{"/images/load", "junk" + strings.Repeat("x", 100<<10), "it is junk"}, // refused before its end
			{"/images/create?fromSrc=-&repo=imported", "a tar", "sha256:"},
		} {
			_, answer, err := c.send(t, post, "/v1.51"+call.path, strings.NewReader(call.body), header)
			if err != nil || !strings.Contains(answer, call.want) {
				t.Fatalf("POST %s: %q, %v, want %q", call.path, answer, err, call.want)
			}
			if _, answer, err = c.send(t, get, "/_ping", nil, nil); err != nil || answer != "OK" {
				t.Fatalf("the request after POST %s: %q, %v", call.path, answer, err)
			}
		}
	}
	c.check(t, "250 transfers")
	if lasts := c.lasts.Load(); lasts > 150 {
		t.Errorf("%d answers end their connection, want those of load and import only", lasts)
	}
	if text := log.String(); strings.Contains(text, "panic") {
		t.Errorf("the server panicked:\n%.2000s", text)
	}
}

// A long body that is refused early ends its connection, and the refusal arrives whole.
func TestRefusedLongBodies(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := newReuser(t, w.serve(t))
	for range 20 { // each closes its connection half a second after the answer
		status, answer, err := c.send(t, post, "/v1.51/images/load?platform=no/such/plat/form/x", chunked{io.LimitReader(zeros{}, 3<<20)}, nil)
		if err != nil || status != http.StatusBadRequest || !strings.Contains(answer, "platform") {
			t.Fatalf("load = %d %q, %v", status, answer, err)
		}
	}
}

// zeros is an endless stream.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }
