package proxy

import (
	"context"
	"errors"
	"sync"
	"time"

	"ply/internal/errs"
	"ply/internal/registry/content"
	"ply/internal/registry/metadata"
	"ply/internal/registry/remote"
)

// manifestResult is what a flight for a manifest found.
type manifestResult struct {
	digest  content.Digest
	outcome string
}

// Manifest returns a manifest by its digest or its tag, with its bytes.
func (p *Proxy) Manifest(ctx context.Context, repo content.Repository, d content.Digest, tag content.Tag) (metadata.Manifest, []byte, error) {
	var err error
	if tag == "" {
		err = p.digest(ctx, repo, d)
	} else {
		d, err = p.tag(ctx, repo, tag)
	}
	if err != nil {
		p.served("manifest", "error")
		return metadata.Manifest{}, nil, err
	}
	p.keep.use(repo, d)
	return p.o.Repositories.Manifest(ctx, repo, d, "")
}

// digest makes sure that a manifest is here.
func (p *Proxy) digest(ctx context.Context, repo content.Repository, d content.Digest) error {
	_, err := p.o.Repositories.Metadata.Manifest(ctx, repo, d)
	if err == nil {
		p.served("manifest", "hit")
		return nil
	}
	if !errors.Is(err, errs.NotFound) {
		return err
	}
	_, err = p.manage.do(ctx, p, string(repo)+"@"+string(d), func(ctx context.Context) (manifestResult, error) {
		u := p.upstream(repo)
		m, err := u.Registry.Manifest(ctx, u.name(repo), string(d))
		if err != nil {
			return manifestResult{}, p.refused(err)
		}
		return manifestResult{digest: d}, p.record(ctx, repo, m)
	})
	if err == nil {
		p.served("manifest", "miss")
	}
	return err
}

// tag returns the manifest that a tag stands for, which is here.
func (p *Proxy) tag(ctx context.Context, repo content.Repository, tag content.Tag) (content.Digest, error) {
	local, err := p.local(ctx, repo, tag)
	if err != nil {
		return "", err
	}
	if at, ok := p.asked.get(tagKey{repo, tag}); ok && local != "" && p.now().Sub(at) < p.o.Fresh {
		p.served("manifest", "hit")
		return local, nil
	}
	u := p.upstream(repo)
	if until, ok := p.down.get(u); ok && local != "" && p.now().Before(until) {
		p.served("manifest", "stale")
		return local, nil
	}
	r, err := p.manage.do(ctx, p, string(repo)+":"+string(tag), func(ctx context.Context) (manifestResult, error) {
		return p.revalidate(ctx, u, repo, tag)
	})
	if err == nil {
		p.served("manifest", r.outcome)
	}
	return r.digest, err
}

// local returns the manifest of a tag as it is here, or "".
func (p *Proxy) local(ctx context.Context, repo content.Repository, tag content.Tag) (content.Digest, error) {
	t, err := p.o.Repositories.Metadata.Tag(ctx, repo, tag)
	if errors.Is(err, errs.NotFound) {
		return "", nil
	}
	return t.Digest, err
}

// revalidate asks the upstream what a tag stands for. What is here is served when the upstream cannot be asked.
func (p *Proxy) revalidate(ctx context.Context, u *Upstream, repo content.Repository, tag content.Tag) (manifestResult, error) {
	local, err := p.local(ctx, repo, tag)
	if err != nil {
		return manifestResult{}, err
	}
	now := p.now()
	r, err := p.ask(ctx, u, repo, tag, local)
	switch {
	case err == nil:
		p.asked.set(tagKey{repo, tag}, now)
		p.down.drop(u)
		return r, nil
	case errors.Is(err, errs.NotFound) && local != "": // it is gone there
		if derr := p.o.Repositories.Metadata.DeleteTag(ctx, repo, tag, metadata.Condition{}); derr != nil && !errors.Is(derr, errs.NotFound) {
			return r, derr
		}
		return r, err
	case errors.Is(err, errs.NotFound), errors.Is(err, errs.Unauthorized), errors.Is(err, errs.Forbidden), local == "", p.ctx.Err() != nil:
		return r, p.refused(err)
	}
	p.down.set(u, p.now().Add(downFor))
	p.failed("tag "+string(repo)+":"+string(tag)+", a copy is served", err)
	return manifestResult{local, "stale"}, nil
}

func (p *Proxy) ask(ctx context.Context, u *Upstream, repo content.Repository, tag content.Tag, local content.Digest) (manifestResult, error) {
	if local != "" {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, askTimeout, errs.New(errs.Unavailable, "registry %s does not answer", u.Registry.Host()))
		defer cancel()
		head, err := u.Registry.Head(ctx, u.name(repo), string(tag))
		if err != nil && !errors.Is(err, errs.Unimplemented) {
			return manifestResult{}, err
		}
		if err == nil && head.Digest == local {
			return manifestResult{local, "revalidated"}, nil
		}
	}
	m, err := u.Registry.Manifest(ctx, u.name(repo), string(tag))
	if err != nil {
		return manifestResult{}, err
	}
	return manifestResult{m.Digest, "miss"}, p.record(ctx, repo, m, tag)
}

// record keeps a manifest whose digest was verified.
func (p *Proxy) record(ctx context.Context, repo content.Repository, m remote.Manifest, tags ...content.Tag) error {
	parsed, err := content.ParseManifest(m.Payload, m.MediaType)
	if err != nil {
		return p.refused(err)
	}
	p.learn(parsed)
	size := int64(len(m.Payload))
	if err := p.keep.room(ctx, size); err != nil {
		return err
	}
	defer p.keep.release(size)
	defer p.keep.pin(repo, m.Digest)()
	if err := p.keep.add(ctx, repo, m.Digest, size, true); err != nil {
		return err
	}
	if p.o.Events.Fetched != nil {
		p.o.Events.Fetched(size)
	}
	// What the manifest refers to is fetched when a client asks for it.
	return p.o.Repositories.Metadata.PutManifest(ctx, metadata.Write{
		Repository: repo, Digest: m.Digest, Payload: m.Payload, Parsed: parsed, Tags: tags, Missing: true,
	})
}

// flights let those who want the same thing at the same time share one request.
type flights[T any] struct {
	mu   sync.Mutex
	open map[string]*flight[T]
}

type flight[T any] struct {
	done  chan struct{}
	value T
	err   error
}

const flightTimeout = time.Minute

func newFlights[T any]() *flights[T] {
	return &flights[T]{open: map[string]*flight[T]{}}
}

// do joins the flight of a key, or starts it. It goes on when the client that started it leaves.
func (s *flights[T]) do(ctx context.Context, p *Proxy, key string, run func(context.Context) (T, error)) (T, error) {
	s.mu.Lock()
	f := s.open[key]
	if f == nil {
		f = &flight[T]{done: make(chan struct{})}
		s.open[key] = f
		p.work.Go(func() {
			ctx, cancel := context.WithTimeoutCause(p.ctx, flightTimeout, errs.New(errs.Unavailable, "the upstream takes too long"))
			defer cancel()
			f.value, f.err = run(ctx)
			s.mu.Lock()
			delete(s.open, key)
			s.mu.Unlock()
			close(f.done)
		})
	}
	s.mu.Unlock()
	select {
	case <-f.done:
		return f.value, f.err
	case <-ctx.Done():
		var none T
		return none, context.Cause(ctx)
	}
}

// hints are facts that may be forgotten.
type hints[K comparable, V any] struct {
	mu    sync.Mutex
	known map[K]V
	limit int
}

func newHints[K comparable, V any](limit int) *hints[K, V] {
	return &hints[K, V]{known: map[K]V{}, limit: limit}
}

func (h *hints[K, V]) get(k K) (V, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	v, ok := h.known[k]
	return v, ok
}

func (h *hints[K, V]) set(k K, v V) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.known) >= h.limit {
		clear(h.known)
	}
	h.known[k] = v
}

func (h *hints[K, V]) drop(k K) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.known, k)
}
