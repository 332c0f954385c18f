package policy

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/docker/go-units"

	"ply/internal/errs"
	"ply/internal/registry/content"
	"ply/internal/registry/metadata"
)

const (
	countEvery = time.Minute // what other replicas and collections have changed counts after this time
	countShare = 20          // counting may take this part of the time
	page       = 1000
)

// Quotas bounds what repositories have. A blob counts in each repository that links it. Safe for concurrent use.
type Quotas struct {
	rules []Quota
	store metadata.Store
	now   func() time.Time

	counting chan struct{} // held by the one who counts

	mu   sync.Mutex
	used []usage // by rule
}

// usage is what is known about a rule.
type usage struct {
	bytes   int64 // counted, with what was reserved since
	since   int64 // of bytes, what was reserved since the count began
	epoch   int   // counts the counts that began
	counted time.Time
	took    time.Duration
}

// NewQuotas returns nil without rules.
func NewQuotas(store metadata.Store, rules []Quota) *Quotas {
	if len(rules) == 0 {
		return nil
	}
	return &Quotas{rules: rules, store: store, now: time.Now, counting: make(chan struct{}, 1), used: make([]usage, len(rules))}
}

// Reserve takes bytes for something that is about to be stored in a repository. If it is not stored, release gives them back. The
// error's class is errs.Forbidden when a quota does not have them.
func (q *Quotas) Reserve(ctx context.Context, repo content.Repository, n int64) (release func(), err error) {
	var hit []int
	for i, r := range q.rules {
		if r.Pattern.Matches(repo) {
			hit = append(hit, i)
			if err := q.count(ctx, i); err != nil {
				return nil, err
			}
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, i := range hit {
		if u := q.used[i]; u.bytes+n > q.rules[i].Bytes {
			return nil, errs.New(errs.Forbidden, "the quota of %s is %s, of which %s are used; %s more do not fit", q.rules[i].Pattern,
				units.BytesSize(float64(q.rules[i].Bytes)), units.BytesSize(float64(u.bytes)), units.BytesSize(float64(n)))
		}
	}
	epochs := make([]int, len(hit))
	for k, i := range hit {
		q.used[i].bytes += n
		q.used[i].since += n
		epochs[k] = q.used[i].epoch
	}
	return sync.OnceFunc(func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		for k, i := range hit {
			if q.used[i].epoch == epochs[k] { // otherwise a later count did not find it
				q.used[i].bytes -= n
				q.used[i].since -= n
			}
		}
	}), nil
}

// Usage returns the bytes that are used and that may be, by the pattern of the quota, as they were counted last.
func (q *Quotas) Usage() map[content.Pattern][2]int64 {
	if q == nil {
		return nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	all := map[content.Pattern][2]int64{}
	for i, r := range q.rules {
		all[r.Pattern] = [2]int64{q.used[i].bytes, r.Bytes}
	}
	return all
}

// count counts what a rule's repositories have, unless it was counted a short time ago. Only the first count makes anyone wait.
func (q *Quotas) count(ctx context.Context, i int) error {
	q.mu.Lock()
	u := q.used[i]
	q.mu.Unlock()
	first := u.counted.IsZero()
	if !first && q.now().Sub(u.counted) < max(countEvery, countShare*u.took) {
		return nil
	}
	if first {
		select {
		case q.counting <- struct{}{}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	} else {
		select {
		case q.counting <- struct{}{}:
		default:
			return nil // someone counts
		}
	}
	defer func() { <-q.counting }()
	q.mu.Lock()
	if q.used[i].counted != u.counted { // someone has counted meanwhile
		q.mu.Unlock()
		return nil
	}
	q.used[i].since = 0
	q.used[i].epoch++
	q.mu.Unlock()
	begun := q.now()
	bytes, err := q.sum(ctx, q.rules[i].Pattern)
	if err != nil {
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	// What was reserved during the count may have been counted as well: rather too much than too little, until the next count.
	q.used[i].bytes = bytes + max(q.used[i].since, 0)
	q.used[i].counted, q.used[i].took = q.now(), q.now().Sub(begun)
	return nil
}

// sum adds up the links and manifests of the repositories of a pattern.
func (q *Quotas) sum(ctx context.Context, p content.Pattern) (total int64, err error) {
	prefix, _, _ := strings.Cut(string(p), "*")
	before := strings.TrimSuffix(prefix, "/") // what all names begin with
	for after := (metadata.Link{Repository: content.Repository(before)}); ; {
		links, err := q.store.Links(ctx, after, page)
		if err != nil {
			return 0, err
		}
		done := len(links) < page
		for _, l := range links {
			after = l.Link
			if p.Matches(l.Repository) {
				total += l.Size
			} else if string(l.Repository) > before && !strings.HasPrefix(string(l.Repository), before) {
				done = true
				break
			}
		}
		if done {
			break
		}
	}
	for after := content.Repository(""); ; {
		repos, err := q.store.Repositories(ctx, after, page)
		if err != nil {
			return 0, err
		}
		for _, repo := range repos {
			after = repo
			if !p.Matches(repo) {
				continue
			}
			graph, err := q.store.Graph(ctx, repo)
			if err != nil && !errors.Is(err, errs.NotFound) {
				return 0, err
			}
			for _, n := range graph {
				total += n.Size
			}
		}
		if len(repos) < page {
			return total, nil
		}
	}
}
