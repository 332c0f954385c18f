package store

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"ply/internal/compress"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/check"
	"ply/internal/store/layer"
	"ply/internal/store/meta"
)

// Check examines the database and all records of the store, the blobs, and the layers that an image or a container needs.
// Operations may be under way: each object is leased while it is examined, and what is wrong with it counts only if a record
// still needs it after the lease began. Data is durable before its record, so that can only be damage.
func (s *Store) Check(ctx context.Context, r *check.Run) error {
	c := &checker{s: s, r: r, layers: map[oci.ChainID]*neededLayer{}}
	for _, step := range []func(context.Context) error{c.database, c.readRecords, c.checkImages, c.checkLayers, c.checkBlobs, c.checkPartials, c.reclaim} {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// checker is one call of Check.
type checker struct {
	s *Store
	r *check.Run

	images  []oci.ImageID
	count   int                       // of names
	chains  []owned                   // of images and containers that were read
	records map[oci.DiffID]meta.Layer // those that can be read
	names   map[oci.ImageID][]string
	sizes   map[oci.Digest]int64 // of compressed layers and manifests, as recorded

	layers map[oci.ChainID]*neededLayer
	order  []*neededLayer // bottom layers first
}

// owned is a chain and the record that needs it.
type owned struct {
	image     oci.ImageID
	container oci.ContainerID
	step      oci.Digest
	index     oci.Digest
	chain     oci.Chain
	blobs     []oci.Digest
}

// neededLayer is the top layer of a chain.
type neededLayer struct {
	chain  oci.Chain
	owners []owned
}

func (c *checker) database(ctx context.Context) error {
	c.r.Checked("database", 1)
	if d := c.s.Meta.Doubt(); d != "" {
		c.r.Mend(check.Finding{Kind: "database", Object: "meta.db", Problem: "records may be missing: " + d + "; collections are stopped"},
			func() (string, error) { return c.s.endDoubt(ctx) })
	}
	if !c.r.Full {
		return nil
	}
	for _, err := range c.s.Meta.Check() {
		c.r.Report(check.Finding{Kind: "database", Object: "meta.db", Problem: err.Error(),
			Heal: "stop plyd, and let it start with an older copy, or save and load the images into a new data root"})
	}
	return nil
}

const layerRecord = "layer record" // a kind of object

// brokenRecord is a record that cannot be decoded or points at nothing.
type brokenRecord struct {
	check.Finding
	mend func() (string, error)
}

// readRecords reads all records and reports those that are damaged. Those that it has repaired are read again.
func (c *checker) readRecords(context.Context) error {
	// The records of layers come last: which layers are needed is known when the other records can be read.
	for _, last := range []bool{false, true} {
		bad, err := c.scan()
		if err != nil {
			return err
		}
		for _, b := range bad {
			if (b.Kind == layerRecord) == last {
				c.r.Mend(b.Finding, b.mend)
			}
		}
	}
	if c.r.Repair {
		if _, err := c.scan(); err != nil {
			return err
		}
	}
	c.r.Checked("name", c.count)
	c.r.Checked("image", len(c.images))
	c.r.Checked(layerRecord, len(c.records))
	for _, o := range c.chains {
		for i := range o.chain {
			chain := o.chain[:i+1]
			id := chain.ID()
			l := c.layers[id]
			if l == nil {
				l = &neededLayer{chain: chain}
				c.layers[id] = l
				c.order = append(c.order, l)
			}
			l.owners = append(l.owners, o)
		}
	}
	slices.SortStableFunc(c.order, func(a, b *neededLayer) int { return len(a.chain) - len(b.chain) })
	return nil
}

// scan reads all records in one transaction.
func (c *checker) scan() (bad []brokenRecord, err error) {
	c.images, c.chains = nil, nil
	c.records, c.names, c.sizes = map[oci.DiffID]meta.Layer{}, map[oci.ImageID][]string{}, map[oci.Digest]int64{}
	add := func(kind, object, problem, heal string, mend func() (string, error)) {
		bad = append(bad, brokenRecord{check.Finding{Kind: kind, Object: object, Problem: problem, Heal: heal}, mend})
	}
	err = c.s.Meta.View(func(tx *meta.Tx) error {
		for id := range tx.Layers.Keys() {
			rec, err := tx.Layers.Get(id)
			if err != nil {
				add(layerRecord, string(id), err.Error(), "", func() (string, error) { return c.mendLayerRecord(id) })
				continue
			}
			c.records[id] = rec
			for _, b := range rec.Blobs {
				c.sizes[b.Digest] = b.Size
			}
		}
		for id := range tx.Images.Keys() {
			rec, err := tx.Images.Get(id)
			if err != nil {
				add("image record", string(id), err.Error(), "", func() (string, error) { return c.mendImageRecord(id) })
				continue
			}
			c.images = append(c.images, id)
			o := owned{image: id, chain: rec.Chain, blobs: []oci.Digest{oci.Digest(id)}}
			for _, m := range rec.Manifests {
				o.blobs = append(o.blobs, m.Digest)
				c.sizes[m.Digest] = m.Size
			}
			c.chains = append(c.chains, o)
		}
		for id := range tx.Indexes.Keys() {
			rec, err := tx.Indexes.Get(id)
			if err != nil {
				add("index", string(id), err.Error(), "", func() (string, error) { return c.dropIndex(id) })
				continue
			}
			o := owned{index: id, blobs: append([]oci.Digest{id}, rec.Blobs...)}
			for _, a := range rec.Artifacts {
				o.blobs = append(o.blobs, a.Digest)
				c.sizes[a.Digest] = a.Size
			}
			c.chains = append(c.chains, o)
		}
		for id := range tx.Containers.Keys() {
			raw, err := tx.Containers.Get(id)
			var rec containerNeeds
			if err != nil || json.Unmarshal(raw, &rec) != nil {
				continue // the containers' own examination reports it
			}
			c.chains = append(c.chains, owned{container: id, chain: rec.Chain})
			for _, m := range rec.Mounts {
				if len(m.Chain) > 0 {
					c.chains = append(c.chains, owned{container: id, chain: m.Chain})
				}
			}
		}
		for id := range tx.Steps.Keys() {
			step, err := tx.Steps.Get(id)
			if err != nil {
				add("build step", string(id), err.Error(), "", func() (string, error) { return c.dropStep(id) })
				continue
			}
			for _, out := range step.Outputs {
				c.chains = append(c.chains, owned{step: id, chain: out.Chain})
			}
		}
		c.count = 0
		for name := range tx.Names.Keys() {
			c.count++
			rec, err := tx.Names.Get(name)
			if err != nil {
				add("name", name, err.Error(), "ply pull "+name, func() (string, error) { return c.mendName(name, err) })
				continue
			}
			if !tx.Images.Has(rec.Image) {
				add("name", name, "points at image "+string(rec.Image)+", which has no record", "ply pull "+name,
					func() (string, error) { return c.mendImageRecord(rec.Image) })
			}
			c.names[rec.Image] = append(c.names[rec.Image], name)
		}
		return nil
	})
	return bad, err
}

// still reports whether a record that needs an object is still there.
func (c *checker) still(owners ...owned) (needed bool) {
	err := c.s.Meta.View(func(tx *meta.Tx) error {
		for _, o := range owners {
			if o.image != "" && tx.Images.Has(o.image) || o.container != "" && tx.Containers.Has(o.container) || o.step != "" && tx.Steps.Has(o.step) || o.index != "" && tx.Indexes.Has(o.index) {
				needed = true
				return nil
			}
		}
		return nil
	})
	return needed || err != nil
}

// cure returns what heals an object that the owners need: the pull of an image whose repository has the layers, or else what a
// user can do for the first owner.
func (c *checker) cure(layers oci.Chain, owners ...owned) string {
	for _, o := range owners {
		for _, name := range c.names[o.image] {
			ref, err := oci.ParseReference(name)
			if err == nil && c.inRepository(layers, ref.Name()) {
				return "ply pull " + ref.Familiar()
			}
		}
	}
	o := owners[0]
	if o.container != "" {
		return "pull or load the image of container " + o.container.Short() + " again, or remove it: ply rm -f " + o.container.Short()
	}
	if o.step != "" {
		return "ply builder prune"
	}
	ref := o.image.Short()
	if names := c.names[o.image]; len(names) > 0 {
		if r, err := oci.ParseReference(names[0]); err == nil {
			ref = r.Familiar()
		}
	}
	return "load the image again (ply load), or remove it: ply rmi " + ref
}

// inRepository reports whether a repository is known to have all of these layers.
func (c *checker) inRepository(layers oci.Chain, name string) bool {
	for _, d := range layers {
		if !slices.ContainsFunc(c.records[d].Blobs, func(b meta.LayerBlob) bool { return slices.Contains(b.Repositories, name) }) {
			return false
		}
	}
	return len(layers) > 0
}

// checkImages examines the configs and manifests. They are small, so they are always read.
func (c *checker) checkImages(ctx context.Context) error {
	part := c.r.Part("images", int64(len(c.chains)), false)
	for _, o := range c.chains {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		switch {
		case o.image != "":
			c.checkImage(o)
		case o.index != "":
			c.checkIndex(o)
		}
		part.Add(1)
	}
	return nil
}

func (c *checker) checkImage(o owned) {
	lease := c.s.Lease()
	defer lease.Release()
	lease.Blob(o.blobs...)
	if !c.still(o) {
		return
	}
	for i, d := range o.blobs {
		what, limit := "manifest", int64(oci.MaxManifest)
		if i == 0 {
			what, limit = "config", oci.MaxConfig
		}
		raw, err := c.read(d, limit)
		if err == nil && i == 0 {
			err = fits(raw, o.chain)
		} else if err == nil {
			_, err = oci.SniffManifest(raw, "")
		}
		if err != nil {
			c.r.Report(check.Finding{Kind: "image", Object: string(o.image), Problem: what + " " + err.Error(), Heal: c.cure(o.chain, o)})
		}
	}
}

// checkIndex examines the documents of an index besides its images.
func (c *checker) checkIndex(o owned) {
	lease := c.s.Lease()
	defer lease.Release()
	lease.Blob(o.blobs...)
	if !c.still(o) {
		return
	}
	for _, d := range o.blobs {
		if _, err := c.read(d, oci.MaxAttestation); err != nil {
			c.r.Report(check.Finding{Kind: "index", Object: string(o.index), Problem: err.Error(), Heal: "build the image again"})
		}
	}
}

// fits compares a config with the layers that are recorded.
func fits(raw []byte, chain oci.Chain) error {
	cfg, err := oci.DecodeConfig(raw)
	if err != nil {
		return err
	}
	if !slices.Equal(cfg.RootFS.DiffIDs, chain) {
		return errors.New("has other layers than the record of the image")
	}
	return nil
}

// read reads a small blob and compares its digest. It leaves a damaged one where it is.
func (c *checker) read(d oci.Digest, limit int64) (raw []byte, err error) {
	r, err := c.s.Blobs.Open(d)
	if errors.Is(err, errs.NotFound) {
		return nil, fmt.Errorf("%s is missing", d)
	}
	if err != nil {
		return nil, err
	}
	defer errs.Close(&err, r)
	raw, err = io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("%s cannot be read: %w", d, err)
	}
	if got := oci.DigestOf(raw); got != d {
		return nil, fmt.Errorf("%s is damaged: it has %d bytes with the digest %s", d, r.Size(), got)
	}
	return raw, nil
}

// checkLayers examines every layer that is needed, those of the lower ones first: a layer is repaired on top of them.
func (c *checker) checkLayers(ctx context.Context) error {
	c.r.Checked("layer", len(c.order))
	total := int64(len(c.order))
	if c.r.Full {
		total = 0
		for _, l := range c.order {
			total += c.records[l.chain.Top()].TarSize
		}
	}
	part := c.r.Part("layers", total, c.r.Full)
	bad := make([]error, len(c.order))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, l := range c.order {
		g.Go(func() error {
			if gctx.Err() != nil {
				return context.Cause(gctx)
			}
			done := int64(1)
			if c.r.Full {
				done = c.records[l.chain.Top()].TarSize
			}
			defer part.Add(done)
			bad[i] = c.examine(gctx, l)
			return context.Cause(gctx)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	rebuilt := map[oci.DiffID]bool{}
	for i, l := range c.order {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if bad[i] == nil && rebuilt[l.chain.Top()] {
			bad[i] = c.examine(ctx, l) // the rebuilding made only what its own chain needs
		}
		if bad[i] != nil {
			c.reportLayer(ctx, l, bad[i])
			rebuilt[l.chain.Top()] = true
			continue
		}
		c.checkLayerRecord(ctx, l)
	}
	return nil
}

// examine examines one layer under a lease.
func (c *checker) examine(ctx context.Context, l *neededLayer) error {
	lease := c.s.Lease()
	defer lease.Release()
	lease.Layer(l.chain)
	if !c.still(l.owners...) {
		return nil
	}
	err := c.s.examine(ctx, l.chain, c.r.Full)
	if ctx.Err() != nil {
		return nil
	}
	if errors.Is(err, errs.Unavailable) { // it was replaced while it was read
		err = c.s.examine(ctx, l.chain, c.r.Full)
	}
	return err
}

func (s *Store) examine(ctx context.Context, chain oci.Chain, full bool) error {
	x, ok := s.Layers.(layer.Examiner)
	if ok {
		return x.Examine(ctx, chain, full)
	}
	if _, err := s.Layers.Stat(ctx, chain); err != nil || !full {
		return err
	}
	return s.Layers.Verify(ctx, chain)
}

func (c *checker) reportLayer(ctx context.Context, l *neededLayer, problem error) {
	lease := c.s.Lease()
	defer lease.Release()
	lease.Layer(l.chain)
	if !c.still(l.owners...) {
		return
	}
	c.s.Health.found(l.chain.ID())
	f := check.Finding{Kind: "layer", Object: string(l.chain.Top()), Problem: textOf(problem), Heal: c.cure(l.chain[len(l.chain)-1:], l.owners...)}
	c.r.Mend(f, func() (string, error) {
		from, err := c.s.rebuild(ctx, l.chain)
		if err != nil {
			return "", err
		}
		c.s.Health.Replaced(l.chain.ID())
		return "written again from " + from, nil
	})
}

// textOf returns the message of an error without its hint.
func textOf(err error) string {
	if e, ok := errors.AsType[*errs.Error](err); ok && e == err {
		return e.Msg
	}
	return err.Error()
}

// rebuild writes a missing or damaged layer again, from what the driver has left of its tar or from a compressed form in the blob
// store. It returns where the bytes came from. Nothing is replaced unless they have the digest of the layer.
func (s *Store) rebuild(ctx context.Context, chain oci.Chain) (from string, err error) {
	if x, ok := s.Layers.(layer.Examiner); ok {
		if err = s.rewrite(ctx, chain, func() (io.ReadCloser, error) { return x.Salvage(ctx, chain) }); err == nil {
			return "its tar", nil
		}
	}
	var rec meta.Layer
	rerr := s.Meta.View(func(tx *meta.Tx) (err error) {
		rec, err = tx.Layers.Get(chain.Top())
		return err
	})
	if rerr != nil {
		return "", errors.Join(err, rerr)
	}
	for _, b := range rec.Blobs {
		if _, serr := s.Blobs.Stat(b.Digest); serr != nil {
			continue
		}
		berr := s.rewrite(ctx, chain, func() (io.ReadCloser, error) { return s.decompress(ctx, b.Digest) })
		if berr == nil {
			return "blob " + b.Digest.Short(), nil
		}
		err = errors.Join(err, berr)
	}
	if err == nil {
		err = errs.New(errs.NotFound, "layer %s: no copy of its bytes is left", chain.Top().Short())
	}
	return "", err
}

func (s *Store) rewrite(ctx context.Context, chain oci.Chain, open func() (io.ReadCloser, error)) (err error) {
	in, err := open()
	if err != nil {
		return err
	}
	defer errs.Close(&err, in)
	w, err := s.Layers.Create(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Abort()) }()
	if _, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{in}, make([]byte, 1<<20)); err != nil {
		return err
	}
	_, err = w.Commit(ctx, chain.Parent(), chain.Top())
	return err
}

// decompress opens the tar in a compressed layer.
func (s *Store) decompress(ctx context.Context, d oci.Digest) (io.ReadCloser, error) {
	r, err := s.Blobs.Open(d)
	if err != nil {
		return nil, err
	}
	z, _, err := compress.NewReader(ctx, r)
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return &decompressed{ReadCloser: z, blob: r}, nil
}

// decompressed is the content of a compressed blob.
type decompressed struct {
	io.ReadCloser
	blob io.Closer
}

func (d *decompressed) Close() error { return errors.Join(d.ReadCloser.Close(), d.blob.Close()) }

// checkLayerRecord compares the record of a layer with the layer.
func (c *checker) checkLayerRecord(ctx context.Context, l *neededLayer) {
	id := l.chain.Top()
	lease := c.s.Lease()
	defer lease.Release()
	lease.Layer(l.chain)
	info, err := c.s.Layers.Stat(ctx, l.chain)
	if err != nil {
		return // reported already
	}
	var rec meta.Layer
	err = c.s.Meta.View(func(tx *meta.Tx) (err error) {
		rec, err = tx.Layers.Get(id)
		return err
	})
	if errors.Is(err, errs.DataLoss) {
		return // reported already
	}
	if err == nil && (rec.Size != info.Size || rec.TarSize != info.TarSize) {
		err = fmt.Errorf("says %d bytes in a tar of %d, the layer has %d in %d", rec.Size, rec.TarSize, info.Size, info.TarSize)
	}
	if err != nil && c.still(l.owners...) {
		c.r.Mend(check.Finding{Kind: layerRecord, Object: string(id), Problem: textOf(err)}, func() (string, error) { return "written again", c.s.RecordLayer(info, nil) })
		c.records[id] = meta.Layer{Size: info.Size, TarSize: info.TarSize}
	}
}

// dropStep deletes the record of a build step: the build cache does without it.
func (c *checker) dropStep(id oci.Digest) (string, error) {
	return "deleted: the next build makes the step again", c.s.Meta.Update(func(tx *meta.Tx) error { return tx.Steps.Delete(id) })
}

// dropIndex deletes a damaged record of an index.
func (c *checker) dropIndex(id oci.Digest) (string, error) {
	return "deleted: its names mean the image for this host alone", c.s.Meta.Update(func(tx *meta.Tx) error { return tx.Indexes.Delete(id) })
}

// mendLayerRecord takes the record of a layer from the copy beside the data or from the layer, or deletes that of a layer that
// nothing needs.
func (c *checker) mendLayerRecord(id oci.DiffID) (string, error) {
	if done, err := c.mendFromCopy("layers", string(id)); done {
		return "written again from the copy beside the data", err
	}
	for _, o := range c.chains {
		for i, d := range o.chain {
			if d != id {
				continue
			}
			info, err := c.s.Layers.Stat(context.Background(), o.chain[:i+1])
			if err != nil {
				continue
			}
			return "written again; the registries that have the layer are forgotten", c.s.RecordLayer(info, nil)
		}
	}
	return "deleted: nothing needs the layer", c.s.Meta.Update(func(tx *meta.Tx) error {
		if _, err := tx.Layers.Get(id); err == nil {
			return nil // it was written meanwhile
		}
		return tx.Layers.Delete(id)
	})
}

// mendFromCopy writes a damaged record again from its copy beside the data. It reports whether there is a whole copy.
func (c *checker) mendFromCopy(kind, key string) (bool, error) {
	path := c.s.beside.path(kind, key)
	if path == "" {
		return false, nil
	}
	r, err := c.s.beside.read(path)
	if err != nil {
		return false, nil
	}
	_, err = c.s.Rebuild(context.Background(), []Lost{{Kind: kind, Key: key, data: r.Record}})
	return true, err
}

// mendName takes the record of a name from the copy beside the data.
func (c *checker) mendName(name string, damage error) (string, error) {
	if done, err := c.mendFromCopy("names", name); done {
		return "written again from the copy beside the data", err
	}
	return "", damage
}

// mendImageRecord takes the record of an image from the copy beside the data, or makes it again from the image's config.
func (c *checker) mendImageRecord(id oci.ImageID) (string, error) {
	if done, err := c.mendFromCopy("images", string(id)); done {
		return "written again from the copy beside the data", err
	}
	raw, err := c.read(oci.Digest(id), oci.MaxConfig)
	if err != nil {
		return "", err
	}
	cfg, err := oci.DecodeConfig(raw)
	if err != nil {
		return "", err
	}
	rec := meta.Image{Format: oci.FormatOCI, Chain: cfg.RootFS.DiffIDs, Created: time.Now().UTC(), LastUsed: time.Now().UTC()}
	for _, m := range c.manifestsOf(id) {
		rec.Manifests = append(rec.Manifests, m)
		rec.Format = oci.FormatOf(m.MediaType)
	}
	return "written again from the config and the manifests of the image", c.s.Meta.Update(func(tx *meta.Tx) error {
		if _, err := tx.Images.Get(id); err == nil {
			return nil // it was written meanwhile
		}
		return tx.Images.Put(id, rec)
	})
}

// manifestsOf finds the manifests of an image in the blob store.
func (c *checker) manifestsOf(id oci.ImageID) (found []oci.Descriptor) {
	_ = c.s.Blobs.Walk(func(d oci.Digest, size int64, _ time.Time) error {
		if size > oci.MaxManifest {
			return nil
		}
		raw, err := c.read(d, oci.MaxManifest)
		if err != nil {
			return nil
		}
		if m, err := oci.DecodeManifest(raw, ""); err == nil && m.Config.Digest == oci.Digest(id) {
			found = append(found, oci.Descriptor{MediaType: m.MediaType, Digest: d, Size: size})
		}
		return nil
	}) // without its manifests the image is whole too
	return found
}

// checkBlobs examines every blob that is not read with its image.
func (c *checker) checkBlobs(ctx context.Context) error {
	sizes := map[oci.Digest]int64{}
	var total int64
	var order []oci.Digest
	err := c.s.Blobs.Walk(func(d oci.Digest, size int64, _ time.Time) error {
		sizes[d] = size
		order = append(order, d)
		total += size
		return nil
	})
	if err != nil {
		return err
	}
	c.r.Checked("blob", len(order))
	if !c.r.Full {
		total = int64(len(order))
	}
	part := c.r.Part("blobs", total, c.r.Full)
	needed := map[oci.Digest]bool{}
	for _, o := range c.chains {
		for _, d := range o.blobs {
			needed[d] = true
		}
	}
	for _, d := range order {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if needed[d] {
			part.Add(c.unit(sizes[d])) // read with its image
			continue
		}
		if err := c.examineBlob(ctx, d, sizes[d], part); err != nil {
			c.r.Mend(check.Finding{Kind: "blob", Object: string(d), Problem: err.Error()}, func() (string, error) {
				removed, err := c.s.Blobs.Repair(d)
				if err == nil && !removed {
					err = errs.New(errs.Conflict, "its bytes are right now")
				}
				return "removed: it was a copy that can be made or fetched again", err
			})
		}
	}
	return nil
}

// unit returns what the examination of an object of this size adds to the progress.
func (c *checker) unit(size int64) int64 {
	if c.r.Full {
		return size
	}
	return 1
}

// examineBlob compares a blob with its name, or with its size where that is known.
func (c *checker) examineBlob(ctx context.Context, d oci.Digest, size int64, part *check.Part) error {
	if !c.r.Full {
		part.Add(1)
		want, known := c.sizes[d]
		if known && size != want {
			return fmt.Errorf("has %d bytes, want %d", size, want)
		}
		if size == 0 && d != emptyBlob {
			return errors.New("is empty")
		}
		return nil
	}
	r, err := c.s.Blobs.Open(d)
	if errors.Is(err, errs.NotFound) {
		part.Add(size)
		return nil // removed meanwhile
	}
	if err != nil {
		return err
	}
	defer r.Close()
	h := sha256.New()
	buf := make([]byte, 1<<20)
	for {
		if ctx.Err() != nil {
			return nil
		}
		n, err := r.Read(buf)
		h.Write(buf[:n])
		part.Add(int64(n))
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("cannot be read: %w", err)
		}
	}
	if got := oci.DigestOfHash(h); got != d {
		return fmt.Errorf("is damaged: its content has the digest %s", got)
	}
	return nil
}

var emptyBlob = oci.DigestOf(nil)

// checkPartials examines the unfinished downloads, and counts the leases that operations hold at this moment.
func (c *checker) checkPartials(context.Context) error {
	names, unusable, err := c.s.Blobs.Partials()
	if err != nil {
		return err
	}
	c.r.Checked("file of a download", len(names))
	for _, name := range unusable {
		c.r.Report(check.Finding{Kind: "file of a download", Object: name, Problem: "is not a regular file, so its layer cannot be pulled", Heal: "move it away: mv " + name + " /var/tmp"})
	}
	c.s.mu.Lock()
	leases := len(c.s.leased)
	c.s.mu.Unlock()
	c.r.Checked("lease", leases)
	return nil
}

// reclaim removes what an image had whose removal found its data leased by this examination.
func (c *checker) reclaim(ctx context.Context) error {
	var chains []oci.Chain
	blobs := map[oci.Digest]bool{}
	for _, o := range c.chains {
		if c.still(o) {
			continue
		}
		chains = append(chains, o.chain)
		for _, d := range o.blobs {
			blobs[d] = true
		}
	}
	if len(chains) == 0 {
		return nil
	}
	_, err := c.s.Reclaim(ctx, chains, slices.Collect(maps.Keys(blobs)))
	if errors.Is(err, errs.DataLoss) || errors.Is(err, errs.Conflict) {
		return nil // a later collection takes it
	}
	return err
}
