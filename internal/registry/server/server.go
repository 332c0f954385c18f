// Package server composes the registry: it opens the stores, joins the services, and serves them until it is told to end. It has
// no logic of its own.
package server

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/registry/api"
	"ply/internal/registry/audit"
	"ply/internal/registry/auth"
	"ply/internal/registry/blobs"
	"ply/internal/registry/blobs/directory"
	"ply/internal/registry/blobs/s3"
	"ply/internal/registry/certificate"
	"ply/internal/registry/gc"
	"ply/internal/registry/metadata"
	"ply/internal/registry/metadata/bolt"
	"ply/internal/registry/metadata/postgres"
	"ply/internal/registry/notify"
	"ply/internal/registry/observe"
	"ply/internal/registry/oidc"
	"ply/internal/registry/people"
	"ply/internal/registry/repository"
	"ply/internal/registry/search"
	"ply/internal/registry/trace"
	"ply/internal/registry/web"
)

// Options configure a Server.
type Options struct {
	Root string // directory of everything durable that is in none of the following
	// Database is the address of the PostgreSQL that has the metadata, the users and the keys of tokens; "" = files below the root.
	Database string
	// S3 has the blobs, with what its options say but for its uploads; nil = the root has them. With a database, several registries
	// serve them as one.
	S3        *s3.Options
	Redirect  bool // clients read blobs from S3 themselves
	Missing   bool // manifests may refer to what is not there
	ReadOnly  bool // nothing can be changed
	NoDelete  bool // clients cannot delete
	Log       *slog.Logger
	AccessLog bool // every request is logged

	Collect  gc.Schedule   // a zero interval collects never
	Untagged bool          // collections remove manifests that no tag leads to
	Stall    time.Duration // how long a client may send nothing in the middle of a body; 0 = 1 minute

	Required bool   // callers must log in, even before there is a user
	Basic    bool   // callers are asked to log in by Basic, and not for tokens
	Htpasswd string // file of users that are imported; "" = none
	URL      string // what clients reach the registry by; "" = what each request says

	SignIn SignIn // users who sign in at an OpenID provider
	Audit  Audit  // who did what

	NoPages bool // no pages for people are served

	Proxy     Proxy             // repositories that are copies of those of other registries
	Replicate Replicate         // repositories that are copied to other registries
	Webhooks  []notify.Endpoint // web servers that are told of events
	Policy    Policy            // quotas, tags that may not move, and retention

	Traces string // address of a collector that gets a trace of each request; "" = none

	TLSCert, TLSKey string   // files; "" = no TLS
	TLSHosts        []string // for a certificate of our own; empty = none
}

// Server is a registry.
type Server struct {
	o            Options
	repositories *repository.Service
	gate         *auth.Gate
	users        *auth.Users
	tokens       *auth.Tokens
	audit        *audit.Log
	pages        *web.Handler // nil = none
	metrics      *observe.Metrics
	tracer       *trace.Tracer // nil = none
	tls          *tls.Config   // nil = none
	trust        string        // file that clients must trust; "" = none
	http, side   *http.Server
	control      *http.Server // nil = none
	draining     atomic.Bool
	current      generations

	stop context.CancelFunc // ends the work in the background
	work sync.WaitGroup
}

// Limits of the HTTP server. Bodies have limits of their own (see package api).
const (
	headerTimeout = 15 * time.Second
	idleTimeout   = 3 * time.Minute
	maxHeader     = 64 << 10 // bytes
)

// Open opens the stores below the root. The caller closes the server.
func Open(o Options) (_ *Server, err error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if err := durable.MkdirPrivate(durable.OS, o.Root); err != nil {
		return nil, err
	}
	var tracer *trace.Tracer
	if o.Traces != "" {
		if tracer, err = trace.Open(o.Traces, func(err error) { o.Log.Warn("traces are lost", "err", err) }); err != nil {
			return nil, err
		}
		defer func() {
			if err != nil {
				err = errors.Join(err, tracer.Close())
			}
		}()
	}
	meta, bytes, err := openStores(context.Background(), o, tracer)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, bytes.Close(), meta.Close())
		}
	}()
	s := &Server{o: o, metrics: observe.New(), tracer: tracer, repositories: &repository.Service{Metadata: meta, Blobs: bytes, Missing: o.Missing}}
	if err := s.openGate(); err != nil {
		return nil, err
	}
	if err := s.openTLS(); err != nil {
		return nil, err
	}
	first, err := s.generate(&o)
	if err != nil {
		return nil, err
	}
	s.current.replace(first)
	s.gauges()
	s.openAudit()
	s.openPages()
	s.http = s.newHTTP(s.handler())
	s.side = s.newHTTP(s.status(func(*http.Request) bool { return true }))
	if err := s.openControl(meta); err != nil {
		return nil, errors.Join(err, s.audit.Close(), s.current.close())
	}
	var ctx context.Context
	ctx, s.stop = context.WithCancel(context.Background())
	s.work.Go(func() { s.retain(ctx) })
	if o.Collect.Interval > 0 {
		s.work.Go(func() { s.Collector().Loop(ctx, o.Collect, s.collected) })
	}
	return s, nil
}

// OpenStores opens the stores that the options name. The caller closes them, the metadata last.
func OpenStores(ctx context.Context, o Options) (metadata.Store, blobs.Store, error) {
	return openStores(ctx, o, nil)
}

func openStores(ctx context.Context, o Options, tracer *trace.Tracer) (meta metadata.Store, bytes blobs.Store, err error) {
	if o.Database != "" {
		database := postgres.Options{URL: o.Database}
		if tracer != nil {
			database.Spans = tracer
		}
		meta, err = postgres.Open(ctx, database)
	} else {
		meta, err = bolt.Open(filepath.Join(o.Root, "metadata.db"))
	}
	if err != nil {
		return nil, nil, err
	}
	if o.S3 != nil {
		remote := *o.S3
		remote.Uploads = meta
		if tracer != nil {
			remote.Spans = tracer
		}
		bytes, err = s3.Open(ctx, remote)
	} else {
		bytes, err = directory.Open(durable.OS, o.Root)
	}
	if err != nil {
		return nil, nil, errors.Join(err, meta.Close())
	}
	return meta, bytes, nil
}

// OpenUsers opens the users that the options name, for a command beside the registry. The caller closes what they are in.
func OpenUsers(ctx context.Context, o Options) (*auth.Users, io.Closer, error) {
	if o.Database == "" {
		users, err := auth.OpenUsers(o.Root)
		return users, io.NopCloser(nil), err
	}
	meta, err := postgres.Open(ctx, postgres.Options{URL: o.Database})
	if err != nil {
		return nil, nil, err
	}
	users, err := auth.OpenSharedUsers(meta)
	if err != nil {
		return nil, nil, errors.Join(err, meta.Close())
	}
	return users, meta, nil
}

// documents returns what has the users and keys of a registry with a database; nil = they are below the root.
func (s *Server) documents() auth.Documents {
	if s.o.Database == "" {
		return nil
	}
	return s.repositories.Metadata
}

func (s *Server) openUsers() (*auth.Users, error) {
	if docs := s.documents(); docs != nil {
		return auth.OpenSharedUsers(docs)
	}
	return auth.OpenUsers(s.o.Root)
}

func (s *Server) openGate() error {
	users, err := s.openUsers()
	if err != nil {
		return err
	}
	if s.o.Htpasswd != "" {
		f, err := os.Open(s.o.Htpasswd)
		if err != nil {
			return err
		}
		_, err = users.Import(f, auth.Writer)
		if err := errors.Join(err, f.Close()); err != nil {
			return errs.New(errs.Invalid, "%s: %w", s.o.Htpasswd, err)
		}
	}
	s.users, s.tokens = users, auth.NewTokens(s.repositories.Metadata)
	ao := auth.Options{
		Users: users, Tokens: s.tokens, Root: s.o.Root, Documents: s.documents(), Required: s.o.Required, Basic: s.o.Basic, URL: s.o.URL, Log: s.o.Log,
		ClaimsAge: s.o.SignIn.GroupsAge, Create: !s.o.SignIn.NoCreate, Taken: s.taken,
	}
	if s.o.SignIn.Issuer != "" {
		ao.Provider = oidc.New(s.o.SignIn.Options)
	}
	s.gate, err = auth.NewGate(ao)
	return err
}

func (s *Server) openTLS() error {
	cert, key := s.o.TLSCert, s.o.TLSKey
	if len(s.o.TLSHosts) > 0 {
		var err error
		if cert, key, err = certificate.SelfSigned(filepath.Join(s.o.Root, "tls"), s.o.TLSHosts); err != nil {
			return err
		}
		s.trust = cert
	}
	if cert == "" {
		return nil
	}
	files, err := certificate.Open(cert, key, func(err error) { s.o.Log.Error("the new certificate is not used", "err", err) })
	if err == nil {
		s.tls = files.Config()
	}
	return err
}

func (s *Server) newHTTP(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.o.Log.Handler(), slog.LevelDebug),
	}
}

// handler joins what the registry serves.
func (s *Server) handler() http.Handler {
	rest := http.NewServeMux()
	rest.Handle(auth.TokenPath, s.gate)
	rest.Handle("/v1/", &search.Handler{Metadata: s.repositories.Metadata, Gate: s.gate})
	rest.Handle(people.Prefix, people.New(people.Options{
		Gate: s.gate, Users: s.users, Tokens: s.tokens, Metadata: s.repositories.Metadata, Log: s.o.Log, ReadOnly: s.readOnly,
	}))
	if s.o.SignIn.Issuer != "" {
		signIn := s.gate.SignInHandler()
		rest.Handle(auth.SignInPath, signIn)
		rest.Handle(auth.CallbackPath, signIn)
	}
	status := s.status(s.isAdmin)
	for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
		rest.Handle(path, status)
	}
	if s.pages != nil {
		rest.Handle("/", s.pages)
	}
	var log *slog.Logger
	if s.o.AccessLog {
		log = s.o.Log
	}
	var tracer observe.Tracer
	if s.tracer != nil {
		tracer = s.tracer
	}
	return s.metrics.Middleware(split(&s.current, rest), log, tracer, func(r *http.Request) string { return api.Route(r.URL.Path) }, s.audited)
}

// split sends the protocol to its handler without the redirects of a ServeMux, which would change its paths.
func split(registry, rest http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/v2") {
			registry.ServeHTTP(w, r)
			return
		}
		rest.ServeHTTP(w, r)
	})
}

// status serves what operators and their programs ask. Allowed says who may read the metrics.
func (s *Server) status(allowed func(*http.Request) bool) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /readyz", s.ready)
	metrics := s.metrics.Handler()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		if !allowed(r) {
			w.Header().Set("WWW-Authenticate", `Basic realm="ply-registry"`)
			http.Error(w, "metrics are for admins", http.StatusUnauthorized)
			return
		}
		metrics.ServeHTTP(w, r)
	})
	return mux
}

func (s *Server) isAdmin(r *http.Request) bool {
	c, err := s.gate.Identify(r)
	return err == nil && c.Admin()
}

// ready reports whether requests can be served: the stores answer, and the registry is not about to end.
func (s *Server) ready(w http.ResponseWriter, r *http.Request) {
	err := errors.Join(s.repositories.Metadata.Ping(r.Context()), s.repositories.Blobs.Ping(r.Context()))
	if s.draining.Load() {
		err = errors.Join(err, errs.New(errs.Unavailable, "draining"))
	}
	if err != nil {
		s.o.Log.Error("not ready", "err", err)
		http.Error(w, "not ready", http.StatusServiceUnavailable)
		return
	}
	_, _ = w.Write([]byte("ok\n"))
}

// IsOpen reports whether everyone may do everything.
func (s *Server) IsOpen() bool { return s.gate.IsOpen() }

// Trust says what clients must do to trust a certificate that the registry made; "" when there is none.
func (s *Server) Trust() string {
	if s.trust == "" {
		return ""
	}
	return "Its certificate is its own. Clients must trust " + s.trust + ": copy it to /etc/docker/certs.d/HOST:PORT/ca.crt of each."
}

// Collector returns what collects this registry.
func (s *Server) Collector() *gc.Collector {
	return &gc.Collector{Metadata: s.noted(byCollection), Blobs: s.repositories.Blobs, Untagged: s.o.Untagged}
}

func (s *Server) collected(r gc.Report, err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	s.metrics.Collected(r.Uploads, r.Manifests, r.Links, r.Blobs, r.Bytes, err != nil)
	if err != nil {
		s.o.Log.Error("collection", "err", err)
	}
	if r != (gc.Report{}) {
		s.o.Log.Info("collection", "uploads", r.Uploads, "manifests", r.Manifests, "links", r.Links, "blobs", r.Blobs, "bytes", r.Bytes)
	}
}

// sideListener is a listener for operators.
type sideListener struct{ net.Listener }

// Listen opens the listener of the registry, with TLS when there is a certificate, and the one for operators unless its address is "".
func (s *Server) Listen(addr, side string) (list []net.Listener, err error) {
	var c net.ListenConfig
	l, err := c.Listen(context.Background(), "tcp", addr)
	if err != nil {
		return nil, err
	}
	list = []net.Listener{l}
	if side != "" {
		l, err := c.Listen(context.Background(), "tcp", side)
		if err != nil {
			return nil, errors.Join(err, list[0].Close())
		}
		list = append(list, sideListener{l})
	}
	return list, nil
}

// Serve serves a listener until Shutdown.
func (s *Server) Serve(l net.Listener) error {
	var err error
	switch _, side := l.(sideListener); {
	case side:
		err = s.side.Serve(l)
	case s.tls != nil:
		s.http.TLSConfig = s.tls
		err = s.http.ServeTLS(l, "", "")
	default:
		err = s.http.Serve(l)
	}
	if !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Shutdown lets the requests that were begun end until ctx is done, then cuts them off.
func (s *Server) Shutdown(ctx context.Context) error {
	s.draining.Store(true)
	err := s.http.Shutdown(ctx)
	if err != nil {
		s.o.Log.Warn("requests were cut off", "err", err)
		err = s.http.Close()
	}
	return errors.Join(err, s.side.Close())
}

// Close ends the work in the background and closes the stores. Nothing is served any more.
func (s *Server) Close() error {
	s.stop()
	if s.control != nil {
		_ = s.control.Close() // commands see that their answers are not complete
	}
	if s.pages != nil {
		s.pages.Close()
	}
	s.work.Wait()
	err := errors.Join(s.current.close(), s.audit.Close(), s.repositories.Blobs.Close(), s.repositories.Metadata.Close())
	if s.tracer != nil {
		err = errors.Join(err, s.tracer.Close())
	}
	return err
}
