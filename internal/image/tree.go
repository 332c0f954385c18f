package image

import (
	"cmp"
	"context"
	"maps"
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
	ends := c.ends(slices.Sorted(maps.Keys(c.images)))
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

// Tree returns the chains of images as trees. A root is a bottom layer, a child a chain with one layer more. Images with the
// same lower layers share a branch. Images without layers are in a root with an empty DiffID. Errors as List.
func (s *Service) Tree(ctx context.Context, opts TreeOptions) ([]*LayerView, error) {
	c, err := s.read()
	if err != nil {
		return nil, err
	}
	var shown map[oci.ImageID][]string // nil = all images
	if opts.Listed != nil {
		if shown, err = shownImages(ctx, s, c, opts.Listed); err != nil {
			return nil, err
		}
	}
	ids := make([]oci.ImageID, 0, len(c.images))
	for id := range c.images {
		if _, ok := shown[id]; ok || opts.Listed == nil {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	t := tree{c: c, ends: c.ends(ids), shown: shown, nodes: map[oci.ChainID]*LayerView{}}
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		var made []string
		if opts.History {
			if cfg, _, err := s.config(id); err == nil {
				made = createdBy(cfg)
			}
		}
		t.add(c.images[id], made)
	}
	sortViews(t.roots)
	return t.roots, nil
}

// shownImages returns the images that List returns, each with the names that people are shown. Those of an index are all there, with their platforms.
func shownImages(ctx context.Context, s *Service, c *catalog, opts *ListOptions) (map[oci.ImageID][]string, error) {
	sel, err := s.selection(opts.Filters)
	if err != nil {
		return nil, err
	}
	list, err := selected(ctx, s, c, sel, opts.All, sel.needsConfig())
	if err != nil {
		return nil, err
	}
	shown := make(map[oci.ImageID][]string, len(list))
	platforms := map[oci.ImageID]string{}
	for _, img := range list {
		if _, ok := shown[img.ID]; !ok {
			shown[img.ID] = nil
		}
		for _, name := range img.Names {
			members := c.indexes[name]
			if len(members) < 2 {
				shown[img.ID] = append(shown[img.ID], name.Familiar())
				continue
			}
			for _, id := range members {
				if platforms[id] == "" {
					cfg, _, err := s.config(id)
					platforms[id] = cfg.Platform().String()
					if err != nil {
						platforms[id] = "unknown"
					}
				}
				shown[id] = append(shown[id], name.Familiar()+" ("+platforms[id]+")")
			}
		}
	}
	return shown, nil
}

type tree struct {
	c     *catalog
	ends  map[oci.ChainID][]oci.ImageID
	shown map[oci.ImageID][]string // nil = all images
	nodes map[oci.ChainID]*LayerView
	roots []*LayerView
}

// node returns a new node for a chain.
func (t *tree) node(v *LayerView) *LayerView {
	t.c.mark(v, t.ends[v.Chain])
	for _, id := range v.Images {
		v.Shown = append(v.Shown, t.shown[id]...)
	}
	slices.Sort(v.Shown)
	t.nodes[v.Chain] = v
	return v
}

func (t *tree) add(rec meta.Image, made []string) {
	if len(rec.Chain) == 0 {
		if t.nodes[""] == nil {
			t.roots = append(t.roots, t.node(&LayerView{}))
		}
		return
	}
	var parent *LayerView
	for i, id := range rec.Chain.IDs() {
		v := t.nodes[id]
		if v == nil {
			d := rec.Chain[i]
			v = t.node(&LayerView{DiffID: d, Chain: id, Size: t.c.sizes[d], Virtual: t.c.sizes[d]})
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

// ends returns which of the images, which are sorted, have exactly a chain, by chain ID. Those with a name go first.
func (c *catalog) ends(ids []oci.ImageID) map[oci.ChainID][]oci.ImageID {
	m := map[oci.ChainID][]oci.ImageID{}
	for _, named := range []bool{true, false} {
		for _, id := range ids {
			if (c.names[id].count() > 0) == named {
				k := c.images[id].Chain.ID()
				m[k] = append(m[k], id)
			}
		}
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
