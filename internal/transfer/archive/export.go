package archive

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	"ply/internal/errs"
	"ply/internal/image"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/store/meta"
)

// export is one image to save, with the names that were requested.
type export struct {
	img     *image.Image
	tags    []oci.Reference
	digests []oci.Reference
	alone   bool       // it was requested by itself, not only as a part of an index
	listed  oci.Digest // the manifest with which an index lists it; "" = none does

	manifest  []byte         // the manifest that index.json lists
	desc      oci.Descriptor // of manifest
	generated bool           // manifest was made for this archive
	extra     []carried      // exact manifests and indexes that are saved too
	layers    []*layerFile   // bottom layer first
	v1        []v1Layer      // bottom layer first
}

// group is an index to save, with the names that mean it and the images of it that are saved.
type group struct {
	carried
	images  []*export
	tags    []oci.Reference
	digests []oci.Reference
	notes   []carried    // manifests of attestations
	blobs   []oci.Digest // their documents
}

// plan is what an archive gets.
type plan struct {
	list   []*export
	groups []*group
}

// carried is a manifest or index with its exact bytes.
type carried struct {
	desc oci.Descriptor
	raw  []byte
}

// layerFile is a layer in the form in which the archive has it.
type layerFile struct {
	diffID oci.DiffID
	chain  oci.Chain // a chain whose top layer it is
	desc   oci.Descriptor
	plain  bool // the uncompressed tar
	made   time.Time
}

func (l *layerFile) path() string { return blobDir + l.desc.Digest.Hex() }

// created returns the creation time of the image for tar headers: in whole seconds, not before 1970.
func (e *export) created() time.Time {
	t := e.img.Created().UTC().Truncate(time.Second)
	if t.Before(time.Unix(0, 0)) {
		return time.Unix(0, 0).UTC()
	}
	return t
}

// collect finds the images and indexes that refs name, each once, in the order of refs, and leases them.
func (a *Archive) collect(ctx context.Context, lease *store.Lease, refs, platforms []string) (*plan, error) {
	if len(refs) == 0 {
		return nil, errs.New(errs.Invalid, "save: no image named")
	}
	c := &collector{a: a, lease: lease, platforms: platforms, byID: map[oci.ImageID]*export{}, byIndex: map[oci.Digest]*group{}}
	for _, ref := range refs {
		for _, w := range a.expandRepository(ref) {
			if err := c.ref(ctx, w); err != nil {
				return nil, err
			}
		}
	}
	for _, e := range c.list {
		lease.Layer(e.img.Chain)
	}
	return &c.plan, nil
}

type collector struct {
	plan
	a         *Archive
	lease     *store.Lease
	platforms []string
	byID      map[oci.ImageID]*export
	byIndex   map[oci.Digest]*group
}

func (c *collector) ref(ctx context.Context, ref string) error {
	main, name, err := c.a.images.Find(ref)
	if err != nil {
		return err
	}
	x, err := c.a.images.Index(ref)
	if err != nil {
		return err
	}
	var ids []oci.ImageID // for the platforms
	for _, p := range c.platforms {
		img, err := c.a.images.GetFor(ctx, ref, p)
		if err != nil {
			return err
		}
		if !slices.Contains(ids, img.ID) {
			ids = append(ids, img.ID)
		}
	}
	if x == nil || len(ids) == 1 {
		if len(ids) == 1 {
			main = ids[0]
		}
		e, err := c.image(ctx, main)
		if err != nil {
			return err
		}
		e.alone = true
		e.name(name)
		return nil
	}
	return c.index(ctx, x, name, main, ids)
}

func (c *collector) image(ctx context.Context, id oci.ImageID) (*export, error) {
	if e := c.byID[id]; e != nil {
		return e, nil
	}
	c.lease.Blob(oci.Digest(id))
	img, err := c.a.images.Get(ctx, string(id))
	if err != nil {
		return nil, err
	}
	e := &export{img: img}
	c.byID[id] = e
	c.list = append(c.list, e)
	return e, nil
}

// index adds an index with its images, or those of them that ids has. Old readers know its name as that of main, or else of the first.
func (c *collector) index(ctx context.Context, x *image.Index, name oci.Reference, main oci.ImageID, ids []oci.ImageID) error {
	idx, err := oci.DecodeIndex(x.Raw, x.MediaType)
	if err != nil {
		return errs.New(errs.DataLoss, "index %s: %v", x.Digest.Short(), err).WithHint("Build or load the image again.")
	}
	g := c.byIndex[x.Digest]
	if g == nil {
		c.lease.Blob(x.Digest)
		c.lease.Blob(x.Blobs...)
		g = &group{carried: carried{x.Descriptor, x.Raw}, blobs: x.Blobs}
		for _, d := range x.Artifacts {
			c.lease.Blob(d.Digest)
			raw, err := c.a.st.Blobs.Bytes(d.Digest, oci.MaxManifest)
			if err != nil {
				return errs.New(errs.DataLoss, "index %s: attestation: %v", x.Digest.Short(), err).WithHint("Build the image again.")
			}
			g.notes = append(g.notes, carried{d, raw})
		}
		c.byIndex[x.Digest] = g
		c.groups = append(c.groups, g)
	}
	for _, id := range x.Images {
		if len(ids) > 0 && !slices.Contains(ids, id) {
			continue
		}
		e, err := c.image(ctx, id)
		if err != nil {
			return err
		}
		for _, m := range e.img.Manifests {
			if slices.ContainsFunc(idx.Manifests, func(d oci.Descriptor) bool { return d.Digest == m.Digest }) {
				e.listed = m.Digest
			}
		}
		if !slices.Contains(g.images, e) {
			g.images = append(g.images, e)
		}
	}
	old := g.images[0] // what the name is for readers of manifest.json
	if e := c.byID[main]; e != nil && slices.Contains(g.images, e) {
		old = e
	}
	img, err := c.a.images.Get(ctx, string(main))
	if err != nil {
		return err
	}
	of := export{img: img}
	of.name(name)
	for _, t := range of.tags {
		add(&g.tags, t)
		add(&old.tags, t)
	}
	for _, d := range of.digests {
		if d.Digest() == x.Digest {
			add(&g.digests, d)
		}
	}
	return nil
}

// expandRepository returns the tags of a ref that is only a repository, else the ref itself.
func (a *Archive) expandRepository(ref string) []string {
	r, err := oci.ParseReference(ref)
	if err != nil || r.Tag() != "" || r.Digest() != "" {
		return []string{ref}
	}
	tags, err := a.images.Tags(r)
	if err != nil || len(tags) == 0 {
		return []string{ref}
	}
	out := make([]string, len(tags))
	for i, t := range tags {
		out[i] = t.String()
	}
	return out
}

// add adds a reference to a list, once.
func add(to *[]oci.Reference, r oci.Reference) {
	if !slices.ContainsFunc(*to, func(o oci.Reference) bool { return o.String() == r.String() }) {
		*to = append(*to, r)
	}
}

// name adds a name and the digest references of its repository. It ignores the zero name.
func (e *export) name(name oci.Reference) {
	switch {
	case name.IsZero():
	case name.Digest() != "":
		add(&e.digests, name)
	default:
		add(&e.tags, name)
		for _, d := range e.img.Digests {
			if d.Name() == name.Name() {
				add(&e.digests, d)
			}
		}
	}
}

// plan chooses the manifest and the layer files of each image. With plain, every layer is an uncompressed tar, for the layouts
// without index.json.
func (a *Archive) plan(ctx context.Context, lease *store.Lease, list []*export, plain bool) error {
	forms := map[oci.DiffID]*layerFile{}
	for _, e := range list {
		a.readManifests(lease, e)
		if !plain {
			a.chooseManifest(e, e.listed, forms)
		}
		if !plain && e.manifest == nil && e.listed != "" {
			a.chooseManifest(e, "", forms)
		}
	}
	for _, e := range list {
		if e.manifest == nil {
			if err := a.planPlain(ctx, e, forms); err != nil {
				return err
			}
		}
		if !plain && e.manifest == nil {
			if len(e.extra) > 0 {
				a.opts.Log.Info("save: the store does not have the compressed layers, uncompressed ones are saved with the exact manifest", "image", string(e.img.ID))
			}
			if err := e.generate(); err != nil {
				return err
			}
		}
		if e.v1 = v1Chain(e); len(e.layers) != len(e.img.Chain) {
			return errs.New(errs.Internal, "image %s: %d layers planned, has %d", e.img.ID.Short(), len(e.layers), len(e.img.Chain))
		}
	}
	return nil
}

// readManifests reads the exact manifests of an image. It leaves out those that are missing or damaged.
func (a *Archive) readManifests(lease *store.Lease, e *export) {
	for _, d := range e.img.Manifests {
		lease.Blob(d.Digest)
		raw, err := a.st.Blobs.Bytes(d.Digest, oci.MaxManifest)
		if err != nil {
			a.opts.Log.Warn("save: manifest left out", "image", string(e.img.ID), "digest", string(d.Digest), "err", err)
			continue
		}
		e.extra = append(e.extra, carried{d, raw})
	}
}

// chooseManifest sets the manifest of an image to its latest exact manifest whose layers are all in the blob store, if there is
// one. want is the only one that may be chosen; "" = any.
func (a *Archive) chooseManifest(e *export, want oci.Digest, forms map[oci.DiffID]*layerFile) {
	for i := len(e.extra) - 1; i >= 0; i-- {
		c := e.extra[i]
		if !oci.IsManifest(c.desc.MediaType) || want != "" && c.desc.Digest != want {
			continue
		}
		m, err := oci.DecodeManifest(c.raw, c.desc.MediaType)
		if err != nil || len(m.Layers) != len(e.img.Chain) || m.Config.Digest != oci.Digest(e.img.ID) || !a.holds(e.img.Chain, m.Layers) {
			continue
		}
		e.manifest, e.desc = c.raw, c.desc
		e.desc.MediaType, e.desc.Size = m.MediaType, int64(len(c.raw))
		e.extra = slices.Delete(slices.Clone(e.extra), i, i+1)
		for n, l := range m.Layers {
			f := &layerFile{diffID: e.img.Chain[n], chain: e.img.Chain[:n+1], desc: l, made: e.created()}
			f.plain = string(l.Digest) == string(f.diffID)
			if have := forms[f.diffID]; have == nil {
				forms[f.diffID] = f
			} else if have.desc.Digest == l.Digest {
				f = have
			}
			e.layers = append(e.layers, f)
		}
		return
	}
}

// holds reports whether the blob store has these compressed forms of the layers of a chain. That a manifest lists them is not
// enough: a blob with that digest can be content of another image.
func (a *Archive) holds(chain oci.Chain, layers []oci.Descriptor) bool {
	recorded := false
	err := a.st.Meta.View(func(tx *meta.Tx) error {
		for i, l := range layers {
			rec, err := tx.Layers.Get(chain[i])
			if err != nil {
				return err
			}
			if !slices.ContainsFunc(rec.Blobs, func(b meta.LayerBlob) bool { return b.Digest == l.Digest }) {
				return nil
			}
		}
		recorded = true
		return nil
	})
	if err != nil || !recorded {
		return false
	}
	for _, l := range layers {
		if size, err := a.st.Blobs.Stat(l.Digest); err != nil || size != l.Size {
			return false
		}
	}
	return true
}

// planPlain plans the layers as uncompressed tars, or in the form in which another image of the archive has them.
func (a *Archive) planPlain(ctx context.Context, e *export, forms map[oci.DiffID]*layerFile) error {
	for n, d := range e.img.Chain {
		chain := e.img.Chain[:n+1]
		info, err := a.st.Layers.Stat(ctx, chain)
		if err != nil {
			return errs.New(errs.DataLoss, "image %s: layer %s: %v", e.img.ID.Short(), d.Short(), err).
				WithHint("Pull or load the image again.")
		}
		f := forms[d]
		if f == nil {
			f = &layerFile{diffID: d, chain: chain, plain: true, made: e.created(),
				desc: oci.Descriptor{MediaType: oci.MediaTypeOCILayer, Digest: oci.Digest(d), Size: info.TarSize}}
			forms[d] = f
		}
		e.layers = append(e.layers, f)
	}
	return nil
}

// generate makes a manifest that lists the planned layers.
func (e *export) generate() error {
	m := oci.Manifest{
		SchemaVersion: 2,
		MediaType:     oci.MediaTypeOCIManifest,
		Config:        oci.Descriptor{MediaType: oci.MediaTypeOCIConfig, Digest: oci.Digest(e.img.ID), Size: int64(len(e.img.Raw))},
		Layers:        []oci.Descriptor{},
	}
	for _, l := range e.layers {
		m.Layers = append(m.Layers, oci.Descriptor{MediaType: ociLayerType(l.desc.MediaType), Digest: l.desc.Digest, Size: l.desc.Size})
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return errs.New(errs.Internal, "image %s: manifest: %w", e.img.ID.Short(), err)
	}
	e.manifest, e.generated = raw, true
	e.desc = oci.Descriptor{MediaType: m.MediaType, Digest: oci.DigestOf(raw), Size: int64(len(raw))}
	return nil
}

// claims returns the digest references that Load is to restore. Load accepts a reference only if the archive has the bytes with its
// digest. For an index that is not here, claims adds a reference to the manifest itself.
func (e *export) claims() []oci.Reference {
	var out []oci.Reference
	add := func(r oci.Reference) {
		if !slices.ContainsFunc(out, func(o oci.Reference) bool { return o.String() == r.String() }) {
			out = append(out, r)
		}
	}
	for _, d := range e.digests {
		add(d)
		proven := slices.ContainsFunc(e.exact(), func(c carried) bool { return c.desc.Digest == d.Digest() })
		if m := e.img.Manifest; !proven && m != nil {
			add(d.Repository().WithDigest(m.Digest))
		}
	}
	return out
}

// exact returns the manifests and indexes that the image came with, the current one last.
func (e *export) exact() []carried {
	if e.generated || e.manifest == nil {
		return e.extra
	}
	return append(slices.Clone(e.extra), carried{e.desc, e.manifest})
}

func ociLayerType(t string) string {
	switch t {
	case oci.MediaTypeDockerLayer:
		return oci.MediaTypeOCILayer
	case oci.MediaTypeDockerLayerGzip, oci.MediaTypeDockerForeignLayer:
		return oci.MediaTypeOCILayerGzip
	}
	return t
}

// whole reports whether the archive has the images of an index as it lists them.
func (g *group) whole() bool {
	return !slices.ContainsFunc(g.images, func(e *export) bool { return e.generated || e.desc.Digest != e.listed })
}

// index returns index.json: one entry per name, or one entry for an image without a name. If the archive does not have the layers of an index in the forms that it lists, the
// entries of its images have the name of the index.
func (p *plan) index() oci.Index {
	idx := oci.Index{SchemaVersion: 2, MediaType: oci.MediaTypeOCIIndex, Manifests: []oci.Descriptor{}}
	named := map[string]bool{} // what an index is called
	for _, g := range p.groups {
		for _, r := range slices.Concat(g.tags, g.digests) {
			named[r.String()] = true
		}
		notes := map[string]string{}
		if len(g.digests) > 0 {
			notes[oci.AnnotationDigests] = join(g.digests, oci.Reference.String)
		}
		if g.whole() {
			d := oci.Descriptor{MediaType: g.desc.MediaType, Digest: g.desc.Digest, Size: g.desc.Size}
			idx.Manifests = append(idx.Manifests, entries(d, notes, g.tags, g.digests)...)
			continue
		}
		for _, e := range g.images {
			idx.Manifests = append(idx.Manifests, entries(e.entry(), e.annotations(map[string]string{annotationIndex: string(g.desc.Digest)}, g.digests), g.tags, g.digests)...)
		}
	}
	own := func(list []oci.Reference) []oci.Reference {
		return slices.DeleteFunc(slices.Clone(list), func(r oci.Reference) bool { return named[r.String()] })
	}
	for _, e := range p.list {
		tags, digests := own(e.tags), own(e.digests)
		if e.alone || len(tags)+len(digests) > 0 {
			idx.Manifests = append(idx.Manifests, entries(e.entry(), e.annotations(nil, e.claims()), tags, digests)...)
		}
	}
	return idx
}

// entry returns the descriptor of an image in index.json.
func (e *export) entry() oci.Descriptor {
	d := oci.Descriptor{MediaType: e.desc.MediaType, Digest: e.desc.Digest, Size: e.desc.Size}
	if e.img.Config.OS != "" && e.img.Config.Architecture != "" {
		p := e.img.Config.Platform()
		d.Platform = &p
	}
	return d
}

// annotations returns what index.json says about an image, besides more.
func (e *export) annotations(more map[string]string, claims []oci.Reference) map[string]string {
	a := maps.Clone(more)
	if a == nil {
		a = map[string]string{}
	}
	if len(claims) > 0 {
		a[oci.AnnotationDigests] = join(claims, oci.Reference.String)
	}
	if exact := e.exact(); len(exact) > 0 {
		a[annotationManifests] = join(exact, func(c carried) string { return string(c.desc.Digest) })
	}
	return a
}

// entries returns d once for each name.
func entries(d oci.Descriptor, notes map[string]string, tags, digests []oci.Reference) (list []oci.Descriptor) {
	add := func(name, tag string) {
		one := d
		one.Annotations = map[string]string{}
		maps.Copy(one.Annotations, notes)
		if name != "" {
			one.Annotations[oci.AnnotationName] = name
		}
		if tag != "" {
			one.Annotations[annotationTag] = tag
		}
		list = append(list, one)
	}
	for _, t := range tags {
		add(t.String(), t.Tag())
	}
	switch {
	case len(tags) > 0:
	case len(digests) > 0:
		add(digests[0].String(), "")
	default:
		add("", "")
	}
	return list
}

func join[T any](list []T, text func(T) string) string {
	var b strings.Builder
	for i, v := range list {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(text(v))
	}
	return b.String()
}
