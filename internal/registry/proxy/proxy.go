// Package proxy makes repositories copies of those of other registries: what a client asks for is fetched when it is not here, kept,
// and served again while the other registry is down.
//
// Invariants: bytes and manifests are recorded only when they have the digest that was asked for; a client that is sent a blob while
// it is being fetched does not get its last byte before. All clients that want one thing share one request to the upstream, and none
// of them waits for another. What is kept is known to the bound before it is recorded.
package proxy

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"time"

	"ply/internal/errs"
	"ply/internal/registry/content"
	"ply/internal/registry/remote"
	"ply/internal/registry/repository"
)

// Upstream is a registry whose repositories are copied on demand.
type Upstream struct {
	Prefix   content.Repository // of the copies, such as docker.io; "" = every repository is a copy
	Registry *remote.Registry
	Hub      bool // names of one component are in library/
}

// Events are told what happens. Each may be nil, and must return soon.
type Events struct {
	Served  func(kind, outcome string) // outcome: hit, miss, revalidated, stale or error
	Fetched func(bytes int64)
	Evicted func(bytes int64)
	// Failed is told about errors that no client sees, or that an operator should see as well.
	Failed func(what string, err error)
}

// Options configure a Proxy.
type Options struct {
	Upstreams []Upstream
	// Mirror is the prefix of the upstream that serves repositories that are not here. "" = none.
	Mirror       content.Repository
	Repositories *repository.Service
	Size         int64         // bytes to keep; 0 = no bound
	Fresh        time.Duration // how long a tag is served without asking the upstream
	Spool        string        // directory of temporary files, for stores whose uploads cannot be read
	Events       Events
}

// Proxy serves the copies. Safe for concurrent use.
type Proxy struct {
	o      Options
	keep   *keeper
	manage *flights[manifestResult]
	sizes  *hints[content.Digest, int64] // of blobs, as manifests say
	asked  *hints[tagKey, time.Time]     // when the upstream confirmed a tag
	down   *hints[*Upstream, time.Time]  // until when an upstream is not asked about what is here
	slots  chan struct{}                 // held by downloads
	now    func() time.Time

	mu        sync.Mutex
	downloads map[blobKey]*download

	ctx  context.Context // of everything that outlives a request; ends with Close
	stop context.CancelFunc
	work sync.WaitGroup
}

type (
	tagKey struct {
		repo content.Repository
		tag  content.Tag
	}
	blobKey struct {
		repo   content.Repository
		digest content.Digest
	}
)

const (
	maxHints     = 100_000
	maxDownloads = 64
	downFor      = 5 * time.Second
	askTimeout   = 20 * time.Second // for a small request, when there is a copy to serve
)

// Open returns a proxy. The caller closes it, after the last request has ended.
func Open(ctx context.Context, o Options) (*Proxy, error) {
	p := &Proxy{
		o: o, manage: newFlights[manifestResult](), now: time.Now, downloads: map[blobKey]*download{}, slots: make(chan struct{}, maxDownloads),
		sizes: newHints[content.Digest, int64](maxHints), asked: newHints[tagKey, time.Time](maxHints), down: newHints[*Upstream, time.Time](maxHints),
	}
	p.keep = &keeper{store: o.Repositories, limit: o.Size, evicted: p.evicted, now: func() time.Time { return p.now() }}
	if err := p.keep.load(ctx); err != nil {
		return nil, err
	}
	p.ctx, p.stop = context.WithCancel(context.Background())
	p.work.Go(func() {
		p.keep.loop(p.ctx, func(err error) { p.failed("record uses", err) })
	})
	return p, nil
}

// Close ends the downloads and records what was used.
func (p *Proxy) Close() error {
	p.stop()
	p.work.Wait()
	for _, u := range p.o.Upstreams {
		u.Registry.Close()
	}
	return p.keep.flush(context.Background())
}

// Size returns how many bytes are kept.
func (p *Proxy) Size() int64 { return p.keep.size() }

func (p *Proxy) evicted(n int64) {
	if p.o.Events.Evicted != nil {
		p.o.Events.Evicted(n)
	}
}

func (p *Proxy) served(kind, outcome string) {
	if p.o.Events.Served != nil {
		p.o.Events.Served(kind, outcome)
	}
}

func (p *Proxy) failed(what string, err error) {
	if err != nil && !errors.Is(err, context.Canceled) && p.o.Events.Failed != nil {
		p.o.Events.Failed(what, err)
	}
}

// Covers reports whether a repository is a copy, into which no client can push.
func (p *Proxy) Covers(repo content.Repository) bool { return p.upstream(repo) != nil }

func (p *Proxy) upstream(repo content.Repository) *Upstream {
	for i := range p.o.Upstreams {
		if u := &p.o.Upstreams[i]; u.Prefix == "" || strings.HasPrefix(string(repo), string(u.Prefix)+"/") {
			return u
		}
	}
	return nil
}

// name returns what the upstream calls a copy.
func (u *Upstream) name(repo content.Repository) string {
	if u.Prefix == "" {
		return string(repo)
	}
	return strings.TrimPrefix(string(repo), string(u.Prefix)+"/")
}

// under returns the copy of a repository of the upstream, or "" when its name would be too long.
func (u *Upstream) under(name content.Repository) content.Repository {
	if u.Hub && !strings.Contains(string(name), "/") {
		name = "library/" + name
	}
	if u.Prefix != "" {
		name = u.Prefix + "/" + name
	}
	if len(name) > content.MaxRepository {
		return ""
	}
	return name
}

// Locate returns the repository that serves a request to read: the one of this name, when it is a copy or is here, and else the copy
// of the mirrored upstream. Registry is what a client says it mirrors; "" = it does not say. Pushing is true for a question that
// clients ask before a push, to which what the upstream has is no answer.
func (p *Proxy) Locate(ctx context.Context, repo content.Repository, registry string, pushing bool) (content.Repository, error) {
	if registry != "" {
		for i := range p.o.Upstreams {
			if u := &p.o.Upstreams[i]; registry == string(u.Prefix) || registry == u.Registry.Host() {
				return or(u.under(repo), repo), nil
			}
		}
	}
	if u := p.upstream(repo); u != nil {
		return or(u.under(content.Repository(u.name(repo))), repo), nil
	}
	if p.o.Mirror == "" || pushing {
		return repo, nil
	}
	_, err := p.o.Repositories.Metadata.Tags(ctx, repo, "", 0)
	if !errors.Is(err, errs.NotFound) {
		return repo, err
	}
	for i := range p.o.Upstreams {
		if u := &p.o.Upstreams[i]; u.Prefix == p.o.Mirror {
			return or(u.under(repo), repo), nil
		}
	}
	return repo, nil
}

func or(a, b content.Repository) content.Repository {
	if a != "" {
		return a
	}
	return b
}

// refused returns the error that a client gets for an error of an upstream. That an upstream does not let us in is no news for a
// client: it may try elsewhere.
func (p *Proxy) refused(err error) error {
	switch {
	case errors.Is(err, errs.Unauthorized), errors.Is(err, errs.Forbidden):
		p.failed("the upstream refuses", err)
		return &errs.Error{Class: errs.NotFound, Msg: "the registry that this is a copy of does not allow it", Err: err}
	case errors.Is(err, errs.NotFound), errors.Is(err, errs.Exhausted), errors.Is(err, context.Canceled):
		return err
	}
	p.failed("the upstream cannot be asked", err)
	return &errs.Error{Class: errs.Unavailable, Msg: "the registry that this is a copy of cannot be reached, or gives a wrong answer", Err: err}
}

// Tags lists tags of a copy. While the upstream is down it lists those that are here. More reports whether there are others.
func (p *Proxy) Tags(ctx context.Context, repo content.Repository, after content.Tag, n int) (tags []content.Tag, more bool, err error) {
	u := p.upstream(repo)
	ask, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if tags, more, err = u.Registry.Tags(ask, u.name(repo), after, n); err == nil {
		for i, t := range tags {
			if t == after && after != "" { // an upstream that does not know pages
				tags = tags[i+1:]
				break
			}
		}
		if len(tags) > n {
			tags, more = tags[:n], true
		}
		p.served("tags", "miss")
		return tags, more, nil
	}
	if ctx.Err() != nil {
		return nil, false, context.Cause(ctx)
	}
	err = p.refused(err)
	if errors.Is(err, errs.NotFound) {
		return nil, false, err
	}
	local, lerr := p.o.Repositories.Metadata.Tags(ctx, repo, after, n+1)
	if lerr != nil {
		p.served("tags", "error")
		return nil, false, err
	}
	p.served("tags", "stale")
	if len(local) > n {
		return local[:n], true, nil
	}
	return local, false, nil
}

// Referrers lists the manifests that have a subject. While the upstream is down it lists those that are here.
func (p *Proxy) Referrers(ctx context.Context, repo content.Repository, subject content.Digest) ([]content.Descriptor, error) {
	u := p.upstream(repo)
	ask, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	list, err := u.Registry.Referrers(ask, u.name(repo), subject)
	if err == nil {
		p.served("referrers", "miss")
		return list, nil
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err = p.refused(err); errors.Is(err, errs.NotFound) {
		return nil, nil
	}
	list, lerr := p.localReferrers(ctx, repo, subject)
	if lerr != nil || len(list) == 0 {
		p.served("referrers", "error")
		return nil, err
	}
	p.served("referrers", "stale")
	return list, nil
}

const referrersRun = 500

func (p *Proxy) localReferrers(ctx context.Context, repo content.Repository, subject content.Digest) (list []content.Descriptor, err error) {
	for after := content.Digest(""); ; {
		run, err := p.o.Repositories.Metadata.Referrers(ctx, repo, subject, after, referrersRun)
		if err != nil {
			return nil, err
		}
		for _, m := range run {
			list = append(list, content.Descriptor{MediaType: m.MediaType, Digest: m.Digest, Size: m.Size, ArtifactType: m.ArtifactType, Annotations: m.Annotations})
			after = m.Digest
		}
		if len(run) < referrersRun {
			return list, nil
		}
	}
}

// StatBlob returns the size of a blob in bytes.
func (p *Proxy) StatBlob(ctx context.Context, repo content.Repository, d content.Digest) (int64, error) {
	size, err := p.o.Repositories.StatBlob(ctx, repo, d)
	if !errors.Is(err, errs.NotFound) {
		return size, err
	}
	u := p.upstream(repo)
	if size, err = u.Registry.StatBlob(ctx, u.name(repo), d); err != nil {
		return 0, p.refused(err)
	}
	if size < 0 {
		size = max(p.expected(ctx, repo, d), 0)
	}
	return size, nil
}

// OpenBlob opens a blob and returns its size in bytes. The reader of one that is being fetched waits for its bytes, and fails when they
// turn out to be wrong. The caller closes it.
func (p *Proxy) OpenBlob(ctx context.Context, repo content.Repository, d content.Digest) (io.ReadSeekCloser, int64, error) {
	r, size, err := p.o.Repositories.OpenBlob(ctx, repo, d)
	if err == nil {
		p.served("blob", "hit")
		return p.keep.read(repo, d, r), size, nil
	}
	if !errors.Is(err, errs.NotFound) {
		return nil, 0, err
	}
	r, size, err = p.fetch(ctx, repo, d)
	if err != nil {
		p.served("blob", "error")
		return nil, 0, err
	}
	p.served("blob", "miss")
	return r, size, nil
}

// expected returns how many bytes a manifest says that a blob has, or -1.
func (p *Proxy) expected(ctx context.Context, repo content.Repository, d content.Digest) int64 {
	if size, ok := p.sizes.get(d); ok {
		return size
	}
	p.refers(ctx, repo, d)
	if size, ok := p.sizes.get(d); ok {
		return size
	}
	return -1
}

// refers reports whether a manifest of a repository refers to a blob, and learns the size of the blob.
func (p *Proxy) refers(ctx context.Context, repo content.Repository, d content.Digest) bool {
	graph, err := p.o.Repositories.Metadata.Graph(ctx, repo)
	if err != nil {
		return false
	}
	for _, n := range graph {
		for _, c := range n.Children {
			if c != d {
				continue
			}
			m, payload, err := p.o.Repositories.Metadata.Payload(ctx, repo, n.Digest)
			if err != nil {
				break
			}
			if parsed, err := content.ParseManifest(payload, m.MediaType); err == nil {
				p.learn(parsed)
			}
			return true
		}
	}
	return false
}

// learn notes the sizes of the blobs of a manifest.
func (p *Proxy) learn(m *content.Manifest) {
	for _, list := range [][]content.Descriptor{m.Blobs, m.Manifests} {
		for _, b := range list {
			p.sizes.set(b.Digest, b.Size)
		}
	}
}
