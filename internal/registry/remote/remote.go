// Package remote is a client of other registries, for what this one copies from them and to them.
//
// Invariants: credentials go to the origin that its owner named and to a token server that fence.Realms allows, never to where a
// redirect or a location leads. A redirect does not lead from https to http, to a link-local or metadata address, or from a public
// registry into a private network. Every answer is bounded; manifests are compared with their digest here, blobs by those who
// store them.
package remote

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"ply/internal/errs"
	"ply/internal/fence"
	"ply/internal/version"
)

// Credentials are those of an account at one registry. The zero value is anonymous.
type Credentials struct {
	Username, Password string
	IdentityToken      string // for the token server; replaces the password
}

// LogValue keeps secrets out of logs.
func (c Credentials) LogValue() slog.Value { return slog.StringValue(c.Username) }

func (c Credentials) empty() bool { return c == Credentials{} }

// Options configure a Registry.
type Options struct {
	URL         string // such as https://registry-1.docker.io, perhaps with a path before /v2/
	Credentials Credentials
	Roots       *x509.CertPool // of TLS; nil = the system's
	Stall       time.Duration  // how long a registry may send nothing; 0 = 1 minute

	// Lookup and Connect replace the system's; nil = the system's.
	Lookup  func(ctx context.Context, host string) ([]netip.Addr, error)
	Connect func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Registry is another registry. Safe for concurrent use.
type Registry struct {
	o    Options
	base *url.URL

	mu    sync.Mutex
	pools map[poolKey]*http.Transport
	peer  netip.Addr // where the registry answered last

	auth authState
}

// poolKey distinguishes connection pools. Each has a check of its own.
type poolKey struct {
	host    string // without a port; "" = the registry itself
	private bool   // the registry has a private address, so what it names may have one, too
}

const (
	maxPools       = 32
	maxRedirects   = 5
	maxError       = 64 << 10 // bytes read of the body of an error
	connectTimeout = 10 * time.Second
	headerTimeout  = 30 * time.Second
)

// New returns a client. The error's class is errs.Invalid when the URL is not one.
func New(o Options) (*Registry, error) {
	u, err := ParseURL(o.URL)
	if err != nil {
		return nil, err
	}
	if o.Stall == 0 {
		o.Stall = time.Minute
	}
	r := &Registry{o: o, base: u, pools: map[poolKey]*http.Transport{}}
	r.auth.tokens = map[string]*tokenFlight{}
	return r, nil
}

// ParseURL reads the address of a registry.
func ParseURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, errs.New(errs.Invalid, "%q is not the address of a registry, such as https://registry.example.com", s)
	}
	if u.User != nil {
		return nil, errs.New(errs.Invalid, "the address of registry %s has credentials in it", u.Host).WithHint("Put them into the file of credentials.")
	}
	u.Path = strings.TrimRight(u.Path, "/")
	return u, nil
}

// Host returns the host of the registry, with its port when the address has one.
func (r *Registry) Host() string { return r.base.Host }

// Close closes the connections that no request uses.
func (r *Registry) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range r.pools {
		t.CloseIdleConnections()
	}
}

// request is a request to the registry.
type request struct {
	method string
	path   string   // below /v2/
	url    *url.URL // where the registry said to go on; nil = path
	query  url.Values
	header map[string]string
	body   func() (io.ReadCloser, error) // nil = none; opened once for every try
	length int64                         // of the body, in bytes
	scope  string                        // of the token, such as repository:a/b:pull
}

// do sends a request, logs in as the registry wants it, and follows the redirects of GET and HEAD. A status outside 2xx is an
// *Error. The caller closes the body, whose reads fail when the registry sends nothing for too long.
func (r *Registry) do(ctx context.Context, q request) (*http.Response, error) {
	u := q.url
	if u == nil {
		c := *r.base
		u = &c
		u.Path += "/v2/" + q.path
		u.RawPath = ""
		u.RawQuery = q.query.Encode()
	}
	ctx, cancel := context.WithCancelCause(ctx)
	if open := q.body; open != nil {
		var last *stalling
		q.body = func() (io.ReadCloser, error) {
			body, err := open()
			if err != nil {
				return nil, err
			}
			last = sent(ctx, body, r.o.Stall, cancel)
			return last, nil
		}
		defer func() {
			if last != nil {
				last.timer.Stop()
			}
		}()
	}
	resp, err := r.try(ctx, u, q)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	resp.Body = received(ctx, resp.Body, r.o.Stall, cancel)
	return resp, nil
}

func (r *Registry) try(ctx context.Context, u *url.URL, q request) (*http.Response, error) {
	own := fence.Origin(u) == fence.Origin(r.base)
	for attempt := 0; ; attempt++ {
		authorization := ""
		if own {
			var err error
			if authorization, err = r.authorization(ctx, q.scope); err != nil {
				return nil, err
			}
		}
		resp, err := r.follow(ctx, u, q, authorization)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode == http.StatusUnauthorized && attempt < 2 && fence.Origin(resp.Request.URL) == fence.Origin(r.base) {
			again, err := r.challenged(resp, q.scope, authorization)
			if err != nil {
				resp.Body.Close()
				return nil, err
			}
			if again {
				drain(resp)
				continue
			}
		}
		if resp.StatusCode < 200 || resp.StatusCode > 299 {
			return nil, answerError(resp)
		}
		return resp, nil
	}
}

// follow sends one request and follows its redirects.
func (r *Registry) follow(ctx context.Context, u *url.URL, q request, authorization string) (*http.Response, error) {
	var peer netip.Addr
	for hop := 0; ; hop++ {
		trace := &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { peer = fence.AddrOf(i.Conn.RemoteAddr()) }}
		req, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, trace), q.method, u.String(), nil)
		if err != nil {
			return nil, errs.New(errs.Invalid, "registry %s: %w", r.base.Host, err)
		}
		for k, v := range q.header {
			req.Header.Set(k, v)
		}
		req.Header.Set("User-Agent", "ply-registry/"+version.Version)
		if q.body != nil {
			body, err := q.body()
			if err != nil {
				return nil, err
			}
			req.Body, req.ContentLength = body, q.length
			if q.length == 0 {
				body.Close()
				req.Body = http.NoBody
			}
		}
		if authorization != "" && fence.Origin(u) == fence.Origin(r.base) {
			req.Header.Set("Authorization", authorization)
		}
		resp, err := r.pool(u).RoundTrip(req)
		if err != nil {
			return nil, r.transportError(ctx, req, err)
		}
		if fence.Origin(u) == fence.Origin(r.base) {
			r.mu.Lock()
			r.peer = peer
			r.mu.Unlock()
		}
		next, err := redirect(r.base.Host, u, q.method, resp)
		if err != nil || next == nil {
			return resp, err
		}
		if hop == maxRedirects {
			return nil, errs.New(errs.Invalid, "registry %s: redirects more than %d times", r.base.Host, maxRedirects)
		}
		u = next
	}
}

// redirect returns where a response leads, or nil when it is not a redirect that is followed. It closes the body of a redirect.
func redirect(host string, u *url.URL, method string, resp *http.Response) (*url.URL, error) {
	switch resp.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
	default:
		return nil, nil //nolint:nilnil // not a redirect
	}
	if method != http.MethodGet && method != http.MethodHead {
		return nil, nil //nolint:nilnil // the caller sees the status
	}
	resp.Body.Close()
	next, err := u.Parse(resp.Header.Get("Location"))
	switch {
	case err != nil || resp.Header.Get("Location") == "" || next.Host == "":
		return nil, errs.New(errs.Invalid, "registry %s: redirect without a usable Location", host)
	case next.Scheme != "https" && next.Scheme != "http":
		return nil, errs.New(errs.Forbidden, "registry %s: redirect to the scheme %q", host, clip(next.Scheme))
	case u.Scheme == "https" && next.Scheme == "http":
		return nil, errs.New(errs.Forbidden, "registry %s: redirect from https to http at %q", host, clip(next.Host))
	}
	next.User = nil
	return next, nil
}

// pool returns the connections for a URL.
func (r *Registry) pool(u *url.URL) *http.Transport {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := poolKey{}
	check := fence.NoMetadata
	conf := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: r.o.Roots}
	if fence.Origin(u) != fence.Origin(r.base) {
		key = poolKey{strings.ToLower(u.Hostname()), r.peer.IsPrivate() || r.peer.IsLoopback()}
		check = fence.RealmCheck(r.peer)
	}
	if t := r.pools[key]; t != nil {
		return t
	}
	if len(r.pools) >= maxPools { // a registry that names many hosts
		for k, t := range r.pools {
			if k != (poolKey{}) {
				t.CloseIdleConnections()
				delete(r.pools, k)
			}
		}
	}
	d := &fence.Dialer{Timeout: connectTimeout, Target: u.Hostname(), Check: check, Lookup: r.o.Lookup, Connect: r.o.Connect}
	t := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            d.Dial,
		TLSClientConfig:        conf,
		TLSHandshakeTimeout:    connectTimeout,
		ResponseHeaderTimeout:  headerTimeout,
		MaxIdleConnsPerHost:    8,
		IdleConnTimeout:        30 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		DisableCompression:     true, // digests are of the bytes as the registry has them
	}
	r.pools[key] = t
	return t
}

func (r *Registry) transportError(ctx context.Context, req *http.Request, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if e, ok := errors.AsType[*errs.Error](err); ok && e.Class == errs.Forbidden {
		return e
	}
	return errs.New(errs.Unavailable, "registry %s: %s: %w", r.base.Host, req.Method, err)
}

// drain reads the rest of a short body, so that the connection can be used again.
func drain(resp *http.Response) {
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxError))
	resp.Body.Close()
}

// stalling is a body that ends when the other side neither sends nor takes anything for too long.
type stalling struct {
	io.ReadCloser
	limit time.Duration
	timer *time.Timer
	cause func() error
	end   func() // nil = none
}

// received returns the body of an answer. Only the time in which it is read counts.
func received(ctx context.Context, body io.ReadCloser, limit time.Duration, cancel context.CancelCauseFunc) *stalling {
	s := sent(ctx, body, limit, cancel)
	s.timer.Stop()
	s.end = func() { cancel(nil) }
	return s
}

func (s *stalling) Read(p []byte) (int, error) {
	s.timer.Reset(s.limit)
	n, err := s.ReadCloser.Read(p)
	if s.end != nil {
		s.timer.Stop()
	}
	if err != nil && !errors.Is(err, io.EOF) {
		if cause := s.cause(); cause != nil {
			err = cause
		}
	}
	return n, err
}

// Close ends the body of an answer. That of a request may still be waiting for the answer.
func (s *stalling) Close() error {
	err := s.ReadCloser.Close()
	if s.end != nil {
		s.timer.Stop()
		s.end()
	}
	return err
}

// sent returns the body of a request. The time in which the other side takes nothing counts.
func sent(ctx context.Context, body io.ReadCloser, limit time.Duration, cancel context.CancelCauseFunc) *stalling {
	t := time.AfterFunc(limit, func() {
		cancel(errs.New(errs.Unavailable, "the registry neither sent nor took anything for %v", limit))
	})
	return &stalling{ReadCloser: body, limit: limit, timer: t, cause: func() error { return context.Cause(ctx) }}
}

func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}
