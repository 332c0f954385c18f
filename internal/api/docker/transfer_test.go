package docker

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
)

// The server of an import gets the user name and password of the address. Nothing else does: not the image, the answer or the log.
func TestImportHidesCredentials(t *testing.T) {
	var last atomic.Pointer[[2]string] // what the server got
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		last.Store(&[2]string{user, password})
		switch r.URL.Path {
		case "/missing":
			w.WriteHeader(http.StatusNotFound)
		case "/broken":
			panic(http.ErrAbortHandler)
		}
		io.WriteString(w, "tar")
	}))
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	for name, tc := range map[string]struct {
		from, stored string // "" = the import fails
		asked        bool
	}{
		"plain":       {"http://" + host + "/a@b.tar?c=qqqq", "http://" + host + "/a@b.tar", false},
		"user":        {"http://uuuu:ssss@" + host + "/a.tar?c=qqqq", "http://" + host + "/a.tar", true},
		"no scheme":   {"uuuu:ssss@" + host + "/a.tar", host + "/a.tar", true},
		"missing":     {"http://uuuu:ssss@" + host + "/missing?c=qqqq", "", true},
		"broken":      {"http://uuuu:ssss@" + host + "/broken?c=qqqq", "", true},
		"no server":   {"http://uuuu:ssss@127.0.0.1:1/a.tar", "", false},
		"escape":      {"http://uuuu:ssss%zz@" + host + "/a.tar", "", false},
		"slash":       {"http://uuuu:ss/ssss@" + host + "/a.tar", "", false},
		"wrong port":  {"http://uuuu:ssss@host:port/a.tar", "", false},
		"other kinds": {"ftp://uuuu:ssss@" + host + "/a.tar", "", false},
	} {
		t.Run(name, func(t *testing.T) {
			last.Store(&[2]string{})
			w := newWorld(t)
			var log strings.Builder
			w.api.log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
			rec := w.do("POST", "/v1.51/images/create?fromSrc="+url.QueryEscape(tc.from), nil)
			for _, secret := range []string{"uuuu", "ssss", "qqqq"} {
				if strings.Contains(rec.Body.String()+log.String(), secret) {
					t.Errorf("%s is in the answer %s or the log %s", secret, rec.Body, &log)
				}
			}
			got := *last.Load()
			if tc.asked != (got == [2]string{"uuuu", "ssss"}) {
				t.Errorf("the server got %q", got)
			}
			if tc.stored == "" {
				if len(w.mover.imports) > 0 || rec.Code == 200 {
					t.Errorf("imported: %d %s", rec.Code, rec.Body)
				}
			} else if len(w.mover.imports) != 1 || w.mover.imports[0].From != tc.stored || !strings.Contains(rec.Body.String(), "Downloading from http://"+host) {
				t.Errorf("imports %+v, answer %s", w.mover.imports, rec.Body)
			}
		})
	}
}
