package docker

import (
	"bufio"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"time"

	"ply/internal/errs"
)

// The range of API versions that are answered, "1." left out.
const (
	minVersion = 24
	maxVersion = 51
)

// Options of New. Every service must be there; the rest may be zero.
type Options struct {
	Images     Images
	Puller     Puller
	Pusher     Pusher
	Archive    Archive
	Registry   Registry
	Containers Containers
	Files      Files
	Sessions   Sessions
	Volumes    Volumes
	Networks   Networks
	Events     Events
	System     System

	Log    *slog.Logger // nil discards
	Driver string       // storage driver, told by image inspect
	// HTTP fetches what `import URL` names; nil means a client that gives up on a silent server.
	HTTP *http.Client
	// Hosts are the names, besides addresses and localhost, by which clients may call a TCP listener:
	// see listen.CertificateHosts.
	Hosts []string
}

// server guards requests and hands each to its handler. It holds no state of its own and is safe for concurrent use.
type server struct {
	routes []route
	log    *slog.Logger
	hosts  []string
	name   string // of the program, with its version
	now    func() time.Time
}

// New gives the handler of the whole API. It panics when a service is missing: that is a mistake of the caller.
func New(o Options) http.Handler {
	switch {
	case o.Images == nil, o.Puller == nil, o.Pusher == nil, o.Archive == nil, o.Registry == nil, o.Containers == nil, o.Files == nil, o.Sessions == nil, o.Volumes == nil, o.Networks == nil, o.Events == nil, o.System == nil:
		panic("docker.New: a service is missing")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.HTTP == nil {
		o.HTTP = fetchClient()
	}
	s := &server{log: o.Log, hosts: o.Hosts, name: "ply/" + o.System.Version().Version + " (linux)", now: time.Now}
	s.routes = s.table(&o)
	return s
}

// ServeHTTP guards, routes, answers and logs one request. Bodies, queries and headers are never logged: they hold secrets.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
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
				panic(http.ErrAbortHandler) // the client must see that the answer is not whole
			}
			return
		}
		if status := writeError(rec, err); status >= 500 {
			s.log.Warn("request failed", "method", r.Method, "path", r.URL.Path, "status", status, "err", err)
		}
	}
}

// answer finds the handler of a request and runs it.
func (s *server) answer(w *recorder, r *http.Request) error {
	if err := s.guard(r); err != nil {
		return err
	}
	version, path, err := splitVersion(r.URL.Path)
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

// header sets what every answer carries: clients negotiate with it.
func (s *server) header(h http.Header) {
	h.Set("Api-Version", versionText(maxVersion))
	h.Set("Docker-Experimental", "false")
	h.Set("Ostype", "linux")
	h.Set("Server", s.name)
}

// recorder remembers what was sent, for the log and to know whether an error can still have a status.
type recorder struct {
	http.ResponseWriter
	status   int
	bytes    int64
	wrote    bool
	hijacked bool
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

// Hijack hands the connection over to who needs it in this form.
func (w *recorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err == nil {
		w.hijacked, w.wrote, w.status = true, true, http.StatusSwitchingProtocols
	}
	return conn, rw, err
}

// Unwrap lets http.ResponseController reach the connection.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }
