package container

import (
	"context"
	"errors"
	"slices"

	"ply/internal/errs"
	"ply/internal/filter"
	"ply/internal/oci"
	"ply/internal/store/meta"
)

// selection is the filters of one List.
type selection struct {
	match         filter.Match[*Container]
	ancestors     map[oci.ImageID]bool // nil = every image
	before, since oci.ContainerID      // "" = none
}

func (e *env) selection(ctx context.Context, args filter.Args) (*selection, error) {
	match, err := ListFilters.Compile(args)
	if err != nil {
		return nil, err
	}
	sel := &selection{match: match}
	if sel.before, err = e.lastOf(args["before"]); err != nil {
		return nil, err
	}
	if sel.since, err = e.lastOf(args["since"]); err != nil {
		return nil, err
	}
	if args.Has("ancestor") {
		if sel.ancestors, err = e.descendants(ctx, args["ancestor"]); err != nil {
			return nil, err
		}
	}
	return sel, nil
}

// lastOf returns the ID of the last of the named containers, or "". All of them must exist.
func (e *env) lastOf(refs []string) (id oci.ContainerID, err error) {
	for _, ref := range refs {
		c, err := e.index.find(ref)
		if err != nil {
			return "", err
		}
		id = c.id
	}
	return id, nil
}

func (sel *selection) wants(c *Container) bool {
	return (sel.ancestors == nil || sel.ancestors[c.Image]) && sel.match(c)
}

// descendants returns the named images and all that were made from them.
func (e *env) descendants(ctx context.Context, names []string) (map[oci.ImageID]bool, error) {
	roots := map[oci.ImageID]bool{}
	for _, n := range names {
		img, err := e.opts.Images.Get(ctx, n)
		if errors.Is(err, errs.NotFound) {
			continue // as in Docker: no match, no error
		}
		if err != nil {
			return nil, err
		}
		roots[img.ID] = true
	}
	out := map[oci.ImageID]bool{}
	err := e.opts.Store.Meta.View(func(tx *meta.Tx) error {
		var chains []oci.Chain
		for id, rec := range tx.Images.All() {
			if roots[id] {
				out[id] = true
				chains = append(chains, rec.Value.Chain) // a damaged root was refused above
			}
		}
		for id, r := range tx.Images.All() {
			rec := r.Value // of a damaged record nothing is known: it matches by its ID only
			for p, depth := rec.Parent, 0; p != "" && depth < 1000; depth++ {
				if roots[p] {
					out[id] = true
					break
				}
				up, err := tx.Images.Get(p)
				if err != nil {
					break
				}
				p = up.Parent
			}
			for _, c := range chains {
				if len(c) > 0 && len(rec.Chain) >= len(c) && slices.Equal(rec.Chain[:len(c)], c) {
					out[id] = true // as in Docker, an image with the same lower layers is an ancestor
				}
			}
		}
		return nil
	})
	return out, err
}
