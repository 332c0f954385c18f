// Package replicate copies chosen repositories to other registries: what is pushed, soon after; and everything that is missing there,
// on a schedule.
//
// Invariants: work is durable before a push is acknowledged, and is retried until the other registry has the content. What a manifest
// refers to is copied before it. What the other registry has is not sent again, so work that was cut off goes on where it was.
package replicate

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"sync"
	"time"

	"ply/internal/errs"
	"ply/internal/registry/content"
	"ply/internal/registry/metadata"
	"ply/internal/registry/queue"
	"ply/internal/registry/remote"
	"ply/internal/registry/repository"
)

// Rule says which repositories are copied to where.
type Rule struct {
	Pattern  content.Pattern
	Registry *remote.Registry
	Prefix   string // of the names of the copies, without a slash at its end; "" = the same names
	Text     string // as its owner wrote it
}

// Events are told what happens. Each may be nil.
type Events struct {
	Copied func(bytes int64)                                // bytes of a blob or manifest
	Done   func(rule string, took time.Duration, err error) // a tag or digest
	Swept  func(rule string, r Report, err error)           // a whole comparison
	Failed func(what string, err error)
}

// Report says what a comparison found.
type Report struct {
	Repositories int
	References   int // tags, and manifests that no tag leads to
	Missing      int // of the references, those that were not there
}

// Options configure a Replicator.
type Options struct {
	Rules        []Rule
	Repositories *repository.Service
	Interval     time.Duration // between two comparisons; 0 = never
	Deletes      bool          // what is deleted here is deleted there
	// Skip reports whether a repository is not copied, whatever the rules say; may be nil.
	Skip   func(content.Repository) bool
	Events Events
}

// Kind is the kind of the documents of the queue.
const Kind = "replication"

const (
	maxItems = 10_000
	workers  = 4
	lease    = 30 * time.Minute
	maxDepth = 8 // of indexes in indexes
	page     = 500
)

// Replicator copies. Safe for concurrent use.
type Replicator struct {
	o     Options
	queue *queue.Queue
	ids   []string                 // of the rules
	sweep map[string]chan struct{} // by rule; asks for a comparison

	stop context.CancelFunc
	work sync.WaitGroup
}

// task is an item of the queue.
type task struct {
	Repository content.Repository `json:"repository"`
	Reference  string             `json:"reference"` // a tag or digest
	Delete     bool               `json:"delete,omitempty"`
}

// id names a rule in keys, for as long as it stays the same.
func (r *Rule) id() string {
	h := sha256.Sum256([]byte(string(r.Pattern) + "\x00" + r.Registry.Host() + "\x00" + r.Prefix))
	return hex.EncodeToString(h[:8])
}

// target returns what a repository is called at the other registry.
func (r *Rule) target(repo content.Repository) string {
	if r.Prefix == "" {
		return string(repo)
	}
	return r.Prefix + "/" + string(repo)
}

// Start begins to copy. The caller closes the replicator.
func Start(ctx context.Context, o Options) (*Replicator, error) {
	r := &Replicator{o: o, sweep: map[string]chan struct{}{}}
	names := map[string]string{}
	for i := range o.Rules {
		id := o.Rules[i].id()
		if names[id] != "" {
			return nil, errs.New(errs.Invalid, "replicate: %s is there twice", o.Rules[i].Text)
		}
		names[id] = o.Rules[i].Text
		r.ids = append(r.ids, id)
		r.sweep[id] = make(chan struct{}, 1)
	}
	r.queue = queue.New(queue.Options{
		Documents: o.Repositories.Metadata, Kind: Kind, Limit: maxItems, Workers: workers, Lease: lease, First: time.Second, Longest: 10 * time.Minute,
		Done: func(group string, took time.Duration, err error) {
			if o.Events.Done != nil {
				o.Events.Done(names[group], took, err)
			}
		},
	})
	if err := r.queue.Drop(ctx, func(group string) bool { return names[group] != "" }); err != nil {
		return nil, err
	}
	ctx, r.stop = context.WithCancel(context.WithoutCancel(ctx))
	for i := range o.Rules {
		rule, id := &o.Rules[i], r.ids[i]
		r.work.Go(func() {
			r.queue.Run(ctx, id, func(ctx context.Context, _ string, payload []byte) error { return r.handle(ctx, rule, payload) },
				func(err error) { r.failed("queue", err) })
		})
		r.work.Go(func() { r.schedule(ctx, rule, id) })
	}
	return r, nil
}

// Close ends the work. What is not done goes on at the next start.
func (r *Replicator) Close() error {
	r.stop()
	r.work.Wait()
	for i := range r.o.Rules {
		r.o.Rules[i].Registry.Close()
	}
	return nil
}

// Len returns how many tags and digests wait.
func (r *Replicator) Len() int { return r.queue.Len() }

func (r *Replicator) failed(what string, err error) {
	if r.o.Events.Failed != nil {
		r.o.Events.Failed(what, err)
	}
}

// Pushed notes that a tag or digest was pushed. It is durable when Pushed returns.
func (r *Replicator) Pushed(ctx context.Context, repo content.Repository, reference string) error {
	return r.put(ctx, task{repo, reference, false})
}

// Deleted notes that a tag or digest was deleted.
func (r *Replicator) Deleted(ctx context.Context, repo content.Repository, reference string) error {
	if !r.o.Deletes {
		return nil
	}
	return r.put(ctx, task{repo, reference, true})
}

func (r *Replicator) put(ctx context.Context, t task) (all error) {
	for i := range r.o.Rules {
		if !r.matches(&r.o.Rules[i], t.Repository) {
			continue
		}
		err := r.queue.Put(ctx, r.ids[i], string(t.Repository)+" "+t.Reference, t)
		if errors.Is(err, queue.ErrFull) { // compare everything later
			r.Sweep(r.ids[i])
			err = nil
		}
		all = errors.Join(all, err)
	}
	return all
}

func (r *Replicator) matches(rule *Rule, repo content.Repository) bool {
	return rule.Pattern.Matches(repo) && (r.o.Skip == nil || !r.o.Skip(repo))
}

// Sweep asks for a comparison of everything, of a rule by its ID.
func (r *Replicator) Sweep(id string) {
	select {
	case r.sweep[id] <- struct{}{}:
	default:
	}
}

// schedule compares at the start, because pushes may have been missed, and then in intervals.
func (r *Replicator) schedule(ctx context.Context, rule *Rule, id string) {
	for {
		if r.o.Interval > 0 {
			report, err := r.compare(ctx, rule, id)
			if ctx.Err() != nil {
				return
			}
			if r.o.Events.Swept != nil {
				r.o.Events.Swept(rule.Text, report, err)
			}
		}
		var tick <-chan time.Time
		if r.o.Interval > 0 {
			tick = time.After(r.o.Interval)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick:
		case <-r.sweep[id]:
			select { // let the queue run empty before
			case <-time.After(min(max(r.o.Interval, time.Minute), time.Minute)):
			case <-ctx.Done():
				return
			}
			if r.o.Interval == 0 {
				report, err := r.compare(ctx, rule, id)
				if r.o.Events.Swept != nil && ctx.Err() == nil {
					r.o.Events.Swept(rule.Text, report, err)
				}
			}
		}
	}
}

// compare queues what the other registry does not have. It stops when the other registry does not answer, or the queue is full; the next
// comparison finds the rest.
func (r *Replicator) compare(ctx context.Context, rule *Rule, id string) (report Report, err error) {
	m := r.o.Repositories.Metadata
	for after := content.Repository(""); ; {
		repos, err := m.Repositories(ctx, after, page)
		if err != nil {
			return report, err
		}
		for _, repo := range repos {
			after = repo
			if !r.matches(rule, repo) {
				continue
			}
			report.Repositories++
			if err := r.compareRepository(ctx, rule, id, repo, &report); err != nil {
				return report, err
			}
		}
		if len(repos) < page {
			return report, nil
		}
	}
}

func (r *Replicator) compareRepository(ctx context.Context, rule *Rule, id string, repo content.Repository, report *Report) error {
	m := r.o.Repositories.Metadata
	check := func(reference string, d content.Digest) error {
		report.References++
		has, err := rule.Registry.HasManifest(ctx, rule.target(repo), reference, d)
		if err != nil || has {
			return err
		}
		report.Missing++
		return r.queue.Put(ctx, id, string(repo)+" "+reference, task{repo, reference, false})
	}
	err := metadata.EachTarget(ctx, m, repo, func(t metadata.Tag) error { return check(string(t.Name), t.Digest) })
	if err != nil {
		return err
	}
	graph, err := m.Graph(ctx, repo)
	if err != nil {
		return err
	}
	for _, n := range graph {
		if n.Subject != "" && !n.Tagged {
			if err := check(string(n.Digest), n.Digest); err != nil {
				return err
			}
		}
	}
	return nil
}

// handle does a task.
func (r *Replicator) handle(ctx context.Context, rule *Rule, payload []byte) error {
	var t task
	if err := json.Unmarshal(payload, &t); err != nil {
		return err
	}
	d, err := r.resolve(ctx, t)
	gone := errors.Is(err, errs.NotFound)
	switch {
	case t.Delete && gone:
		return rule.Registry.Delete(ctx, rule.target(t.Repository), t.Reference)
	case err == nil && !t.Delete:
		c := &copying{r: r, rule: rule, repo: t.Repository, done: map[content.Digest]bool{}}
		err = c.manifest(ctx, t.Reference, d, 0)
	}
	if errors.Is(err, errs.NotFound) { // it was deleted here meanwhile, or pushed again
		if _, lerr := r.resolve(ctx, t); errors.Is(lerr, errs.NotFound) {
			return nil
		}
	}
	return err
}

func (r *Replicator) resolve(ctx context.Context, t task) (content.Digest, error) {
	if d, err := content.ParseDigest(t.Reference); err == nil {
		m, err := r.o.Repositories.Metadata.Manifest(ctx, t.Repository, d)
		return m.Digest, err
	}
	tag, err := r.o.Repositories.Metadata.Tag(ctx, t.Repository, content.Tag(t.Reference))
	return tag.Digest, err
}

// copying is the copy of one manifest with everything below it.
type copying struct {
	r    *Replicator
	rule *Rule
	repo content.Repository
	done map[content.Digest]bool
}

func (c *copying) manifest(ctx context.Context, reference string, d content.Digest, depth int) error {
	if depth > maxDepth {
		return errs.New(errs.Invalid, "manifest %s: indexes are nested too deep", d)
	}
	if c.done[d] {
		return nil
	}
	name := c.rule.target(c.repo)
	has, err := c.rule.Registry.HasManifest(ctx, name, reference, d)
	if err != nil {
		return err
	}
	if has {
		c.done[d] = true
		return nil
	}
	m, payload, err := c.r.o.Repositories.Metadata.Payload(ctx, c.repo, d)
	if err != nil {
		return err
	}
	parsed, err := content.ParseManifest(payload, m.MediaType)
	if err != nil {
		return err
	}
	// A manifest that the other registry has under another name is there with everything below it.
	below := strings.Contains(reference, ":")
	if !below {
		if below, err = c.rule.Registry.HasManifest(ctx, name, string(d), d); err != nil {
			return err
		}
		below = !below
	}
	if below {
		if err := c.children(ctx, parsed, depth); err != nil {
			return err
		}
	}
	if err := c.rule.Registry.PutManifest(ctx, name, reference, m.MediaType, payload); err != nil {
		return err
	}
	c.copied(int64(len(payload)))
	c.done[d] = true
	return nil
}

func (c *copying) children(ctx context.Context, m *content.Manifest, depth int) error {
	for _, child := range m.Manifests {
		_, err := c.r.o.Repositories.Metadata.Manifest(ctx, c.repo, child.Digest)
		switch {
		case errors.Is(err, errs.NotFound):
			err = c.blob(ctx, child, true) // an index may refer to blobs, and be incomplete
		case err == nil:
			err = c.manifest(ctx, string(child.Digest), child.Digest, depth+1)
		}
		if err != nil {
			return err
		}
	}
	for _, b := range m.Blobs {
		if err := c.blob(ctx, b, b.Foreign()); err != nil {
			return err
		}
	}
	return nil
}

// blob copies a blob. Optional says that it may be missing here.
func (c *copying) blob(ctx context.Context, b content.Descriptor, optional bool) error {
	if c.done[b.Digest] {
		return nil
	}
	size, err := c.r.o.Repositories.StatBlob(ctx, c.repo, b.Digest)
	if err != nil {
		if optional && errors.Is(err, errs.NotFound) {
			return nil
		}
		return err
	}
	name := c.rule.target(c.repo)
	has, err := c.rule.Registry.HasBlob(ctx, name, b.Digest)
	if err != nil {
		return err
	}
	if !has {
		err = c.rule.Registry.PutBlob(ctx, name, b.Digest, size, func() (io.ReadCloser, error) {
			r, _, err := c.r.o.Repositories.OpenBlob(ctx, c.repo, b.Digest)
			return r, err
		})
		if err != nil {
			return err
		}
		c.copied(size)
	}
	c.done[b.Digest] = true
	return nil
}

func (c *copying) copied(n int64) {
	if c.r.o.Events.Copied != nil {
		c.r.o.Events.Copied(n)
	}
}
