package image

import (
	"cmp"
	"context"
	"slices"

	"ply/internal/oci"
	"ply/internal/store/meta"
)

// Layers returns the layers of one image, bottom layer first, each with the images whose top layer it is.
func (s *Service) Layers(ctx context.Context, ref string) ([]*LayerView, error) {
	img, err := s.Get(ctx, ref)
	if err != nil {
		return nil, err
	}
	c, err := s.read()
	if err != nil {
		return nil, err
	}
	ends := c.ends()
	made := createdBy(img.Config)
	views := make([]*LayerView, len(img.Chain))
	var virtual int64
	for i, id := range img.Chain.IDs() {
		virtual += c.sizes[img.Chain[i]]
		v := &LayerView{DiffID: img.Chain[i], Chain: id, Size: c.sizes[img.Chain[i]], Virtual: virtual}
		if i < len(made) {
			v.CreatedBy = made[i]
		}
		c.mark(v, ends[id])
		views[i] = v
	}
	return views, nil
}

// Tree returns the chains of all images as trees. A root is a bottom layer, a child a chain with one layer more. Images with the
// same lower layers share a branch. Images without layers are in a root with an empty DiffID.
func (s *Service) Tree(ctx context.Context) ([]*LayerView, error) {
	c, err := s.read()
	if err != nil {
		return nil, err
	}
	t := tree{c: c, ends: c.ends(), nodes: map[oci.ChainID]*LayerView{}}
	ids := make([]oci.ImageID, 0, len(c.images))
	for id := range c.images {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		var made []string
		if cfg, _, err := s.config(id); err == nil {
			made = createdBy(cfg)
		}
		t.add(c.images[id], made)
	}
	sortViews(t.roots)
	return t.roots, nil
}

type tree struct {
	c     *catalog
	ends  map[oci.ChainID][]oci.ImageID
	nodes map[oci.ChainID]*LayerView
	roots []*LayerView
}

func (t *tree) add(rec meta.Image, made []string) {
	if len(rec.Chain) == 0 {
		if t.nodes[""] == nil {
			v := &LayerView{}
			t.c.mark(v, t.ends[""])
			t.nodes[""] = v
			t.roots = append(t.roots, v)
		}
		return
	}
	var parent *LayerView
	for i, id := range rec.Chain.IDs() {
		v := t.nodes[id]
		if v == nil {
			d := rec.Chain[i]
			v = &LayerView{DiffID: d, Chain: id, Size: t.c.sizes[d], Virtual: t.c.sizes[d]}
			t.c.mark(v, t.ends[id])
			t.nodes[id] = v
			if parent == nil {
				t.roots = append(t.roots, v)
			} else {
				v.Virtual += parent.Virtual
				parent.Children = append(parent.Children, v)
			}
		}
		if v.CreatedBy == "" && i < len(made) {
			v.CreatedBy = made[i]
		}
		parent = v
	}
}

// ends returns the images that have exactly a chain, by chain ID.
func (c *catalog) ends() map[oci.ChainID][]oci.ImageID {
	m := map[oci.ChainID][]oci.ImageID{}
	for id, rec := range c.images {
		k := rec.Chain.ID()
		m[k] = append(m[k], id)
	}
	for _, ids := range m {
		slices.Sort(ids)
	}
	return m
}

// mark sets the images of a layer and their tags.
func (c *catalog) mark(v *LayerView, ids []oci.ImageID) {
	v.Images = ids
	for _, id := range ids {
		if n := c.names[id]; n != nil {
			v.Tags = append(v.Tags, n.tags...)
		}
	}
	slices.SortFunc(v.Tags, func(a, b oci.Reference) int { return cmp.Compare(a.String(), b.String()) })
}

// sortViews sorts siblings by the first name of the images in their branch, branches without names last, then by chain ID. It
// returns the first name of all.
func sortViews(views []*LayerView) (first string) {
	const last = "\xff"
	keys := make(map[*LayerView]string, len(views))
	first = last
	for _, v := range views {
		k := sortViews(v.Children)
		if len(v.Tags) > 0 {
			k = min(k, v.Tags[0].String())
		}
		keys[v] = k
		first = min(first, k)
	}
	slices.SortFunc(views, func(a, b *LayerView) int {
		return cmp.Or(cmp.Compare(keys[a], keys[b]), cmp.Compare(a.Chain, b.Chain))
	})
	return first
}

// createdBy returns the instruction that made each layer, bottom layer first.
func createdBy(cfg oci.Config) []string {
	var out []string
	for _, h := range cfg.History {
		if !h.EmptyLayer {
			out = append(out, h.CreatedBy)
		}
	}
	return out
}
