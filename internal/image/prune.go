package image

import (
	"context"
	"slices"
	"strconv"
	"time"

	"ply/internal/events"
	"ply/internal/filter"
	"ply/internal/oci"
	"ply/internal/store/meta"
)

// Prune removes images that no container uses: without filters those without a tag, with dangling=false all. It removes them in one
// transaction. The second result is the freed space in bytes. PruneFilters lists the filters.
func (s *Service) Prune(ctx context.Context, opts PruneOptions) ([]Removed, int64, error) {
	c, err := s.read()
	if err != nil {
		return nil, 0, err
	}
	match, err := PruneFilters.Compile(opts.Filters)
	if err != nil {
		return nil, 0, err
	}
	dangling, err := danglingOf(opts.Filters)
	if err != nil {
		return nil, 0, err
	}
	all := dangling != nil && !*dangling
	needsConfig := opts.Filters.Has("until", "label", "label!")
	candidates, err := s.prunable(ctx, c, match, needsConfig, all)
	if err != nil {
		return nil, 0, err
	}
	gone, freed, err := s.removeEach(ctx, candidates, func(r *remover, id oci.ImageID) error { return r.prune(id, all) })
	if err == nil && s.opts.Events != nil {
		s.opts.Events.Publish(events.Event{Type: "image", Action: "prune", Attributes: map[string]string{"reclaimed": strconv.FormatInt(freed, 10)}})
	}
	return gone, freed, err
}

// removeEach calls remove for every candidate in one transaction, and then frees the space of what was removed. The candidates were chosen before, so remove looks at
// each again. The second result is the freed space in bytes.
func (s *Service) removeEach(ctx context.Context, candidates []oci.ImageID, remove func(*remover, oci.ImageID) error) ([]Removed, int64, error) {
	r, err := s.removing(ctx, func(*meta.Tx) ([]oci.ImageID, error) {
		return candidates, nil
	}, func(r *remover) error {
		for _, id := range candidates {
			if err := remove(r, id); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, 0, err
	}
	freed, err := s.finish(ctx, r)
	return r.out, freed, err
}

// prunable returns the images that match the filters, children before their parents. With needsConfig, it leaves out images whose
// config is damaged, because it is unknown whether they match.
func (s *Service) prunable(ctx context.Context, c *catalog, match filter.Match[*Image], needsConfig, all bool) ([]oci.ImageID, error) {
	parents, depths := c.parents(), map[oci.ImageID]int{}
	type candidate struct {
		id      oci.ImageID
		made    time.Time
		ordinal int
	}
	var found []candidate
	for id, rec := range c.images {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		if c.damaged[id] != nil {
			continue // whether it matches is unknown, and a repair may bring it back
		}
		n := c.names[id]
		if n.count() == 0 && (parents[id] || rec.Step != "" || c.inIndex[id]) || n != nil && len(n.tags) > 0 && !all {
			continue
		}
		img := build(id, rec, n, 0)
		cfg, _, err := s.config(id)
		if err != nil && needsConfig {
			continue
		}
		img.Config = cfg
		if match(img) {
			found = append(found, candidate{id, rec.Created, c.depth(id, depths)})
		}
	}
	slices.SortFunc(found, func(a, b candidate) int {
		if a.ordinal != b.ordinal {
			return b.ordinal - a.ordinal
		}
		if n := b.made.Compare(a.made); n != 0 {
			return n
		}
		return compareIDs(a.id, b.id)
	})
	ids := make([]oci.ImageID, len(found))
	for i, x := range found {
		ids[i] = x.id
	}
	return ids, nil
}

func compareIDs(a, b oci.ImageID) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// depth returns how many images an image stands on, itself included. It keeps the depths that it finds in known, so that many images of one chain cost one walk.
func (c *catalog) depth(id oci.ImageID, known map[oci.ImageID]int) int {
	n, ok := known[id]
	if id != "" && !ok {
		known[id] = 0 // where records lead back to themselves
		n = 1 + c.depth(c.images[id].Parent, known)
		known[id] = n
	}
	return n
}

// prune removes one image, unless it has got a tag since it was chosen or a container uses it.
func (r *remover) prune(id oci.ImageID, all bool) error {
	if _, ok := r.c.images[id]; !ok || r.used(id).by != "" {
		return nil
	}
	n := r.c.names[id]
	if n != nil && len(n.tags) > 0 && !all {
		return nil // tagged since it was chosen
	}
	if r.hasChildren(id) && n.count() == 0 {
		return nil
	}
	for _, name := range n.all() {
		if err := r.untag(id, name); err != nil {
			return err
		}
	}
	return r.delete(id, false, true, true)
}
