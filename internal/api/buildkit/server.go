package buildkit

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	content "github.com/containerd/containerd/api/services/content/v1"
	controlapi "github.com/moby/buildkit/api/services/control"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	"ply/internal/build"
	"ply/internal/build/cache"
	"ply/internal/build/history"
	"ply/internal/errs"
)

// Builder makes images; build.Service implements it.
type Builder interface {
	Directories
	Build(ctx context.Context, req build.Request, l build.Listener) (*build.Result, error)
	Plan(ctx context.Context, req build.Request, l build.Listener) (*build.Plan, error)
	Prune(ctx context.Context, o build.PruneOptions) (*build.Pruned, error)
	Cache(ctx context.Context) ([]cache.Entry, error)
	History() *history.History
}

// Options of New. Builder and Sessions are required.
type Options struct {
	Builder  Builder
	Sessions *Sessions
	Driver   string       // name of the storage driver
	Version  string       // of the engine
	Log      *slog.Logger // nil discards
}

const (
	maxBuilds  = 256      // that BuildKit's clients have at the same time
	maxRequest = 16 << 20 // bytes of a message of a client: a definition may be large
	maxStreams = 1000     // calls on one connection
)

// Server answers the gRPC services of BuildKit: control and gateway. Safe for concurrent use.
type Server struct {
	o       Options
	log     *slog.Logger
	grpc    *grpc.Server
	records *records

	mu      sync.Mutex
	builds  map[string]*solve
	arrived chan struct{} // closed and replaced when a build begins
}

// New returns a server.
func New(o Options) *Server {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{o: o, log: o.Log, builds: map[string]*solve{}, arrived: make(chan struct{}), records: newRecords(o.Builder.History)}
	s.grpc = grpc.NewServer(
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(maxMeta),
		grpc.ConnectionTimeout(time.Minute),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.ChainUnaryInterceptor(s.unary),
		grpc.ChainStreamInterceptor(s.stream),
	)
	controlapi.RegisterControlServer(s.grpc, &control{s: s})
	gwpb.RegisterLLBBridgeServer(s.grpc, &bridge{s: s})
	content.RegisterContentServer(s.grpc, s.records)
	grpc_health_v1.RegisterHealthServer(s.grpc, health.NewServer())
	return s
}

// unary turns the error of a call into one of the protocol. A panic ends the call, and not the engine.
func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	defer s.recovered(info.FullMethod, &err)
	resp, err = handler(ctx, req)
	return resp, statusError(ctx, err)
}

func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	defer s.recovered(info.FullMethod, &err)
	return statusError(ss.Context(), handler(srv, ss))
}

func (s *Server) recovered(method string, err *error) {
	if p := recover(); p != nil {
		s.log.Error("panic in a call", "method", method, "err", p, "stack", string(debug.Stack()))
		*err = statusError(context.Background(), errs.New(errs.Internal, "internal error: this is a bug in the engine, its log has the details"))
	}
}

// ServeHTTP answers a call that came by HTTP/2.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.grpc.ServeHTTP(w, r) }

// ServeConn answers the calls on a connection until the client closes it.
func (s *Server) ServeConn(conn net.Conn) error {
	watched := &watchedConn{Conn: conn, closed: make(chan struct{})}
	l := &single{conn: watched, addr: conn.LocalAddr(), closed: make(chan struct{})}
	go func() {
		<-watched.closed
		_ = l.Close() // it returns nil
	}()
	if err := s.grpc.Serve(l); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	return nil
}

// single is a listener with one connection.
type single struct {
	mu     sync.Mutex
	conn   net.Conn // nil when it was accepted
	addr   net.Addr
	once   sync.Once
	closed chan struct{}
}

func (l *single) Accept() (net.Conn, error) {
	l.mu.Lock()
	conn := l.conn
	l.conn = nil
	l.mu.Unlock()
	if conn != nil {
		return conn, nil
	}
	<-l.closed
	return nil, io.EOF
}

func (l *single) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *single) Addr() net.Addr { return l.addr }

// solve is a build of a client.
type solve struct {
	ref     string
	trace   *Trace
	gateway *gateway      // nil unless the client drives the front end
	ended   chan struct{} // closed when the build has ended
}

const (
	maxRef = 256
	// refWait is how long a call waits for the build that it belongs to: clients make the calls at the same time.
	refWait = 10 * time.Second
	// lingering is how long the progress of a build that has ended can still be read.
	lingering = 15 * time.Second
)

// begin adds a build.
func (s *Server) begin(b *solve) error {
	if b.ref == "" || len(b.ref) > maxRef {
		return errs.New(errs.Invalid, "%q is not an ID of a build", clip(b.ref))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.builds[b.ref] != nil:
		return errs.New(errs.Exists, "a build with the ID %s exists already", b.ref)
	case len(s.builds) >= maxBuilds:
		return errs.New(errs.Exhausted, "there are %d builds already, and no more are started", maxBuilds)
	}
	s.builds[b.ref] = b
	close(s.arrived)
	s.arrived = make(chan struct{})
	return nil
}

// end notes that a build has ended. Its progress stays for a reader that comes late.
func (s *Server) end(b *solve) {
	b.trace.End()
	close(b.ended)
	time.AfterFunc(lingering, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.builds, b.ref)
	})
}

// has reports whether there is a build of an ID.
func (s *Server) has(ref string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.builds[ref] != nil
}

// find returns the build of an ID. It waits a while for one that has not begun.
func (s *Server) find(ctx context.Context, ref string) (*solve, error) {
	timeout := time.NewTimer(refWait)
	defer timeout.Stop()
	for {
		s.mu.Lock()
		b, arrived := s.builds[ref], s.arrived
		s.mu.Unlock()
		if b != nil {
			return b, nil
		}
		select {
		case <-arrived:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-timeout.C:
			return nil, errs.New(errs.NotFound, "no such job %s", clip(ref))
		}
	}
}
