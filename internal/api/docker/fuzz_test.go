package docker

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"ply/internal/errs"
)

// FuzzRequest sends any method, path, query and body. No handler panics, and every error is a message with a status from the
// table.
func FuzzRequest(f *testing.F) {
	for _, tc := range goldenRequests {
		path, query, _ := strings.Cut(tc.target, "?")
		f.Add(tc.method, path, query, tc.body)
	}
	f.Add("POST", "/v1.51/containers/create", "name=x", fullRequest)
	w := newWorld(f)
	var panicked any
	api := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		defer func() {
			if p := recover(); p != nil && p != http.ErrAbortHandler {
				panicked = p
			}
		}()
		w.api.ServeHTTP(rw, r)
	})
	known := map[int]bool{200: true, 201: true, 204: true, 304: true, 413: true}
	for _, s := range statuses {
		known[s.status] = true
	}
	f.Fuzz(func(t *testing.T, method, path, query, body string) {
		if strings.Contains(path, "panic") || strings.Contains(query, "follow") || strings.Contains(query, "stream") || strings.HasSuffix(path, "/stats") ||
			strings.HasSuffix(path, "/events") && !strings.Contains(query, "until=1") || strings.Contains(query, "fromSrc=") {
			return // never ends, panics on purpose, or asks the network
		}
		r := httptest.NewRequest(http.MethodGet, "/", strings.NewReader(body))
		r.Method, r.URL = method, &url.URL{Path: path, RawQuery: query}
		r.Header.Set("Content-Type", "application/json")
		rec := httptest.NewRecorder()
		api.ServeHTTP(&fullDuplex{rec}, r)
		if panicked != nil {
			t.Fatalf("panic: %v", panicked)
		}
		if !known[rec.Code] {
			t.Errorf("status %d", rec.Code)
		}
		if rec.Code >= 400 {
			var e struct{ Message *string }
			if err := json.Unmarshal(rec.Body.Bytes(), &e); err != nil || e.Message == nil || *e.Message == "" {
				t.Errorf("status %d with %q", rec.Code, rec.Body)
			}
		}
		if strings.Contains(rec.Body.String(), "this is a bug") {
			t.Errorf("a handler panicked: %s", rec.Body)
		}
	})
}

// The outermost class of an error decides its status.
func TestStatuses(t *testing.T) {
	inner := errs.New(errs.NotFound, "x: gone")
	for _, tc := range []struct {
		err  error
		want int
	}{
		{inner, 404}, {errs.New(errs.Invalid, "y: %w", inner), 400}, {errs.New(errs.Exists, "x"), 409}, {errs.New(errs.Conflict, "x"), 409}, {errs.New(errs.Precondition, "x"), 409},
		{errs.New(errs.Unauthorized, "x"), 401}, {errs.New(errs.Forbidden, "x"), 403}, {errs.New(errs.Unavailable, "x"), 503}, {errs.New(errs.Exhausted, "x"), 507},
		{errs.New(errs.Unimplemented, "x"), 501}, {errs.New(errs.DataLoss, "x"), 500}, {errs.New(errs.Internal, "x"), 500}, {http.ErrNoCookie, 500}, {errs.NotFound, 404},
	} {
		if got := statusOf(tc.err); got != tc.want {
			t.Errorf("%v: %d, want %d", tc.err, got, tc.want)
		}
	}
}
