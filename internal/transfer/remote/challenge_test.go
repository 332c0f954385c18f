package remote

import (
	"net/http"
	"testing"
	"time"
)

func TestContentRange(t *testing.T) {
	for in, want := range map[string][2]int64{
		"bytes 0-9/10": {0, 10}, "bytes 5-9/*": {5, -1},
		"": {-9, 0}, "bytes 9-5/10": {-9, 0}, "bytes 0-10/10": {-9, 0}, "bytes -1-2/3": {-9, 0}, "0-9/10": {-9, 0}, "bytes a-b/c": {-9, 0},
	} {
		from, total, err := contentRange(in)
		if (want[0] == -9) != (err != nil) || err == nil && (from != want[0] || total != want[1]) {
			t.Errorf("contentRange(%q) = %d, %d, %v, want %v", in, from, total, err, want)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for in, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, "-7": 0, "x": 0, "99999999999999999999": 0, "9999999999": (1 << 31) * time.Second,
		"Fri, 02 Jan 2026 03:04:15 GMT": 10 * time.Second, "Fri, 02 Jan 2020 03:04:15 GMT": 0,
	} {
		if got := retryAfter(http.Header{"Retry-After": {in}}, now); got != want {
			t.Errorf("retryAfter(%q) = %v, want %v", in, got, want)
		}
	}
}

func TestPolicy(t *testing.T) {
	p, err := parsePolicy([]string{"https://m.test", "http://127.0.0.1:5000/pre/"}, []string{"http://a.test:5000/", "10.1.0.0/16", "B.test"})
	if err != nil || len(p.mirrors) != 2 || p.mirrors[1].key() != "http://127.0.0.1:5000/pre" {
		t.Fatalf("%+v, %v", p, err)
	}
	for host, want := range map[string]bool{
		"a.test:5000": true, "a.test": false, "a.test:5001": false, "b.test": true, "10.1.2.3:5000": true, "10.2.2.3:5000": false,
		"127.0.0.1:5000": true, "127.8.8.8": true, "[::1]:5000": true, "localhost:5000": true, "localhost.evil.test": false, "[::ffff:127.0.0.1]:80": true,
	} {
		if got, _ := p.insecure(host); got != want {
			t.Errorf("insecure(%q) = %v, want %v", host, got, want)
		}
	}
	for _, bad := range []string{"", "a b", "a/b", "ftp://x", "user@host"} {
		if _, err := parsePolicy(nil, []string{bad}); err == nil {
			t.Errorf("insecure-registries %q was taken", bad)
		}
	}
	for _, bad := range []string{"", "m.test", "ftp://m.test", "https://u:p@m.test", "https://m.test?x=1", "https://"} {
		if _, err := parsePolicy([]string{bad}, nil); err == nil {
			t.Errorf("registry-mirrors %q was taken", bad)
		}
	}
}
