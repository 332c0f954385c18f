package archive

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"

	"ply/internal/errs"
	"ply/internal/image"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/store/layer"
	"ply/internal/store/meta"
	"ply/internal/transfer"
)

// Load records the images of an archive in any of the layouts, plain or compressed. It reads r once from start to end. It reports
// LayerLoading while it reads layers, unless Quiet, and at the end the other states of a load. errs.Invalid when the archive is
// malformed or inconsistent, errs.Exhausted when the disk is full. After an error, nothing of the archive stays in the store.
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
	done, err := a.limit.Acquire(ctx, func() {})
	if err != nil {
		return err
	}
	defer done()
	in := a.newIntake(show)
	defer in.abort()
	c := &commit{a: a, in: in, done: map[oci.ChainID]bool{}, added: map[*file]oci.Chain{}}
	c.lease = a.st.Lease()
	in.early = &early{in: in, c: c, platform: platform, only: opts.Platform != ""}
	err = c.run(ctx, r, platform, opts.Platform != "", progress)
	c.lease.Release()
	if err != nil {
		_, rerr := a.st.Reclaim(context.WithoutCancel(ctx), c.fresh, c.blobs)
		return errors.Join(err, rerr)
	}
	return nil
}

// commit writes the content of an archive into the store.
type commit struct {
	a     *Archive
	in    *intake
	lease *store.Lease
	fresh []oci.Chain          // chains whose top layer this load has added
	blobs []oci.Digest         // blobs that this load may have added
	done  map[oci.ChainID]bool // chains whose top layer is committed
	added map[*file]oci.Chain  // the chain as whose top layer a file was committed
}

// run takes the images of an archive. only takes no image for another platform: of an index the one for it, and else none.
func (c *commit) run(ctx context.Context, r io.Reader, platform oci.Platform, only bool, progress transfer.Sink) error {
	if err := c.in.read(ctx, r); err != nil {
		return err
	}
	archive, err := c.in.parse(platform, only, false)
	if err != nil {
		return err
	}
	if only {
		if err := checkPlatforms(archive.list, platform); err != nil {
			return err
		}
	}
	for _, s := range archive.skipped {
		progress(transfer.Progress{State: transfer.ArtifactSkipped, MediaType: s})
	}
	if err := c.all(ctx, archive.list); err != nil {
		return err
	}
	for _, x := range archive.indexes {
		if err := c.documents(x); err != nil {
			return err
		}
	}
	return c.names(ctx, archive, progress)
}

// checkPlatforms refuses images for another platform than the one that was asked for.
func checkPlatforms(list []*wanted, want oci.Platform) error {
	for _, w := range list {
		cfg, err := oci.DecodeConfig(w.config)
		if err != nil {
			return err
		}
		if got := cfg.Platform(); !want.Matches(got) {
			return errs.New(errs.NotFound, "image %s was found but does not match the specified platform: wanted %s, actual: %s", w.title(), want, got)
		}
	}
	return nil
}

// title returns the first name of an image, or its ID.
func (w *wanted) title() string {
	if len(w.tags) > 0 {
		return w.tags[0].Familiar()
	}
	return w.id.Short()
}

// all commits every layer and stores every manifest. The images themselves are recorded by names.
func (c *commit) all(ctx context.Context, list []*wanted) error {
	for _, w := range list {
		w.acceptDigests()
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

// layer commits the top layer of a chain. If the archive does not have the layer, f is nil and the store must have it.
func (c *commit) layer(ctx context.Context, f *file, chain oci.Chain) error {
	_, err := c.a.st.Layers.Stat(ctx, chain)
	present := err == nil
	if f == nil {
		if !present {
			return errs.New(errs.Invalid, "is neither in the archive nor in the store")
		}
		return nil
	}
	if !present {
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
	c.added[f] = chain
	if f.spill != nil { // the driver has the layer now: free the disk space of the copy
		err = f.spill.Close()
		f.spill = nil
	}
	return errors.Join(err, c.a.st.RecordLayer(info, nil))
}

// writer returns a writer of the driver that has the layer: the one into which the layer was read, or a new one when the layer is
// in memory or in a file, or is in a second chain too.
func (c *commit) writer(ctx context.Context, f *file) (layer.Writer, error) {
	at, committed := c.added[f]
	if f.writer != nil && !committed {
		w := f.writer
		f.writer = nil
		return w, nil
	}
	var r io.ReadCloser
	var err error
	switch {
	case f.data != nil:
		r, _, err = c.in.inner(bytes.NewReader(f.data))
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

// manifests stores the exact manifests of an image and the compressed layers that they list.
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

// form records the compressed form of a layer that a manifest lists. It stores the bytes if the archive has them.
func (c *commit) form(w *wanted, i int, d oci.Descriptor) error {
	if string(d.Digest) == string(w.chain[i]) {
		return nil
	}
	f, err := c.in.blobFile(d.Digest)
	if err != nil || f == nil {
		return err // not in the archive: a push has to compress the layer again, or get it from a registry
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

// documents stores an index and its attestations.
func (c *commit) documents(x *wantedIndex) error {
	docs := [][]byte{x.raw}
	for _, a := range x.artifacts {
		docs = append(docs, a.raw)
	}
	for _, b := range x.blobs {
		docs = append(docs, b.data)
	}
	for _, raw := range docs {
		d := oci.DigestOf(raw)
		c.lease.Blob(d)
		c.blobs = append(c.blobs, d)
		if _, err := c.a.st.Blobs.Put(raw); err != nil {
			return err
		}
	}
	return nil
}

// names records all images and indexes with their names in one transaction and reports them.
func (c *commit) names(ctx context.Context, p *parser, progress transfer.Sink) error {
	var puts []image.PutOptions
	var done []transfer.Progress
	loaded := func(tags []oci.Reference, id oci.ImageID) {
		for _, t := range tags {
			if old, err := c.a.images.Lookup(t.String()); err == nil && old != id {
				done = append(done, transfer.Progress{State: transfer.NameMoved, Ref: t, Image: old})
			}
			done = append(done, transfer.Progress{State: transfer.Loaded, Ref: t, Image: id})
		}
		if len(tags) == 0 {
			done = append(done, transfer.Progress{State: transfer.Loaded, Image: id})
		}
	}
	for _, w := range p.list {
		c.blobs = append(c.blobs, oci.Digest(w.id))
		for _, m := range w.exact {
			put := image.PutOptions{Config: w.config, Manifest: &m.desc}
			if m.index != nil {
				put.Index = &m.index.desc
			}
			puts = append(puts, put)
		}
		puts = append(puts, image.PutOptions{Config: w.config, Names: slices.Concat(w.tags, w.digests)})
		if !w.part || len(w.tags) > 0 {
			loaded(w.tags, w.id)
		}
	}
	var indexes []image.PutIndexOptions
	for _, x := range p.indexes {
		o, main := x.put()
		indexes = append(indexes, o)
		loaded(x.tags, main)
	}
	if _, err := c.a.images.PutAll(ctx, c.lease, puts, indexes...); err != nil {
		return err
	}
	for _, w := range p.list {
		if !w.part || len(w.tags) > 0 {
			c.a.images.Publish("load", w.id, "")
		}
	}
	for _, x := range p.indexes {
		_, main := x.put()
		c.a.images.Publish("load", main, "")
	}
	for _, p := range done {
		progress(p)
	}
	return nil
}

// diffOf returns the diffID of a small layer that is in memory.
func (in *intake) diffOf(data []byte) (oci.DiffID, error) {
	r, _, err := in.inner(bytes.NewReader(data))
	if err != nil {
		return "", err
	}
	defer r.Close()
	h := sha256.New()
	const limit = 1 << 30 // a layer in memory has at most 8 MiB: more than this is an attack
	n, err := io.Copy(h, io.LimitReader(r, limit+1))
	if err != nil {
		return "", err
	}
	if n > limit {
		return "", errs.New(errs.Invalid, "unpacks to more than %d bytes", limit)
	}
	return oci.DiffID(oci.DigestOfHash(h)), nil
}
