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
	chain      oci.Chain       // the layers up to this one, which is the last
	format     oci.Format      // of the manifest that will list the layer
	want       *oci.Descriptor // the form that the image's manifest lists; nil = any
	from       []string        // repositories from which the manifest may have come, the most likely one last
	unverified bool            // nobody has unpacked want here: only the manifest says that it is this layer
	told       time.Time       // when the number of sent bytes was last reported
	begun      *remote.Upload  // an upload that the registry started instead of mounting the blob
}

func (l *layerPush) say(state transfer.State, current, total int64) {
	l.progress(transfer.Progress{State: state, Layer: l.chain.Top().Short(), Current: current, Total: total})
}

// count reports how much was sent, not more often than pushingEvery.
func (l *layerPush) count(current, total int64) {
	if now := time.Now(); now.Sub(l.told) >= pushingEvery {
		l.told = now
		l.say(transfer.LayerPushing, min(current, max(total, current)), total)
	}
}

// run brings the layer to the target repository in the cheapest way that works. It returns the descriptor of the form that the
// repository has then.
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

// note records that the target repository has this form of the layer. It does not record a form that was never unpacked here:
// pushes of other images with this layer trust the record.
func (l *layerPush) note(ctx context.Context, f meta.LayerBlob) error {
	if l.unverified && f.Digest == l.want.Digest {
		return nil
	}
	return l.recordBlob(ctx, l.chain, f)
}

// forms returns the record of the layer and its compressed forms that may be sent. If the image has a manifest, that is the one
// form that it lists. Else it is all recorded forms: first those that the target's registry has, then those that are in the
// blob store, then the others.
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
			// The layer was here when the manifest was pulled, so this form of it was not downloaded.
			b.Repositories, l.unverified = l.from, true
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

// pushingEvery is the shortest time between two reports of how much was sent.
const pushingEvery = 100 * time.Millisecond

// maxMounts bounds from how many repositories the registry is asked to take a blob.
const maxMounts = 4

// mount asks the registry to take the blob from another of its repositories. It returns that repository, or zero.
func (l *layerPush) mount(ctx context.Context, f meta.LayerBlob) oci.Reference {
	tried := 0
	for _, name := range slices.Backward(f.Repositories) { // the last recorded one first
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

// send uploads the layer. It tries, in this order: a form that is in the blob store; a form that it can make again because its
// parameters are recorded; a form that another registry has; a new form.
func (l *layerPush) send(ctx context.Context, rec meta.Layer, forms []meta.LayerBlob) (meta.LayerBlob, error) {
	for _, f := range forms {
		// Only the manifest says that an unverified form is this layer. A blob with that digest can be content of another image
		// that must not get to this registry.
		if _, err := l.st.Blobs.Stat(f.Digest); err != nil || l.unverified {
			continue
		}
		err := l.upload(ctx, l.keptSource(f), &f)
		if err == nil || !errors.Is(err, errs.DataLoss) {
			return f, err
		}
		removed, repairErr := l.st.Blobs.Repair(f.Digest)
		l.log.Warn("compressed layer not sent", "blob", f.Digest, "removed", removed, "err", errors.Join(err, repairErr))
	}
	for _, f := range forms {
		if params, err := compress.ParseParams(f.Codec); err == nil {
			made := meta.LayerBlob{Descriptor: oci.Descriptor{MediaType: f.MediaType}, Codec: f.Codec}
			err := l.upload(ctx, l.madeSource(params, rec.TarSize), &made)
			return made, err
		}
	}
	for _, f := range forms {
		if src := l.foreignSource(ctx, f); src != nil {
			err := l.upload(ctx, *src, &f)
			if err == nil || ctx.Err() != nil {
				return f, err
			}
			l.log.Info("layer could not be sent from another registry", "blob", f.Digest, "err", err)
		}
	}
	params := compress.FastGzip()
	made := meta.LayerBlob{Codec: params.String()}
	made.MediaType, _ = layerType(oci.MediaTypeOCILayerGzip, l.format)
	err := l.upload(ctx, l.madeSource(params, rec.TarSize), &made)
	return made, err
}

// source is where the bytes of a blob come from. open returns the bytes from an offset on; every call returns the same bytes.
type source struct {
	open  func(ctx context.Context, from int64) (io.ReadCloser, error)
	size  int64 // bytes of the blob; -1 = unknown until it has been read
	total int64 // the total that progress reports, in bytes
}

// keptSource returns a source that reads a compressed layer from the blob store.
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

// madeSource returns a source that compresses the layer's tar. To open it at an offset, it compresses from the start again and
// discards the first bytes.
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

// madeReader reads the compressed form of a tar while a goroutine compresses it.
type madeReader struct {
	*io.PipeReader
	closed atomic.Bool
	done   chan struct{}
}

// newMadeReader starts the compression. The reader owns the tar from here on.
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
	// A compressor that uses several goroutines leaves some of them running when its output fails. So the output never fails:
	// after Close the input ends with an error, and what the compressor still writes is discarded.
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

// Close stops the compressor and waits until it no longer reads the layer.
func (r *madeReader) Close() error {
	r.closed.Store(true)
	err := r.PipeReader.Close()
	<-r.done
	return err
}

type writeFunc func([]byte) (int, error)

func (f writeFunc) Write(p []byte) (int, error) { return f(p) }

// foreignSource returns a source that reads the layer from another repository that is recorded to have it, or nil when none
// answers. The client sent credentials for the target only, so requests to any other registry are anonymous.
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
		// The registry may be gone, or have removed the layer. Find out now, so that the next repository can be tried.
		first, err := src.open(ctx, 0)
		if err != nil {
			l.log.Debug("another registry does not have the layer", "blob", f.Digest, "repository", name, "err", err)
			continue
		}
		first.Close()
		return src
	}
	return nil
}
