package docker

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var (
	upgradesH2 = "Connection: Upgrade\r\nUpgrade: h2c\r\n"
	upgradesWS = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin: http://x\r\n"
)

// endless are the bytes after which a client that sends without end gives up. More than a JSON body may have.
const endless = maxBody + 4<<20

// target returns a request line for a route, with names of objects that there are.
func target(rt route) (path string) {
	parts := strings.Split(rt.pattern, "/")
	for i, p := range parts {
		if !strings.HasPrefix(p, "{") {
			continue
		}
		names := map[string]string{"containers": "web", "images": "busybox", "distribution": "busybox", "volumes": "data", "networks": "bridge", "exec": execGood}
		parts[i] = "x"
		if name, ok := names[parts[i-1]]; ok {
			parts[i] = name
		}
	}
	return "/v1.51" + strings.Join(parts, "/")
}

// stranger is a client that need not keep to the protocol.
type stranger struct {
	t    *testing.T
	sock string
	log  *lockedBuffer
}

// lockedBuffer is a buffer for a log.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (s *stranger) dial() *net.UnixConn {
	s.t.Helper()
	conn, err := (&net.Dialer{}).DialContext(s.t.Context(), "unix", s.sock)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		s.t.Fatal(err)
	}
	return conn.(*net.UnixConn)
}

// ask sends a request, whose end the server may not want to read, and returns the status, 0 when the connection was closed without an answer, and the
// beginning of the answer.
func (s *stranger) ask(method string, send func(conn *net.UnixConn) error) (status int, answer string) {
	s.t.Helper()
	conn := s.dial()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_ = send(conn) // the server may have answered and closed the connection
	}()
	defer func() { _ = conn.Close(); <-sent }()
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		s.t.Error("no answer")
	}
	if err != nil {
		return 0, ""
	}
	if resp.StatusCode < 400 {
		return resp.StatusCode, ""
	}
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // it may be cut off
	return resp.StatusCode, string(b)
}

// headOf returns the head of a request.
func headOf(rt route, query, header string) string {
	return rt.method + " " + target(rt) + query + " HTTP/1.1\r\nHost: x\r\n" + header + "\r\n"
}

// assault is a request that no client sends in earnest.
type assault struct {
	name  string
	json  bool // where JSON is expected it must be refused
	query string
	send  func(rt route, query string, conn *net.UnixConn) error
}

// whole is a request with a body of a media type.
func whole(name, typ, body string) assault {
	return assault{name: name, json: true, send: func(rt route, query string, conn *net.UnixConn) error {
		_, err := io.WriteString(conn, headOf(rt, query, fmt.Sprintf("Content-Type: %s\r\nContent-Length: %d\r\n", typ, len(body)))+body)
		return err
	}}
}

func assaults() []assault {
	const typ = "application/json"
	deep := strings.Repeat(`{"a":[`, 50_000)
	list := []assault{
		whole("truncated", typ, `{"Image":"a","HostConfig":{"Binds":["/a:`), whole("deep", typ, deep), whole("deep and closed", typ, deep+strings.Repeat("]}", 50_000)),
		whole("array", typ, `[{}]`), whole("number", typ, `5`), whole("text", typ, `"x"`), whole("no UTF-8", typ, "\xff\xfe\x00{}"), whole("two values", typ, "{}{}"),
		whole("plain", "text/plain", `{"a":1}`), whole("no type", "", `{"a":1}`), whole("broken type", "application/json; charset=\"", `{"a":1}`),
		whole("form", "application/x-www-form-urlencoded", "a=1"), whole("multipart", "multipart/form-data; boundary=x", "--x\r\n\r\n--x--"),
		{name: "oversized", json: true, send: func(rt route, query string, conn *net.UnixConn) error {
			if _, err := io.WriteString(conn, headOf(rt, query, fmt.Sprintf("Content-Type: %s\r\nContent-Length: %d\r\n", typ, maxBody+1))); err != nil {
				return err
			}
			return pour(conn, maxBody+1, false)
		}},
		{name: "endless", json: true, send: func(rt route, query string, conn *net.UnixConn) error {
			if _, err := io.WriteString(conn, headOf(rt, query, "Content-Type: "+typ+"\r\nTransfer-Encoding: chunked\r\n")); err != nil {
				return err
			}
			return errors.Join(pour(conn, endless, true), conn.CloseWrite())
		}},
		{name: "cut off", json: true, send: func(rt route, query string, conn *net.UnixConn) error {
			_, err := io.WriteString(conn, headOf(rt, query, "Content-Type: "+typ+"\r\nContent-Length: 1000\r\n")+`{"Image":`)
			return errors.Join(err, conn.CloseWrite())
		}},
		{name: "bad chunk", json: true, send: func(rt route, query string, conn *net.UnixConn) error {
			_, err := io.WriteString(conn, headOf(rt, query, "Content-Type: "+typ+"\r\nTransfer-Encoding: chunked\r\n")+"2\r\n{}\r\n-5\r\n")
			return err
		}},
	}
	junk := url.Values{}
	for _, key := range []string{"filters", "platform", "h", "w", "t", "limit", "since", "until", "tail", "signal", "condition", "path", "name", "tag", "repo", "names", "fromImage", "container",
		"position", "cut", "resumable", "detachKeys", "cachefrom", "buildargs", "labels", "ulimits", "memory", "outputs", "ps_args", "type", "version", "session", "shmsize", "cpuperiod", "remote"} {
		junk.Add(key, "{\"\x00\xff':-99999999999999999999")
		junk.Add(key, strings.Repeat("[", 500))
	}
	list = append(list, assault{name: "query", query: "?" + junk.Encode(), send: func(rt route, query string, conn *net.UnixConn) error {
		_, err := io.WriteString(conn, headOf(rt, query, ""))
		return err
	}}, assault{name: "broken query", query: "?a=%zz&;b=1", send: func(rt route, query string, conn *net.UnixConn) error {
		_, err := io.WriteString(conn, headOf(rt, query, "Content-Type: "+typ+"\r\nContent-Length: 2\r\n")+"{}")
		return err
	}})
	return list
}

// pour writes the beginning of a JSON document, n bytes, in chunks or as they are.
func pour(w io.Writer, n int, chunked bool) error {
	piece := []byte(`{"Image":"` + strings.Repeat("a", 64<<10-10))
	for n > 0 {
		b := piece[:min(n, len(piece))]
		if chunked {
			b = fmt.Appendf(nil, "%x\r\n%s\r\n", len(b), b)
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
		n -= len(piece)
		piece = bytes.Repeat([]byte("a"), 64<<10)
	}
	return nil
}

// resources counts what a process may lose: goroutines and descriptors.
func resources(t *testing.T) (goroutines, files int) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return runtime.NumGoroutine(), len(fds)
}

// besieged starts a server for a test. While the test runs, another client is served all the time; at its end no goroutine and no descriptor is left, and no handler
// has panicked.
func besieged(t *testing.T) (*world, *stranger) {
	t.Helper()
	w := newWorld(t)
	log := &lockedBuffer{}
	w.api.log = slog.New(slog.NewTextHandler(log, nil))
	s := &stranger{t: t, sock: w.serveWith(t, w.api.log), log: log}
	other := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", s.sock)
	}}, Timeout: 30 * time.Second}
	ping := func() {
		resp, err := other.Get("http://x/v1.51/containers/web/json")
		if err != nil {
			t.Errorf("another client: %v", err)
			return
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		if _ = resp.Body.Close(); resp.StatusCode != http.StatusOK {
			t.Errorf("another client: %s", resp.Status)
		}
	}
	ping()
	goroutines, files := resources(t)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
				ping()
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-stopped
		if !t.Failed() {
			deadline := time.Now().Add(30 * time.Second)
			for {
				g, f := resources(t)
				if g <= goroutines && f <= files {
					break
				}
				if time.Now().After(deadline) {
					stacks := make([]byte, 1<<20)
					t.Errorf("%d goroutines and %d descriptors before, %d and %d afterwards:\n%s", goroutines, files, g, f, stacks[:runtime.Stack(stacks, true)])
					break
				}
				time.Sleep(50 * time.Millisecond)
			}
		}
		if text := log.String(); strings.Contains(text, "panic") {
			t.Errorf("a handler panicked:\n%.3000s", text)
		}
		other.CloseIdleConnections()
	})
	return w, s
}

// Whatever is sent to a route, it is answered or refused with a reason; where JSON is expected it is refused. No handler panics, nothing is left behind, and other
// clients are served meanwhile.
func TestEveryRouteRefusesNonsense(t *testing.T) {
	w, s := besieged(t)
	w.containers.release = make(chan struct{})
	defer close(w.containers.release)
	takesJSON := map[string]bool{}
	for path := range bodies {
		path, _, _ = strings.Cut(path, "?")
		rt, _ := match(w.api.routes, post, path)
		if rt == nil {
			t.Fatalf("no route for %s", path)
		}
		takesJSON[rt.pattern] = true
	}
	var work sync.WaitGroup
	queue := make(chan struct{}, 8)
	for _, rt := range w.api.routes {
		for _, a := range assaults() {
			if (rt.method == get || rt.method == head) && a.json && a.name != "endless" && a.name != "cut off" {
				continue // no handler of these reads a body
			}
			queue <- struct{}{}
			work.Go(func() {
				defer func() { <-queue }()
				query := a.query
				if rt.pattern == "/commit" && query == "" {
					query = "?container=web"
				}
				status, answer := s.ask(rt.method, func(conn *net.UnixConn) error { return a.send(rt, query, conn) })
				strict := a.json && rt.method == post && takesJSON[rt.pattern]
				switch {
				case strings.Contains(answer, "this is a bug"),
					status >= 500 && status != http.StatusNotImplemented && status != http.StatusServiceUnavailable,
					status >= 400 && !strings.Contains(answer, `"message":`) && !strings.HasPrefix(answer, "400 Bad Request") && rt.method != head,
					strict && (status < 400 || status >= 500):
					t.Errorf("%s to %s %s: %d %.300s", a.name, rt.method, rt.pattern, status, answer)
				}
			})
		}
	}
	work.Wait()
}

// Clients that take a connection over and leave, with and without a word, leave nothing behind.
func TestAbandonedTakeovers(t *testing.T) {
	w, s := besieged(t)
	lines := map[string]string{
		"POST /v1.51/containers/web/attach?stream=1&stdin=1&stdout=1&stderr=1":   asksUpgrade,
		"POST /v1.51/containers/web/attach?stream=1&stdout=1&resumable=c":        asksUpgrade,
		"POST /v1.51/containers/web/attach?stream=1&logs=1":                      "",
		"GET /v1.51/containers/web/attach/ws?stream=1&stdin=1&stdout=1&stderr=1": upgradesWS,
		"POST /v1.51/exec/" + execGood + "/start":                                asksUpgrade + "Content-Type: application/json\r\nContent-Length: 2\r\n",
		"POST /v1.51/session": upgradesH2 + "X-Docker-Expose-Session-Uuid: u\r\nX-Docker-Expose-Session-Name: n\r\n",
		"POST /v1.51/grpc":    upgradesH2,
	}
	for line := range lines {
		method, path, _ := strings.Cut(line, " ")
		path, _, _ = strings.Cut(strings.TrimPrefix(path, "/v1.51"), "?")
		if rt, _ := match(w.api.routes, method, path); rt == nil {
			t.Fatalf("no route for %s", line)
		}
	}
	garbage := strings.Repeat("\x00\xff PRI * HTTP/2.0\r\n\r\n", 200)
	for _, line := range slices.Sorted(maps.Keys(lines)) {
		body := ""
		if strings.Contains(line, "/exec/") {
			body = "{}"
		}
		request := line + " HTTP/1.1\r\nHost: x\r\n" + lines[line] + "\r\n" + body
		for n := range 30 {
			conn := s.dial()
			send := func(text string) {
				if _, err := io.WriteString(conn, text); err != nil && n%6 != 5 {
					t.Errorf("%s: %v", line, err)
				}
			}
			switch n % 6 {
			case 0: // leaves at once
				send(request)
			case 1: // leaves in the middle of its request
				send(request[:len(request)-3])
			case 2: // sends nothing more, and leaves after the answer
				send(request)
				if err := conn.CloseWrite(); err != nil {
					t.Error(err)
				}
				_, _ = conn.Read(make([]byte, 1))
			case 3: // leaves after the answer
				send(request)
				_, _ = conn.Read(make([]byte, 1))
			case 4: // speaks of something else in the same breath
				send(request + garbage)
				_, _ = conn.Read(make([]byte, 4096))
			case 5: // and afterwards
				send(request)
				_, _ = conn.Read(make([]byte, 4096))
				send(garbage)
			}
			if err := conn.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// Clients that ask for a stream and never read it hold up nobody, and end with their connection.
func TestClientsThatNeverRead(t *testing.T) {
	w, s := besieged(t)
	w.containers.release = make(chan struct{})
	defer close(w.containers.release)
	var conns []net.Conn
	for range 10 {
		for _, line := range []string{
			"GET /v1.51/events", "GET /v1.51/containers/web/logs?follow=1&stdout=1&stderr=1", "GET /v1.51/containers/web/stats?stream=1", "GET /v1.51/containers/web/export",
			"GET /v1.51/images/get?names=torn", "GET /v1.51/images/busybox/get", "POST /v1.51/containers/web/wait?condition=next-exit", "GET /v1.51/containers/web/archive?path=/etc/hosts",
			"POST /v1.51/containers/web/attach?stream=1&stdin=1&stdout=1", "GET /v1.51/volumes/data/export",
		} {
			method, path, _ := strings.Cut(line, " ")
			if rt, _ := match(w.api.routes, method, strings.TrimPrefix(filepath.Clean(strings.Split(path, "?")[0]), "/v1.51")); rt == nil {
				t.Fatalf("no route for %s", line)
			}
			conn := s.dial()
			if _, err := io.WriteString(conn, line+" HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			conns = append(conns, conn)
		}
	}
	if status, _ := s.ask(get, func(conn *net.UnixConn) error {
		_, err := io.WriteString(conn, "GET /v1.51/containers/json HTTP/1.1\r\nHost: x\r\n\r\n")
		return err
	}); status != http.StatusOK {
		t.Errorf("beside %d clients that read nothing: status %d", len(conns), status)
	}
	for _, conn := range conns {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Work of which there is nothing to say yet ends with its client, although the client has sent a body that nothing needs.
func TestSilentWorkEndsWithItsClient(t *testing.T) {
	_, s := besieged(t)
	for range 10 {
		conn := s.dial()
		if _, err := io.WriteString(conn, "POST /v1.51/system/import-docker?dir=/slow HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"); err != nil {
			t.Fatal(err)
		}
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// The routes stand in a file, from which tests of a whole engine take them.
func TestRoutesFile(t *testing.T) {
	var b strings.Builder
	for _, rt := range newWorld(t).api.routes {
		fmt.Fprintln(&b, rt.method, rt.pattern)
	}
	file := filepath.Join("testdata", "routes.txt")
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("%s is not the table of routes: run the test with -update", file)
	}
}
