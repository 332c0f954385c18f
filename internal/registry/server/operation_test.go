package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"ply/internal/errs"
	"ply/internal/registry/auth"
	"ply/internal/registry/content"
)

// lines collects a log.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) has(words ...string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.b.String()) {
		found := true
		for _, w := range words {
			found = found && strings.Contains(line, w)
		}
		if found {
			return nil
		}
	}
	return fmt.Errorf("no line of the log has %q:\n%s", words, l.b.String())
}

// Operators see who did what, how much, and whether the registry can serve. Metrics are for admins.
func TestStatus(t *testing.T) {
	log := &lines{}
	s, c := closed(t, map[string][]auth.Grant{"root": {{Subject: "root", Pattern: "**", Role: auth.Admin}}, "other": nil},
		Options{AccessLog: true, Log: slog.New(slog.NewTextHandler(log, nil))})
	if _, err := c.imageAs("root", "a/b", "v1", []byte("data")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.want("GET", "/v2/a/b/blobs/"+string(content.SHA256.Of([]byte("data"))), nil, basic("root"), 200); err != nil {
		t.Fatal(err)
	}
	if _, err := c.want("GET", "/v2/a/b/manifests/v1", nil, basic("other"), 403); err != nil {
		t.Fatal(err)
	}
	for _, words := range [][]string{
		{"user=root", "method=PUT", "path=/v2/a/b/manifests/v1", "status=201"},
		{"user=root", "method=GET", "path=/v2/a/b/blobs/", "status=200", "sent=4 "},
		{"user=root", "method=POST", "received=4 "},
		{"user=other", "status=403"},
	} {
		eventually(t, func() error { return log.has(words...) })
	}
	for _, path := range []string{"/healthz", "/readyz"} {
		if r, err := c.want("GET", path, nil, nil, 200); err != nil || string(r.body) != "ok\n" {
			t.Errorf("%s: %s, %v", path, r.body, err)
		}
	}
	for _, header := range [][]string{nil, basic("other")} {
		if _, err := c.want("GET", "/metrics", nil, header, 401); err != nil {
			t.Error(err)
		}
	}
	r, err := c.want("GET", "/metrics", nil, basic("root"), 200)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		`ply_registry_requests_total{method="PUT",route="manifest",status="201"} 1`, `ply_registry_requests_total{method="GET",route="manifest",status="403"} 1`,
		`ply_registry_request_seconds_count{method="GET",route="blob"} 1`, "ply_registry_requests_active 1", "process_open_fds",
	} {
		if !strings.Contains(string(r.body), line) {
			t.Errorf("the metrics lack %s", line)
		}
	}
	list, err := s.Listen("127.0.0.1:0", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := list[0].Close(); err != nil {
		t.Error(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(list[1]) }()
	side := newClient("http://" + list[1].Addr().String())
	defer side.http.CloseIdleConnections()
	if _, err := side.want("GET", "/metrics", nil, nil, 200); err != nil {
		t.Error(err)
	}
	if _, err := side.want("GET", "/v2/", nil, nil, 404); err != nil {
		t.Error(err)
	}
	if err := errors.Join(s.side.Close(), <-served); err != nil {
		t.Error(err)
	}
}

// A registry that is told to end refuses new connections, says that it is not ready, and lets an upload finish.
func TestDrain(t *testing.T) {
	root := t.TempDir()
	s, url, _ := start(t, Options{Root: root})
	c := newClient(url)
	defer c.http.CloseIdleConnections()
	r, err := c.want("POST", "/v2/a/blobs/uploads/", nil, nil, 202)
	if err != nil {
		t.Fatal(err)
	}
	pr, pw := io.Pipe()
	data := []byte("begun and ended")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, url+r.header.Get("Location")+"?digest="+string(content.SHA256.Of(data)), pr)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		resp, err := c.http.Do(req)
		if err == nil {
			err = resp.Body.Close()
			if resp.StatusCode != 201 {
				err = fmt.Errorf("status %d", resp.StatusCode)
			}
		}
		done <- err
	}()
	if _, err := pw.Write(data[:5]); err != nil {
		t.Fatal(err)
	}
	// The server has begun to receive the upload: before, the connection may count as idle.
	id := r.header.Get("Docker-Upload-UUID")
	eventually(t, func() error {
		u, err := s.repositories.Blobs.Resume(t.Context(), id)
		if errors.Is(err, errs.Conflict) {
			return nil
		}
		if err == nil {
			err = errors.Join(errors.New("no request holds the upload"), u.Close())
		}
		return err
	})
	ended := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		ended <- s.Shutdown(ctx)
	}()
	eventually(t, func() error {
		if !s.draining.Load() {
			return errors.New("not draining")
		}
		conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://")) //nolint:noctx // loopback
		if err == nil {
			conn.Close()
			return errors.New("new connections are accepted")
		}
		return nil
	})
	select {
	case err := <-ended:
		t.Fatalf("the registry ended before its last request: %v", err)
	default:
	}
	if _, err := pw.Write(data[5:]); err != nil {
		t.Fatal(err)
	}
	pw.Close()
	if err := <-done; err != nil {
		t.Errorf("the upload: %v", err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := s.repositories.StatBlob(t.Context(), "a", content.SHA256.Of(data)); err != nil {
		t.Error(err)
	}
}

func TestTLS(t *testing.T) {
	s, url, _ := start(t, Options{Root: t.TempDir(), TLSHosts: []string{"127.0.0.1", "localhost"}})
	pem, err := os.ReadFile(s.trust)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(s.Trust(), s.trust) {
		t.Errorf("does not say what to trust: %s", s.Trust())
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	c := newClient(strings.Replace(url, "http://", "https://", 1))
	c.http.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}
	defer c.http.CloseIdleConnections()
	data := random(3 << 20)
	if _, err := c.image("a", "v1", "", data); err != nil {
		t.Fatal(err)
	}
	if _, err := c.pull("a", "v1"); err != nil {
		t.Error(err)
	}
	if _, err := Open(Options{Root: t.TempDir(), TLSCert: "/does/not/exist", TLSKey: "/neither"}); err == nil {
		t.Error("a certificate that is not there was accepted")
	}
}
