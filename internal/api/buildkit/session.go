package buildkit

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"ply/internal/errs"
)

// Headers with which a client opens a session.
const (
	headerID        = "X-Docker-Expose-Session-Uuid"
	headerSharedKey = "X-Docker-Expose-Session-Sharedkey"
	headerEncoded   = headerSharedKey + "-Encoded"
	headerMethod    = "X-Docker-Expose-Session-Grpc-Method"
)

const (
	maxSessions = 1000
	maxID       = 256
	maxKey      = 4096
	maxMethods  = 1000
	maxMessage  = 4 << 20 // bytes of a message of a client
	maxMeta     = 64 << 10

	// A client is asked whether it is there. One that does not answer twice in a row is gone.
	healthInterval = 10 * time.Second
	healthTimeout  = 30 * time.Second

	// sessionWait is how long a build waits for the session that it names: clients open both at the same time.
	sessionWait = 30 * time.Second
)

// Sessions are the clients that offer something to builds. Safe for concurrent use.
type Sessions struct {
	mu      sync.Mutex
	byID    map[string]*offering
	arrived chan struct{} // closed and replaced when a session begins
}

// NewSessions returns an empty set.
func NewSessions() *Sessions {
	return &Sessions{byID: map[string]*offering{}, arrived: make(chan struct{})}
}

// session is one client.
type offering struct {
	id        string
	sharedKey string // names the client's directories across its sessions
	methods   map[string]bool
	cc        *grpc.ClientConn
	gone      chan struct{} // closed when the client has left
}

// Offer is what a client says about the session that it wants to open.
type Offer struct {
	id, key string
	methods map[string]bool
}

// ParseOffer reads the headers of a request for a session. Errors: errs.Invalid.
func ParseOffer(h http.Header) (*Offer, error) {
	o := &Offer{id: h.Get(headerID), key: h.Get(headerSharedKey), methods: map[string]bool{}}
	if encoded, _ := strconv.ParseBool(h.Get(headerEncoded)); encoded { // absent or malformed: not encoded
		key, err := url.QueryUnescape(o.key)
		if err != nil {
			return nil, errs.New(errs.Invalid, "session: malformed shared key")
		}
		o.key = key
	}
	list := h.Values(headerMethod)
	switch {
	case h.Get("Upgrade") != "h2c":
		return nil, errs.New(errs.Invalid, "session: the protocol %q is not supported, want h2c", clip(h.Get("Upgrade")))
	case o.id == "":
		return nil, errs.New(errs.Invalid, "session: the header %s is missing", headerID)
	case len(o.id) > maxID || strings.ContainsAny(o.id, ":/\x00"):
		return nil, errs.New(errs.Invalid, "session: %q is not an ID", clip(o.id))
	case len(o.key) > maxKey:
		return nil, errs.New(errs.Invalid, "session: the shared key is longer than %d bytes", maxKey)
	case len(list) > maxMethods:
		return nil, errs.New(errs.Invalid, "session: more than %d methods", maxMethods)
	}
	for _, m := range list {
		o.methods[strings.ToLower(m)] = true
	}
	return o, nil
}

// Begin opens the session of an offer on a connection, which accept takes over from HTTP. It serves the session until the client leaves or
// ctx ends. Errors: errs.Conflict for an ID that is in use, errs.Exhausted for too many sessions; both before the takeover.
func (s *Sessions) Begin(ctx context.Context, o *Offer, accept func() (net.Conn, error)) error {
	c := &offering{id: o.id, sharedKey: o.key, methods: o.methods, gone: make(chan struct{})}
	s.mu.Lock()
	switch {
	case s.byID[o.id] != nil:
		s.mu.Unlock()
		return errs.New(errs.Conflict, "session %s already exists", clip(o.id))
	case len(s.byID) >= maxSessions:
		s.mu.Unlock()
		return errs.New(errs.Exhausted, "there are %d sessions already, and no more are served", maxSessions)
	}
	s.byID[o.id] = c // without a connection: it only holds the place
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.byID, o.id)
		s.mu.Unlock()
		close(c.gone)
	}()
	conn, err := accept()
	if err != nil {
		return err
	}
	watched := &watchedConn{Conn: conn, closed: make(chan struct{})}
	defer watched.Close()
	cc, err := dial(watched)
	if err != nil {
		return err
	}
	defer cc.Close()
	s.mu.Lock()
	c.cc = cc
	close(s.arrived)
	s.arrived = make(chan struct{})
	s.mu.Unlock()
	return c.watch(ctx, watched)
}

// watchedConn reports when it is closed, by gRPC or by the client.
type watchedConn struct {
	net.Conn
	once   sync.Once
	closed chan struct{}
}

func (c *watchedConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// dial makes the engine the gRPC client on a connection. It is used once: a session that broke does not come back.
func dial(conn *watchedConn) (*grpc.ClientConn, error) {
	var once sync.Once
	cc, err := grpc.NewClient("passthrough:///session",
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			var first net.Conn
			once.Do(func() { first = conn })
			if first == nil {
				return nil, errors.New("the session has ended")
			}
			return first, nil
		}),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithMaxHeaderListSize(maxMeta),
		grpc.WithIdleTimeout(0),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
	)
	if err != nil {
		return nil, errs.New(errs.Internal, "session: %w", err)
	}
	cc.Connect()
	return cc, nil
}

// watch waits for the end of a session.
func (c *offering) watch(ctx context.Context, conn *watchedConn) error {
	tick := time.NewTicker(healthInterval)
	defer tick.Stop()
	health := grpc_health_v1.NewHealthClient(c.cc)
	for missed := 0; missed < 2; {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-conn.closed:
			return nil
		case <-tick.C:
		}
		asked, cancel := context.WithTimeout(ctx, healthTimeout)
		_, err := health.Check(asked, &grpc_health_v1.HealthCheckRequest{})
		cancel()
		switch status.Code(err) {
		case codes.OK, codes.Unimplemented:
			missed = 0
		default:
			missed++
		}
	}
	return errs.New(errs.Unavailable, "the client of session %s does not answer", clip(c.id))
}

// get returns the session of an ID. It waits a while for one that has not begun yet.
func (s *Sessions) get(ctx context.Context, id string) (*offering, error) {
	timeout := time.NewTimer(sessionWait)
	defer timeout.Stop()
	for {
		s.mu.Lock()
		c, arrived := s.byID[id], s.arrived
		ready := c != nil && c.cc != nil
		s.mu.Unlock()
		if ready {
			return c, nil
		}
		select {
		case <-arrived:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-timeout.C:
			return nil, errs.New(errs.NotFound, "no active session for %s", clip(id))
		}
	}
}

// offers reports whether the client implements a method.
func (c *offering) offers(fullMethod string) bool { return c.methods[strings.ToLower(fullMethod)] }

func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}
