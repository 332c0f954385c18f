package container

import (
	"context"
	"errors"
	"sort"

	"ply/internal/errs"
	"ply/internal/filter"
	"ply/internal/oci"
	"ply/internal/store/meta"
)

// Get gives one container; size says to sum its files.
func (s *Service) Get(ctx context.Context, ref string, size bool) (*Container, error) {
	c, err := s.find(ref)
	if err != nil {
		return nil, err
	}
	out := s.snapshot(c)
	if size {
		if err := s.fillSize(ctx, c, out); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// fillSize sums the writable layer and the image's layers.
func (s *Service) fillSize(ctx context.Context, c *ctr, out *Container) (err error) {
	if err := s.holdRoot(c); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.unmountRoot(c)) }()
	c.mu.Lock()
	chain := c.rec.Chain
	c.mu.Unlock()
	rw, err := s.opts.Store.Layers.Usage(ctx, c.writableDir(), chain)
	if err != nil {
		return err
	}
	total := rw
	err = s.opts.Store.Meta.View(func(tx *meta.Tx) error {
		for _, d := range chain {
			if l, err := tx.Layers.Get(d); err == nil {
				total += l.Size
			}
		}
		return nil
	})
	out.SizeRw, out.SizeRootFs = rw, total
	return err
}

// List returns the containers that match, newest first; ListFilters lists the filters.
func (s *Service) List(ctx context.Context, opts ListOptions) ([]*Container, error) {
	sel, err := s.selection(ctx, opts.Filters)
	if err != nil {
		return nil, err
	}
	type entry struct {
		c *ctr
		v *Container
	}
	var found []entry
	for _, c := range s.all() {
		v := s.snapshot(c)
		if sel.wants(v) {
			found = append(found, entry{c, v})
		}
	}
	sort.Slice(found, func(i, j int) bool {
		a, b := found[i].v, found[j].v
		if !a.Created.Equal(b.Created) {
			return a.Created.After(b.Created)
		}
		return a.ID < b.ID
	})
	all := opts.All || opts.Limit > 0 || opts.Filters.Has("status", "exited")
	var out []*Container
	positional := sel.before != "" || sel.since != ""
	before := sel.before == ""
	for _, e := range found {
		if !before {
			before = e.v.ID == sel.before
			continue
		}
		if e.v.ID == sel.since {
			break
		}
		active := e.v.State.Status == StatusRunning || e.v.State.Status == StatusPaused || e.v.State.Status == StatusRestarting
		if !all && !active && !positional {
			continue
		}
		if opts.Size {
			if err := s.fillSize(ctx, e.c, e.v); err != nil && !errors.Is(err, errs.NotFound) {
				return nil, err
			}
		}
		out = append(out, e.v)
		if opts.Limit > 0 && len(out) == opts.Limit {
			break
		}
	}
	return out, nil
}

// Prune removes containers that do not run; PruneFilters lists the filters.
func (s *Service) Prune(ctx context.Context, filters filter.Args) (ids []oci.ContainerID, reclaimed int64, err error) {
	match, err := PruneFilters.Compile(filters)
	if err != nil {
		return nil, 0, err
	}
	for _, c := range s.all() {
		if ctx.Err() != nil {
			return ids, reclaimed, context.Cause(ctx)
		}
		v := s.snapshot(c)
		if c.isActive() || v.State.Status == StatusRemoving || !match(v) {
			continue
		}
		if err := s.fillSize(ctx, c, v); err != nil {
			v.SizeRw = 0
		}
		if err := s.Remove(ctx, string(c.id), false, false, false); err != nil {
			if !errors.Is(err, errs.Conflict) && !errors.Is(err, errs.NotFound) {
				s.log.Warn("prune: container stays", "container", c.id, "err", err)
			}
			continue
		}
		ids = append(ids, c.id)
		reclaimed += v.SizeRw
	}
	s.publishPrune(reclaimed)
	return ids, reclaimed, nil
}
