package remote

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/transfer"
	"ply/internal/transfer/remote/remotetest"
)

// capture is a server that records every request.
type capture struct {
	mu   sync.Mutex
	got  []string // each request with its headers and body
	with http.HandlerFunc
}

func (c *capture) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	c.mu.Lock()
	c.got = append(c.got, fmt.Sprint(r.Method, r.URL, r.Header, string(body)))
	c.mu.Unlock()
	if c.with != nil {
		c.with(w, r)
	}
}

func (c *capture) all() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(c.got, "\n")
}

// secrets are the forms in which the password could appear.
var secrets = []string{
	remotetest.Password,
	base64.StdEncoding.EncodeToString([]byte(remotetest.User + ":" + remotetest.Password)),
}

func holdsSecret(s string) bool {
	for _, x := range secrets {
		if strings.Contains(s, x) {
			return true
		}
	}
	return false
}

type scene struct {
	net      *remotetest.Net
	registry *capture
	evil     *capture
	auth     *capture
	log      bytes.Buffer
	client   *Client
	cred     transfer.Credentials
}

const (
	registryHost = "registry.example.test"
	registryIP   = "203.0.113.1"
	authIP       = "203.0.113.2"
	evilIP       = "203.0.113.66"
)

func newScene(t *testing.T, opts Options) *scene {
	t.Helper()
	s := &scene{
		net: remotetest.NewNet(t), registry: &capture{}, evil: &capture{}, auth: &capture{},
		cred: transfer.Credentials{Username: remotetest.User, Password: remotetest.Password},
	}
	s.net.Host(t, registryHost, registryIP, s.registry)
	s.net.Host(t, "auth.example.test", authIP, s.auth)
	s.net.Host(t, "evil.test", evilIP, s.evil)
	s.net.At("192.168.1.1:443", "127.0.0.1:1")
	opts.Dial, opts.Lookup, opts.CertsDirs = s.net.Dial, s.net.Lookup, []string{s.net.Certs}
	opts.Log = slog.New(slog.NewTextHandler(&s.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	s.client = New(opts)
	t.Cleanup(s.client.Close)
	return s
}

func (s *scene) session(t *testing.T, action Action) *Session {
	t.Helper()
	ref, err := oci.ParseReference(registryHost + "/r")
	if err != nil {
		t.Fatal(err)
	}
	return s.client.Session(ref, action, s.cred)
}

func bearerChallenge(realm string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Www-Authenticate", `Bearer realm="`+realm+`",service="s"`)
		w.WriteHeader(http.StatusUnauthorized)
	}
}

// A registry names a token server that must get neither the password nor a connection.
func TestForbiddenTokenServers(t *testing.T) {
	cases := map[string]struct {
		realm   string
		noDial  string // addresses with this prefix must get no connection
		message string
	}{
		"other domain":                      {"https://evil.test/token", evilIP, "another domain"},
		"look-alike domain":                 {"https://registry.example.test.evil.test/token", evilIP, "another domain"},
		"http":                              {"http://auth.example.test/token", authIP, "http while the registry is https"},
		"link-local":                        {"https://169.254.169.254/token", "169.254", "another domain"},
		"unspecified":                       {"https://0.0.0.0/token", "0.0.0.0", "another domain"},
		"credentials in realm":              {"https://a:b@auth.example.test/token", authIP, "credentials of its own"},
		"no URL":                            {"::", "x", "token server"},
		"file":                              {"file:///etc/passwd", "x", "token server"},
		"name of a private address":         {"https://inner.example.test/token", "192.168.1.1", "private address"},
		"name of loopback":                  {"https://loop.example.test/token", "127.0.0.1", "private address"},
		"name of a metadata service":        {"https://meta.example.test/token", "169.254", "no registry may lead to"},
		"name of 0.0.0.0":                   {"https://zero.example.test/token", "0.0.0.0", "no registry may lead to"},
		"name of a mapped metadata address": {"https://mapped.example.test/token", "[::ffff", "no registry may lead to"},
		"answers with redirect":             {"https://auth.example.test/redirect", evilIP, "never followed"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, Options{})
			s.net.Name("inner.example.test", "192.168.1.1")
			s.net.Name("loop.example.test", "127.0.0.1")
			s.net.Name("meta.example.test", "169.254.169.254")
			s.net.Name("zero.example.test", "0.0.0.0")
			s.net.Name("mapped.example.test", "::ffff:169.254.169.254")
			s.net.Name("registry.example.test.evil.test", evilIP)
			s.registry.with = bearerChallenge(c.realm)
			s.auth.with = func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, "https://evil.test/token", http.StatusFound)
			}
			_, err := s.session(t, Pull).Manifest(t.Context(), "1")
			if err == nil || !strings.Contains(err.Error(), c.message) {
				t.Errorf("error %v, want %q", err, c.message)
			}
			for _, d := range s.net.Dialed() {
				if strings.HasPrefix(d, c.noDial) {
					t.Errorf("connected to %s", d)
				}
			}
			for where, text := range map[string]string{"evil": s.evil.all(), "registry": s.registry.all(), "log": s.log.String(), "error": fmt.Sprint(err)} {
				if holdsSecret(text) {
					t.Errorf("password leaked to %s: %s", where, text)
				}
			}
		})
	}
}

func TestAllowedTokenServers(t *testing.T) {
	grant := func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"token":"tok"}`) }
	cases := map[string]struct {
		realm  string
		server func(*scene) *capture
		opts   Options
	}{
		"same domain":  {"https://auth.example.test/token", func(s *scene) *capture { return s.auth }, Options{}},
		"user's list":  {"https://evil.test/token", func(s *scene) *capture { return s.evil }, Options{AuthRealms: []string{"evil.test"}}},
		"same host":    {"https://registry.example.test/token", func(s *scene) *capture { return s.registry }, Options{}},
		"same, port":   {"https://registry.example.test:443/token", func(s *scene) *capture { return s.registry }, Options{}},
		"upper letter": {"https://AUTH.example.test/token", func(s *scene) *capture { return s.auth }, Options{}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, c.opts)
			s.net.Name("AUTH.example.test", authIP)
			s.net.Trust(t, "AUTH.example.test")
			s.net.Trust(t, registryHost+":443")
			s.auth.with, s.evil.with = grant, grant
			s.registry.with = func(w http.ResponseWriter, r *http.Request) {
				switch {
				case r.URL.Path == "/token":
					grant(w, r)
				case r.Header.Get("Authorization") == "Bearer tok":
					w.Header().Set("Content-Type", oci.MediaTypeOCIIndex)
					fmt.Fprintf(w, `{"schemaVersion":2,"mediaType":%q,"manifests":[]}`, oci.MediaTypeOCIIndex)
				default:
					bearerChallenge(c.realm)(w, r)
				}
			}
			if _, err := s.session(t, Pull).Manifest(t.Context(), "1"); err != nil {
				t.Fatal(err)
			}
			if got := c.server(s).all(); !holdsSecret(got) || !strings.Contains(got, "repository%3Ar%3Apull") || !strings.Contains(got, "account="+remotetest.User) {
				t.Errorf("token request: %s", got)
			}
			if holdsSecret(s.log.String()) {
				t.Error("password in log")
			}
		})
	}
}

// Another host to which a registry redirects, or sends an upload, gets no Authorization. A redirect from https to http is refused.
func TestOtherHostsGetNoAuthorization(t *testing.T) {
	data := []byte("blob")
	digest := oci.DigestOf(data)
	authorized := func(w http.ResponseWriter, r *http.Request) bool {
		if u, p, ok := r.BasicAuth(); ok && u == remotetest.User && p == remotetest.Password {
			return true
		}
		w.Header().Set("Www-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusUnauthorized)
		return false
	}
	read := func(s *scene, t *testing.T) ([]byte, error) {
		b, err := s.session(t, Pull).Blob(t.Context(), digest, 0, -1)
		if err != nil {
			return nil, err
		}
		defer b.Close()
		return io.ReadAll(b)
	}
	redirectTo := func(target string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if authorized(w, r) {
				http.Redirect(w, r, target, http.StatusTemporaryRedirect)
			}
		}
	}
	t.Run("blob redirect", func(t *testing.T) {
		s := newScene(t, Options{})
		// The certificate of a redirect's target is checked with the roots of the system, which do not have the CA of this
		// test. So the request fails, and it must not have sent anything before that.
		s.registry.with = redirectTo("https://evil.test/x?sig=1")
		if _, err := read(s, t); err == nil || !strings.Contains(err.Error(), "x509") || strings.Contains(err.Error(), "sig=") {
			t.Errorf("error %v, want one about the certificate, without the query", err)
		}
		if holdsSecret(s.evil.all()) {
			t.Errorf("leaked: %s", s.evil.all())
		}
	})
	t.Run("blob redirect from http", func(t *testing.T) {
		s := newScene(t, Options{Insecure: []string{registryHost}})
		s.evil.with = func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(data) }
		s.net.At(registryIP+":443", "127.0.0.1:1")
		s.registry.with = redirectTo("http://evil.test/x?sig=1")
		got, err := read(s, t)
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%q, %v", got, err)
		}
		if text := s.evil.all(); holdsSecret(text) || strings.Contains(text, "Authorization") {
			t.Errorf("leaked: %s", text)
		}
	})
	t.Run("downgrade", func(t *testing.T) {
		s := newScene(t, Options{})
		s.registry.with = redirectTo("http://registry.example.test/x")
		if _, err := read(s, t); err == nil || !strings.Contains(err.Error(), "redirect from https to http://registry.example.test/x refused") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("redirect to metadata", func(t *testing.T) {
		s := newScene(t, Options{})
		s.registry.with = redirectTo("https://169.254.169.254/latest")
		if _, err := read(s, t); err == nil || !strings.Contains(err.Error(), "no registry may lead to") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("redirect loop", func(t *testing.T) {
		s := newScene(t, Options{})
		s.registry.with = redirectTo("/v2/again")
		if _, err := read(s, t); err == nil || !strings.Contains(err.Error(), "redirects more than") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("upload location", func(t *testing.T) {
		s := newScene(t, Options{Insecure: []string{registryHost}})
		s.net.At(registryIP+":443", "127.0.0.1:1")
		s.registry.with = func(w http.ResponseWriter, r *http.Request) {
			if authorized(w, r) {
				w.Header().Set("Location", "http://evil.test/upload?state=1")
				w.WriteHeader(http.StatusAccepted)
			}
		}
		s.evil.with = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusCreated) }
		up, _, err := s.session(t, Push).StartUpload(t.Context(), "", oci.Reference{})
		if err != nil {
			t.Fatal(err)
		}
		if err := up.Commit(t.Context(), digest, data); err != nil {
			t.Fatal(err)
		}
		text := s.evil.all()
		if holdsSecret(text) || strings.Contains(text, "Authorization") || !strings.Contains(text, "state=1&digest=sha256%3A") {
			t.Errorf("upload request: %s", text)
		}
	})
}

// A mirror gets no credentials. One that asks for a password is treated as failed.
func TestMirrorGetsNoCredentials(t *testing.T) {
	index := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[]}`, oci.MediaTypeOCIIndex)
	s := newScene(t, Options{Mirrors: []string{"https://evil.test", "https://dead.test", "https://auth.example.test"}})
	hub := &capture{with: func(w http.ResponseWriter, r *http.Request) {
		if _, _, ok := r.BasicAuth(); !ok {
			w.Header().Set("Www-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.Header().Set("Content-Type", oci.MediaTypeOCIIndex)
		_, _ = w.Write([]byte(index))
	}}
	s.net.Host(t, hubRegistry, "203.0.113.9", hub)
	s.evil.with = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Www-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusUnauthorized)
	}
	s.auth.with = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }
	ref, err := oci.ParseReference("mysql")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		m, err := s.client.Session(ref, Pull, s.cred).Manifest(context.Background(), "latest")
		if err != nil || string(m.Data) != index || m.Source != "https://"+hubRegistry {
			t.Fatalf("%+v, %v", m, err)
		}
	}
	if !holdsSecret(hub.all()) {
		t.Error("the hub got no credentials")
	}
	for _, m := range []*capture{s.evil, s.auth} {
		if len(m.got) != 1 {
			t.Errorf("a mirror that failed was asked %d times", len(m.got))
		}
		if holdsSecret(m.all()) || strings.Contains(m.all(), "Authorization") {
			t.Errorf("mirror got credentials: %s", m.all())
		}
	}
}

func TestPlainHTTPHint(t *testing.T) {
	s := newScene(t, Options{ConfigFile: "/etc/docker/daemon.json"})
	s.net.Name("plain.example.test", "203.0.113.5")
	f := remotetest.StartFake(t, false)
	s.net.At("203.0.113.5:5000", f.Addr())
	ref, err := oci.ParseReference("plain.example.test:5000/r")
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.client.Session(ref, Pull, s.cred).Manifest(t.Context(), "1")
	want := `Get "https://plain.example.test:5000/v2/r/manifests/1": http: server gave HTTP response to HTTPS client. ` +
		`If you trust the network to it, add "insecure-registries": ["plain.example.test:5000"] to /etc/docker/daemon.json and reload the engine.`
	if err == nil || err.Error() != want {
		t.Errorf("error %v\nwant  %s", err, want)
	}
	if e, ok := err.(*errs.Error); !ok || e.Class != errs.Precondition { //nolint:errorlint // the outermost counts
		t.Errorf("class of %v", err)
	}

	// After Reload the registry may be insecure, by its name or by its network, but not by another network.
	for _, insecure := range []string{"plain.example.test:5000", "203.0.113.0/24"} {
		if err := s.client.Reload(nil, []string{insecure}, nil); err != nil {
			t.Fatal(err)
		}
		_, err = s.client.Session(ref, Pull, s.cred).Manifest(t.Context(), "1")
		if err == nil || !strings.Contains(err.Error(), "manifest unknown") {
			t.Errorf("insecure %s: %v", insecure, err)
		}
	}
	if err := s.client.Reload(nil, []string{"198.51.100.0/24"}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err = s.client.Session(ref, Pull, s.cred).Manifest(t.Context(), "1"); err == nil || !strings.Contains(err.Error(), "HTTP response to HTTPS client") {
		t.Errorf("network of others: %v", err)
	}
	if err := s.client.Reload([]string{"nonsense"}, nil, nil); err == nil {
		t.Error("a mirror that is no URL was taken")
	}
}

// No request accepts an untrusted certificate of a registry that is not declared insecure.
func TestUntrustedCertificateIsRefused(t *testing.T) {
	s := newScene(t, Options{})
	f := remotetest.StartFake(t, true)
	s.net.Name("tls.example.test", "203.0.113.6")
	s.net.At("203.0.113.6:443", f.Addr())
	ref, err := oci.ParseReference("tls.example.test/r")
	if err != nil {
		t.Fatal(err)
	}
	ses := s.client.Session(ref, Push, s.cred)
	try := map[string]func() error{
		"manifest": func() error { _, err := ses.Manifest(t.Context(), "1"); return err },
		"blob":     func() error { _, err := ses.Blob(t.Context(), oci.DigestOf(nil), 0, -1); return err },
		"head":     func() error { _, err := ses.HasBlob(t.Context(), oci.DigestOf(nil)); return err },
		"upload":   func() error { _, _, err := ses.StartUpload(t.Context(), "", oci.Reference{}); return err },
		"put":      func() error { return ses.PutManifest(t.Context(), "1", oci.MediaTypeOCIManifest, nil) },
		"tags":     func() error { _, err := ses.Tags(t.Context()); return err },
		"login": func() error {
			_, err := s.client.Login(t.Context(), transfer.Credentials{Username: "u", Password: "p", ServerAddress: "tls.example.test"})
			return err
		},
		"search": func() error { _, err := s.client.Search(t.Context(), "tls.example.test/x", 5, nil, s.cred); return err },
	}
	for name, do := range try {
		if err := do(); err == nil || !strings.Contains(err.Error(), "x509:") || !strings.Contains(err.Error(), "/tls.example.test/ca.crt") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := len(f.Log("")); n != 0 {
		t.Errorf("%d requests reached it", n)
	}
}
