package push

import (
	"cmp"
	"context"
	"errors"
	"io"
	"slices"
	"sync/atomic"
	"time"

	"ply/internal/compress"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/meta"
	"ply/internal/transfer"
	"ply/internal/transfer/remote"
)

// layerPush sends one layer.
type layerPush struct {
	*push
	chain   oci.Chain       // up to and with the layer
	format  oci.Format      // of the manifest that will name it
	want    *oci.Descriptor // the form that the image's manifest names; nil = any
	from    []string        // repositories the manifest came from, the likeliest last
	hearsay bool            // that want is this layer was never seen here, only its manifest says so
	told    time.Time
	begun   *remote.Upload // by a mount that the registry answered with an upload
}

func (l *layerPush) say(state transfer.State, current, total int64) {
	l.progress(transfer.Progress{State: state, Layer: l.chain.Top().Short(), Current: current, Total: total})
}

func (l *layerPush) count(current, total int64) {
	if now := time.Now(); now.Sub(l.told) >= pushingEvery {
		l.told = now
		l.say(transfer.LayerPushing, min(current, max(total, current)), total)
	}
}

// run gets the layer to the target by the cheapest way that works and gives the descriptor of the form it has there.
func (l *layerPush) run(ctx context.Context) (oci.Descriptor, error) {
	release, err := l.limit.Acquire(ctx, func() { l.say(transfer.LayerWaiting, 0, 0) })
	if err != nil {
		return oci.Descriptor{}, err
	}
	defer release()
	rec, forms := l.forms()
	for _, f := range forms {
		have, err := l.has(ctx, f.Digest)
		if err != nil {
			return oci.Descriptor{}, err
		}
		if have {
			l.say(transfer.LayerPresent, 0, 0)
			return f.Descriptor, l.note(ctx, f)
		}
	}
	for _, f := range forms {
		if from := l.mount(ctx, f); !from.IsZero() {
			l.progress(transfer.Progress{State: transfer.LayerMounted, Layer: l.chain.Top().Short(), From: from})
			return f.Descriptor, l.note(ctx, f)
		}
	}
	if ctx.Err() != nil {
		return oci.Descriptor{}, context.Cause(ctx)
	}
	f, err := l.send(ctx, rec, forms)
	if err != nil {
		return oci.Descriptor{}, err
	}
	l.say(transfer.LayerPushed, 0, 0)
	return f.Descriptor, l.note(ctx, f)
}

// note writes down that the target has a form of the layer. What only a manifest says of a blob is not: the record is
// believed when other images with this layer are pushed.
func (l *layerPush) note(ctx context.Context, f meta.LayerBlob) error {
	if l.hearsay && f.Digest == l.want.Digest {
		return nil
	}
	return l.recordBlob(ctx, l.chain, f)
}

// forms lists the stored forms of the layer that may be sent, the best first: the one that the manifest names alone when
// there is one, else those that the target's registry has, those that are here, the rest.
func (l *layerPush) forms() (meta.Layer, []meta.LayerBlob) {
	var rec meta.Layer
	err := l.st.Meta.View(func(tx *meta.Tx) (err error) {
		rec, err = tx.Layers.Get(l.chain.Top())
		return err
	})
	if err != nil {
		l.log.Debug("layer has no record", "layer", l.chain.Top(), "err", err)
	}
	if l.want != nil {
		for _, b := range rec.Blobs {
			if b.Digest == l.want.Digest {
				b.Descriptor = *l.want
				return rec, []meta.LayerBlob{b}
			}
		}
		b := meta.LayerBlob{Descriptor: *l.want}
		if l.want.Digest == oci.Digest(l.chain.Top()) {
			b.Codec = compress.Params{Codec: compress.None}.String() // the tar itself
		} else {
			// The layer was here already when the manifest was pulled, so this form of it never was.
			b.Repositories, l.hearsay = l.from, true
		}
		return rec, []meta.LayerBlob{b}
	}
	var forms []meta.LayerBlob
	for _, b := range rec.Blobs {
		if t, ok := layerType(b.MediaType, l.format); ok {
			b.MediaType = t
			forms = append(forms, b)
		}
	}
	rank := func(b meta.LayerBlob) int {
		if slices.ContainsFunc(b.Repositories, func(r string) bool { return sameRegistry(r, l.dst.Name().Name()) }) {
			return 0
		}
		if _, err := l.st.Blobs.Stat(b.Digest); err == nil {
			return 1
		}
		return 2
	}
	slices.SortStableFunc(forms, func(a, b meta.LayerBlob) int { return cmp.Compare(rank(a), rank(b)) })
	return rec, forms
}

// pushingEvery is the least time between two reports of how much was sent.
const pushingEvery = 100 * time.Millisecond

// maxMounts bounds how many repositories are asked to lend a blob.
const maxMounts = 4

// mount asks the registry to take the blob from another of its repositories. It returns that repository, or zero.
func (l *layerPush) mount(ctx context.Context, f meta.LayerBlob) oci.Reference {
	tried := 0
	for _, name := range slices.Backward(f.Repositories) { // the latest known first
		from, err := oci.ParseReference(name)
		if err != nil || !sameRegistry(name, l.dst.Name().Name()) || name == l.dst.Name().Name() || tried == maxMounts {
			continue
		}
		tried++
		up, mounted, err := l.dst.StartUpload(ctx, f.Digest, from)
		switch {
		case err != nil:
			l.log.Debug("blob not mounted", "blob", f.Digest, "from", name, "err", err)
		case mounted:
			return from
		case l.begun == nil:
			l.begun = up
		default:
			up.Cancel(ctx)
		}
	}
	return oci.Reference{}
}

// send uploads the layer: a form that was kept here, one made again with its recorded parameters, one streamed from where it
// came from, or else a new one.
func (l *layerPush) send(ctx context.Context, rec meta.Layer, forms []meta.LayerBlob) (meta.LayerBlob, error) {
	for _, f := range forms {
		if _, err := l.st.Blobs.Stat(f.Digest); err != nil {
			continue
		}
		err := l.upload(ctx, l.keptSource(f), &f)
		if err == nil || !errors.Is(err, errs.DataLoss) {
			return f, err
		}
		l.log.Warn("kept layer is damaged and dropped", "blob", f.Digest, "err", err)
		if err := l.st.Blobs.Remove(f.Digest); err != nil {
			return f, err
		}
	}
	for _, f := range forms {
		if params, err := compress.ParseParams(f.Codec); err == nil {
			made := meta.LayerBlob{Descriptor: oci.Descriptor{MediaType: f.MediaType}, Codec: f.Codec}
			return made, l.upload(ctx, l.madeSource(params, rec.TarSize), &made)
		}
	}
	for _, f := range forms {
		if src := l.foreignSource(ctx, f); src != nil {
			err := l.upload(ctx, *src, &f)
			if err == nil || ctx.Err() != nil {
				return f, err
			}
			l.log.Info("layer not had from where it came from", "blob", f.Digest, "err", err)
		}
	}
	params := compress.Params{Codec: compress.Gzip}
	made := meta.LayerBlob{Codec: params.String()}
	made.MediaType, _ = layerType(oci.MediaTypeOCILayerGzip, l.format)
	return made, l.upload(ctx, l.madeSource(params, rec.TarSize), &made)
}

// source gives a blob's bytes from an offset on, as often as it is asked, and always the same.
type source struct {
	open  func(ctx context.Context, from int64) (io.ReadCloser, error)
	size  int64 // -1 = known at its end
	total int64 // what progress is out of
}

// keptSource reads a compressed layer from the blob store.
func (l *layerPush) keptSource(f meta.LayerBlob) source {
	l.st.Retention.Touch(f.Digest)
	return source{size: f.Size, total: f.Size, open: func(_ context.Context, from int64) (io.ReadCloser, error) {
		r, err := l.st.Blobs.Open(f.Digest)
		if err != nil {
			return nil, err
		}
		if r.Size() != f.Size {
			return nil, errors.Join(errs.New(errs.DataLoss, "blob %s: has %d bytes, want %d", f.Digest, r.Size(), f.Size), r.Close())
		}
		if _, err := r.Seek(from, io.SeekStart); err != nil {
			return nil, errors.Join(err, r.Close())
		}
		return r, nil
	}}
}

// madeSource compresses the layer's tar while it is sent. Going on at an offset means to do it all again and drop what is there.
func (l *layerPush) madeSource(params compress.Params, tarSize int64) source {
	return source{size: -1, total: tarSize, open: func(ctx context.Context, from int64) (io.ReadCloser, error) {
		tar, err := l.st.Layers.Tar(ctx, l.chain)
		if err != nil {
			return nil, err
		}
		r := newMadeReader(tar, params)
		if _, err := io.CopyN(io.Discard, r, from); err != nil {
			return nil, errors.Join(err, r.Close())
		}
		return r, nil
	}}
}

// madeReader reads what a compressor makes of a tar.
type madeReader struct {
	*io.PipeReader
	closed atomic.Bool
	done   chan struct{}
}

// newMadeReader takes the tar over.
func newMadeReader(tar io.ReadCloser, params compress.Params) *madeReader {
	pr, pw := io.Pipe()
	r := &madeReader{PipeReader: pr, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		err := r.compress(tar, pw, params)
		pw.CloseWithError(errors.Join(err, tar.Close()))
	}()
	return r
}

func (r *madeReader) compress(tar io.Reader, pw *io.PipeWriter, params compress.Params) error {
	// A compressor of several threads leaves some behind when its output fails. So its output never does: once nobody reads any
	// more, the input ends and the rest goes nowhere.
	z, err := compress.NewWriter(writeFunc(func(p []byte) (int, error) {
		if _, err := pw.Write(p); err != nil && !r.closed.Load() {
			return 0, err
		}
		return len(p), nil
	}), params)
	if err != nil {
		return err
	}
	in := readFunc(func(p []byte) (int, error) {
		if r.closed.Load() {
			return 0, io.ErrClosedPipe
		}
		return tar.Read(p)
	})
	_, err = io.CopyBuffer(struct{ io.Writer }{z}, in, make([]byte, 1<<20))
	return errors.Join(err, z.Close())
}

// Close stops the compressor and waits for it: nothing reads the layer afterwards.
func (r *madeReader) Close() error {
	r.closed.Store(true)
	err := r.PipeReader.Close()
	<-r.done
	return err
}

type writeFunc func([]byte) (int, error)

func (f writeFunc) Write(p []byte) (int, error) { return f(p) }

// foreignSource streams the layer from another registry that is known to have it; nil when there is none. No credentials are
// at hand for it but the target's, so it is asked anonymously unless it is the target's own registry.
func (l *layerPush) foreignSource(ctx context.Context, f meta.LayerBlob) *source {
	for _, name := range slices.Backward(f.Repositories) {
		ref, err := oci.ParseReference(name)
		if err != nil {
			continue
		}
		cred := transfer.Credentials{}
		if sameRegistry(name, l.dst.Name().Name()) {
			cred = l.opts.Credentials
		}
		from := l.remote.Session(ref, remote.Pull, cred)
		src := &source{size: f.Size, total: f.Size, open: func(ctx context.Context, off int64) (io.ReadCloser, error) {
			b, err := from.Blob(ctx, f.Digest, off, -1)
			if err != nil {
				return nil, err
			}
			if _, err := io.CopyN(io.Discard, b, off-b.Offset); err != nil {
				return nil, errors.Join(err, b.Close())
			}
			return b, nil
		}}
		// A registry that knew the layer once may be gone: the next one is asked before anything is sent.
		first, err := src.open(ctx, 0)
		if err != nil {
			l.log.Debug("layer is not there any more", "blob", f.Digest, "repository", name, "err", err)
			continue
		}
		first.Close()
		return src
	}
	return nil
}
