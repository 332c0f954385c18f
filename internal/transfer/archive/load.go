package archive

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"

	"ply/internal/compress"
	"ply/internal/errs"
	"ply/internal/image"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/store/layer"
	"ply/internal/store/meta"
	"ply/internal/transfer"
)

// Load makes images of an archive in any of the layouts, plain or compressed, read once from its beginning to its end.
// Progress gets "Loading layer" while layers come in, unless Quiet, and for each name the line "Loaded image: NAME",
// for an image without a name "Loaded image ID: ID"; a name that moves is announced before. errs.Invalid for an
// archive that does not hold together, errs.Exhausted for one that does not fit; either leaves nothing behind.
func (a *Archive) Load(ctx context.Context, r io.Reader, opts transfer.LoadOptions, progress transfer.Sink) (err error) {
	platform := oci.HostPlatform()
	if opts.Platform != "" {
		if platform, err = oci.ParsePlatform(opts.Platform); err != nil {
			return err
		}
	}
	show := progress
	if opts.Quiet {
		show = transfer.Discard
	}
	in := a.newIntake(show)
	defer in.abort()
	c := &commit{a: a, in: in, done: map[oci.ChainID]bool{}, spent: map[*file]oci.Chain{}}
	c.lease = a.st.Lease()
	in.early = &early{in: in, c: c, platform: platform}
	err = c.run(ctx, r, platform, progress)
	c.lease.Release()
	if err != nil {
		_, rerr := a.st.Reclaim(context.WithoutCancel(ctx), c.fresh, c.blobs)
		return errors.Join(err, rerr)
	}
	return nil
}

// commit brings what an archive holds into the store.
type commit struct {
	a     *Archive
	in    *intake
	lease *store.Lease
	fresh []oci.Chain  // stacks that this load brought
	blobs []oci.Digest // configs and manifests, perhaps brought by this load
	done  map[oci.ChainID]bool
	spent map[*file]oci.Chain // where a streamed layer went
}

func (c *commit) run(ctx context.Context, r io.Reader, platform oci.Platform, progress transfer.Sink) error {
	if err := c.in.read(ctx, r); err != nil {
		return err
	}
	archive, err := c.in.understand(platform, false)
	if err != nil {
		return err
	}
	for _, s := range archive.skipped {
		progress(transfer.Progress{State: transfer.ArtifactSkipped, MediaType: s})
	}
	if err := c.all(ctx, archive.list); err != nil {
		return err
	}
	return c.names(ctx, archive.list, progress)
}

// all makes every layer durable, then records the images without names.
func (c *commit) all(ctx context.Context, list []*wanted) error {
	for _, w := range list {
		w.prove()
		c.lease.Layer(w.chain)
		for i, id := range w.chain.IDs() {
			if c.done[id] {
				continue
			}
			if err := c.layer(ctx, w.layers[i], w.chain[:i+1]); err != nil {
				return fmt.Errorf("image %s: layer %s: %w", w.id.Short(), w.chain[i].Short(), err)
			}
			c.done[id] = true
		}
	}
	for _, w := range list {
		if err := c.manifests(w); err != nil {
			return err
		}
	}
	return nil
}

// layer commits the top layer of a stack; nil when the archive has none and the store must.
func (c *commit) layer(ctx context.Context, f *file, chain oci.Chain) error {
	_, err := c.a.st.Layers.Stat(ctx, chain)
	held := err == nil
	if f == nil {
		if !held {
			return errs.New(errs.Invalid, "is neither in the archive nor in the store")
		}
		return nil
	}
	if !held {
		c.fresh = append(c.fresh, chain)
	}
	writer, err := c.writer(ctx, f)
	if err != nil {
		return err
	}
	info, err := writer.Commit(ctx, chain.Parent(), chain.Top())
	if err != nil {
		return errors.Join(err, writer.Abort())
	}
	c.spent[f] = chain
	if f.spill != nil { // from here on the driver has it: do not hold the space twice
		err = f.spill.Close()
		f.spill = nil
	}
	return errors.Join(err, c.a.st.RecordLayer(info, nil))
}

// writer gives a driver's writer that holds the layer: the one it was streamed into, or a new one if the layer is in memory or
// needed under a second stack.
func (c *commit) writer(ctx context.Context, f *file) (layer.Writer, error) {
	at, spent := c.spent[f]
	if f.writer != nil && !spent {
		w := f.writer
		f.writer = nil
		return w, nil
	}
	var r io.ReadCloser
	var err error
	switch {
	case f.data != nil:
		r, _, err = compress.NewReader(bytes.NewReader(f.data))
	case f.spill != nil:
		_, err = f.spill.Seek(0, io.SeekStart)
		r = io.NopCloser(f.spill)
	default:
		r, err = c.a.st.Layers.Tar(ctx, at)
	}
	if err != nil {
		return nil, err
	}
	w, err := c.a.st.Layers.Create(ctx)
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{c.in.guard.writer(w)}, io.LimitReader(r, c.a.opts.Limits.Layer+1), c.in.buf)
	if err = errors.Join(err, r.Close()); err != nil {
		return nil, errors.Join(err, w.Abort())
	}
	return w, nil
}

// manifests stores an image's exact manifests with the compressed layers they speak of.
func (c *commit) manifests(w *wanted) error {
	for _, m := range w.exact {
		docs := [][]byte{m.raw}
		if m.index != nil {
			docs = append(docs, m.index.raw)
		}
		for _, raw := range docs {
			d := oci.DigestOf(raw)
			c.lease.Blob(d)
			c.blobs = append(c.blobs, d)
			if _, err := c.a.st.Blobs.Put(raw); err != nil {
				return err
			}
		}
		manifest, err := oci.DecodeManifest(m.raw, m.desc.MediaType)
		if err != nil {
			return err
		}
		for i, l := range manifest.Layers {
			if err := c.form(w, i, l); err != nil {
				return err
			}
		}
	}
	return nil
}

// form records how a manifest stores a layer, and keeps the bytes when the archive had them.
func (c *commit) form(w *wanted, i int, d oci.Descriptor) error {
	if string(d.Digest) == string(w.chain[i]) {
		return nil
	}
	f, err := c.in.blobFile(d.Digest)
	if err != nil || f == nil {
		return err // not in the archive: a push makes it again, or leaves it where it is
	}
	c.lease.Blob(d.Digest)
	c.blobs = append(c.blobs, d.Digest)
	switch {
	case f.blob != nil:
		b := f.blob
		f.blob = nil
		if _, _, err := b.Commit(d.Digest); err != nil {
			return err
		}
	case f.data != nil && !c.a.st.Retention.None():
		if _, err := c.a.st.Blobs.Put(f.data); err != nil {
			return err
		}
	}
	rec, err := c.a.st.Layers.Stat(context.Background(), w.chain[:i+1])
	if err != nil {
		return err
	}
	return c.a.st.RecordLayer(rec, &meta.LayerBlob{Descriptor: oci.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}})
}

// names records the images, all or none, and says so.
func (c *commit) names(ctx context.Context, list []*wanted, progress transfer.Sink) error {
	var puts []image.PutOptions
	var done []transfer.Progress
	for _, w := range list {
		c.blobs = append(c.blobs, oci.Digest(w.id))
		for _, m := range w.exact {
			put := image.PutOptions{Config: w.config, Manifest: &m.desc}
			if m.index != nil {
				put.Index = &m.index.desc
			}
			puts = append(puts, put)
		}
		puts = append(puts, image.PutOptions{Config: w.config, Names: slices.Concat(w.tags, w.digests)})
		for _, t := range w.tags {
			if old, err := c.a.images.Lookup(t.String()); err == nil && old != w.id {
				done = append(done, transfer.Progress{State: transfer.NameMoved, Ref: t, Image: old})
			}
			done = append(done, transfer.Progress{State: transfer.Loaded, Ref: t, Image: w.id})
		}
		if len(w.tags) == 0 {
			done = append(done, transfer.Progress{State: transfer.Loaded, Image: w.id})
		}
	}
	if _, err := c.a.images.PutAll(ctx, c.lease, puts); err != nil {
		return err
	}
	for _, w := range list {
		c.a.images.Publish("load", w.id, "")
	}
	for _, p := range done {
		progress(p)
	}
	return nil
}

// diffOf hashes a small layer as the tar that it unpacks to.
func diffOf(data []byte) (oci.DiffID, error) {
	r, _, err := compress.NewReader(bytes.NewReader(data))
	if err != nil {
		return "", err
	}
	defer r.Close()
	h := sha256.New()
	const limit = 1 << 30 // of 8 MiB at most: more is a bomb
	n, err := io.Copy(h, io.LimitReader(r, limit+1))
	if err != nil {
		return "", err
	}
	if n > limit {
		return "", errs.New(errs.Invalid, "unpacks to more than %d bytes", limit)
	}
	return oci.DiffID(oci.DigestOfHash(h)), nil
}
