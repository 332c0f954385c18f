// Package pull brings images from registries into the store.
//
// A pull is one pass: a missing layer is fetched by ranges into a file that survives an interruption, while a reader
// follows the part of it that has no gaps, hashes it, decompresses it and writes it into the layer driver. Nothing is
// read twice. However many pulls want a layer, one flight fetches it. A flight outlives the pull that started it while
// another pull still wants the layer.
//
// Invariants: nothing is recorded before its bytes agree with every digest that names them. A finished layer is kept
// even when its pull fails; an unfinished one keeps its gapless prefix. Manifests and configs are stored exactly as
// they came.
package pull

import (
	"context"
	"log/slog"
	"runtime"
	"sync"

	"ply/internal/errs"
	"ply/internal/host"
	"ply/internal/image"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/transfer"
	"ply/internal/transfer/remote"
)

// Images is what a pull needs of the image service.
type Images interface {
	Put(ctx context.Context, lease *store.Lease, o image.PutOptions) (oci.ImageID, error)
	Get(ctx context.Context, ref string) (*image.Image, error)
	// Publish tells listeners that an image was pulled.
	Publish(action string, id oci.ImageID, name string)
}

// Options of New. The zero value works.
type Options struct {
	Max int          // layers that are fetched at a time; 0 = as many as are unpacked at a time: three per processor, if there is memory for them
	Log *slog.Logger // nil = none
}

// Puller pulls images. Safe for concurrent use.
type Puller struct {
	st     *store.Store
	images Images
	remote *remote.Client
	log    *slog.Logger
	limit  *transfer.Limiter // of downloads
	unpack *transfer.Limiter // of layers that are unpacked; its memory is what bounds it
	blobs  keyed[oci.Digest] // taken while the bytes of a blob come in

	// mu guards the fields below it. No other lock is taken while it is held.
	mu      sync.Mutex
	flights map[flightKey]*flight
	idle    []chan struct{} // closed when no flight is left

	committing chan struct{} // has an element for each layer that is being made durable

	closing  chan struct{} // closed by Close
	deciding sync.Mutex    // taken while Retention decides about a compressed layer: one is made durable at a time
	work     sync.WaitGroup
}

// New returns a puller. The caller calls Close before it closes the store.
func New(st *store.Store, images Images, client *remote.Client, opts Options) *Puller {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	return &Puller{
		st: st, images: images, remote: client, log: opts.Log, limit: transfer.NewLimiter(maxOrDefault(opts.Max)),
		unpack:  transfer.NewLimiter(maxOrDefault(0)),
		flights: map[flightKey]*flight{}, closing: make(chan struct{}), committing: make(chan struct{}, maxCommits),
	}
}

// maxCommits bounds the threads that wait for the disk.
const maxCommits = 8

// memoryPerLayer is the memory of the engine for which another layer is unpacked at the same time. A layer takes less, but there is
// other work too.
const memoryPerLayer = 64 << 20

func maxOrDefault(n int) int {
	if n <= 0 {
		return max(2, min(3*runtime.GOMAXPROCS(0), int(host.MemoryLimit()/memoryPerLayer)))
	}
	return n
}

// SetMax changes Options.Max. Layers under way count against the old number.
func (p *Puller) SetMax(n int) { p.limit.SetMax(maxOrDefault(n)) }

// Close ends the flights, which keep what a later pull can use, and waits for them.
func (p *Puller) Close() {
	p.mu.Lock()
	select {
	case <-p.closing:
	default:
		close(p.closing)
	}
	for _, f := range p.flights {
		f.cancel(errs.New(errs.Unavailable, "the engine is stopping"))
	}
	p.mu.Unlock()
	p.work.Wait()
}
