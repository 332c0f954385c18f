package remote

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"ply/internal/errs"
	"ply/internal/fence"
)

// resolved is an endpoint with its scheme.
type resolved struct {
	*endpoint
	base *url.URL
}

// request is one HTTP request to an endpoint.
type request struct {
	method string
	path   string   // below the endpoint's prefix, with the query
	url    *url.URL // used instead of path, for the Location of an upload; nil = path
	header http.Header
	body   func() io.Reader // nil = none
	length int64            // of body, in bytes; -1 = unknown
	scopes []string         // scopes that a token needs
	once   bool             // the body cannot be sent twice
}

const (
	maxRedirects  = 10
	maxChallenges = 3 // a token may expire while a request waits
)

// resolve finds out the scheme of an insecure endpoint: it tries https first, then http.
func (s *Session) resolve(ctx context.Context, e *endpoint) (*resolved, error) {
	insecure := e.insecure
	if !insecure && len(e.nets) > 0 {
		insecure = s.c.inNetworks(ctx, e)
	}
	r := &resolved{endpoint: &endpoint{scheme: e.scheme, host: e.host, prefix: e.prefix, mirror: e.mirror, insecure: insecure}}
	if insecure {
		r.nets = e.nets
	}
	scheme := e.scheme
	if insecure && !e.mirror {
		var err error
		if scheme, err = s.c.probe(ctx, r); err != nil {
			return nil, err
		}
	}
	r.scheme = scheme
	r.base = &url.URL{Scheme: scheme, Host: e.host}
	return r, nil
}

// inNetworks reports whether every address of a host is in the endpoint's networks. It remembers the answer for a minute; that is
// safe, because the dialer checks the address of every connection.
func (c *Client) inNetworks(ctx context.Context, e *endpoint) bool {
	c.mu.Lock()
	known, ok := c.within[e.host]
	c.mu.Unlock()
	if ok && time.Now().Before(known.until) {
		return known.yes
	}
	yes := c.lookupWithin(ctx, e)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.within[e.host] = knownWithin{yes, time.Now().Add(time.Minute)}
	return yes
}

// lookupWithin is inNetworks without the memory.
func (c *Client) lookupWithin(ctx context.Context, e *endpoint) bool {
	ctx, cancel := context.WithTimeout(ctx, mirrorConnectTimeout)
	defer cancel()
	ips, err := c.opts.Lookup(ctx, (&url.URL{Host: e.host}).Hostname())
	if err != nil || len(ips) == 0 {
		return false
	}
	check := within(e.nets)
	for _, ip := range ips {
		if check("", ip.Unmap()) != nil {
			return false
		}
	}
	return true
}

// probe finds out whether an insecure host answers to https or http, and remembers it. It sends no credentials.
func (c *Client) probe(ctx context.Context, r *resolved) (string, error) {
	c.mu.Lock()
	known := c.schemes[r.host]
	c.mu.Unlock()
	if time.Now().Before(known.until) {
		return known.scheme, nil
	}
	t, err := c.transport(r)
	if err != nil {
		return "", err
	}
	var last error
	for _, scheme := range []string{"https", "http"} {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+r.host+"/v2/", nil)
		if err != nil {
			return "", errs.New(errs.Invalid, "registry %s: %w", r.host, err)
		}
		req.Header.Set("User-Agent", c.opts.UserAgent)
		resp, err := t.RoundTrip(req)
		if err == nil {
			resp.Body.Close()
			c.mu.Lock()
			c.schemes[r.host] = knownScheme{scheme, time.Now().Add(schemeFor)}
			c.mu.Unlock()
			return scheme, nil
		}
		last = c.transportError(r, req, err)
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
	}
	return "", last
}

func (c *Client) forgetScheme(host string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.schemes, host)
}

// send sends a request to an endpoint, authenticates as the endpoint demands, and follows redirects of GET and HEAD. A status
// outside 2xx is an *Error. The caller closes the body.
func (s *Session) send(ctx context.Context, e *endpoint, r *request) (*http.Response, *resolved, error) {
	ep, err := s.resolve(ctx, e)
	if err != nil {
		return nil, nil, err
	}
	u := r.url
	if u == nil {
		if u, err = url.Parse(ep.base.String() + ep.prefix + r.path); err != nil {
			return nil, nil, errs.New(errs.Invalid, "registry %s: %w", ep.host, err)
		}
	}
	for attempt := 0; ; attempt++ {
		authorization := ""
		if fence.Origin(u) == fence.Origin(ep.base) {
			if authorization, err = s.authorization(ctx, ep, r.scopes); err != nil {
				return nil, nil, err
			}
		}
		resp, peer, err := s.roundTrip(ctx, ep, u, r, authorization)
		if err != nil {
			return nil, nil, err
		}
		if resp.StatusCode == http.StatusUnauthorized && attempt < maxChallenges && fence.Origin(resp.Request.URL) == fence.Origin(ep.base) {
			again, err := s.challenged(ctx, ep, resp, peer, r.scopes, authorization)
			if err != nil {
				return nil, nil, err
			}
			if again && r.once {
				return nil, nil, errs.New(errs.Unavailable, "registry %s: asks for new credentials during an upload", ep.host)
			}
			if again {
				continue
			}
		}
		if resp.StatusCode < 200 || resp.StatusCode > 299 {
			return nil, nil, answerError(resp)
		}
		return resp, ep, nil
	}
}

// roundTrip sends one request and follows its redirects. It sends the authorization to the endpoint's own origin only.
func (s *Session) roundTrip(ctx context.Context, ep *resolved, u *url.URL, r *request, authorization string) (*http.Response, netip.Addr, error) {
	var peer netip.Addr
	for hop := 0; ; hop++ {
		t, err := s.c.transportFor(ep, u)
		if err != nil {
			return nil, peer, err
		}
		trace := &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { peer = fence.AddrOf(i.Conn.RemoteAddr()) }}
		req, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, trace), r.method, u.String(), nil)
		if err != nil {
			return nil, peer, errs.New(errs.Invalid, "registry %s: %w", ep.host, err)
		}
		for k, v := range r.header {
			req.Header[k] = v
		}
		if r.body != nil && r.length == 0 {
			req.Body = http.NoBody
		} else if r.body != nil {
			req.Body = io.NopCloser(r.body())
			req.ContentLength = r.length
			if !r.once {
				req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(r.body()), nil }
			}
		}
		req.Header.Set("User-Agent", s.c.opts.UserAgent)
		if authorization != "" && fence.Origin(u) == fence.Origin(ep.base) {
			req.Header.Set("Authorization", authorization)
		}
		resp, err := t.RoundTrip(req)
		if err != nil {
			if ctx.Err() != nil {
				return nil, peer, context.Cause(ctx)
			}
			s.c.forgetScheme(ep.host)
			return nil, peer, s.c.transportError(ep, req, err)
		}
		next, err := redirect(ep, u, r, resp)
		if err != nil || next == nil {
			return resp, peer, err
		}
		if hop == maxRedirects {
			return nil, peer, errs.New(errs.Invalid, "registry %s: redirects more than %d times", ep.host, maxRedirects)
		}
		u = next
	}
}

// transportFor returns the connection pool for a URL: the endpoint's own, or the one for other hosts.
func (c *Client) transportFor(ep *resolved, u *url.URL) (http.RoundTripper, error) {
	if strings.EqualFold(u.Host, ep.host) {
		return c.transport(ep)
	}
	return c.elsewhere(), nil
}

// redirect returns the URL to which resp redirects, or nil when resp is not a redirect that is followed. It closes the body of a
// redirect.
func redirect(ep *resolved, u *url.URL, r *request, resp *http.Response) (*url.URL, error) {
	switch resp.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
	default:
		return nil, nil //nolint:nilnil // not a redirect
	}
	if r.method != http.MethodGet && r.method != http.MethodHead {
		return nil, nil //nolint:nilnil // the caller sees the status
	}
	resp.Body.Close()
	next, err := u.Parse(resp.Header.Get("Location"))
	if err != nil || resp.Header.Get("Location") == "" {
		return nil, errs.New(errs.Invalid, "registry %s: redirect without a usable Location", ep.host)
	}
	switch {
	case next.Scheme != "https" && next.Scheme != "http":
		return nil, errs.New(errs.Forbidden, "registry %s: redirect to scheme %q refused", ep.host, clip(clean(next.Scheme)))
	case u.Scheme == "https" && next.Scheme == "http":
		return nil, errs.New(errs.Forbidden, "registry %s: redirect from https to %s refused", ep.host, redact(next))
	}
	next.User = nil
	return next, nil
}

// transportError words an error below HTTP as docker does and adds a hint where there is one.
func (c *Client) transportError(ep *resolved, req *http.Request, err error) error {
	var refused *errs.Error
	if errors.As(err, &refused) && refused.Class == errs.Forbidden {
		return refused
	}
	method := req.Method[:1] + strings.ToLower(req.Method[1:])
	e := errs.New(errs.Unavailable, "%s %q: %w", method, redact(req.URL), err)
	var record tls.RecordHeaderError
	if errors.As(err, &record) && string(record.RecordHeader[:]) == "HTTP/" {
		e = errs.New(errs.Precondition, "%s %q: http: server gave HTTP response to HTTPS client", method, redact(req.URL))
		return e.WithHint("If you trust the network to it, add \"insecure-registries\": [%q] to %s and reload the engine.", req.URL.Host, c.opts.ConfigFile)
	}
	var untrusted *tls.CertificateVerificationError
	if errors.As(err, &untrusted) {
		e = errs.New(errs.Precondition, "%s %q: %w", method, redact(req.URL), err)
		dir := "certs.d"
		if len(c.opts.CertsDirs) > 0 {
			dir = c.opts.CertsDirs[0]
		}
		return e.WithHint("Put the registry's CA into %s/%s/ca.crt, or add \"insecure-registries\": [%q] to %s.", dir, req.URL.Host, req.URL.Host, c.opts.ConfigFile)
	}
	var dns *net.DNSError
	if errors.As(err, &dns) && dns.IsNotFound {
		return errs.New(errs.Unavailable, "%s %q: dial tcp: %w", method, redact(req.URL), dns).
			WithHint("Check the registry's name and the machine's DNS.")
	}
	return e
}
