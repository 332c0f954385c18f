package archive

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/transfer"
)

// Save writes images as one uncompressed tar. The same images and names give the same bytes. A ref is anything that Get takes, or a
// repository, which means all its tags. An image that is saved by its ID has no name in the archive. A name that means an index is saved
// with the images of all platforms, or with those for which the options ask. The format is "" or "hybrid", "oci", "docker" or "legacy".
//
// An image that was pulled is saved with its exact manifest and, if the store has them, its compressed layers. Otherwise the
// layers are uncompressed tars; Load restores the repository digests of the image in both cases.
//
// Save finds everything before it writes the first byte. If a layer turns out to be damaged while it is written, Save returns
// errs.DataLoss and the archive is unusable.
func (a *Archive) Save(ctx context.Context, refs []string, opts transfer.SaveOptions, w io.Writer) (err error) {
	lease := a.st.Lease()
	defer lease.Release()
	var layout func(*builder, *plan) error
	plain := true
	switch opts.Format {
	case "", "hybrid":
		layout, plain = (*builder).hybrid, false
	case "oci":
		layout, plain = (*builder).oci, false
	case "docker":
		layout = (*builder).docker
	case "legacy":
		layout = (*builder).legacy
	default:
		return errs.New(errs.Invalid, "save: unknown format %q: want hybrid, oci, docker or legacy", clip(opts.Format))
	}
	p, err := a.collect(ctx, lease, refs, opts.Platforms)
	if err != nil {
		return err
	}
	if err := a.plan(ctx, lease, p.list, plain); err != nil {
		return err
	}
	b := &builder{a: a, seen: map[string]bool{}}
	if err := layout(b, p); err != nil {
		return err
	}
	if err := b.write(ctx, w); err != nil {
		return err
	}
	for _, e := range p.list {
		if e.alone || len(e.tags) > 0 {
			a.images.Publish("save", e.img.ID, "")
		}
	}
	return nil
}

// entry is one file of the archive.
type entry struct {
	name  string
	made  time.Time
	dir   bool
	link  string     // target of a symbolic link, relative to the entry
	data  []byte     // content, when layer is nil
	layer *layerFile // content
	blob  oci.Digest // content, of size bytes
	size  int64
}

// builder collects the entries in the order in which they are written.
type builder struct {
	a       *Archive
	entries []entry
	seen    map[string]bool
}

var epoch = time.Unix(0, 0).UTC()

func (b *builder) add(e entry) {
	if b.seen[e.name] {
		return
	}
	b.seen[e.name] = true
	b.entries = append(b.entries, e)
}

func (b *builder) file(name string, made time.Time, data []byte) {
	b.add(entry{name: name, made: made, data: data})
}

func (b *builder) dir(name string, made time.Time) {
	b.add(entry{name: name + "/", made: made, dir: true})
}

// newest returns the latest creation time of the images, for the files that are about all of them.
func newest(list []*export) time.Time {
	t := epoch
	for _, e := range list {
		if e.created().After(t) {
			t = e.created()
		}
	}
	return t
}

// ociFiles adds the files that describe an OCI layout.
func (b *builder) ociFiles(p *plan) {
	b.file(fileLayout, epoch, []byte(`{"imageLayoutVersion":"1.0.0"}`))
	b.file(fileIndex, newest(p.list), marshal(p.index()))
}

// ociBlobs adds the small blobs. They come before the layers, so that a reader of the stream knows which layers will follow.
func (b *builder) ociBlobs(p *plan) error {
	b.dir("blobs", epoch)
	b.dir(strings.TrimSuffix(blobDir, "/"), epoch)
	for _, g := range p.groups {
		made := newest(g.images)
		for _, c := range append([]carried{g.carried}, g.notes...) {
			b.file(blobDir+c.desc.Digest.Hex(), made, c.raw)
		}
		for _, d := range g.blobs {
			size, err := b.a.st.Blobs.Stat(d)
			if err != nil {
				return errs.New(errs.DataLoss, "index %s: attestation: %v", g.desc.Digest.Short(), err).WithHint("Build the image again.")
			}
			b.add(entry{name: blobDir + d.Hex(), made: made, blob: d, size: size})
		}
	}
	for _, e := range p.list {
		b.file(blobDir+e.desc.Digest.Hex(), e.created(), e.manifest)
		for _, c := range e.extra {
			b.file(blobDir+c.desc.Digest.Hex(), e.created(), c.raw)
		}
		b.file(blobDir+e.img.ID.Hex(), e.created(), e.img.Raw)
	}
	return nil
}

func (b *builder) layerBlob(l *layerFile) {
	b.add(entry{name: l.path(), made: l.made, layer: l})
}

func (b *builder) oci(p *plan) error {
	b.ociFiles(p)
	if err := b.ociBlobs(p); err != nil {
		return err
	}
	for _, e := range p.list {
		for _, l := range e.layers {
			b.layerBlob(l)
		}
	}
	return nil
}

func (b *builder) hybrid(p *plan) error {
	b.ociFiles(p)
	b.manifest(p.list, func(e *export) string { return blobDir + e.img.ID.Hex() }, func(e *export, i int) string { return e.layers[i].path() })
	b.repositories(p.list)
	if err := b.ociBlobs(p); err != nil {
		return err
	}
	for _, e := range p.list {
		for i, l := range e.layers {
			b.layerBlob(l)
			b.v1Dir(e, i)
			b.add(entry{name: e.v1[i].id + "/layer.tar", made: e.created(), link: "../" + l.path()})
		}
	}
	return nil
}

func (b *builder) docker(p *plan) error {
	list := p.list
	// Some readers take the size of a link for the size of the layer, so manifest.json names the files, not the links.
	first := firstV1(list)
	b.manifest(list, func(e *export) string { return e.img.ID.Hex() + ".json" }, func(e *export, i int) string { return first[e.layers[i].diffID] })
	b.repositories(list)
	for _, e := range list {
		b.file(e.img.ID.Hex()+".json", e.created(), e.img.Raw)
	}
	b.v1Layers(list)
	return nil
}

// firstV1 returns the path at which the archive has the bytes of each layer.
func firstV1(list []*export) map[oci.DiffID]string {
	first := map[oci.DiffID]string{}
	for _, e := range list {
		for i, l := range e.layers {
			if first[l.diffID] == "" {
				first[l.diffID] = e.v1[i].id + "/layer.tar"
			}
		}
	}
	return first
}

func (b *builder) legacy(p *plan) error {
	list := p.list
	for _, e := range list {
		if len(e.v1) == 0 {
			return errs.New(errs.Invalid, "image %s: has no layers, which the legacy format cannot express", e.img.ID.Short()).
				WithHint("Save it in another format.")
		}
	}
	b.v1Layers(list)
	b.repositories(list)
	return nil
}

// v1Layers adds a directory for each layer. A layer that the archive has under another ID is a link.
func (b *builder) v1Layers(list []*export) {
	first := firstV1(list)
	for _, e := range list {
		for i, l := range e.layers {
			b.v1Dir(e, i)
			name := e.v1[i].id + "/layer.tar"
			if at := first[l.diffID]; at == name {
				b.add(entry{name: name, made: e.created(), layer: l})
			} else {
				b.add(entry{name: name, made: e.created(), link: "../" + at})
			}
		}
	}
}

func (b *builder) v1Dir(e *export, i int) {
	id := e.v1[i].id
	b.dir(id, e.created())
	b.file(id+"/VERSION", e.created(), []byte(v1Version))
	b.file(id+"/json", e.created(), e.v1[i].json)
}

func (b *builder) manifest(list []*export, config func(*export) string, layer func(*export, int) string) {
	images := []dockerImage{}
	for _, e := range list {
		d := dockerImage{Config: config(e), Layers: []string{}}
		for _, t := range e.tags {
			d.RepoTags = append(d.RepoTags, t.Familiar())
		}
		for i := range e.layers {
			d.Layers = append(d.Layers, layer(e, i))
		}
		images = append(images, d)
	}
	b.file(fileManifest, epoch, marshalLine(images))
}

// repositories adds the file repositories, if an image has a name and at least one layer.
func (b *builder) repositories(list []*export) {
	repos := repositories{}
	for _, e := range list {
		for _, t := range e.tags {
			if len(e.v1) == 0 {
				continue
			}
			if repos[t.FamiliarName()] == nil {
				repos[t.FamiliarName()] = map[string]string{}
			}
			repos[t.FamiliarName()][t.Tag()] = e.v1[len(e.v1)-1].id
		}
	}
	if len(repos) > 0 {
		b.file(fileRepositories, epoch, marshalLine(repos))
	}
}

func (b *builder) write(ctx context.Context, w io.Writer) error {
	tw := tar.NewWriter(w)
	buf := make([]byte, 256<<10)
	for _, e := range b.entries {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		h := &tar.Header{Name: e.name, Typeflag: tar.TypeReg, Mode: 0o644, ModTime: e.made, Size: int64(len(e.data))}
		switch {
		case e.dir:
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		case e.link != "":
			h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, e.link, 0o777
		case e.layer != nil:
			h.Size = e.layer.desc.Size
		case e.blob != "":
			h.Size = e.size
		}
		if err := tw.WriteHeader(h); err != nil {
			return errs.New(errs.Internal, "archive: %s: %w", e.name, err)
		}
		var err error
		switch {
		case e.layer != nil:
			err = b.a.writeLayer(ctx, tw, e.layer, buf)
		case e.blob != "":
			if e.data, err = b.a.st.Blobs.Bytes(e.blob, oci.MaxAttestation); err == nil {
				_, err = tw.Write(e.data)
			}
		default:
			_, err = tw.Write(e.data)
		}
		if err != nil {
			return err
		}
	}
	return tw.Close()
}

// writeLayer copies one layer. errs.DataLoss when its size or digest is not as expected.
func (a *Archive) writeLayer(ctx context.Context, w io.Writer, l *layerFile, buf []byte) (err error) {
	var r io.ReadCloser
	if l.plain {
		r, err = a.st.Layers.Tar(ctx, l.chain)
	} else {
		r, err = a.st.Blobs.Open(l.desc.Digest)
	}
	if err != nil {
		return errs.New(errs.DataLoss, "layer %s: %v", l.diffID.Short(), err).WithHint("Pull or load the image again.")
	}
	defer errs.Close(&err, r)
	hash := sha256.New()
	if !l.plain { // the driver verifies an uncompressed tar itself
		w = io.MultiWriter(w, hash)
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{w}, &interruptible{ctx, io.LimitReader(r, l.desc.Size+1)}, buf)
	switch {
	case errors.Is(err, tar.ErrWriteTooLong), err == nil && n != l.desc.Size:
		return errs.New(errs.DataLoss, "layer %s: is not %d bytes long", l.diffID.Short(), l.desc.Size).WithHint("Pull or load the image again.")
	case err != nil:
		return fmt.Errorf("layer %s: %w", l.diffID.Short(), err)
	case !l.plain && oci.DigestOfHash(hash) != l.desc.Digest:
		// The compressed form is a cache. Without it, the next save writes the uncompressed layer.
		_, err := a.st.Blobs.Repair(l.desc.Digest)
		return errors.Join(errs.New(errs.DataLoss, "layer %s: its compressed form is damaged on disk and was removed", l.diffID.Short()).
			WithHint("Save again."), err)
	}
	return nil
}

// interruptible returns the cause from Read when the context has ended.
type interruptible struct {
	ctx context.Context //nolint:containedctx // exists during one copy
	r   io.Reader
}

func (i *interruptible) Read(p []byte) (int, error) {
	if i.ctx.Err() != nil {
		return 0, context.Cause(i.ctx)
	}
	return i.r.Read(p)
}

func clip(s string) string {
	if len(s) > 100 {
		return s[:100] + "…"
	}
	return s
}
