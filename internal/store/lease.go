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
	nodes map[node]struct{}
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
	for _, d := range chain {
		l.hold(node{record: d})
	}
	for _, k := range l.s.Layers.Keys(chain) {
		l.hold(node{layer: k})
	}
	return nil
}

func (l *Lease) hold(n node) {
	l.mu.Lock()
	_, have := l.nodes[n]
	if !have {
		if l.nodes == nil {
			l.nodes = map[node]struct{}{}
		}
		l.nodes[n] = struct{}{}
	}
	l.mu.Unlock()
	if have {
		return
	}
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
	for n := range nodes {
		if l.s.held[n]--; l.s.held[n] <= 0 {
			delete(l.s.held, n)
		}
	}
	return nil
}
