package server

import (
	"errors"
	"net/http"
	"sync"

	"ply/internal/registry/api"
	"ply/internal/registry/proxy"
)

// generation is what serves with one set of options. A reload replaces it; the old one ends with its last request.
type generation struct {
	o        Options
	handler  http.Handler
	proxy    *proxy.Proxy // nil = none
	requests sync.WaitGroup
}

// generate makes a generation. It is closed by generations.
func (s *Server) generate(o *Options) (*generation, error) {
	g := &generation{o: *o}
	var err error
	if g.proxy, err = s.openProxy(o); err != nil {
		return nil, err
	}
	ao := api.Options{Repositories: s.repositories, Gate: s.gate, ReadOnly: o.ReadOnly, NoDelete: o.NoDelete, Redirect: o.Redirect, Log: o.Log, Stall: o.Stall}
	if g.proxy != nil {
		ao.Copies = g.proxy
	}
	g.handler = api.New(ao)
	return g, nil
}

func (g *generation) close() error {
	if g.proxy == nil {
		return nil
	}
	return g.proxy.Close()
}

// generations serves with the current one.
type generations struct {
	mu      sync.RWMutex // not held while a request is served
	current *generation
	old     sync.WaitGroup
	errMu   sync.Mutex
	err     error // of old ones that were closed
}

func (s *generations) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g := s.join()
	defer g.requests.Done()
	g.handler.ServeHTTP(w, r)
}

// join returns the current generation, which stays open until its requests are done.
func (s *generations) join() *generation {
	s.mu.RLock()
	defer s.mu.RUnlock()
	s.current.requests.Add(1)
	return s.current
}

// replace makes g the current generation, and closes the one before when it has served its requests.
func (s *generations) replace(g *generation) {
	s.mu.Lock()
	before := s.current
	s.current = g
	s.mu.Unlock()
	if before == nil {
		return
	}
	s.old.Go(func() {
		before.requests.Wait()
		err := before.close()
		s.errMu.Lock()
		defer s.errMu.Unlock()
		s.err = errors.Join(s.err, err)
	})
}

// close closes all generations.
func (s *generations) close() error {
	s.old.Wait()
	if s.current == nil {
		return s.err
	}
	s.current.requests.Wait()
	return errors.Join(s.err, s.current.close())
}

func (s *Server) proxyKept() float64 {
	g := s.current.join()
	defer g.requests.Done()
	if g.proxy == nil {
		return 0
	}
	return float64(g.proxy.Size())
}
