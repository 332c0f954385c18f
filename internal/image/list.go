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
// others were made and images of build steps. With a reference filter, Names and Digests have only the names that match. An image whose config is damaged
// is listed with an empty Config. errs.Invalid for a malformed filter.
func (s *Service) List(ctx context.Context, opts ListOptions) ([]*Image, error) {
	c, err := s.read()
	if err != nil {
		return nil, err
	}
	sel, err := s.selection(opts.Filters)
	if err != nil {
		return nil, err
	}
	parents := c.parents()
	var list []*Image
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
		inner := parents[id] || rec.Step != "" // of an image without a name
		if !sel.wantNames(img, opts.All || !inner, inner) {
			continue
		}
		img.Config, img.Raw, err = s.config(id)
		if errors.Is(err, errs.NotFound) {
			continue // removed since the catalog was read
		}
		if err != nil {
			s.opts.Log.Warn("damaged image", "image", string(id), "err", err)
		}
		if sel.wants(img) {
			list = append(list, img)
		}
	}
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

// fillShared sets Shared of each image.
func (c *catalog) fillShared(list []*Image) {
	users := map[oci.DiffID]int{}
	for _, rec := range c.images {
		for _, d := range distinct(rec.Chain) {
			users[d]++
		}
	}
	for _, img := range list {
		img.Shared = 0
		for _, d := range img.Chain {
			if users[d] > 1 {
				img.Shared += c.sizes[d]
			}
		}
	}
}

// distinct returns the layers of a chain, each once.
func distinct(chain oci.Chain) []oci.DiffID {
	out := slices.Clone([]oci.DiffID(chain))
	slices.Sort(out)
	return slices.Compact(out)
}
