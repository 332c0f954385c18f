package server

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"ply/internal/registry/content"
)

// spans is a collector that keeps what it is sent.
type spans struct {
	mu       sync.Mutex
	got      []*otlp.Span
	resource string
}

func (s *spans) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost || r.URL.Path != "/v1/traces" || r.Header.Get("Content-Type") != "application/x-protobuf" {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	body := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(r.Body)
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		body = z
	}
	b, err := io.ReadAll(body)
	var request collector.ExportTraceServiceRequest
	if err := errors.Join(err, proto.Unmarshal(b, &request)); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, of := range request.ResourceSpans {
		s.resource += of.Resource.String()
		for _, scope := range of.ScopeSpans {
			s.got = append(s.got, scope.Spans...)
		}
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
}

// find returns the spans with a name.
func (s *spans) find(name string) (found []*otlp.Span) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, span := range s.got {
		if span.Name == name {
			found = append(found, span)
		}
	}
	return found
}

func attribute(span *otlp.Span, key string) string {
	for _, a := range span.Attributes {
		if a.Key == key {
			if text := a.Value.GetStringValue(); text != "" {
				return text
			}
			return strconv.FormatInt(a.Value.GetIntValue(), 10)
		}
	}
	return ""
}

// Each request is a span below that of its client, and what it asks of the database and of S3 are spans below it. No span has what may be secret.
func TestTraces(t *testing.T) {
	t.Setenv("OTEL_SERVICE_NAME", "images")
	kept := &spans{}
	receiver := httptest.NewServer(kept)
	defer receiver.Close()
	o := replicas(t)
	o.Traces = receiver.URL
	_, url, stop := start(t, o)
	c := newClient(url)
	defer c.http.CloseIdleConnections()
	const trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	data := []byte("a blob")
	header := []string{"Traceparent: 00-" + trace + "-" + parent + "-01"}
	if _, err := c.want("POST", "/v2/a/blobs/uploads/?digest="+string(content.SHA256.Of(data)), data, header, 201); err != nil {
		t.Fatal(err)
	}
	if _, err := c.want("GET", "/v2/a/tags/list", nil, []string{"Authorization: Basic c2VjcmV0OnNlY3JldA=="}, 200, 401, 404); err != nil {
		t.Fatal(err)
	}
	if _, err := c.want("GET", "/v2/a/manifests/none", nil, nil, 404); err != nil {
		t.Fatal(err)
	}
	stop() // sends what is left
	uploads := kept.find("POST uploads")
	if len(uploads) != 1 {
		t.Fatalf("%d spans of the upload among %v", len(uploads), kept.got)
	}
	upload := uploads[0]
	if fmt.Sprintf("%x %x", upload.TraceId, upload.ParentSpanId) != trace+" "+parent || upload.Kind != otlp.Span_SPAN_KIND_SERVER {
		t.Errorf("the span of the upload is not below that of the client: %v", upload)
	}
	for key, want := range map[string]string{"http.route": "uploads", "http.request.method": "POST", "url.path": "/v2/a/blobs/uploads/", "http.request.body.size": "6", "http.response.status_code": "201"} {
		if got := attribute(upload, key); got != want {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
	below := map[string]bool{}
	kept.mu.Lock()
	for _, span := range kept.got {
		if string(span.ParentSpanId) == string(upload.SpanId) && string(span.TraceId) == string(upload.TraceId) {
			below[span.Name] = true
		}
		if text := span.String(); strings.Contains(text, "c2VjcmV0") || strings.Contains(text, "digest=") || strings.Contains(text, "insert into") {
			t.Errorf("a span says too much: %s", text)
		}
	}
	kept.mu.Unlock()
	for _, name := range []string{"s3 PUT", "postgres select"} {
		if !below[name] {
			t.Errorf("no span %q below the upload, but %v", name, below)
		}
	}
	if found := kept.find("GET manifest"); len(found) != 1 || attribute(found[0], "http.response.status_code") != "404" || len(found[0].ParentSpanId) != 0 {
		t.Errorf("spans of a manifest that is not there: %v", found)
	}
	if !strings.Contains(kept.resource, "images") {
		t.Errorf("the resource is %s", kept.resource)
	}
}

// A collector that does not answer, or that refuses spans, costs clients nothing, and the log says that traces are lost.
func TestLostTraces(t *testing.T) {
	release := make(chan struct{})
	hanging := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	defer hanging.Close()
	defer close(release)
	refusing := httptest.NewServer(http.NotFoundHandler())
	defer refusing.Close()
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
	for _, to := range []string{hanging.URL, refusing.URL} {
		log := &lines{}
		_, url, _ := start(t, Options{Root: t.TempDir(), Traces: to, Log: slog.New(slog.NewTextHandler(log, nil))})
		c := newClient(url)
		for i := range 3000 {
			if _, err := c.want("GET", "/v2/", nil, nil, 200); err != nil {
				t.Fatal(i, err)
			}
		}
		c.http.CloseIdleConnections()
		if to == refusing.URL {
			eventually(t, func() error { return log.has("traces are lost") })
		}
	}
	if _, err := Open(Options{Root: t.TempDir(), Traces: "127.0.0.1:4318"}); err == nil {
		t.Error("an address that is none was accepted")
	}
}
