// Package registry pulls images from registries and pushes them there, logs in and searches.
//
// A pull is one pass: each missing layer is fetched by ranges into a resumable file while a reader follows the
// gapless front of it, hashing, decompressing and feeding the layer driver; nothing is read twice. A layer is fetched
// by one flight however many pulls want it, and outlives the pull that started it as long as one still wants it.
//
// Invariants: nothing is recorded before its bytes were checked against every digest that speaks of them; a finished
// layer is kept even when its pull is not; an unfinished one keeps its gapless prefix; manifest and config bytes are
// stored and sent exactly as they came; a digest printed is the digest of the bytes sent.
//
// The HTTP side (endpoints, TLS, tokens, error bodies) is package remote.
package registry

import (
	"context"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"ply/internal/errs"
	"ply/internal/image"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/transfer/remote"
)

// Images is what this package needs of the images; image.Service has it.
type Images interface {
	Put(ctx context.Context, lease *store.Lease, o image.PutOptions) (oci.ImageID, error)
	Get(ctx context.Context, ref string) (*image.Image, error)
	// Publish tells listeners that an image was pulled or pushed.
	Publish(action string, id oci.ImageID, name string)
}

// Options of New; the zero value works.
type Options struct {
	Mirrors    []string // base URLs of mirrors of the hub, tried in order before it
	Insecure   []string // hosts, host:port or CIDRs that may have a bad certificate or none; loopback always may
	AuthRealms []string // hosts that any registry may name as its token server; its own domain always may be
	CertsDirs  []string // directories with <host:port>/{ca.crt,client.cert,client.key}
	ConfigFile string   // what to call the configuration file in hints; "" = "daemon.json"

	MaxConcurrentDownloads int // layers at a time; 0 = three a processor
	MaxConcurrentUploads   int // 0 = 5
	DownloadAttempts       int // tries in a row without progress; 0 = 5

	UserAgent string
	Log       *slog.Logger // nil = none
	// Dial and Lookup replace the network's, for tests.
	Dial   func(ctx context.Context, network, addr string) (net.Conn, error)
	Lookup remote.LookupFunc
}

func (o *Options) setDefaults() {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.MaxConcurrentDownloads <= 0 {
		o.MaxConcurrentDownloads = 3 * runtime.GOMAXPROCS(0)
	}
	if o.MaxConcurrentUploads <= 0 {
		o.MaxConcurrentUploads = 5
	}
	if o.DownloadAttempts <= 0 {
		o.DownloadAttempts = 5
	}
}

// retryPolicy is how long to wait for a registry that does not answer as it should.
type retryPolicy struct {
	base, max time.Duration // of the wait between two tries, which doubles
	giveUp    time.Duration // without one byte of progress
	maxAfter  time.Duration // longest Retry-After that is waited for
}

// Client moves images between the store and registries. Safe for concurrent use.
type Client struct {
	st     *store.Store
	images Images
	opts   Options
	remote *remote.Client
	retry  retryPolicy

	down, up atomic.Pointer[limiter]
	attempts atomic.Int64      // in a row without progress
	locks    keyed[oci.Digest] // held while a blob's bytes come in

	// mu guards flights and their counts. It is taken after no other lock.
	mu      sync.Mutex
	flights map[flightKey]*flight

	idle     []chan struct{} // closed when no flight is left
	closing  chan struct{}   // closed by Close
	deciding sync.Mutex      // serializes decisions about compressed layers: one is made durable at a time

	work sync.WaitGroup // flights and what they do after their pull is done
}

// New makes a client. The caller calls Close before it closes the store.
func New(st *store.Store, images Images, opts Options) *Client {
	opts.setDefaults()
	c := &Client{
		st:     st,
		images: images,
		opts:   opts,
		remote: remote.New(remote.Options{
			Mirrors: opts.Mirrors, Insecure: opts.Insecure, AuthRealms: opts.AuthRealms,
			CertsDirs: opts.CertsDirs, ConfigFile: opts.ConfigFile,
			UserAgent: opts.UserAgent, Log: opts.Log, Dial: opts.Dial, Lookup: opts.Lookup,
		}),
		retry:   retryPolicy{base: 250 * time.Millisecond, max: 15 * time.Second, giveUp: 2 * time.Minute, maxAfter: 2 * time.Minute},
		flights: map[flightKey]*flight{},
		closing: make(chan struct{}),
	}
	c.down.Store(newLimiter(opts.MaxConcurrentDownloads))
	c.up.Store(newLimiter(opts.MaxConcurrentUploads))
	c.attempts.Store(int64(opts.DownloadAttempts))
	return c
}

// Reload puts new lists of mirrors, insecure registries and token servers in force; operations under way keep the old ones.
// errs.Invalid when an entry cannot be understood, and then nothing changes.
func (c *Client) Reload(mirrors, insecure, authRealms []string) error {
	return c.remote.Reload(mirrors, insecure, authRealms)
}

// SetLimits puts new values of MaxConcurrentDownloads, MaxConcurrentUploads and DownloadAttempts in force; 0 means the default.
// Transfers under way count against the old limits.
func (c *Client) SetLimits(downloads, uploads, attempts int) {
	o := Options{MaxConcurrentDownloads: downloads, MaxConcurrentUploads: uploads, DownloadAttempts: attempts}
	o.setDefaults()
	if o.MaxConcurrentDownloads != cap(c.down.Load().slots) {
		c.down.Store(newLimiter(o.MaxConcurrentDownloads))
	}
	if o.MaxConcurrentUploads != cap(c.up.Load().slots) {
		c.up.Store(newLimiter(o.MaxConcurrentUploads))
	}
	c.attempts.Store(int64(o.DownloadAttempts))
}

// Close ends what is under way, as far as it can be taken up again, and waits for it.
func (c *Client) Close() error {
	c.mu.Lock()
	select {
	case <-c.closing:
	default:
		close(c.closing)
	}
	for _, f := range c.flights {
		f.cancel(errs.New(errs.Unavailable, "the engine is stopping"))
	}
	c.mu.Unlock()
	c.work.Wait()
	c.remote.Close()
	return nil
}
