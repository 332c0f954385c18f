package listen

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ply/internal/errs"
)

// limitedServer serves /hang, which ends with its client, /stream, which ends with the channel, and everything else at once. It returns the address.
func limitedServer(t *testing.T, by *Limiter, end <-chan struct{}) string {
	t.Helper()
	sock := filepath.Join(shortDir(t), "s")
	ls, err := Open("unix://"+sock, Options{Limiter: by})
	if err != nil {
		t.Fatal(err)
	}
	srv := NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/hang":
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		case "/stream":
			done, err := Stream(r.Context())
			if err != nil {
				if !errors.Is(err, errs.Unavailable) {
					t.Errorf("Stream: %v, want class Unavailable", err)
				}
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
			defer done()
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
			<-end
		}
		_, _ = io.WriteString(w, "OK")
	}), nil)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ls[0]) }()
	t.Cleanup(func() { _ = srv.Close(); <-served })
	return sock
}

// ask sends a request over a new connection, which stays open until the test ends, and returns the status.
func ask(t *testing.T, sock, path string) (int, *bufio.Reader, net.Conn) {
	t.Helper()
	conn, err := net.Dial("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	status, r := again(t, conn, path)
	return status, r, conn
}

// again sends a request over a connection.
func again(t *testing.T, conn net.Conn, path string) (int, *bufio.Reader) {
	t.Helper()
	if _, err := io.WriteString(conn, "GET "+path+" HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	if path != "/stream" {
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatal(err)
		}
	}
	return resp.StatusCode, r
}

// Streams do not take the places of requests, and have a limit of their own.
func TestStreamsLeaveRoomForRequests(t *testing.T) {
	end := make(chan struct{})
	by := NewLimiter(2, 5)
	sock := limitedServer(t, by, end)
	for range 5 {
		if status, _, _ := ask(t, sock, "/stream"); status != http.StatusOK {
			t.Fatalf("a stream: %d", status)
		}
	}
	status, _, over := ask(t, sock, "/stream")
	if status != http.StatusServiceUnavailable {
		t.Errorf("the sixth stream: %d", status)
	}
	_ = over.Close()
	for range 10 {
		status, _, conn := ask(t, sock, "/ps")
		if status != http.StatusOK {
			t.Errorf("beside streams: %d", status)
		}
		_ = conn.Close()
	}
	close(end)
	wait(t, func() bool { by.mu.Lock(); defer by.mu.Unlock(); return by.flows == 0 })
}

func wait(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it never happened")
		}
	}
}

// busy opens a connection with a request whose answer has begun and does not end, so that it is neither idle nor a stream.
func busy(t *testing.T, sock string) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if _, err := io.WriteString(conn, "GET /hang HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// A connection over the limit waits, and is served when another one is closed.
func TestConnectionsOverTheLimitWait(t *testing.T) {
	by := NewLimiter(2, 1)
	sock := limitedServer(t, by, nil)
	first := busy(t, sock)
	busy(t, sock)
	extra, err := net.Dial("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer extra.Close()
	if _, err := io.WriteString(extra, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	_ = extra.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	if _, err := extra.Read(make([]byte, 1)); err == nil {
		t.Error("the third connection was served")
	}
	_ = first.Close()
	_ = extra.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := extra.Read(make([]byte, 1)); err != nil {
		t.Errorf("after another connection was closed: %v", err)
	}
}

// When no place gets free, connections are told so, at first after some time and then at once, until one gets free.
func TestConnectionsOverTheLimitAreRefused(t *testing.T) {
	by := NewLimiter(1, 1)
	waits := make(chan time.Time, 1)
	waits <- time.Now()
	by.after = func(time.Duration) <-chan time.Time { return waits }
	sock := limitedServer(t, by, nil)
	first := busy(t, sock)
	for range 3 {
		status, _, _ := ask(t, sock, "/")
		if status != http.StatusServiceUnavailable {
			t.Errorf("over the limit: %d", status)
		}
	}
	_ = first.Close()
	wait(t, func() bool { by.mu.Lock(); defer by.mu.Unlock(); return by.active == 0 })
	if status, _, _ := ask(t, sock, "/"); status != http.StatusOK {
		t.Errorf("afterwards: %d", status)
	}
}

// Connections that send no request make room for new ones.
func TestSilentConnectionsMakeRoom(t *testing.T) {
	sock := limitedServer(t, NewLimiter(2, 1), nil)
	for range 10 {
		conn, err := net.Dial("unix", sock)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	if status, _, _ := ask(t, sock, "/"); status != http.StatusOK {
		t.Errorf("beside silent connections: %d", status)
	}
}

// Connections that are kept open between requests make room for new ones.
func TestIdleConnectionsMakeRoom(t *testing.T) {
	by := NewLimiter(2, 1)
	sock := limitedServer(t, by, nil)
	_, _, first := ask(t, sock, "/")
	wait(t, func() bool { by.mu.Lock(); defer by.mu.Unlock(); return len(by.idle) == 1 })
	_, _, second := ask(t, sock, "/")
	wait(t, func() bool { by.mu.Lock(); defer by.mu.Unlock(); return len(by.idle) == 2 })
	if status, _, _ := ask(t, sock, "/"); status != http.StatusOK {
		t.Errorf("beside idle connections: %d", status)
	}
	_ = first.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := first.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the connection that was idle longest: %v, want it closed", err)
	}
	if status, _ := again(t, second, "/"); status != http.StatusOK {
		t.Errorf("the other one: %d", status)
	}
}

// A new connection takes the place of one idle connection, however long the server needs to notice that it is closed.
func TestOneIdleConnectionMakesRoom(t *testing.T) {
	by := NewLimiter(2, 1)
	closed := 0
	for range 2 {
		s, _ := by.try()
		s.close = func() error { closed++; return nil }
		s.setIdle(true)
	}
	never := make(chan struct{})
	limit := time.AfterFunc(10*time.Second, func() { close(never) })
	defer limit.Stop()
	if s := by.enter(never); s == nil || closed != 1 {
		t.Errorf("%d connections were closed; the new one has a place: %v", closed, s != nil)
	}
}

// By default the limits follow from the descriptors and the memory of the process.
func TestDefaultLimits(t *testing.T) {
	by := NewLimiter(0, 0)
	if by.requests < 1 || by.requests > maxRequests || by.streams < 1 || by.streams > maxStreams {
		t.Errorf("limits %d and %d", by.requests, by.streams)
	}
	if !strings.Contains(refusal, "message") {
		t.Error("a refusal has no message")
	}
}
