package store

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/meta"
)

// Retain is a policy: which compressed layers stay in the blob store after they were unpacked.
type Retain string

// The policies.
const (
	RetainAuto   Retain = "auto"   // keep them within a budget; the least recently used go first
	RetainAlways Retain = "always" // keep all
	RetainNever  Retain = "never"  // keep none
)

// Bounds of the budget of RetainAuto when Options.RetainBudget is 0.
const (
	retainShare = 25 // the budget is this fraction of the bytes of all layers' tars
	retainLeast = 64 << 20
	retainMost  = 1 << 30
)

// Retention keeps or discards the compressed form of layers. A compressed layer is a cache: the layer itself is in the
// driver, and a push without the compressed form fetches or compresses it again. Safe for concurrent use.
type Retention struct {
	s      *Store
	policy Retain
	budget int64 // in bytes; 0 means a share of what the layers take

	mu   sync.Mutex // guards used
	used map[oci.Digest]time.Time
}

func newRetention(s *Store, policy Retain, budget int64) (*Retention, error) {
	switch policy {
	case "":
		policy = RetainAuto
	case RetainAuto, RetainAlways, RetainNever:
	default:
		return nil, errs.New(errs.Invalid, "retain-blobs %q: unknown", string(policy)).WithHint("Use auto, always or never.")
	}
	return &Retention{s: s, policy: policy, budget: budget, used: map[oci.Digest]time.Time{}}, nil
}

// None reports whether no compressed layer is ever kept.
func (r *Retention) None() bool { return r.policy == RetainNever }

// Touch notes that a compressed layer was used now.
func (r *Retention) Touch(d oci.Digest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.used[d] = time.Now()
}

// Decide ends the download of a compressed layer that was unpacked: the policy makes it a blob or discards it. Then it
// removes the least recently used compressed layers that exceed the budget. Nobody else may have the download open.
func (r *Retention) Decide(desc oci.Descriptor) error {
	part, err := r.s.Blobs.Partial(desc.Digest)
	if err != nil {
		return err
	}
	_, statErr := r.s.Blobs.Stat(desc.Digest)
	if part.Prefix() != desc.Size || statErr == nil || !r.keeps(desc.Size) {
		err = part.Discard()
	} else {
		r.Touch(desc.Digest)
		err = part.Commit()
	}
	return errors.Join(err, r.evict())
}

// keeps reports whether a compressed layer of this size is kept at all.
func (r *Retention) keeps(size int64) bool {
	switch r.policy {
	case RetainAlways:
		return true
	case RetainNever:
		return false
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(r.s.Root, &fs); err != nil || fs.Bavail < fs.Blocks/10 {
		return false // a cache must not fill the disk
	}
	limit, err := r.limit()
	return err == nil && size <= limit
}

// limit returns the budget in bytes. The default is a small part of what the layers take, so that an image with its
// cache takes no more disk than a directory tree of the image would.
func (r *Retention) limit() (int64, error) {
	if r.budget > 0 {
		return r.budget, nil
	}
	var tars int64
	err := r.s.Meta.View(func(tx *meta.Tx) error {
		for _, l := range tx.Layers.All() {
			tars += l.Value.TarSize // of a damaged record, which counts as nothing: the budget is an estimate
		}
		return nil
	})
	return min(max(tars/retainShare, retainLeast), retainMost), err
}

// evict removes the least recently used compressed layers until the rest is within the budget. A blob that an image or a
// container needs as its config or manifest, or that is leased, is no cache, even if a layer lists it too.
func (r *Retention) evict() error {
	if r.policy != RetainAuto {
		return nil
	}
	layers, err := r.caches()
	if errors.Is(err, errs.DataLoss) || r.s.held() != nil {
		return nil // what is unknown is kept; a collection reports it
	}
	if err != nil {
		return err
	}
	type kept struct {
		digest oci.Digest
		size   int64
		used   time.Time
	}
	var all []kept
	var total int64
	r.mu.Lock()
	err = r.s.Blobs.Walk(func(d oci.Digest, size int64, made time.Time) error {
		if layers[d] {
			if t := r.used[d]; t.After(made) {
				made = t
			}
			all = append(all, kept{d, size, made})
			total += size
		}
		return nil
	})
	r.mu.Unlock()
	if err != nil {
		return err
	}
	limit, err := r.limit()
	if err != nil {
		return err
	}
	slices.SortFunc(all, func(a, b kept) int { return a.used.Compare(b.used) })
	for _, k := range all {
		if total <= limit {
			break
		}
		n := node{blob: k.digest}
		if !r.s.claim(n) {
			continue
		}
		if rmErr := r.s.remove(context.Background(), n); rmErr != nil {
			err = errors.Join(err, rmErr)
			continue
		}
		total -= k.size
		r.mu.Lock()
		delete(r.used, k.digest)
		r.mu.Unlock()
	}
	return err
}

// caches returns the blobs that are compressed layers and nothing else.
func (r *Retention) caches() (map[oci.Digest]bool, error) {
	layers := map[oci.Digest]bool{}
	err := r.s.Meta.View(func(tx *meta.Tx) error {
		for _, l := range tx.Layers.All() {
			for _, b := range l.Value.Blobs { // of a damaged record none is known, so none is evicted
				layers[b.Digest] = true
			}
		}
		g := graph{tx: tx}
		for _, root := range g.roots() {
			refs, err := g.references(root)
			if err != nil {
				return err // what it needs is unknown
			}
			for _, n := range refs {
				delete(layers, n.blob)
			}
		}
		return nil
	})
	return layers, err
}
