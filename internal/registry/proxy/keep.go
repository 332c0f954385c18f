package proxy

import (
	"cmp"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"ply/internal/errs"
	"ply/internal/record"
	"ply/internal/registry/content"
	"ply/internal/registry/metadata"
	"ply/internal/registry/repository"
)

const (
	usesKind    = metadata.CopiesKind
	useVersion  = 1
	usesPage    = 1000
	flushEvery  = 30 * time.Second
	maxUses     = 100_000 // that wait to be recorded
	spareEighth = 8       // an eviction frees this part of the bound, so that not every fetch evicts
)

// useRecord says when a blob or manifest of a copy was used.
type useRecord struct {
	Size     int64     `json:"size"`
	Manifest bool      `json:"manifest,omitempty"`
	Used     time.Time `json:"used"`
}

// keeper knows what is kept, bounds it, and evicts what was not used for longest.
type keeper struct {
	store   *repository.Service
	limit   int64 // bytes; 0 = no bound
	evicted func(bytes int64)
	now     func() time.Time

	evicting sync.Mutex // held by the one who evicts

	mu       sync.Mutex
	total    int64                // bytes that are kept
	reserved int64                // bytes of downloads
	uses     map[string]time.Time // that were not recorded yet
	pinned   map[string]int       // what must not be evicted
}

func useKey(repo content.Repository, d content.Digest) string { return string(repo) + " " + string(d) }

// each visits what is kept.
func (k *keeper) each(ctx context.Context, visit func(key string, r useRecord)) error {
	for after := ""; ; {
		docs, err := k.store.Metadata.Documents(ctx, usesKind, after, usesPage)
		if err != nil {
			return err
		}
		for _, d := range docs {
			after = d.Key
			var r useRecord
			if err := record.Unmarshal("use of "+d.Key, d.Value, useVersion, &r); err != nil {
				return err
			}
			visit(d.Key, r)
		}
		if len(docs) < usesPage {
			return nil
		}
	}
}

func (k *keeper) load(ctx context.Context) error {
	k.uses, k.pinned = map[string]time.Time{}, map[string]int{}
	return k.each(ctx, func(_ string, r useRecord) { k.total += r.Size })
}

func (k *keeper) size() int64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.total
}

// use notes that something was used now.
func (k *keeper) use(repo content.Repository, d content.Digest) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.uses) < maxUses {
		k.uses[useKey(repo, d)] = k.now().UTC()
	}
}

// read notes the use of a blob and keeps it from being evicted until it is closed. A file can be read when its name is gone; it is
// returned as it is, so that the kernel can send it.
func (k *keeper) read(repo content.Repository, d content.Digest, r io.ReadSeekCloser) io.ReadSeekCloser {
	k.use(repo, d)
	if _, ok := r.(*os.File); ok {
		return r
	}
	return &pinned{ReadSeekCloser: r, unpin: k.pin(repo, d)}
}

// pin keeps something from being evicted until unpin is called.
func (k *keeper) pin(repo content.Repository, d content.Digest) (unpin func()) {
	key := useKey(repo, d)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.pinned[key]++
	return sync.OnceFunc(func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.pinned[key]--; k.pinned[key] == 0 {
			delete(k.pinned, key)
		}
	})
}

type pinned struct {
	io.ReadSeekCloser
	unpin func()
}

func (p *pinned) Close() error {
	p.unpin()
	return p.ReadSeekCloser.Close()
}

// loop records uses until ctx is done.
func (k *keeper) loop(ctx context.Context, failed func(error)) {
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			failed(k.flush(ctx))
		}
	}
}

// flush records the uses since the last time.
func (k *keeper) flush(ctx context.Context) error {
	k.mu.Lock()
	uses := k.uses
	k.uses = map[string]time.Time{}
	k.mu.Unlock()
	var docs []metadata.Document
	put := func() error {
		err := k.store.Metadata.PutDocuments(ctx, usesKind, docs...)
		docs = docs[:0]
		return err
	}
	for key, at := range uses {
		v, err := k.store.Metadata.Document(ctx, usesKind, key)
		if errors.Is(err, errs.NotFound) {
			continue // evicted meanwhile
		}
		if err != nil {
			return err
		}
		var r useRecord
		if err := record.Unmarshal("use of "+key, v, useVersion, &r); err != nil {
			return err
		}
		r.Used = at
		if v, err = record.Marshal(useVersion, r); err != nil {
			return err
		}
		if docs = append(docs, metadata.Document{Key: key, Value: v}); len(docs) == usesPage {
			if err := put(); err != nil {
				return err
			}
		}
	}
	if len(docs) == 0 {
		return nil
	}
	return put()
}

// add notes what is about to be recorded.
func (k *keeper) add(ctx context.Context, repo content.Repository, d content.Digest, size int64, manifest bool) error {
	key := useKey(repo, d)
	v, err := record.Marshal(useVersion, useRecord{Size: size, Manifest: manifest, Used: k.now().UTC()})
	if err != nil {
		return err
	}
	_, err = k.store.Metadata.Document(ctx, usesKind, key)
	if err != nil && !errors.Is(err, errs.NotFound) {
		return err
	}
	known := err == nil
	if err := k.store.Metadata.PutDocuments(ctx, usesKind, metadata.Document{Key: key, Value: v}); err != nil {
		return err
	}
	if !known {
		k.mu.Lock()
		k.total += size
		k.mu.Unlock()
	}
	return nil
}

// forget takes back what add noted.
func (k *keeper) forget(ctx context.Context, repo content.Repository, d content.Digest, size int64) error {
	k.mu.Lock()
	k.total -= size
	k.mu.Unlock()
	return k.store.Metadata.PutDocuments(ctx, usesKind, metadata.Document{Key: useKey(repo, d)})
}

// room evicts until something of this size fits, and reserves the bytes until they are released.
func (k *keeper) room(ctx context.Context, size int64) error {
	if k.limit > 0 && size > k.limit {
		return errs.New(errs.Exhausted, "%d bytes are more than the proxy may keep, which is %d", size, k.limit)
	}
	k.mu.Lock()
	k.reserved += size
	over := k.over()
	k.mu.Unlock()
	if !over {
		return nil
	}
	err := k.evict(ctx)
	if err != nil {
		k.release(size)
	}
	return err
}

func (k *keeper) over() bool { return k.limit > 0 && k.total+k.reserved > k.limit }

// release gives back what room reserved.
func (k *keeper) release(size int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.reserved -= size
}

// evict removes what was not used for longest, except what is being read.
func (k *keeper) evict(ctx context.Context) error {
	k.evicting.Lock()
	defer k.evicting.Unlock()
	k.mu.Lock()
	over := k.over()
	k.mu.Unlock()
	if !over { // someone else has evicted
		return nil
	}
	type candidate struct {
		key string
		useRecord
	}
	var list []candidate
	var total int64
	if err := k.each(ctx, func(key string, r useRecord) {
		list = append(list, candidate{key, r})
		total += r.Size
	}); err != nil {
		return err
	}
	k.mu.Lock()
	for i := range list {
		if at, ok := k.uses[list[i].key]; ok {
			list[i].Used = at
		}
	}
	k.total = total // what other replicas have added and removed counts from now on
	goal := k.limit - k.limit/spareEighth - k.reserved
	k.mu.Unlock()
	slices.SortFunc(list, func(a, b candidate) int { return cmp.Or(a.Used.Compare(b.Used), cmp.Compare(a.key, b.key)) })
	for _, c := range list {
		k.mu.Lock()
		enough, used := k.total <= max(goal, 0), k.pinned[c.key] > 0
		k.mu.Unlock()
		if enough {
			return nil
		}
		if used {
			continue
		}
		if err := k.remove(ctx, c.key, c.useRecord); err != nil {
			return err
		}
		k.mu.Lock()
		k.total -= c.Size
		k.mu.Unlock()
		k.evicted(c.Size)
	}
	return nil
}

func (k *keeper) remove(ctx context.Context, key string, r useRecord) error {
	repo, digest, _ := strings.Cut(key, " ")
	d, err := content.ParseDigest(digest)
	if err != nil {
		return err
	}
	if r.Manifest {
		err = k.store.Metadata.DeleteManifest(ctx, content.Repository(repo), d)
	} else {
		err = k.store.Drop(ctx, content.Repository(repo), d)
	}
	if err != nil && !errors.Is(err, errs.NotFound) {
		return err
	}
	return k.store.Metadata.PutDocuments(ctx, usesKind, metadata.Document{Key: key})
}
