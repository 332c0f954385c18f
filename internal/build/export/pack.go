package export

import (
	"context"
	"errors"
	"io"
	"sync/atomic"

	"ply/internal/compress"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/store/meta"
)

// Pack returns the forms in which the manifest of an image lists its layers, bottom layer first. A layer that came from a registry keeps the form that it had there,
// unless Compression.Force is set. A form that is not known is made; then the blob store has it, under the lease. With bytes, the blob store has all of them.
func (o *Output) Pack(ctx context.Context, st *store.Store, lease *store.Lease, chain oci.Chain, bytes bool) ([]oci.Descriptor, error) {
	out := make([]oci.Descriptor, len(chain))
	made := map[oci.DiffID]oci.Descriptor{}
	for i, d := range chain {
		if have, ok := made[d]; ok {
			out[i] = have
			continue
		}
		desc, found, err := o.known(st, lease, d, bytes)
		if err == nil && !found {
			desc, err = o.pack(ctx, st, lease, chain[:i+1])
		}
		if err != nil {
			return nil, err
		}
		out[i], made[d] = desc, desc
	}
	return out, nil
}

// codecOf returns the form that a media type of a layer names.
func codecOf(mediaType string) compress.Codec {
	switch mediaType {
	case oci.MediaTypeDockerLayerGzip, oci.MediaTypeOCILayerGzip, oci.MediaTypeDockerForeignLayer:
		return compress.Gzip
	case oci.MediaTypeOCILayerZstd:
		return compress.Zstd
	case oci.MediaTypeDockerLayer, oci.MediaTypeOCILayer:
		return compress.None
	}
	return ""
}

// known returns a recorded form of a layer that suits the output.
func (o *Output) known(st *store.Store, lease *store.Lease, d oci.DiffID, bytes bool) (desc oci.Descriptor, found bool, err error) {
	var rec meta.Layer
	err = st.Meta.View(func(tx *meta.Tx) (err error) {
		rec, err = tx.Layers.Get(d)
		return err
	})
	if err != nil {
		return desc, false, nil // without a record, a form is made
	}
	for _, b := range rec.Blobs {
		codec := codecOf(b.MediaType)
		mediaType, err := o.layerType(string(codec))
		if err != nil || b.Codec != "" && b.Codec != o.Compression.String() || (b.Codec != "" || o.Compression.Force) && codec != o.Compression.Codec {
			continue
		}
		lease.Blob(b.Digest)
		if size, err := st.Blobs.Stat(b.Digest); err == nil && size != b.Size || err != nil && bytes {
			continue
		}
		st.Retention.Touch(b.Digest)
		return oci.Descriptor{MediaType: mediaType, Digest: b.Digest, Size: b.Size}, true, nil
	}
	return desc, false, nil
}

// pack makes the form of the top layer of a chain.
func (o *Output) pack(ctx context.Context, st *store.Store, lease *store.Lease, chain oci.Chain) (desc oci.Descriptor, err error) {
	if desc.MediaType, err = o.layerType(string(o.Compression.Codec)); err != nil {
		return desc, err
	}
	info, err := st.Layers.Stat(ctx, chain)
	if err != nil {
		return desc, errs.New(errs.DataLoss, "layer %s: %v", chain.Top().Short(), err)
	}
	if o.Compression.Codec == compress.None {
		desc.Digest, desc.Size = oci.Digest(chain.Top()), info.TarSize
		return desc, nil // the tar itself, which the driver has
	}
	tar, err := st.Layers.Tar(ctx, chain)
	if err != nil {
		return desc, err
	}
	defer errs.Close(&err, tar)
	w, err := st.Blobs.Create()
	if err != nil {
		return desc, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Abort())
		}
	}()
	out := &sticky{w: w}
	z, err := compress.NewWriter(out, o.Compression.Params)
	if err != nil {
		return desc, err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{z}, &interruptible{ctx, tar, out}, make([]byte, 1<<20))
	if err = errors.Join(err, z.Close(), out.err()); err != nil {
		return desc, err
	}
	// The lease comes before the blob is visible, so that no collection sees it without one.
	digest := w.Digest()
	lease.Blob(digest)
	if desc.Digest, desc.Size, err = w.Commit(digest); err != nil {
		return desc, err
	}
	st.Retention.Touch(desc.Digest)
	form := meta.LayerBlob{Descriptor: desc, Codec: o.Compression.String()}
	return desc, st.RecordLayer(info, &form)
}

// Open opens a layer in the form that it was packed in. The bytes are checked by their reader.
func Open(ctx context.Context, st *store.Store, l Layer) (io.ReadCloser, error) {
	if string(l.Digest) == string(l.Chain.Top()) {
		return st.Layers.Tar(ctx, l.Chain)
	}
	r, err := st.Blobs.Open(l.Digest)
	if err != nil {
		return nil, errs.New(errs.DataLoss, "layer %s: %v", l.Digest.Short(), err)
	}
	return r, nil
}

// sticky keeps the error of a writer to itself: a compressor that uses several goroutines leaves some of them running when its output fails.
type sticky struct {
	w      io.Writer
	failed atomic.Pointer[error]
}

func (s *sticky) Write(p []byte) (int, error) {
	if s.failed.Load() == nil {
		if _, err := s.w.Write(p); err != nil {
			s.failed.Store(&err)
		}
	}
	return len(p), nil
}

func (s *sticky) err() error {
	if e := s.failed.Load(); e != nil {
		return *e
	}
	return nil
}

// interruptible ends a copy when the context has ended or the output has failed.
type interruptible struct {
	ctx context.Context //nolint:containedctx // exists during one copy
	r   io.Reader
	out *sticky // nil = it reports its errors
}

func (i *interruptible) Read(p []byte) (int, error) {
	if i.ctx.Err() != nil {
		return 0, context.Cause(i.ctx)
	}
	if i.out != nil {
		if err := i.out.err(); err != nil {
			return 0, err
		}
	}
	return i.r.Read(p)
}
