// Package remote speaks with registries over HTTP: endpoints and mirrors, TLS, challenges and tokens, errors.
//
// Invariants: credentials go to the host they are for, and to a token server that this host may name, and nowhere
// else: not to mirrors, not along redirects, not into logs or errors. Every answer is bounded. What a registry
// says about itself (realm, Location, redirect, sizes, Retry-After) is a claim to be checked.
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
	Mirrors    []string // base URLs, http or https, perhaps with a path before /v2/
	Insecure   []string // host, host:port, CIDR
	AuthRealms []string // hosts or host:port
	CertsDirs  []string
	ConfigFile string
	UserAgent  string
	Log        *slog.Logger
	Dial       func(ctx context.Context, network, addr string) (net.Conn, error)
	Lookup     LookupFunc
	Attempts   int   // tries in a row without progress; 0 = 5
	Retry      Retry // zero = DefaultRetry
}

// Times that bound every conversation.
const (
	connectTimeout       = 15 * time.Second
	mirrorConnectTimeout = 3 * time.Second
	headerTimeout        = 60 * time.Second
	idleTimeout          = 30 * time.Second // without a byte of a body
	badFor               = 5 * time.Minute  // how long a mirror that failed is passed over
	schemeFor            = 10 * time.Minute // how long it is remembered which scheme an insecure registry speaks
)

// Client knows the endpoints. Safe for concurrent use.
type Client struct {
	opts  Options
	log   *slog.Logger
	retry retrier

	mu         sync.Mutex
	policy     *policy
	transports map[transportKey]*pool
	bad        map[string]time.Time // base URL of a mirror, until when
	schemes    map[string]knownScheme
	within     map[string]knownPlace // by host: is it in the insecure networks
}

type knownPlace struct {
	yes   bool
	until time.Time
}

type knownScheme struct {
	scheme string
	until  time.Time
}

// New makes a client. Entries of Mirrors and Insecure that cannot be understood are logged and left out: a typing
// error must not keep the engine from starting.
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
		within:     map[string]knownPlace{},
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

// Reload swaps mirrors, insecure registries and token servers; errs.Invalid when an entry cannot be understood, and then nothing changes.
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

// Close drops idle connections.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.transports {
		t.CloseIdleConnections()
	}
}

// Session is a conversation about one repository with one set of credentials; tokens live as long as it does.
// Safe for concurrent use.
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

// Action is what a session means to do.
type Action string

// The actions, as token servers name them.
const (
	Pull Action = "pull"
	Push Action = "pull,push"
)

// Session begins a conversation about the repository of name. Credentials are sent to the registry that name
// says, never to a mirror.
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

// Name is the repository that the session is about.
func (s *Session) Name() oci.Reference { return s.name }

// endpoints gives the mirrors that are not known to be bad, then the host.
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

// try asks one endpoint after the other until one gives what is wanted. What mirrors answer is only logged: the host's
// answer is the one that counts.
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
		s.c.log.Info("mirror passed over", "mirror", e.key(), "what", what, "err", err)
		if blames(err) {
			s.c.mu.Lock()
			s.c.bad[e.key()] = time.Now().Add(badFor)
			s.c.mu.Unlock()
		}
	}
	return errs.New(errs.Internal, "%s: no endpoint", s.name) // the host is always in the list
}

func cloneURL(u *url.URL) *url.URL {
	v := *u
	return &v
}

// Distrust passes a mirror over for a while because what it sent was wrong; source is a Body's or Manifest's.
// It reports whether source was a mirror.
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
