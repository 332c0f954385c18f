package web

import (
	"cmp"
	"context"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"ply/internal/errs"
	"ply/internal/registry/content"
	"ply/internal/registry/metadata"
)

// usage is what the registry stores, in bytes.
type usage struct {
	Stored     int64 // on the disk, or in the bucket
	Referenced int64 // what repositories have, counted once for each
	Free       int64 // what a collection would free
	Blobs      int
	Namespaces []namespaceUsage // the largest first
	At         time.Time
}

// Shared returns the bytes that are not stored because repositories share them.
func (u *usage) Shared() int64 { return max(u.Referenced-u.Stored, 0) }

type namespaceUsage struct {
	Name  string // the first component of the names of repositories
	Bytes int64
	Blobs int
}

const (
	usageAge       = time.Minute // how long a measurement is shown
	usageLimit     = 10 * time.Minute
	maxNamespaces  = 200
	linksPage      = 1000
	othersTogether = "(others)"
)

// measured measures what is stored, one time at once and at most every minute: it reads all links and all blobs.
type measured struct {
	mu      sync.Mutex
	last    *usage
	err     error
	running chan struct{} // nil = no measurement is running
	closed  bool
	work    sync.WaitGroup
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
}

// Close ends a measurement that is running.
func (h *Handler) Close() {
	h.storage.mu.Lock()
	h.storage.closed = true
	h.storage.mu.Unlock()
	h.storage.cancel()
	h.storage.work.Wait()
}

func (h *Handler) usage(ctx context.Context) (*usage, error) {
	m := &h.storage
	m.mu.Lock()
	if m.last != nil && time.Since(m.last.At) < usageAge {
		defer m.mu.Unlock()
		return m.last, nil
	}
	if m.closed {
		m.mu.Unlock()
		return nil, errs.New(errs.Unavailable, "the registry ends")
	}
	if m.running == nil {
		done := make(chan struct{})
		m.running = done
		m.work.Go(func() {
			ctx, cancel := context.WithTimeout(m.ctx, usageLimit)
			defer cancel()
			u, err := h.measure(ctx)
			m.mu.Lock()
			defer m.mu.Unlock()
			m.last, m.err, m.running = u, err, nil
			close(done)
		})
	}
	running := m.running
	m.mu.Unlock()
	select {
	case <-running:
	case <-ctx.Done():
		return nil, errs.New(errs.Unavailable, "the measurement goes on: %w", context.Cause(ctx))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.last, m.err
}

func (h *Handler) measure(ctx context.Context) (*usage, error) {
	u := &usage{At: time.Now()}
	spaces := map[string]*namespaceUsage{}
	for after := (metadata.Link{}); ; {
		links, err := h.metadata.Links(ctx, after, linksPage)
		if err != nil {
			return nil, err
		}
		for _, l := range links {
			name, _, _ := strings.Cut(string(l.Repository), "/")
			if spaces[name] == nil && len(spaces) >= 10*maxNamespaces {
				name = othersTogether
			}
			if spaces[name] == nil {
				spaces[name] = &namespaceUsage{Name: name}
			}
			spaces[name].Bytes += l.Size
			spaces[name].Blobs++
			u.Referenced += l.Size
		}
		if len(links) < linksPage {
			break
		}
		after = links[len(links)-1].Link
	}
	err := h.Blobs.Walk(ctx, func(_ content.Digest, size int64, _ time.Time) error {
		u.Blobs++
		u.Stored += size
		return ctx.Err()
	})
	if err == nil {
		u.Free, err = h.Free(ctx)
	}
	if err != nil {
		return nil, err
	}
	for n := range maps.Values(spaces) {
		u.Namespaces = append(u.Namespaces, *n)
	}
	slices.SortFunc(u.Namespaces, func(a, b namespaceUsage) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), strings.Compare(a.Name, b.Name))
	})
	u.Namespaces = u.Namespaces[:min(len(u.Namespaces), maxNamespaces)]
	return u, nil
}

// storage shows admins what is stored: it has the names of all namespaces.
func (v *visit) storage() error {
	if !v.caller.Admin() {
		return errNoPage
	}
	u, err := v.h.usage(v.r.Context())
	if err != nil {
		return err
	}
	v.show("storage", http.StatusOK, "Storage", u)
	return nil
}
