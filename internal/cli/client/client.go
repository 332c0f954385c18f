// Package client speaks the Docker Engine API over a unix socket, TCP, with and without TLS, or ssh.
//
// It handles requests, versions, errors and hijacked streams, and has no command in it. Answers are decoded into the types of package
// wire, or returned as raw JSON, which keeps the fields that only newer engines send. Several goroutines may use a Client at the same
// time.
package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"ply/internal/errs"
)

// MaxAPI and MinAPI are the newest and the oldest API version that this client speaks.
const (
	MaxAPI = "1.51"
	MinAPI = "1.24"
)

// maxError bounds how much of an error answer is read, in bytes.
const maxError = 1 << 20

// Options are the options of New.
type Options struct {
	Host       string            // unix://PATH, tcp://HOST:PORT or ssh://[USER@]HOST[:PORT][/SOCKET]
	TLS        *tls.Config       // nil means a plain connection
	Headers    map[string]string // sent with every request
	UserAgent  string
	APIVersion string       // fixed version; "" means negotiated
	Trace      func(string) // receives one line per request, without bodies and headers; may be nil
}

// Client is a client of one engine.
type Client struct {
	opts    Options
	network string
	addr    string
	scheme  string
	http    *http.Client

	mu     sync.Mutex
	ping   *Ping
	fixed  bool
	apiVer string
}

// Ping is what an engine says about itself in the headers of every answer.
type Ping struct {
	APIVersion     string
	OSType         string
	BuilderVersion string
	Experimental   bool
}

// New returns a client. It checks the host, but does not connect yet.
func New(opts Options) (*Client, error) {
	network, addr, err := SplitHost(opts.Host)
	if err != nil {
		return nil, err
	}
	c := &Client{opts: opts, network: network, addr: addr, scheme: "http", apiVer: MaxAPI}
	if opts.TLS != nil {
		c.scheme = "https"
	}
	if opts.APIVersion != "" {
		c.apiVer, c.fixed = strings.TrimPrefix(opts.APIVersion, "v"), true
	}
	c.http = &http.Client{
		Transport: &http.Transport{
			DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dialPlain(ctx) },
			TLSClientConfig:    opts.TLS,
			DisableCompression: true,
			MaxIdleConns:       6,
			IdleConnTimeout:    30 * time.Second,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

// SplitHost returns the network ("unix", "tcp" or "ssh") and the address of a value of -H.
func SplitHost(host string) (network, addr string, err error) {
	proto, rest, ok := strings.Cut(host, "://")
	if !ok {
		return "", "", errs.New(errs.Invalid, "unable to parse docker host `%s`", host)
	}
	switch proto {
	case "unix":
		if rest == "" {
			return "", "", errs.New(errs.Invalid, "host %q: no socket path", host)
		}
		return "unix", rest, nil
	case "tcp", "http", "https":
		rest = strings.TrimSuffix(rest, "/")
		if strings.Contains(rest, "/") {
			return "", "", errs.New(errs.Invalid, "host %q: a path is not supported", host)
		}
		if rest == "" {
			rest = "127.0.0.1"
		}
		if _, _, err := net.SplitHostPort(rest); err != nil {
			port := "2375"
			if proto == "https" {
				port = "2376"
			}
			rest = net.JoinHostPort(strings.Trim(rest, "[]"), port)
		}
		return "tcp", rest, nil
	}
	if proto == "ssh" {
		_, err := sshArgs(host)
		return "ssh", host, err
	}
	return "", "", errs.New(errs.Unimplemented, "host %q: %s:// is not supported, use unix://PATH, tcp://HOST:PORT or ssh://USER@HOST", host, proto)
}

// Host returns the address that was given to New.
func (c *Client) Host() string { return c.opts.Host }

func (c *Client) dialPlain(ctx context.Context) (net.Conn, error) {
	if c.network == "ssh" {
		return dialSSH(c.addr)
	}
	d := net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}
	return d.DialContext(ctx, c.network, c.addr)
}

func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	conn, err := c.dialPlain(ctx)
	if err != nil || c.opts.TLS == nil {
		return conn, err
	}
	cfg := c.opts.TLS.Clone()
	if cfg.ServerName == "" {
		cfg.ServerName, _, _ = net.SplitHostPort(c.addr)
	}
	cfg.NextProtos = nil
	t := tls.Client(conn, cfg)
	if err := t.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return t, nil
}

// Ping asks the engine what it is, and negotiates the version. Only the first successful call sends a request.
func (c *Client) Ping(ctx context.Context) (Ping, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ping != nil {
		return *c.ping, nil
	}
	resp, err := c.roundTrip(ctx, http.MethodHead, "/_ping", nil, nil, nil)
	if err != nil {
		return Ping{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 500 || resp.StatusCode == http.StatusNotFound && resp.Header.Get("API-Version") == "" {
		return Ping{}, errs.New(errs.Unavailable, "%s does not answer as a Docker Engine API: %s", c.opts.Host, resp.Status)
	}
	p := Ping{
		APIVersion:     resp.Header.Get("API-Version"),
		OSType:         resp.Header.Get("OSType"),
		BuilderVersion: resp.Header.Get("Builder-Version"),
		Experimental:   resp.Header.Get("Docker-Experimental") == "true",
	}
	if !c.fixed {
		v := p.APIVersion
		if v == "" {
			v = MinAPI
		}
		if Less(v, MinAPI) {
			return Ping{}, errs.New(errs.Unimplemented, "engine API version %s is too old, at least %s is needed", v, MinAPI)
		}
		if Less(v, c.apiVer) {
			c.apiVer = v
		}
	}
	c.ping = &p
	return p, nil
}

// APIVersion returns the version that the client speaks. It is final after the first request.
func (c *Client) APIVersion() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.apiVer
}

// AtLeast negotiates the version and reports whether it is v or newer. It returns false when the engine cannot be reached.
func (c *Client) AtLeast(ctx context.Context, v string) bool {
	if _, err := c.Ping(ctx); err != nil {
		return false
	}
	return !Less(c.APIVersion(), v)
}

// Less compares two API versions by number.
func Less(a, b string) bool {
	am, an := splitVersion(a)
	bm, bn := splitVersion(b)
	return am < bm || am == bm && an < bn
}

func splitVersion(v string) (major, minor int) {
	a, b, _ := strings.Cut(v, ".")
	major, _ = strconv.Atoi(a)
	minor, _ = strconv.Atoi(b)
	return major, minor
}

// Request is one request. Body is sent as JSON, unless it is an io.Reader.
type Request struct {
	Method string // "" means GET
	Path   string // below the version, such as "/containers/json"
	Query  url.Values
	Body   any
	Header http.Header
}

// Open sends r and returns the answer, whose body the caller must close. An error status is returned as an *Error.
func (c *Client) Open(ctx context.Context, r Request) (*http.Response, error) {
	if _, err := c.Ping(ctx); err != nil {
		return nil, err
	}
	body, header, err := encode(r)
	if err != nil {
		return nil, err
	}
	resp, err := c.roundTrip(ctx, r.Method, "/v"+c.APIVersion()+r.Path, r.Query, body, header)
	if err != nil {
		return nil, err
	}
	if err := checkStatus(resp); err != nil {
		return nil, err
	}
	return resp, nil
}

// Do sends r and decodes the JSON answer into out. With a nil out, it discards the answer.
func (c *Client) Do(ctx context.Context, r Request, out any) error {
	resp, err := c.Open(ctx, r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
		return err
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return errs.New(errs.Invalid, "answer of %s: %w", r.Path, err)
	}
	return nil
}

// Raw sends r and returns the bytes of the answer.
func (c *Client) Raw(ctx context.Context, r Request) (json.RawMessage, error) {
	resp, err := c.Open(ctx, r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 256<<20))
	if err != nil {
		return nil, fmt.Errorf("answer of %s: %w", r.Path, err)
	}
	return b, nil
}

func encode(r Request) (io.Reader, http.Header, error) {
	header := r.Header.Clone()
	if header == nil {
		header = http.Header{}
	}
	switch b := r.Body.(type) {
	case nil:
		return nil, header, nil
	case io.Reader:
		if header.Get("Content-Type") == "" {
			header.Set("Content-Type", "application/x-tar")
		}
		return b, header, nil
	default:
		buf, err := json.Marshal(b)
		if err != nil {
			return nil, nil, errs.New(errs.Internal, "request %s: %w", r.Path, err)
		}
		header.Set("Content-Type", "application/json")
		return bytes.NewReader(buf), header, nil
	}
}

func (c *Client) newRequest(ctx context.Context, method, path string, q url.Values, body io.Reader, header http.Header) (*http.Request, error) {
	if method == "" {
		method = http.MethodGet
	}
	host := c.addr
	if c.network != "tcp" {
		host = "api.moby.localhost"
	}
	u := url.URL{Scheme: c.scheme, Host: host, Path: path, RawQuery: q.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, err
	}
	for k, v := range c.opts.Headers {
		req.Header.Set(k, v)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	if c.opts.UserAgent != "" {
		req.Header.Set("User-Agent", c.opts.UserAgent)
	}
	if body == nil && (method == http.MethodPost || method == http.MethodPut) {
		req.Header.Set("Content-Type", "text/plain")
	}
	return req, nil
}

func (c *Client) roundTrip(ctx context.Context, method, path string, q url.Values, body io.Reader, header http.Header) (*http.Response, error) {
	req, err := c.newRequest(ctx, method, path, q, body, header)
	if err != nil {
		return nil, err
	}
	begun := time.Now()
	resp, err := c.http.Do(req)
	if c.opts.Trace != nil {
		outcome := "failed"
		if err == nil {
			outcome = resp.Status
		}
		c.opts.Trace(fmt.Sprintf("%s %s: %s after %s", req.Method, traced(req.URL), outcome, time.Since(begun).Round(time.Microsecond)))
	}
	if err != nil {
		return nil, c.connectError(ctx, err)
	}
	return resp, nil
}

// traced returns the request URI without the user name, password and query of an import's source.
func traced(u *url.URL) string {
	q := u.Query()
	from := q.Get("fromSrc")
	if !strings.ContainsAny(from, "@?#") {
		return u.RequestURI()
	}
	if src, err := url.Parse(from); err != nil {
		q.Set("fromSrc", "…")
	} else {
		src.User, src.RawQuery, src.Fragment = nil, "", ""
		q.Set("fromSrc", src.String())
	}
	shown := *u
	shown.RawQuery = q.Encode()
	return shown.RequestURI()
}

// connectError returns a *ConnectError when no connection could be made, and a plain error when a connection broke. When ctx has ended,
// it returns the cause.
func (c *Client) connectError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	var oe *net.OpError
	if errors.As(err, &oe) && oe.Op == "dial" {
		return &ConnectError{Host: c.opts.Host, Err: err}
	}
	// net/http has no type for this error.
	if c.opts.TLS == nil && strings.Contains(err.Error(), "malformed HTTP response") {
		return fmt.Errorf("error during connect: %w: are you trying to connect to a TLS-enabled daemon without TLS?", err)
	}
	return fmt.Errorf("error during connect: %w", err)
}
