package registry

import (
	"context"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/oci"
	"ply/internal/store/meta"
)

// settle decides what becomes of a compressed layer that was unpacked: kept as a blob, or dropped. It runs behind the pull's back;
// what goes wrong costs a cache entry.
func (c *Client) settle(desc oci.Descriptor) {
	if !c.awaitIdle() {
		return // the next pull that wants it finds it whole
	}
	c.settling.Lock()
	defer c.settling.Unlock()
	unlock, err := c.locks.lock(context.Background(), desc.Digest)
	if err != nil {
		return
	}
	defer unlock()
	log := c.opts.Log.With("blob", desc.Digest)
	part, err := c.st.Blobs.Partial(desc.Digest)
	if err != nil {
		log.Warn("compressed layer not settled", "err", err)
		return
	}
	_, statErr := c.st.Blobs.Stat(desc.Digest)
	switch {
	case part.Prefix() != desc.Size || statErr == nil || !c.keeps(desc.Size):
		err = part.Discard()
	default:
		c.touch(desc.Digest)
		err = part.Commit()
	}
	if err != nil {
		log.Warn("compressed layer not settled", "err", err)
	}
	c.evict()
}

// awaitIdle waits until no layer is on its way, so that making a cache durable takes no disk from a pull; not for ever. It
// reports false when the client closes.
func (c *Client) awaitIdle() bool {
	c.mu.Lock()
	idle := make(chan struct{})
	if len(c.flights) == 0 {
		close(idle)
	} else {
		c.idle = append(c.idle, idle)
	}
	c.mu.Unlock()
	t := time.NewTimer(maxSettleWait)
	defer t.Stop()
	select {
	case <-c.closing:
		return false
	case <-idle:
	case <-t.C:
	}
	return true
}

// maxSettleWait is how long a busy engine puts off what becomes of a compressed layer.
const maxSettleWait = time.Minute

// keeps tells whether a compressed layer of some size is kept at all.
func (c *Client) keeps(size int64) bool {
	switch c.opts.RetainBlobs {
	case RetainAlways:
		return true
	case RetainNever:
		return false
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(c.st.Root, &fs); err != nil || fs.Bavail < fs.Blocks/10 {
		return false // a cache does not fill the disk
	}
	return size <= c.budget()
}

// Bounds of what RetainAuto keeps when no budget is set.
const (
	retainShare = 25 // one part in so many of what the layers take
	retainLeast = 64 << 20
	retainMost  = 1 << 30
)

// budget is how many bytes of compressed layers are kept: a small part of what the layers themselves take, so that the cache
// never makes images cost more disk than a directory tree of them would.
func (c *Client) budget() int64 {
	if c.opts.RetainBudget > 0 {
		return c.opts.RetainBudget
	}
	var tars int64
	err := c.st.Meta.View(func(tx *meta.Tx) error {
		for _, l := range tx.Layers.All() {
			tars += l.TarSize
		}
		return nil
	})
	if err != nil {
		return 0
	}
	return min(max(tars/retainShare, retainLeast), retainMost)
}

// evict drops the least recently used compressed layers until the rest is within the budget.
func (c *Client) evict() {
	if c.opts.RetainBlobs != RetainAuto {
		return
	}
	layers := map[oci.Digest]bool{}
	err := c.st.Meta.View(func(tx *meta.Tx) error {
		for _, l := range tx.Layers.All() {
			for _, b := range l.Blobs {
				layers[b.Digest] = true
			}
		}
		return nil
	})
	if err != nil {
		c.opts.Log.Warn("compressed layers not counted", "err", err)
		return
	}
	type kept struct {
		digest oci.Digest
		size   int64
		used   time.Time
	}
	var all []kept
	var total int64
	c.mu.Lock()
	used := c.used
	_ = c.st.Blobs.Walk(func(d oci.Digest, size int64, made time.Time) error {
		if layers[d] {
			if t := used[d]; t.After(made) {
				made = t
			}
			all = append(all, kept{d, size, made})
			total += size
		}
		return nil
	})
	c.mu.Unlock()
	slices.SortFunc(all, func(a, b kept) int { return a.used.Compare(b.used) })
	budget := c.budget()
	for _, k := range all {
		if total <= budget {
			return
		}
		if err := c.st.Blobs.Remove(k.digest); err != nil {
			c.opts.Log.Warn("compressed layer not dropped", "blob", k.digest, "err", err)
			continue
		}
		total -= k.size
		c.mu.Lock()
		delete(c.used, k.digest)
		c.mu.Unlock()
	}
}
