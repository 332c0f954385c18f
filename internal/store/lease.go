package store

import (
	"sync"

	"ply/internal/oci"
)

// Lease protects objects from collection while an operation has not yet recorded that it needs them. Safe for concurrent use.
type Lease struct {
	s       *Store
	mu      sync.Mutex
	objects map[node]struct{}
}

// Lease begins a lease on nothing. The caller releases it.
func (s *Store) Lease() *Lease { return &Lease{s: s, objects: map[node]struct{}{}} }

// Blob protects blobs, whether or not they exist yet. It waits for a removal that is under way.
func (l *Lease) Blob(digests ...oci.Digest) {
	for _, d := range digests {
		l.add(node{blob: d})
	}
}

// Layer protects every layer of a chain, whether or not it exists yet. It waits for a removal that is under way.
func (l *Lease) Layer(chain oci.Chain) {
	for _, d := range chain {
		l.add(node{record: d})
	}
	for _, k := range l.s.Layers.Keys(chain) {
		l.add(node{layer: k})
	}
}

// add leases one object. When a collection is removing the object, add returns after the removal: the owner of the
// lease then sees that the object is gone.
func (l *Lease) add(n node) {
	l.mu.Lock()
	_, have := l.objects[n]
	l.objects[n] = struct{}{}
	l.mu.Unlock()
	l.s.mu.Lock()
	if !have {
		l.s.leased[n]++
		l.s.touch(n)
	}
	removed := l.s.removing[n]
	l.s.mu.Unlock()
	if removed != nil {
		<-removed
	}
}

// Release ends the lease. A second call does nothing.
func (l *Lease) Release() {
	l.mu.Lock()
	objects := l.objects
	l.objects = map[node]struct{}{}
	l.mu.Unlock()
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	for n := range objects {
		l.s.touch(n)
		if l.s.leased[n]--; l.s.leased[n] <= 0 {
			delete(l.s.leased, n)
		}
	}
}

// Leased reports whether an operation protects the top layer of a chain.
func (s *Store) Leased(chain oci.Chain) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leased[node{record: chain.Top()}] > 0
}

// touch tells the collections that are marking that a lease on the object begins or ends. The caller holds mu.
func (s *Store) touch(n node) {
	if s.marking > 0 {
		s.touched[n] = struct{}{}
	}
}
