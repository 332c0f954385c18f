package store

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"time"

	"ply/internal/oci"
)

// VerifyEvery is how long a layer that was read without damage is trusted before Health reads it again.
const VerifyEvery = time.Hour

// LayerState is what is known of a layer in the driver.
type LayerState int

// The states.
const (
	LayerMissing LayerState = iota
	LayerPresent
	LayerDamaged // present, but Health found damage: it has to be written again
)

// Health reads layers again to find damage and remembers the result. A damaged layer stays marked until
// it is read without damage or Replaced is called for it. The memory ends with the process. Safe for concurrent use.
type Health struct {
	s     *Store
	slots chan struct{} // one for each layer that may be read at a time

	mu      sync.Mutex // guards the maps
	read    map[oci.ChainID]time.Time
	damaged map[oci.ChainID]bool
}

func newHealth(s *Store) *Health {
	return &Health{s: s, slots: make(chan struct{}, 3*runtime.GOMAXPROCS(0)), read: map[oci.ChainID]time.Time{}, damaged: map[oci.ChainID]bool{}}
}

// Check reports whether every layer of a chain is here and undamaged. A layer that was read within VerifyEvery is not
// read again. errs.NotFound when a layer is missing, errs.DataLoss when one is damaged.
func (h *Health) Check(ctx context.Context, chain oci.Chain) error {
	for i := range chain {
		if _, err := h.s.Layers.Stat(ctx, chain[:i+1]); err != nil {
			return err
		}
	}
	all := make([]error, len(chain))
	var group sync.WaitGroup
	for i := range chain {
		group.Go(func() { all[i] = h.verify(ctx, chain[:i+1]) })
	}
	group.Wait()
	return errors.Join(all...)
}

// verify reads the top layer of a chain, unless that was done within VerifyEvery.
func (h *Health) verify(ctx context.Context, chain oci.Chain) error {
	id := chain.ID()
	h.mu.Lock()
	at := h.read[id]
	h.mu.Unlock()
	if time.Since(at) < VerifyEvery {
		return nil
	}
	select {
	case h.slots <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-h.slots }()
	err := h.s.Layers.Verify(ctx, chain)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if err != nil {
		delete(h.read, id)
		h.damaged[id] = true
		return err
	}
	h.read[id] = time.Now()
	delete(h.damaged, id)
	return nil
}

// State returns what is known of the top layer of a chain, without reading it.
func (h *Health) State(ctx context.Context, chain oci.Chain) LayerState {
	_, err := h.s.Layers.Stat(ctx, chain)
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case err != nil:
		return LayerMissing
	case h.damaged[chain.ID()]:
		return LayerDamaged
	}
	return LayerPresent
}

// found marks a layer as damaged, so that the next pull writes it again.
func (h *Health) found(id oci.ChainID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.read, id)
	h.damaged[id] = true
}

// Replaced forgets the damage of a layer that was written again.
func (h *Health) Replaced(id oci.ChainID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.damaged, id)
}
