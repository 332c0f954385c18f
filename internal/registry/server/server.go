// Package server composes the registry: it opens the stores, joins the services, and serves them until it is told to end. It has
// no logic of its own.
package server

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	"ply/internal/durable"
	"ply/internal/registry/api"
	"ply/internal/registry/blobs/directory"
	"ply/internal/registry/gc"
	"ply/internal/registry/metadata/bolt"
	"ply/internal/registry/repository"
)

// Options configure a Server.
type Options struct {
	Root    string // directory of everything durable
	Missing bool   // manifests may refer to what is not there
	Log     *slog.Logger

	Collect  gc.Schedule   // a zero interval collects never
	Untagged bool          // collections remove manifests that no tag leads to
	Stall    time.Duration // how long a client may send nothing in the middle of a body; 0 = 1 minute
}

// Server is a registry.
type Server struct {
	o            Options
	repositories *repository.Service
	http         *http.Server

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
	meta, err := bolt.Open(filepath.Join(o.Root, "metadata.db"))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, meta.Close())
		}
	}()
	bytes, err := directory.Open(durable.OS, o.Root)
	if err != nil {
		return nil, err
	}
	s := &Server{o: o, repositories: &repository.Service{Metadata: meta, Blobs: bytes, Missing: o.Missing}}
	mux := http.NewServeMux()
	registry := api.New(api.Options{Repositories: s.repositories, Log: o.Log, Stall: o.Stall})
	s.http = &http.Server{
		Handler:           route(registry, mux),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug),
	}
	var ctx context.Context
	ctx, s.stop = context.WithCancel(context.Background())
	if o.Collect.Interval > 0 {
		s.work.Go(func() { s.Collector().Loop(ctx, o.Collect, s.collected) })
	}
	return s, nil
}

// Collector returns what collects this registry.
func (s *Server) Collector() *gc.Collector {
	return &gc.Collector{Metadata: s.repositories.Metadata, Blobs: s.repositories.Blobs, Untagged: s.o.Untagged}
}

func (s *Server) collected(r gc.Report, err error) {
	if err != nil && !errors.Is(err, context.Canceled) {
		s.o.Log.Error("collection", "err", err)
	}
	if r != (gc.Report{}) {
		s.o.Log.Info("collection", "uploads", r.Uploads, "manifests", r.Manifests, "links", r.Links, "blobs", r.Blobs, "bytes", r.Bytes)
	}
}

// route sends the protocol to its handler without the redirects of a ServeMux, which would change its paths.
func route(registry, rest http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if len(r.URL.Path) >= 3 && r.URL.Path[:3] == "/v2" {
			registry.ServeHTTP(w, r)
			return
		}
		rest.ServeHTTP(w, r)
	})
}

// Serve serves a listener until Shutdown.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Shutdown lets the requests that were begun end until ctx is done, then cuts them off.
func (s *Server) Shutdown(ctx context.Context) error {
	if err := s.http.Shutdown(ctx); err != nil {
		return errors.Join(err, s.http.Close())
	}
	return nil
}

// Close ends the work in the background and closes the stores. Nothing is served any more.
func (s *Server) Close() error {
	s.stop()
	s.work.Wait()
	return errors.Join(s.repositories.Blobs.Close(), s.repositories.Metadata.Close())
}
