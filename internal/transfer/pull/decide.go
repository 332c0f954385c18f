package pull

import (
	"context"
	"time"

	"ply/internal/oci"
)

// decide lets Retention keep or discard a compressed layer that was unpacked. It runs after the pull has ended and
// logs errors: the worst that can happen is that the next push or pull fetches the blob again.
func (p *Puller) decide(desc oci.Descriptor) {
	if !p.awaitIdle() {
		return // the client closes; the next pull of this blob finds the whole download
	}
	p.deciding.Lock()
	defer p.deciding.Unlock()
	unlock, err := p.blobs.lock(context.Background(), desc.Digest)
	if err != nil {
		return
	}
	defer unlock()
	if err := p.st.Retention.Decide(desc); err != nil {
		p.log.Warn("compressed layer", "blob", desc.Digest, "err", err)
	}
}

// maxIdleWait is how long a decision about a compressed layer waits for running downloads to end.
const maxIdleWait = time.Minute

// awaitIdle waits until no download runs, at most maxIdleWait, so that making a cache durable takes no disk bandwidth
// from a pull. It reports false when the client closes.
func (p *Puller) awaitIdle() bool {
	p.mu.Lock()
	idle := make(chan struct{})
	if len(p.flights) == 0 {
		close(idle)
	} else {
		p.idle = append(p.idle, idle)
	}
	p.mu.Unlock()
	t := time.NewTimer(maxIdleWait)
	defer t.Stop()
	select {
	case <-p.closing:
		return false
	case <-idle:
	case <-t.C:
	}
	return true
}
