package image

import (
	"context"
	"slices"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/meta"
)

// removePlatforms removes the images for some platforms of what ref means, from all indexes and names that have them. Names of an index mean one of its other images
// then; an index whose last image goes is removed with its names. An image that a running container uses, or from which others were made, is errs.Conflict.
func removePlatforms(ctx context.Context, s *Service, ref string, opts RemoveOptions) ([]Removed, error) {
	if !opts.Force {
		return nil, errs.New(errs.Invalid, "Content will be removed from all images referencing this variant. Use --force to force delete.")
	}
	var gone []oci.ImageID
	for _, p := range opts.Platforms {
		img, err := s.GetFor(ctx, ref, p)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(gone, img.ID) {
			gone = append(gone, img.ID)
		}
	}
	var siblings []oci.ImageID
	if err := s.st.Meta.View(func(tx *meta.Tx) error { siblings = withSiblings(tx, gone); return nil }); err != nil {
		return nil, err
	}
	host := map[oci.ImageID]bool{} // the images for this host
	for _, id := range siblings {
		if img, err := s.Get(ctx, string(id)); err == nil {
			host[id] = oci.HostPlatform().Matches(img.Config.Platform())
		}
	}
	r, err := s.removing(ctx, func(*meta.Tx) ([]oci.ImageID, error) { return gone, nil }, func(r *remover) error {
		for _, id := range gone {
			if err := r.conflict(id, false, false); err != nil {
				return err
			}
			if err := r.unlist(id, host); err != nil {
				return err
			}
			if err := r.delete(id, true, !opts.NoPrune, false); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	_, err = s.finish(ctx, r)
	return r.out, err
}

// unlist removes an image from the indexes that list it. An index whose last image it is goes with its names, which delete removes.
func (r *remover) unlist(id oci.ImageID, host map[oci.ImageID]bool) error {
	for d, rec := range r.tx.Indexes.All() {
		if rec.Err != nil || !slices.Contains(rec.Value.Images, id) {
			continue
		}
		x := rec.Value
		x.Images = slices.DeleteFunc(slices.Clone(x.Images), func(o oci.ImageID) bool { return o == id })
		if len(x.Images) == 0 {
			continue
		}
		if err := r.tx.Indexes.Put(d, x); err != nil {
			return err
		}
		main := x.Images[max(0, slices.IndexFunc(x.Images, func(o oci.ImageID) bool { return host[o] }))]
		if err := r.rename(id, main, d); err != nil {
			return err
		}
	}
	return nil
}

// rename makes the names of an index that mean one of its images mean another one.
func (r *remover) rename(from, to oci.ImageID, d oci.Digest) error {
	for _, n := range r.c.names[from].all() {
		rec, err := r.tx.Names.Get(n.String())
		if err != nil || rec.Index != d {
			continue // delete removes it
		}
		rec.Image = to
		if err := r.tx.Names.Put(n.String(), rec); err != nil {
			return err
		}
		if r.c.names[to] == nil {
			r.c.names[to] = &named{}
		}
		r.c.names[to].add(n, rec)
		same := func(o oci.Reference) bool { return o.String() == n.String() }
		r.c.names[from].tags = slices.DeleteFunc(slices.Clone(r.c.names[from].tags), same)
		r.c.names[from].digests = slices.DeleteFunc(slices.Clone(r.c.names[from].digests), same)
	}
	return nil
}
