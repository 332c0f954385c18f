package docker

import (
	"bufio"
	"cmp"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"ply/internal/api/buildkit"
	"ply/internal/api/listen"
	"ply/internal/errs"
)

// The oldest and the newest version of the API, without the leading "1.".
const (
	minVersion = 24
	maxVersion = 51
)

// Options are the options of New. Every service is required; the rest may be zero.
type Options struct {
	Images      Images
	Puller      Puller
	Pusher      Pusher
	Archive     Archive
	Registry    Registry
	Containers  Containers
	Checkpoints Checkpoints
	Files       Files
	Sessions    Sessions
	Volumes     Volumes
	Networks    Networks
	Connector   Connector
	Events      Events
	System      System
	Checker     Checker
	Importer    Importer
	Builder     Builder

	// OldestAPI is the oldest version that is answered, without the leading "1.", as ParseAPI returns it; 0 = 24. An older one than 24 is
	// answered as 24.
	OldestAPI int
	// Experimental is what clients are told. Nothing here depends on it, but Docker's client has some commands only if it is set.
	Experimental bool

	Log    *slog.Logger // nil discards
	Driver string       // name of the storage driver, for image inspect
	// HTTP downloads the source of `import URL`. nil is a client that gives up when a server does not answer.
	HTTP *http.Client
	// Hosts are the host names, in addition to addresses and localhost, that requests over TCP may carry; see
	// listen.CertificateHosts.
	Hosts []string
}

// server checks requests and passes each to its handler. It has no state that changes, so it is safe for concurrent use.
type server struct {
	routes []route
	log    *slog.Logger
	hosts  []string
	name   string // name and version of the program, for the header Server
	now    func() time.Time
	oldest int // version of the API that is answered

	experimental bool

	sessions *buildkit.Sessions
	kit      *buildkit.Server
}

// New returns the handler of the whole API. It panics when a service is missing.
func New(o Options) http.Handler {
	switch {
	case o.Images == nil, o.Puller == nil, o.Pusher == nil, o.Archive == nil, o.Registry == nil, o.Containers == nil, o.Checkpoints == nil, o.Files == nil, o.Sessions == nil, o.Volumes == nil, o.Networks == nil, o.Events == nil, o.System == nil, o.Checker == nil, o.Importer == nil, o.Builder == nil:
		panic("docker.New: a service is missing")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.HTTP == nil {
		o.HTTP = fetchClient()
	}
	s := &server{log: o.Log, hosts: o.Hosts, name: "ply/" + o.System.Version().Version + " (linux)", now: time.Now, oldest: cmp.Or(o.OldestAPI, minVersion), experimental: o.Experimental, sessions: buildkit.NewSessions()}
	s.kit = buildkit.New(buildkit.Options{Builder: o.Builder, Sessions: s.sessions, Driver: o.Driver, Version: o.System.Version().Version, Log: o.Log})
	s.routes = s.table(&o)
	return s
}

// ServeHTTP answers one request and logs it. It never logs bodies, queries and headers, because they contain secrets.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor == 2 {
		s.call(w, r)
		return
	}
	rec := &recorder{ResponseWriter: w}
	start := time.Now()
	defer func() {
		if p := recover(); p != nil {
			if p == http.ErrAbortHandler {
				s.log.Info("request cut off", "method", r.Method, "path", r.URL.Path, "dur", time.Since(start))
				panic(p)
			}
			s.log.Error("panic in a request", "method", r.Method, "path", r.URL.Path, "err", p, "stack", string(debug.Stack()))
			if !rec.wrote {
				writeError(rec, errs.New(errs.Internal, "internal error: this is a bug in the engine, its log has the details"))
			} else if !rec.hijacked {
				panic(http.ErrAbortHandler)
			}
		}
		s.log.Debug("request", "method", r.Method, "path", r.URL.Path, "status", rec.status, "bytes", rec.bytes, "dur", time.Since(start))
	}()
	s.header(rec.Header())
	if err := s.answer(rec, r); err != nil {
		if rec.wrote {
			s.log.Info("answer broken off", "method", r.Method, "path", r.URL.Path, "err", err)
			if !rec.hijacked {
				panic(http.ErrAbortHandler) // cut the connection, so that the client sees that the answer is incomplete
			}
			return
		}
		if status := writeError(rec, err); status >= 500 {
			s.log.Warn("request failed", "method", r.Method, "path", r.URL.Path, "status", status, "err", err)
		}
	}
}

// call answers a call of BuildKit's gRPC services, which is all that comes by HTTP/2: buildx reaches them so with its driver remote.
func (s *server) call(w http.ResponseWriter, r *http.Request) {
	if err := s.guard(r); err != nil {
		writeError(w, err)
		return
	}
	if r.Method != post || !strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
		writeError(w, errs.New(errs.Invalid, "HTTP/2 serves BuildKit's gRPC services only: use HTTP/1.1"))
		return
	}
	done, err := listen.Stream(r.Context())
	if err != nil {
		writeError(w, err)
		return
	}
	defer done()
	s.kit.ServeHTTP(w, r)
}

// answer finds the handler of a request and runs it.
func (s *server) answer(w *recorder, r *http.Request) error {
	if err := s.guard(r); err != nil {
		return err
	}
	version, path, err := splitVersion(r.URL.Path, s.oldest)
	if err != nil {
		return err
	}
	rt, vars := match(s.routes, r.Method, path)
	if rt == nil {
		return errs.New(errs.NotFound, "page not found")
	}
	c := &call{w: w, r: r, v: version, vars: vars}
	if err := c.parseQuery(); err != nil {
		return err
	}
	return rt.do(c)
}

// header sets the headers of every answer, from which clients learn the version of the API.
func (s *server) header(h http.Header) {
	h.Set("Api-Version", versionText(maxVersion))
	h.Set("Docker-Experimental", strconv.FormatBool(s.experimental))
	h.Set("Ostype", "linux")
	h.Set("Server", s.name)
}

// recorder records what was sent, for the log, and to decide whether an error can still have a status.
type recorder struct {
	http.ResponseWriter
	status   int
	bytes    int64
	wrote    bool
	hijacked bool
}

// EnableFullDuplex implements the method of http.ResponseController, and makes the request the last one of its connection. In
// full-duplex mode net/http reads what the handler left of the body after it has stopped watching the connection. The end of
// the body makes it watch again, and then reading another request panics.
func (w *recorder) EnableFullDuplex() error {
	w.Header().Set("Connection", "close")
	return http.NewResponseController(w.ResponseWriter).EnableFullDuplex()
}

func (w *recorder) WriteHeader(status int) {
	if !w.wrote {
		w.wrote, w.status = true, status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *recorder) Write(b []byte) (int, error) {
	if !w.wrote {
		w.WriteHeader(http.StatusOK)
	}
	n, err := w.ResponseWriter.Write(b)
	w.bytes += int64(n)
	return n, err
}

// Hijack implements http.Hijacker for packages that need it.
func (w *recorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err == nil {
		w.hijacked, w.wrote, w.status = true, true, http.StatusSwitchingProtocols
	}
	return conn, rw, err
}

// Unwrap lets http.ResponseController reach the connection.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }
