package postgres

import (
	"sync"
	"time"

	"ply/internal/registry/content"
)

const maxTouches = 1 << 16

// touches has when this process last wrote that an object was touched, so that a busy object costs a write only now and then.
type touches struct {
	mu sync.Mutex
	at map[touchKey]time.Time
}

type touchKey struct {
	repo   content.Repository
	digest content.Digest
}

func (t *touches) recent(repo content.Repository, d content.Digest) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	at, ok := t.at[touchKey{repo, d}]
	return ok && time.Since(at) < touchEvery-time.Second // the time was taken a moment after the write
}

func (t *touches) add(repo content.Repository, d content.Digest) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.at == nil || len(t.at) >= maxTouches {
		t.at = map[touchKey]time.Time{}
	}
	t.at[touchKey{repo, d}] = time.Now()
}
