package pull

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"

	"ply/internal/compress"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/blob"
	"ply/internal/store/layer"
	"ply/internal/store/meta"
	"ply/internal/transfer"
	"ply/internal/transfer/remote"
)

// flightKey is what a flight brings: one blob, unpacked as the top of one chain.
type flightKey struct {
	digest oci.Digest
	chain  oci.ChainID
}

// flight brings one layer for everybody who wants it. It ends when it is done or when nobody wants it any more.
type flight struct {
	c      *Puller
	key    flightKey
	desc   oci.Descriptor
	chain  oci.Chain // up to and with this layer
	src    *remote.Session
	parent *flight // the flight of the layer below, when there is one; it lives at least as long as this one
	heal   bool    // what the driver holds is damaged

	ctx    context.Context //nolint:containedctx // a flight is an operation of its own, not its caller's
	cancel context.CancelCauseFunc
	wanted int // guarded by Puller.mu
	feed   feed

	done chan struct{}
	err  error // after done
}

var errUnwanted = errors.New("pull was cancelled")

// join gives the flight for a key, starting it when there is none. Leader says that it was started now.
func (c *Puller) join(key flightKey, desc oci.Descriptor, chain oci.Chain, parent *flight, src *remote.Session, heal bool) (f *flight, leader bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.flights[key]; f != nil && f.ctx.Err() == nil {
		f.wanted++
		return f, false
	}
	f = &flight{c: c, key: key, desc: desc, chain: chain, src: src, parent: parent, heal: heal, wanted: 1, done: make(chan struct{})}
	f.ctx, f.cancel = context.WithCancelCause(context.Background())
	select {
	case <-c.closing:
		f.err = errs.New(errs.Unavailable, "the engine is stopping")
		f.parent = nil
		close(f.done)
		return f, true
	default:
	}
	if parent != nil {
		parent.wanted++
	}
	c.flights[key] = f
	c.work.Go(f.run)
	return f, true
}

// leave tells a flight that one who wanted it does not any more.
func (c *Puller) leave(f *flight) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.wanted--; f.wanted == 0 {
		f.cancel(errUnwanted)
	}
}

func (f *flight) run() {
	f.err = f.bring()
	f.c.mu.Lock()
	if f.c.flights[f.key] == f {
		delete(f.c.flights, f.key)
	}
	if len(f.c.flights) == 0 {
		for _, ch := range f.c.idle {
			close(ch)
		}
		f.c.idle = nil
	}
	f.c.mu.Unlock()
	if f.parent != nil {
		f.c.leave(f.parent)
	}
	close(f.done)
	if f.err == nil {
		f.c.decide(f.desc)
	}
	f.cancel(nil)
}

// bring fetches, unpacks and commits the layer under a lease of its own.
func (f *flight) bring() (err error) {
	c := f.c
	lease := c.st.Lease()
	defer lease.Release()
	lease.Blob(f.desc.Digest)
	lease.Layer(f.chain)
	if !f.heal {
		if info, err := c.st.Layers.Stat(f.ctx, f.chain); err == nil {
			f.feed.say(transfer.LayerExists, 0, 0)
			return c.st.RecordLayer(info, nil) // that this blob unpacks to it was not seen
		}
	}
	w, err := f.unpack()
	if err != nil {
		return err
	}
	info, err := f.commit(w)
	if err != nil {
		return errors.Join(err, w.Abort())
	}
	if err := c.st.RecordLayer(info, f.form()); err != nil {
		return err
	}
	c.st.Health.Replaced(f.key.chain)
	f.feed.say(transfer.LayerPulled, 0, 0)
	return nil
}

func (f *flight) form() *meta.LayerBlob {
	return &meta.LayerBlob{
		Descriptor:   oci.Descriptor{MediaType: f.desc.MediaType, Digest: f.desc.Digest, Size: f.desc.Size},
		Repositories: []string{f.src.Name().Name()},
	}
}

// unpack gives a writer that holds the whole tar of the layer, whose compressed bytes were verified. While it works it has the
// blob to itself; it does not while it waits for layers below, which may need the same blob.
func (f *flight) unpack() (layer.Writer, error) {
	release, err := f.c.limit.Acquire(f.ctx, func() { f.feed.say(transfer.LayerWaiting, 0, 0) })
	if err != nil {
		return nil, err
	}
	defer release()
	unlock, err := f.c.blobs.lock(f.ctx, f.desc.Digest)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if w, err := f.fromBlob(); err == nil {
		return w, nil
	} else if f.ctx.Err() != nil {
		return nil, context.Cause(f.ctx)
	}
	return f.fromRegistry()
}

// fromBlob unpacks a compressed layer that was kept. A damaged one is removed.
func (f *flight) fromBlob() (layer.Writer, error) {
	r, err := f.c.st.Blobs.Open(f.desc.Digest)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	f.c.st.Retention.Touch(f.desc.Digest)
	w, err := f.pour(f.ctx, io.LimitReader(r, f.desc.Size+1))
	if errors.Is(err, errs.Invalid) {
		err = errors.Join(err, f.c.st.Blobs.Remove(f.desc.Digest))
	}
	return w, err
}

// fromRegistry downloads and unpacks at once. Bytes of an earlier try that turn out wrong are thrown away and fetched
// again, and so are those of a mirror that lied.
func (f *flight) fromRegistry() (layer.Writer, error) {
	for {
		part, err := f.c.st.Blobs.Partial(f.desc.Digest)
		if err != nil {
			return nil, err
		}
		reused := part.Prefix() > 0
		w, source, err := f.stream(part)
		switch {
		case err == nil:
			return w, part.Keep() // Retention decides later whether it stays
		case errors.Is(err, errs.Exhausted):
			return nil, errors.Join(err, part.Discard()) // give the room back
		case !errors.Is(err, errs.Invalid) || f.ctx.Err() != nil:
			return nil, errors.Join(err, part.Keep())
		}
		if err2 := part.Discard(); err2 != nil {
			return nil, errors.Join(err, err2)
		}
		if !f.src.Distrust(source) && !reused {
			return nil, err
		}
		f.c.log.Info("layer fetched again", "blob", f.desc.Digest, "source", source, "err", err)
	}
}

// stream runs one download with the unpacking behind it. Source is where the last bytes came from.
func (f *flight) stream(part *blob.Partial) (w layer.Writer, source string, err error) {
	ctx, cancel := context.WithCancelCause(f.ctx)
	defer cancel(nil)
	d := newDownload(f.c, f.src, f.desc, part, func(front int64) { f.feed.count(transfer.LayerDownloading, front, f.desc.Size) })
	fetched := make(chan error, 1)
	go func() {
		err := d.run(ctx)
		if err == nil {
			f.feed.say(transfer.LayerVerifying, 0, 0)
			f.feed.say(transfer.LayerDownloaded, 0, 0)
		}
		fetched <- err
	}()
	w, err = f.pour(ctx, &follower{d: d})
	if err != nil {
		cancel(err)
	}
	fetchErr := <-fetched
	if err == nil && fetchErr != nil {
		return nil, d.source, errors.Join(fetchErr, w.Abort())
	}
	return w, d.source, err
}

// pour hashes compressed bytes, decompresses them and fills a layer writer. The digest and size of what it read are the
// descriptor's when it returns nil.
func (f *flight) pour(ctx context.Context, src io.Reader) (w layer.Writer, err error) {
	// The writer lives on after the download's context; cancelling is seen by the reading side.
	w, err = f.c.st.Layers.Create(context.WithoutCancel(ctx))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Abort())
			w = nil
		}
	}()
	h := sha256.New()
	var read int64
	counted := readFunc(func(p []byte) (int, error) {
		n, err := src.Read(p)
		h.Write(p[:n])
		read += int64(n)
		f.extracting(read)
		return n, err
	})
	err = inflate(w, counted)
	if err != nil && !errors.Is(err, errs.Invalid) {
		return w, err
	}
	// What follows the compressed stream belongs to the blob; and of bad data the digest tells whose fault it is.
	if _, drainErr := io.Copy(io.Discard, counted); drainErr != nil {
		return w, drainErr
	}
	if got := oci.DigestOfHash(h); got != f.desc.Digest {
		return w, errs.New(errs.Invalid, "layer %s: content has digest %s", f.desc.Digest, got).
			WithHint("What the registry sent is not what the manifest says; nothing of it was kept.")
	}
	if err == nil && read != f.desc.Size {
		err = errs.New(errs.Invalid, "has %d bytes, the manifest says %d", read, f.desc.Size)
	}
	if err != nil {
		return w, errs.New(errs.Invalid, "layer %s: %w", f.desc.Digest, err)
	}
	return w, nil
}

func (f *flight) extracting(n int64) {
	f.feed.mu.Lock()
	downloading := f.feed.last.State == transfer.LayerDownloading
	f.feed.mu.Unlock()
	if !downloading {
		f.feed.count(transfer.LayerExtracting, n, f.desc.Size)
	}
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

// inflate decompresses r into w. Errors of class errs.Invalid are about the data.
func inflate(w io.Writer, r io.Reader) error {
	z, _, err := compress.NewReader(r)
	if err != nil {
		return err
	}
	buf := make([]byte, 512<<10)
	n, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{io.LimitReader(z, oci.MaxLayerSize+1)}, buf)
	if err == nil && n > oci.MaxLayerSize {
		err = errs.New(errs.Invalid, "unpacks to more than %d bytes", int64(oci.MaxLayerSize))
	}
	return errors.Join(err, z.Close())
}

// commit waits for the layer below and makes this one visible.
func (f *flight) commit(w layer.Writer) (layer.Info, error) {
	f.feed.say(transfer.LayerExtracting, f.desc.Size, f.desc.Size)
	if f.parent != nil {
		select {
		case <-f.parent.done:
			if err := f.parent.err; err != nil {
				return layer.Info{}, err
			}
		case <-f.ctx.Done():
			return layer.Info{}, context.Cause(f.ctx)
		}
	}
	// From here on it is quick, and finished work is worth keeping: a cancelled pull does not undo it.
	info, err := w.Commit(context.WithoutCancel(f.ctx), f.chain.Parent(), f.chain.Top())
	if err != nil {
		err = errs.New(classOf(err), "layer %s: %w", f.desc.Digest, err)
		if errors.Is(err, errs.Invalid) {
			err = errors.Join(err, f.drop())
		}
	}
	return info, err
}

// drop removes the compressed layer, which is what the manifest says but not what the config says.
func (f *flight) drop() error {
	unlock, err := f.c.blobs.lock(f.ctx, f.desc.Digest)
	if err != nil {
		return err
	}
	defer unlock()
	part, err := f.c.st.Blobs.Partial(f.desc.Digest)
	if err != nil {
		return err
	}
	return part.Discard()
}

// classOf keeps the class of an error that is wrapped anew.
func classOf(err error) error {
	if e, ok := errors.AsType[*errs.Error](err); ok {
		return e.Class
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errs.Unavailable
	}
	return errs.Internal
}

// wait waits for a flight on behalf of one pull, or for the end of ctx.
func (f *flight) wait(ctx context.Context) error {
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
