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

// flightKey identifies a flight by its result: one blob, unpacked as the top layer of one chain.
type flightKey struct {
	digest oci.Digest
	chain  oci.ChainID
}

// flight fetches and unpacks one layer for all pulls that want it. It ends when the layer is durable, when it fails, or when no
// pull wants the layer any more.
type flight struct {
	p      *Puller
	key    flightKey
	desc   oci.Descriptor
	chain  oci.Chain // the layers up to this one, which is the last
	src    *remote.Session
	parent *flight // the flight of the layer below; nil when that layer is here. It ends after this one.
	heal   bool    // the driver has the layer, but damaged

	ctx    context.Context //nolint:containedctx // a flight outlives the call that started it
	cancel context.CancelCauseFunc
	wanted int // number of pulls and flights that need this one; guarded by Puller.mu
	feed   feed

	done chan struct{}
	err  error // valid when done is closed
}

var errUnwanted = errors.New("pull was cancelled")

// join returns the flight for a key and starts it when there is none. started is true when it did. The caller calls leave.
func (p *Puller) join(key flightKey, desc oci.Descriptor, chain oci.Chain, parent *flight, src *remote.Session, heal bool) (f *flight, started bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f := p.flights[key]; f != nil && f.ctx.Err() == nil {
		f.wanted++
		return f, false
	}
	f = &flight{p: p, key: key, desc: desc, chain: chain, src: src, parent: parent, heal: heal, wanted: 1, done: make(chan struct{})}
	f.ctx, f.cancel = context.WithCancelCause(context.Background())
	select {
	case <-p.closing:
		f.err = errs.New(errs.Unavailable, "the engine is stopping")
		f.parent = nil
		close(f.done)
		return f, true
	default:
	}
	if parent != nil {
		parent.wanted++
	}
	p.flights[key] = f
	p.work.Go(f.run)
	return f, true
}

// leave undoes one join. A flight that nobody wants is cancelled.
func (p *Puller) leave(f *flight) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f.wanted--; f.wanted == 0 {
		f.cancel(errUnwanted)
	}
}

// run does the work of a flight, then wakes those who wait for it.
func (f *flight) run() {
	f.err = f.bring()
	f.p.mu.Lock()
	if f.p.flights[f.key] == f {
		delete(f.p.flights, f.key)
	}
	if len(f.p.flights) == 0 {
		for _, ch := range f.p.idle {
			close(ch)
		}
		f.p.idle = nil
	}
	f.p.mu.Unlock()
	if f.parent != nil {
		f.p.leave(f.parent)
	}
	close(f.done)
	if f.err == nil {
		f.p.decide(f.desc)
	}
	f.cancel(nil)
}

// bring fetches, unpacks and commits the layer. It holds its own lease, because the pull that started it may end earlier.
func (f *flight) bring() (err error) {
	p := f.p
	lease := p.st.Lease()
	defer lease.Release()
	lease.Blob(f.desc.Digest)
	lease.Layer(f.chain)
	if !f.heal {
		if info, err := p.st.Layers.Stat(f.ctx, f.chain); err == nil {
			f.feed.say(transfer.LayerExists, 0, 0)
			return p.st.RecordLayer(info, nil) // without the blob: that it unpacks to this layer was not verified
		}
	}
	w, alone, err := f.unpack()
	if err != nil {
		return err
	}
	info, err := f.commit(w, alone)
	if err != nil {
		return errors.Join(err, w.Abort())
	}
	if err := p.st.RecordLayer(info, f.form()); err != nil {
		return err
	}
	p.st.Health.Replaced(f.key.chain)
	f.feed.say(transfer.LayerPulled, 0, 0)
	return nil
}

// form returns the record of the compressed layer.
func (f *flight) form() *meta.LayerBlob {
	return &meta.LayerBlob{
		Descriptor:   oci.Descriptor{MediaType: f.desc.MediaType, Digest: f.desc.Digest, Size: f.desc.Size},
		Repositories: []string{f.src.Name().Name()},
	}
}

// unpack returns a writer that has the whole tar of the layer, and whether the layer can be committed before those below it. The
// compressed bytes were verified. unpack locks the blob, but the lock is free again when commit waits for the layers below: an image
// can have the same blob as two layers.
func (f *flight) unpack() (w layer.Writer, alone bool, err error) {
	unlock, err := f.p.blobs.lock(f.ctx, f.desc.Digest)
	if err != nil {
		return nil, false, err
	}
	defer unlock()
	w, err = f.fromBlob()
	if err != nil {
		if f.ctx.Err() != nil {
			return nil, false, context.Cause(f.ctx)
		}
		if errors.Is(err, errs.Invalid) {
			return nil, false, err
		}
		if w, err = f.fromRegistry(); err != nil {
			return nil, false, err
		}
	}
	return w, w.End(), nil // without its buffers: it may wait long for the layers below
}

// fromBlob unpacks the compressed layer that the blob store has. The error's class is errs.Invalid when the blob has its digest
// and is no layer of the size that the manifest states: the registry cannot have anything better under this digest. The blob
// can belong to another image, so it stays. A damaged blob is removed.
func (f *flight) fromBlob() (layer.Writer, error) {
	r, err := f.p.st.Blobs.Open(f.desc.Digest)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var w layer.Writer
	if size := r.Size(); size != f.desc.Size {
		err = errs.New(errs.Invalid, "layer %s: has %d bytes, the manifest says %d", f.desc.Digest, size, f.desc.Size)
	} else {
		w, err = f.pour(f.ctx, f.ctx, io.LimitReader(r, f.desc.Size+1))
	}
	if !errors.Is(err, errs.Invalid) {
		if err == nil {
			f.p.st.Retention.Touch(f.desc.Digest)
		}
		return w, err
	}
	removed, repairErr := f.p.st.Blobs.Repair(f.desc.Digest)
	if removed || repairErr != nil {
		return nil, errs.New(errs.DataLoss, "%v", errors.Join(err, repairErr))
	}
	return nil, err
}

// fromRegistry downloads the layer and unpacks it at the same time. When the digest is wrong it discards the download, and it
// tries again if part of the bytes came from an earlier attempt or from a mirror.
func (f *flight) fromRegistry() (layer.Writer, error) {
	for {
		release, err := f.p.limit.Acquire(f.ctx, func() { f.feed.say(transfer.LayerWaiting, 0, 0) })
		if err != nil {
			return nil, err
		}
		part, err := f.p.st.Blobs.Partial(f.desc.Digest)
		if err != nil {
			release()
			return nil, err
		}
		reused := part.Prefix() > 0
		f.feed.found(part.Prefix())
		w, source, err := f.stream(part, release)
		switch {
		case err == nil:
			return w, part.Keep() // Retention decides later whether it stays
		case errors.Is(err, errs.Exhausted):
			return nil, errors.Join(err, part.Discard()) // the disk is full: free the space
		case !errors.Is(err, errs.Invalid) || f.ctx.Err() != nil:
			return nil, errors.Join(err, part.Keep())
		}
		if err2 := part.Discard(); err2 != nil {
			return nil, errors.Join(err, err2)
		}
		if !f.src.Distrust(source) && !reused {
			return nil, err
		}
		f.p.log.Info("layer fetched again", "blob", f.desc.Digest, "source", source, "err", err)
	}
}

// stream runs one download and unpacks the bytes while they arrive, or later when too many layers are unpacked already. It calls release, which lets the next
// download begin, when the bytes are here. source is the endpoint that sent the last bytes.
func (f *flight) stream(part *blob.Partial, release func()) (w layer.Writer, source string, err error) {
	ctx, cancel := context.WithCancelCause(f.ctx)
	defer cancel(nil)
	turn, give := context.WithCancelCause(ctx)
	defer give(nil)
	d := newDownload(f.p, f.src, f.desc, part, func(front int64) { f.feed.count(transfer.LayerDownloading, front, f.desc.Size) },
		func(seconds int) { f.feed.say(transfer.Retrying, int64(seconds), 0) })
	fetched := make(chan error, 1)
	go func() {
		err := d.run(ctx)
		release()
		if err != nil {
			give(err) // without the bytes there is nothing to wait for
		} else {
			f.feed.say(transfer.LayerVerifying, 0, 0)
			f.feed.say(transfer.LayerDownloaded, 0, 0)
		}
		fetched <- err
	}()
	w, err = f.pour(ctx, turn, &follower{d: d})
	if err != nil {
		cancel(err)
	}
	fetchErr := <-fetched
	if err == nil && fetchErr != nil {
		return nil, d.source, errors.Join(fetchErr, w.Abort())
	}
	return w, d.source, err
}

// pour reads compressed bytes, hashes them, decompresses them and writes them into a layer writer. When it returns no error,
// the bytes have the digest and size of the descriptor. It waits for its turn, for as long as turn is not done.
func (f *flight) pour(ctx, turn context.Context, src io.Reader) (w layer.Writer, err error) {
	release, err := f.p.unpack.Acquire(turn, func() {})
	if err != nil {
		return nil, err
	}
	defer release()
	// The writer is used after the context of the download has ended. When the download is cancelled, src returns the error.
	w, err = f.p.st.Layers.Create(context.WithoutCancel(ctx))
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
	err = inflate(ctx, w, counted)
	if err != nil && !errors.Is(err, errs.Invalid) {
		return w, err
	}
	// Bytes after the end of the compressed stream belong to the blob too. When decompression has failed, the digest tells
	// whether the transfer changed the bytes or the image itself is bad.
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

// extracting reports how many bytes were unpacked, once the download has ended: until then its progress is shown.
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

// inflate decompresses r into w. An error of class errs.Invalid means that the data is bad.
func inflate(ctx context.Context, w io.Writer, r io.Reader) error {
	z, _, err := compress.NewReader(ctx, r)
	if err != nil {
		return err
	}
	defer z.Close()
	var n int64
	limited := io.LimitReader(z, oci.MaxLayerSize+1)
	if direct, ok := w.(io.ReaderFrom); ok {
		n, err = direct.ReadFrom(limited)
	} else {
		n, err = io.CopyBuffer(w, struct{ io.Reader }{limited}, make([]byte, 512<<10))
	}
	if err == nil && n > oci.MaxLayerSize {
		err = errs.New(errs.Invalid, "unpacks to more than %d bytes", int64(oci.MaxLayerSize))
	}
	return err
}

// below waits until the layers below are durable.
func (f *flight) below() error {
	waiting := false
	for parent := f.parent; parent != nil; parent = parent.parent {
		select {
		case <-parent.done:
		default:
			if !waiting {
				waiting = true
				f.feed.say(transfer.LayerDownloaded, 0, 0) // it does nothing until then
			}
		}
		select {
		case <-parent.done:
			if err := parent.err; err != nil {
				return err
			}
		case <-f.ctx.Done():
			return context.Cause(f.ctx)
		}
	}
	return nil
}

// commit makes the layer durable and visible. Unless it stands alone, commit first waits for the layers below, because it may need
// to read them.
func (f *flight) commit(w layer.Writer, alone bool) (layer.Info, error) {
	if !alone {
		if err := f.below(); err != nil {
			return layer.Info{}, err
		}
	}
	f.feed.say(transfer.LayerExtracting, f.desc.Size, f.desc.Size)
	select {
	case f.p.committing <- struct{}{}:
		defer func() { <-f.p.committing }()
	case <-f.ctx.Done():
		return layer.Info{}, context.Cause(f.ctx)
	}
	// Not cancelled with the pull: the rest is quick, and the next pull can use the finished layer.
	info, err := w.Commit(context.WithoutCancel(f.ctx), f.chain.Parent(), f.chain.Top())
	if err != nil {
		err = errs.New(classOf(err), "layer %s: %w", f.desc.Digest, err)
		if errors.Is(err, errs.Invalid) {
			err = errors.Join(err, f.drop())
		}
	}
	return info, err
}

// drop discards the download. Its digest is right, but it does not unpack to the diffID of the config.
func (f *flight) drop() error {
	unlock, err := f.p.blobs.lock(f.ctx, f.desc.Digest)
	if err != nil {
		return err
	}
	defer unlock()
	part, err := f.p.st.Blobs.Partial(f.desc.Digest)
	if err != nil {
		return err
	}
	return part.Discard()
}

// classOf returns the class of an error, for wrapping it in another one.
func classOf(err error) error {
	if e, ok := errors.AsType[*errs.Error](err); ok {
		return e.Class
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errs.Unavailable
	}
	return errs.Internal
}

// wait waits until the flight ends or ctx is done.
func (f *flight) wait(ctx context.Context) error {
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
