package store

import (
	"sync"

	"ply/internal/oci"
)

// Lease protects objects from collection while an operation has no record of them yet. Safe for concurrent use.
type Lease struct {
	s     *Store
	what  string
	mu    sync.Mutex
	nodes []node
}

// Lease begins a lease; what names the operation for people. The caller releases it.
func (s *Store) Lease(what string) (*Lease, error) { return &Lease{s: s, what: what}, nil }

// Blob protects blobs, there or still to come. It waits for a removal that is under way.
func (l *Lease) Blob(digests ...oci.Digest) error {
	for _, d := range digests {
		l.hold(node{blob: d})
	}
	return nil
}

// Layer protects every layer of a chain, there or still to come. It waits for a removal that is under way.
func (l *Lease) Layer(chain oci.Chain) error {
	for i := range chain {
		for _, k := range l.s.Layers.Keys(chain[:i+1]) {
			l.hold(node{layer: k})
		}
	}
	return nil
}

func (l *Lease) hold(n node) {
	l.mu.Lock()
	for _, have := range l.nodes {
		if have == n {
			l.mu.Unlock()
			return
		}
	}
	l.nodes = append(l.nodes, n)
	l.mu.Unlock()
	l.s.mu.Lock()
	l.s.held[n]++
	gone := l.s.dying[n]
	l.s.mu.Unlock()
	if gone != nil {
		<-gone
	}
}

// Release ends the lease; a second call does nothing.
func (l *Lease) Release() error {
	l.mu.Lock()
	nodes := l.nodes
	l.nodes = nil
	l.mu.Unlock()
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	for _, n := range nodes {
		if l.s.held[n]--; l.s.held[n] <= 0 {
			delete(l.s.held, n)
		}
	}
	return nil
}
