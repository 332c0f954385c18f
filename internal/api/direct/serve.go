package direct

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"

	"ply/internal/build"
	"ply/internal/build/dockerfile"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/transfer"
	"ply/internal/wire"
)

// Limits of a request.
const (
	maxList  = 1000 // entries of one list
	minToken = 16   // characters
)

// Server runs the builds of clients that stay connected. Safe for concurrent use.
type Server struct {
	builder     Builder
	credentials func(wire.Auth) transfer.Credentials
	words       func(error) string

	mu       sync.Mutex
	sessions map[string]*Session // by token
}

// NewServer returns a server. credentials translates those of a client, and words puts an error into words.
func NewServer(b Builder, credentials func(wire.Auth) transfer.Credentials, words func(error) string) *Server {
	return &Server{builder: b, credentials: credentials, words: words, sessions: map[string]*Session{}}
}

// Request checks the body of POST /build/direct. Errors: errs.Invalid.
func (s *Server) Request(b *wire.DirectBuild) (*build.Request, error) {
	if len(b.Tags) > maxList || len(b.Exports) > maxList || len(b.CacheFrom) > maxList || len(b.CacheTo) > maxList {
		return nil, errs.New(errs.Invalid, "build: more than %d tags, outputs or caches", maxList)
	}
	if len(b.Token) < minToken {
		return nil, errs.New(errs.Invalid, "build: the token has fewer than %d characters", minToken)
	}
	if err := dockerfile.CheckNetwork(b.Network); err != nil {
		return nil, err
	}
	req := &build.Request{Front: dockerfile.Request{Options: b.Options}, Network: b.Network, Pull: b.Options["image-resolve-mode"] == "pull"}
	if v, ok := b.Options["no-cache"]; ok && v == "" {
		req.NoCache = true
	}
	for _, t := range b.Tags {
		ref, err := oci.ParseReference(t)
		if err != nil {
			return nil, err
		}
		if ref.Digest() != "" {
			return nil, errs.New(errs.Invalid, "refusing to create a tag with a digest reference")
		}
		req.Tags = append(req.Tags, ref.WithDefaultTag())
	}
	for _, a := range b.Allow {
		switch a {
		case "network.host":
			req.HostNetwork = true
		case "security.insecure":
			req.Insecure = true
		default:
			return nil, errs.New(errs.Invalid, "unknown entitlement %q: want network.host or security.insecure", a)
		}
	}
	for _, e := range b.Exports {
		req.Exports = append(req.Exports, build.Export{Type: e.Type, Attrs: e.Attrs})
	}
	for _, c := range b.CacheFrom {
		req.CacheFrom = append(req.CacheFrom, build.CacheRef{Type: c.Type, Attrs: c.Attrs})
	}
	for _, c := range b.CacheTo {
		req.CacheTo = append(req.CacheTo, build.CacheRef{Type: c.Type, Attrs: c.Attrs})
	}
	return req, nil
}

// Serve runs a build for the client on conn, which has read nothing but the request. It closes conn.
func (s *Server) Serve(ctx context.Context, conn net.Conn, b *wire.DirectBuild, req *build.Request) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	sess := newSession(conn, s.builder, s.credentials, cancel)
	if err := s.register(b.Token, sess); err != nil {
		_ = conn.Close() // the error that matters is reported
		return err
	}
	received := make(chan struct{})
	go func() { defer close(received); sess.receive() }()
	defer func() {
		s.unregister(b.Token)
		_ = sess.conn.Close() // everything was written
		<-received
	}()
	r := newReporter(func(e *wire.BuildEvents) error { return sess.conn.Send(wire.BuildFrame{Events: e}) }, b.Explain)
	req.Client = sess
	res, err := s.builder.Build(ctx, *req, r)
	r.close()
	if cerr := sess.close(); cerr != nil && err == nil {
		err = errs.New(errs.Internal, "build context: %w", cerr)
	}
	done := &wire.BuildDone{}
	if err != nil {
		done.Error = s.failure(err)
	} else {
		done.Metadata, done.Answers = res.Metadata, res.Answers
		for _, id := range res.Images {
			done.Images = append(done.Images, string(id))
		}
		if len(res.Images) > 0 {
			for _, t := range req.Tags {
				done.Tags = append(done.Tags, t.Familiar())
			}
		}
	}
	return sess.conn.Send(wire.BuildFrame{Done: done})
}

func (s *Server) register(token string, sess *Session) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessions[token] != nil {
		return errs.New(errs.Conflict, "build: the token is in use")
	}
	s.sessions[token] = sess
	return nil
}

func (s *Server) unregister(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sessions, token)
}

// Attach hands a stream to the build of a token. Errors: errs.NotFound.
func (s *Server) Attach(token string, id uint64, conn net.Conn) error {
	s.mu.Lock()
	sess := s.sessions[token]
	s.mu.Unlock()
	if sess == nil {
		return errs.New(errs.NotFound, "no such build")
	}
	return sess.Attach(id, conn)
}

// failure describes an error for the client.
func (s *Server) failure(err error) *wire.BuildError {
	f := &wire.BuildError{Message: s.words(err)}
	if st, ok := errors.AsType[*build.StepError](err); ok {
		f.Message, f.Image, f.Code = strings.TrimSpace(dockerfile.Format(st.Err)), string(st.Image), st.Code
	} else if _, ok := errors.AsType[*dockerfile.Error](err); ok {
		f.Message = strings.TrimSpace(dockerfile.Format(err))
	}
	f.Message = strings.ToValidUTF8(f.Message, "\uFFFD")
	if e, ok := errors.AsType[*errs.Error](err); ok {
		f.Hint = e.Hint
	}
	return f
}
