// Package remote is the client of the distribution protocol: endpoints and mirrors, TLS, authentication and tokens, manifests,
// blobs and uploads, retries, login and search.
//
// Invariants: credentials are sent to the host that they are for and to a token server that this host may name, and nowhere
// else: not to mirrors, not to the target of a redirect, not into logs or errors. The size of every answer is bounded. What a
// registry says about itself (realm, Location, redirect, sizes, Retry-After) is checked before it is used.
package remote

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"sync"
	"time"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/transfer"
)

// LookupFunc resolves a host name.
type LookupFunc func(ctx context.Context, host string) ([]netip.Addr, error)

// Options of New. The zero value works.
type Options struct {
	Mirrors    []string     // base URLs of mirrors of the hub, http or https, perhaps with a path before /v2/; they are tried in order
	Insecure   []string     // hosts, host:port or CIDRs that may have an invalid certificate or none; loopback always may
	AuthRealms []string     // hosts, or host:port, that any registry may name as its token server; its own domain always may be
	CertsDirs  []string     // directories with <host:port>/{ca.crt,client.cert,client.key}
	ConfigFile string       // how hints name the configuration file; "" = "daemon.json"
	UserAgent  string       // "" = "ply"
	Log        *slog.Logger // nil = none
	// Dial and Lookup replace the network's, for tests.
	Dial     func(ctx context.Context, network, addr string) (net.Conn, error)
	Lookup   LookupFunc
	Attempts int   // tries in a row without progress; 0 = 5
	Retry    Retry // zero = DefaultRetry
}

// Timeouts.
const (
	connectTimeout       = 15 * time.Second
	mirrorConnectTimeout = 3 * time.Second
	headerTimeout        = 60 * time.Second
	idleTimeout          = 30 * time.Second // a body may send no byte for so long
	badFor               = 5 * time.Minute  // a mirror that failed is not asked for so long
	schemeFor            = 10 * time.Minute // the scheme of an insecure registry is remembered for so long
)

// Client makes sessions with registries. Safe for concurrent use.
type Client struct {
	opts  Options
	log   *slog.Logger
	retry retrier

	mu         sync.Mutex
	policy     *policy
	transports map[transportKey]*pool
	bad        map[string]time.Time // by base URL of a mirror: until when it is not asked
	schemes    map[string]knownScheme
	within     map[string]knownWithin // by host: is it in the insecure networks
}

// knownWithin is a remembered answer of inNetworks.
type knownWithin struct {
	yes   bool
	until time.Time
}

// knownScheme is a remembered answer of probe.
type knownScheme struct {
	scheme string
	until  time.Time
}

// New returns a client. It logs and ignores malformed entries of Mirrors and Insecure: a typing error must not keep the engine from
// starting.
func New(opts Options) *Client {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.UserAgent == "" {
		opts.UserAgent = "ply"
	}
	if opts.ConfigFile == "" {
		opts.ConfigFile = "daemon.json"
	}
	if opts.Lookup == nil {
		opts.Lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	c := &Client{
		opts: opts, log: opts.Log,
		transports: map[transportKey]*pool{},
		bad:        map[string]time.Time{},
		schemes:    map[string]knownScheme{},
		within:     map[string]knownWithin{},
	}
	c.retry.Retry = opts.Retry
	if opts.Retry == (Retry{}) {
		c.retry.Retry = DefaultRetry
	}
	c.SetAttempts(opts.Attempts)
	p, err := parsePolicy(opts.Mirrors, opts.Insecure)
	if err != nil {
		opts.Log.Warn("registry configuration: entries left out", "err", err)
	}
	p.realms = opts.AuthRealms
	c.policy = p
	return c
}

// Reload replaces the lists of mirrors, insecure registries and token servers. Sessions that exist keep the old lists. On
// errs.Invalid, for a malformed entry, nothing changes.
func (c *Client) Reload(mirrors, insecure, authRealms []string) error {
	p, err := parsePolicy(mirrors, insecure)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p.realms = authRealms
	c.policy = p
	clear(c.bad)
	clear(c.schemes)
	clear(c.within)
	for key, t := range c.transports {
		t.CloseIdleConnections()
		delete(c.transports, key)
	}
	return nil
}

// Close closes idle connections.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.transports {
		t.CloseIdleConnections()
	}
}

// Session makes requests about one repository with one set of credentials. It keeps the tokens that it gets. Safe for concurrent
// use.
type Session struct {
	c     *Client
	name  oci.Reference // repository
	cred  transfer.Credentials
	scope string

	host    *endpoint
	mirrors []*endpoint

	mu   sync.Mutex
	auth map[string]*authState // by origin
}

// Action is what a session may do with its repository.
type Action string

// The actions, as token servers name them.
const (
	Pull Action = "pull"
	Push Action = "pull,push"
)

// Session returns a session about the repository of name. It sends the credentials to the registry in name, never to a mirror.
func (c *Client) Session(name oci.Reference, action Action, cred transfer.Credentials) *Session {
	s := &Session{
		c: c, name: name.Repository(), cred: cred,
		scope: "repository:" + name.Path() + ":" + string(action),
		auth:  map[string]*authState{},
	}
	c.mu.Lock()
	p := c.policy
	c.mu.Unlock()
	s.host = p.endpoint(name.Domain())
	if name.Domain() == hubDomain && action == Pull {
		s.mirrors = p.mirrors
	}
	return s
}

// Name returns the repository of the session.
func (s *Session) Name() oci.Reference { return s.name }

// endpoints returns the mirrors that are not marked bad, then the registry itself.
func (s *Session) endpoints() []*endpoint {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	var list []*endpoint
	now := time.Now()
	for _, m := range s.mirrors {
		if now.Before(s.c.bad[m.key()]) {
			continue
		}
		list = append(list, m)
	}
	return append(list, s.host)
}

// try calls ask for one endpoint after the other until one succeeds. It logs the errors of mirrors and returns the error of the
// registry itself.
func (s *Session) try(ctx context.Context, what string, ask func(*endpoint) error) error {
	var mirror string
	var mirrorErr error
	for _, e := range s.endpoints() {
		err := ask(e)
		if err == nil {
			return nil
		}
		if !e.mirror {
			if mirrorErr != nil && Unreachable(err) {
				return errs.New(errs.Unavailable, "%w (and mirror %s: %v)", err, mirror, mirrorErr)
			}
			return err
		}
		mirror, mirrorErr = e.key(), err
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		s.c.log.Info("mirror failed", "mirror", e.key(), "what", what, "err", err)
		if blames(err) {
			s.c.mu.Lock()
			s.c.bad[e.key()] = time.Now().Add(badFor)
			s.c.mu.Unlock()
		}
	}
	return errs.New(errs.Internal, "%s: no endpoint", s.name) // cannot happen: the registry itself is always in the list
}

// cloneURL returns a copy.
func cloneURL(u *url.URL) *url.URL {
	v := *u
	return &v
}

// Distrust marks a mirror as bad because it sent wrong bytes. source is the Source of a Body or Manifest. It reports whether source
// is a mirror.
func (s *Session) Distrust(source string) bool {
	for _, m := range s.mirrors {
		if m.key() == source {
			s.c.mu.Lock()
			s.c.bad[source] = time.Now().Add(badFor)
			s.c.mu.Unlock()
			return true
		}
	}
	return false
}
