package server

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"

	"ply/internal/errs"
	"ply/internal/registry/api"
	"ply/internal/registry/content"
	"ply/internal/registry/notify"
	"ply/internal/registry/policy"
	"ply/internal/registry/proxy"
	"ply/internal/registry/replicate"
)

// generation is what serves with one set of options. A reload replaces it; the old one ends with its last request.
type generation struct {
	o          Options
	rules      rules
	quotas     *policy.Quotas // nil = none
	api        *api.Handler
	proxy      *proxy.Proxy          // nil = none
	replicator *replicate.Replicator // nil = none
	notifier   *notify.Notifier      // nil = none
	requests   sync.WaitGroup
}

// generate makes a generation. It is closed by generations.
func (s *Server) generate(o *Options) (*generation, error) {
	g := &generation{o: *o}
	var err error
	if g.rules, err = o.Policy.parse(); err != nil {
		return nil, err
	}
	served := *s.repositories
	served.Missing = o.Missing
	if g.quotas = policy.NewQuotas(s.repositories.Metadata, g.rules.quotas); g.quotas != nil {
		served.Quota = g.quotas
	}
	if len(g.rules.immutable) > 0 {
		served.Immutable = g.rules.immutable
	}
	if g.proxy, err = s.openProxy(o); err != nil {
		return nil, err
	}
	ao := api.Options{Repositories: &served, Gate: s.gate, ReadOnly: o.ReadOnly, NoDelete: o.NoDelete, Redirect: o.Redirect, Log: o.Log, Stall: o.Stall}
	if g.proxy != nil {
		ao.Copies = g.proxy
	}
	if g.replicator, err = s.openReplicator(o, g.proxy); err != nil {
		return nil, errors.Join(err, g.close())
	}
	if g.notifier, err = s.openNotifier(o); err != nil {
		return nil, errors.Join(err, g.close())
	}
	if g.replicator != nil || g.notifier != nil {
		ao.Notify = g.told
	}
	g.api = api.New(ao)
	return g, nil
}

func (g *generation) close() error {
	var err error
	if g.replicator != nil {
		err = g.replicator.Close()
	}
	if g.notifier != nil {
		err = errors.Join(err, g.notifier.Close())
	}
	if g.proxy != nil {
		err = errors.Join(err, g.proxy.Close())
	}
	return err
}

// readOnly reports whether nothing can be changed.
func (s *Server) readOnly() bool {
	g := s.current.join()
	defer g.requests.Done()
	return g.o.ReadOnly
}

// taken reports whether a new user would own repositories, or copies of another registry, by its name.
func (s *Server) taken(ctx context.Context, name string) (bool, error) {
	g := s.current.join()
	defer g.requests.Done()
	if g.proxy != nil && (g.proxy.Covers(content.Repository(name)) || g.proxy.Covers(content.Repository(name+"/x"))) {
		return true, nil
	}
	meta := s.repositories.Metadata
	if _, err := meta.Tags(ctx, content.Repository(name), "", 1); !errors.Is(err, errs.NotFound) {
		return err == nil, err
	}
	below, err := meta.Repositories(ctx, content.Repository(name+"/"), 1)
	return err == nil && len(below) > 0 && strings.HasPrefix(string(below[0]), name+"/"), err
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
	g.api.ServeHTTP(w, r)
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

// gauges adds the metrics of the current generation.
func (s *Server) gauges() {
	value := func(of func(*generation) float64) func() float64 {
		return func() float64 {
			g := s.current.join()
			defer g.requests.Done()
			return of(g)
		}
	}
	s.metrics.Gauge("proxy_kept_bytes", "Bytes of copies that are kept.", value(func(g *generation) float64 {
		if g.proxy == nil {
			return 0
		}
		return float64(g.proxy.Size())
	}))
	s.metrics.Gauge("replication_waiting", "Tags and digests that wait to be copied to other registries.", value(func(g *generation) float64 {
		if g.replicator == nil {
			return 0
		}
		return float64(g.replicator.Len())
	}))
	s.metrics.Gauges("quota_bytes", "Bytes of quotas: used and limit.", []string{"pattern", "kind"}, func(set func(v float64, labels ...string)) {
		g := s.current.join()
		defer g.requests.Done()
		for p, u := range g.quotas.Usage() {
			set(float64(u[0]), string(p), "used")
			set(float64(u[1]), string(p), "limit")
		}
	})
	s.metrics.Gauge("webhooks_waiting", "Events that wait to be sent.", value(func(g *generation) float64 {
		if g.notifier == nil {
			return 0
		}
		return float64(g.notifier.Len())
	}))
}
