package image

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"ply/internal/errs"
	"ply/internal/oci"
)

// List returns the images that match the filters, newest first. Without opts.All, it leaves out images without a name from which
// others were made and images of build steps. With a reference filter, Names and Digests have only the names that match. An image whose record or config
// is damaged is listed with what is known, and Damaged says why. So is a name whose record is damaged, as an image of its own without
// an ID. errs.Invalid for a malformed filter.
func (s *Service) List(ctx context.Context, opts ListOptions) ([]*Image, error) {
	c, err := s.read()
	if err != nil {
		return nil, err
	}
	sel, err := s.selection(opts.Filters)
	if err != nil {
		return nil, err
	}
	list, err := selected(ctx, s, c, sel, opts.All, true)
	if err != nil {
		return nil, err
	}
	list = append(list, s.lostNames(c, sel)...)
	slices.SortFunc(list, func(a, b *Image) int {
		if n := b.Created().Compare(a.Created()); n != 0 {
			return n
		}
		return cmp.Compare(a.ID, b.ID)
	})
	if opts.Shared {
		c.fillShared(list)
	}
	return list, nil
}

// selected returns the images of c that sel selects, and with all intermediate ones too. Without configs it does not read these; sel then needs none.
func selected(ctx context.Context, s *Service, c *catalog, sel *selection, all, configs bool) (list []*Image, err error) {
	parents := c.parents()
	for id, rec := range c.images {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		img := build(id, rec, c.names[id], c.size(rec.Chain))
		if len(sel.references) > 0 {
			img.Names, img.Digests = sel.matching(img.Names), sel.matching(img.Digests)
			if len(img.Names)+len(img.Digests) == 0 {
				continue
			}
		}
		inner := parents[id] || rec.Step != "" || c.inIndex[id] // of an image without a name
		if !sel.wantNames(img, all || !inner, inner) {
			continue
		}
		if !configs {
			list = append(list, img)
			continue
		}
		damaged := c.damaged[id]
		if damaged == nil {
			img.Config, err = s.configs.of(s, id)
		} else {
			img.Config, _, err = s.config(id) // its layers are not in the record
		}
		if errors.Is(err, errs.NotFound) {
			continue // removed since the catalog was read
		}
		img.Damaged = err
		if damaged != nil {
			img.Damaged = damagedImage(damaged)
			img.Chain = img.Config.RootFS.DiffIDs
			img.Size = c.size(img.Chain)
		}
		if img.Damaged != nil {
			s.opts.Log.Warn("damaged image", "image", string(id), "err", img.Damaged)
		}
		if sel.wants(img) {
			list = append(list, img)
		}
	}
	return list, nil
}

// lostNames returns an image without an ID for each name whose record is damaged.
func (s *Service) lostNames(c *catalog, sel *selection) (list []*Image) {
	for _, l := range c.lost {
		img := &Image{Shared: -1, Damaged: damagedName(l.err)}
		if l.name.Digest() != "" {
			img.Digests = []oci.Reference{l.name}
		} else {
			img.Names = []oci.Reference{l.name}
		}
		if len(sel.references) > 0 && len(sel.matching(img.Names))+len(sel.matching(img.Digests)) == 0 ||
			!sel.wantNames(img, true, false) || !sel.wants(img) {
			continue
		}
		s.opts.Log.Warn("damaged name", "name", l.name.Familiar(), "err", l.err)
		list = append(list, img)
	}
	return list
}

// damagedImage returns the error for an image whose record is damaged.
func damagedImage(err error) error {
	return errs.New(errs.DataLoss, "%w", err).
		WithHint("Run ply system check --repair, pull or load the image again, or remove it.")
}

// damagedName returns the error for a name whose record is damaged.
func damagedName(err error) error {
	return errs.New(errs.DataLoss, "%w", err).
		WithHint("Run ply system check --repair, pull or tag the name again, or remove it by force (rmi -f).")
}

// fillShared sets Shared of each image.
func (c *catalog) fillShared(list []*Image) {
	users := c.users()
	for _, img := range list {
		img.Shared = 0
		for _, d := range img.Chain {
			if users[d] > 1 {
				img.Shared += c.sizes[d]
			}
		}
	}
}

// countUsers returns the number of images that have a layer, for each.
func (c *catalog) countUsers() map[oci.DiffID]int {
	users := make(map[oci.DiffID]int, len(c.sizes))
	for _, rec := range c.images {
		for _, d := range distinct(rec.Chain) {
			users[d]++
		}
	}
	return users
}

// LayersSize returns the size of the layers of all images, in bytes. A layer counts once, as on disk.
func (s *Service) LayersSize(context.Context) (size int64, err error) {
	c, err := s.read()
	if err != nil {
		return 0, err
	}
	for d := range c.users() {
		size += c.sizes[d]
	}
	return size, nil
}

// distinct returns the layers of a chain, each once.
func distinct(chain oci.Chain) []oci.DiffID {
	out := slices.Clone([]oci.DiffID(chain))
	slices.Sort(out)
	return slices.Compact(out)
}
