package image

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"ply/internal/errs"
	"ply/internal/events"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/store/meta"
)

// Options of New. The zero value works.
type Options struct {
	Log    *slog.Logger // nil = none
	Events *events.Bus  // nil = none
	Format oci.Format   // of new images without a parent; "" = oci.FormatOCI
	// InUse returns the IDs of the containers of an image, stopped ones too. It is called outside of transactions. nil = there
	// are no containers.
	InUse func(oci.ImageID) []string
	// Running reports whether a container that InUse has returned is running. Its image cannot be removed, not even by force. nil =
	// none is running.
	Running func(containerID string) bool
}

// Service manages the images of one store. Safe for concurrent use.
type Service struct {
	st      *store.Store
	opts    Options
	catalog lastCatalog
	configs shownConfigs
}

// New returns the service of an open store.
func New(st *store.Store, opts Options) *Service {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Format == "" {
		opts.Format = oci.FormatOCI
	}
	return &Service{st: st, opts: opts}
}

// Publish publishes an event of an image, with the labels of the image. action is docker's word, such as "load" or "pull". name
// is the familiar form of a name; "" = the ID.
func (s *Service) Publish(action string, id oci.ImageID, name string) {
	if s.opts.Events == nil {
		return
	}
	cfg, _, err := s.config(id)
	if err != nil && !errors.Is(err, errs.NotFound) {
		s.opts.Log.Warn("event without labels", "image", string(id), "action", action, "err", err)
	}
	s.publish(action, id, name, cfg.Config.Labels)
}

func (s *Service) publish(action string, id oci.ImageID, name string, labels map[string]string) {
	if s.opts.Events == nil {
		return
	}
	if name == "" {
		name = string(id)
	}
	attrs := make(map[string]string, len(labels)+1)
	for k, v := range labels {
		attrs[k] = v
	}
	attrs["name"] = name
	s.opts.Events.Publish(events.Event{Type: "image", Action: action, ID: string(id), Attributes: attrs})
}

// users returns the containers of an image.
func (s *Service) users(id oci.ImageID) []string {
	if s.opts.InUse == nil {
		return nil
	}
	return s.opts.InUse(id)
}

// config reads and verifies the config of an image. errs.NotFound when the image was removed in the meantime, errs.DataLoss when
// the config is missing or damaged.
func (s *Service) config(id oci.ImageID) (oci.Config, []byte, error) {
	raw, err := s.st.Blobs.Bytes(oci.Digest(id), oci.MaxConfig)
	if errors.Is(err, errs.NotFound) && gone(s, id) {
		return oci.Config{}, nil, notFound(string(id))
	}
	var cfg *oci.Config
	if err == nil {
		cfg, err = oci.DecodeConfig(raw)
	}
	if err != nil {
		// err is not wrapped: its class may be NotFound, but the image exists.
		return oci.Config{}, nil, errs.New(errs.DataLoss, "image %s: config: %v", id.Short(), err).
			WithHint("Pull or load the image again, or remove it.")
	}
	return *cfg, raw, nil
}

// gone reports whether an image has no record.
func gone(s *Service, id oci.ImageID) (gone bool) {
	err := s.st.Meta.View(func(tx *meta.Tx) error {
		gone = !tx.Images.Has(id)
		return nil
	})
	return err == nil && gone
}

// catalog has the records of all images, as read in one transaction. That of read is shared, and does not change.
type catalog struct {
	images  map[oci.ImageID]meta.Image // of an image with a damaged record, an empty one
	damaged map[oci.ImageID]error      // the images with a damaged record
	names   map[oci.ImageID]*named     // nil = the image has no name
	lost    []lostName
	indexes map[oci.Reference][]oci.ImageID // by the names that mean an index: the images that it lists and that are here
	inIndex map[oci.ImageID]bool            // images without a name that an index lists
	sizes   map[oci.DiffID]int64

	users func() map[oci.DiffID]int // the number of images that have a layer
}

// lostName is a name whose record is damaged: the image at which it points is unknown.
type lostName struct {
	name oci.Reference
	err  error
}

// named has the names of one image.
type named struct {
	tags    []oci.Reference
	digests []oci.Reference
	updated time.Time // when the last of the tags was set
}

func (n *named) count() int {
	if n == nil {
		return 0
	}
	return len(n.tags) + len(n.digests)
}

// all returns every name, tags first.
func (n *named) all() []oci.Reference {
	if n == nil {
		return nil
	}
	return slices.Concat(n.tags, n.digests)
}

func (n *named) add(r oci.Reference, rec meta.Name) {
	if r.Digest() != "" {
		n.digests = append(n.digests, r)
		return
	}
	n.tags = append(n.tags, r)
	if rec.Updated.After(n.updated) {
		n.updated = rec.Updated
	}
}

// namesOf returns the names of one image, sorted.
func namesOf(tx *meta.Tx, id oci.ImageID) *named {
	n := &named{}
	for key, rec := range tx.Names.All() {
		if rec.Err != nil || rec.Value.Image != id {
			continue // List shows the damaged names
		}
		if r, err := oci.ParseReference(key); err == nil {
			n.add(r, rec.Value)
		}
	}
	return n
}

// readCatalog reads all records. It leaves out names of images that do not exist.
func readCatalog(tx *meta.Tx) *catalog {
	c := &catalog{
		images:  map[oci.ImageID]meta.Image{},
		damaged: map[oci.ImageID]error{},
		names:   map[oci.ImageID]*named{},
		indexes: map[oci.Reference][]oci.ImageID{},
		sizes:   map[oci.DiffID]int64{},
	}
	for id, rec := range tx.Images.All() {
		c.images[id] = rec.Value
		if rec.Err != nil {
			c.damaged[id] = rec.Err
		}
	}
	for key, rec := range tx.Names.All() {
		r, err := oci.ParseReference(key)
		if err != nil {
			continue // no build writes such a name
		}
		if rec.Err != nil {
			c.lost = append(c.lost, lostName{r, rec.Err})
			continue
		}
		if _, ok := c.images[rec.Value.Image]; !ok {
			continue
		}
		if c.names[rec.Value.Image] == nil {
			c.names[rec.Value.Image] = &named{}
		}
		c.names[rec.Value.Image].add(r, rec.Value)
		if rec.Value.Index != "" {
			if index, err := tx.Indexes.Get(rec.Value.Index); err == nil {
				c.indexes[r] = slices.DeleteFunc(index.Images, func(id oci.ImageID) bool { _, ok := c.images[id]; return !ok })
			}
		}
	}
	c.inIndex = c.listed(tx)
	for d, rec := range tx.Layers.All() {
		c.sizes[d] = rec.Value.Size // 0 when the record is damaged: only a number that is shown
	}
	c.users = sync.OnceValue(c.countUsers)
	return c
}

// parents returns the images from which other images were made.
func (c *catalog) parents() map[oci.ImageID]bool {
	p := map[oci.ImageID]bool{}
	for _, rec := range c.images {
		if rec.Parent != "" {
			p[rec.Parent] = true
		}
	}
	return p
}

// lastCatalog is the catalog that was read last: decoding the records of a thousand images takes longer than all the rest of a list. Safe for concurrent use.
type lastCatalog struct {
	mu    sync.Mutex
	stamp uint64
	c     *catalog // nil = none yet
}

// catalogKinds are the kinds of records of which readCatalog makes a catalog.
var catalogKinds = []string{"images", "names", "indexes", "layers"}

// read reads the catalog in a transaction of its own. The caller does not change it.
func (s *Service) read() (c *catalog, err error) {
	err = s.st.Meta.View(func(tx *meta.Tx) error {
		stamp, known := tx.Stamp(catalogKinds...)
		if known {
			if c = s.catalog.get(stamp); c != nil {
				return nil
			}
		}
		if c = readCatalog(tx); known {
			s.catalog.put(stamp, c)
		}
		return nil
	})
	return c, err
}

func (l *lastCatalog) get(stamp uint64) *catalog {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stamp != stamp {
		return nil
	}
	return l.c
}

func (l *lastCatalog) put(stamp uint64, c *catalog) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stamp, l.c = stamp, c
}

// build makes an Image from records, without its config.
func build(id oci.ImageID, rec meta.Image, n *named, size int64) *Image {
	img := &Image{
		ID: id, Parent: rec.Parent, Format: rec.Format, Size: size, Shared: -1,
		LastUsed: rec.LastUsed, Chain: rec.Chain, Manifests: rec.Manifests,
	}
	if n != nil {
		img.Names, img.Digests, img.Tagged = slices.Clip(n.tags), slices.Clip(n.digests), n.updated
	}
	for _, m := range rec.Manifests {
		if !oci.IsIndex(m.MediaType) {
			img.Manifest = &m // the last one is current
		}
	}
	return img
}

func (c *catalog) size(chain oci.Chain) (total int64) {
	for _, d := range chain {
		total += c.sizes[d]
	}
	return total
}

// Get returns the image that a reference means: a name with or without registry and tag, a name with a digest, an ID, the digest of
// one of its manifests, or an unambiguous prefix of its ID. A name takes precedence over an ID. errs.NotFound when there is no
// such image, errs.Invalid for an ambiguous prefix or a malformed reference, errs.DataLoss when the config is damaged.
func (s *Service) Get(ctx context.Context, ref string) (*Image, error) {
	var img *Image
	err := view(ctx, s, ref, func(tx *meta.Tx) error {
		m, err := resolve(tx, ref)
		if err != nil {
			return err
		}
		rec, err := tx.Images.Get(m.id)
		if errors.Is(err, errs.DataLoss) {
			return damagedImage(err)
		}
		if err != nil {
			return err
		}
		var size int64
		for _, d := range rec.Chain {
			if l, err := tx.Layers.Get(d); err == nil {
				size += l.Size
			}
		}
		img = build(m.id, rec, namesOf(tx, m.id), size)
		return nil
	})
	if err != nil {
		return nil, err
	}
	img.Config, img.Raw, err = s.config(img.ID)
	if errors.Is(err, errs.NotFound) {
		return nil, notFound(ref)
	}
	if err != nil {
		return nil, err
	}
	return img, ctx.Err()
}

// touchGrain is the precision of LastUsed. With it, few runs of an image need a durable write.
const touchGrain = 10 * time.Minute

// Touch records that an image is used now.
func (s *Service) Touch(_ context.Context, id oci.ImageID) error {
	now := time.Now().UTC()
	fresh := false
	err := s.st.Meta.View(func(tx *meta.Tx) error {
		rec, err := tx.Images.Get(id)
		fresh = err == nil && now.Sub(rec.LastUsed).Abs() < touchGrain
		return err
	})
	if err != nil || fresh {
		return err
	}
	return s.st.Meta.Update(func(tx *meta.Tx) error {
		rec, err := tx.Images.Get(id)
		if err != nil {
			return err
		}
		rec.LastUsed = now
		return tx.Images.Put(id, rec)
	})
}

// Created returns the creation time in the config, or the zero time.
func (i *Image) Created() time.Time {
	if i.Config.Created == nil {
		return time.Time{}
	}
	return *i.Config.Created
}

// hasHexPrefix reports whether the hex digits of an ID or digest begin with p.
func hasHexPrefix(id, p string) bool {
	return strings.HasPrefix(strings.TrimPrefix(id, "sha256:"), p)
}
