package container

import (
	"context"
	"errors"
	"slices"
	"sort"
	"strconv"

	"ply/internal/errs"
	"ply/internal/events"
	"ply/internal/filter"
	"ply/internal/oci"
	"ply/internal/store/meta"
)

// Get returns one container; size says to sum the sizes of its files. Errors: NotFound; DataLoss when its record is damaged.
func (s *Service) Get(ctx context.Context, ref string, size bool) (*Container, error) {
	c, err := s.find(ref)
	if err != nil {
		return nil, err
	}
	out := c.snapshot()
	out.InForce = s.env.inForce(&out.Spec)
	s.env.shownLinks(out)
	if size {
		if err := c.fillSize(ctx, out, s.env.layerSizes()); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// fillSize sums the sizes of the writable layer and of the image's layers, which layers returns.
func (c *ctr) fillSize(ctx context.Context, out *Container, layers func(oci.Chain) (int64, error)) error {
	rw, err := c.root.Usage(ctx)
	if err != nil {
		return err
	}
	below, err := layers(c.chain())
	if err != nil {
		return err
	}
	out.SizeRw, out.SizeRootFs = rw, rw+below
	return nil
}

// layerSizes returns a function that sums the sizes of layers. It reads the record of each once.
func (e *env) layerSizes() func(oci.Chain) (int64, error) {
	known := map[oci.DiffID]int64{}
	return func(chain oci.Chain) (sum int64, err error) {
		if slices.ContainsFunc(chain, func(d oci.DiffID) bool { _, ok := known[d]; return !ok }) {
			err = e.opts.Store.Meta.View(func(tx *meta.Tx) error {
				for _, d := range chain {
					if _, ok := known[d]; ok {
						continue
					}
					l, _ := tx.Layers.Get(d) // 0 when the record is damaged or was removed: only a number that is shown
					known[d] = l.Size
				}
				return nil
			})
		}
		for _, d := range chain {
			sum += known[d]
		}
		return sum, err
	}
}

// List returns the containers that match, newest first; ListFilters lists the filters. A container whose record is damaged is
// listed with its ID and its name, and Damaged says why.
func (s *Service) List(ctx context.Context, opts ListOptions) ([]*Container, error) {
	sel, err := s.env.selection(ctx, opts.Filters)
	if err != nil {
		return nil, err
	}
	type entry struct {
		c *ctr // nil when the record is damaged
		v *Container
	}
	var found []entry
	for _, c := range s.env.index.all() {
		v := c.snapshot()
		if sel.wants(v) {
			found = append(found, entry{c, v})
		}
	}
	shown := map[oci.ContainerID]bool{} // with a damaged record and a process
	for _, l := range s.env.index.allLost() {
		if v := l.snapshot(); sel.wants(v) {
			found = append(found, entry{nil, v})
			shown[l.id] = l.lives(s.env)
		}
	}
	sort.Slice(found, func(i, j int) bool {
		a, b := found[i].v, found[j].v
		if !a.Created.Equal(b.Created) {
			return a.Created.After(b.Created)
		}
		return a.ID < b.ID
	})
	all := opts.All || opts.Limit > 0 || opts.Filters.Has("status") // no other filter asks for containers that do not run
	var out []*Container
	linked, layers := s.env.linkNames(), s.env.layerSizes()
	before := sel.before == ""
	for _, e := range found {
		if !before {
			before = e.v.ID == sel.before
			continue
		}
		if e.v.ID == sel.since {
			break
		}
		if !all && !e.v.State.Status.active() && !shown[e.v.ID] {
			continue
		}
		if opts.Size && e.c != nil {
			err := e.c.fillSize(ctx, e.v, layers)
			if err != nil && ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			if err != nil && !errors.Is(err, errs.NotFound) { // one container must not hide the sizes of the others
				s.env.log.Warn("size of a container is unknown", "container", e.c.id, "err", err)
			}
		}
		e.v.LinkedAs = linked[e.v.ID]
		s.env.shownLinks(e.v)
		out = append(out, e.v)
		if opts.Limit > 0 && len(out) == opts.Limit {
			break
		}
	}
	return out, nil
}

// Prune removes containers that do not run, but for those of build steps, which their builds remove; PruneFilters lists the filters.
func (s *Service) Prune(ctx context.Context, filters filter.Args) (ids []oci.ContainerID, reclaimed int64, err error) {
	match, err := PruneFilters.Compile(filters)
	if err != nil {
		return nil, 0, err
	}
	layers := s.env.layerSizes()
	for _, c := range s.env.index.all() {
		if ctx.Err() != nil {
			return ids, reclaimed, context.Cause(ctx)
		}
		v := c.snapshot()
		if v.Step || c.isActive() || v.State.Status == StatusRemoving || !match(v) {
			continue
		}
		if err := c.fillSize(ctx, v, layers); err != nil {
			v.SizeRw = 0
		}
		if err := s.Remove(ctx, string(c.id), false, false, false); err != nil {
			if !errors.Is(err, errs.Conflict) && !errors.Is(err, errs.NotFound) {
				s.env.log.Warn("prune: container was not removed", "container", c.id, "err", err)
			}
			continue
		}
		ids = append(ids, c.id)
		reclaimed += v.SizeRw
	}
	s.env.opts.Events.Publish(events.Event{
		Type: "container", Action: "prune", Attributes: map[string]string{"reclaimed": strconv.FormatInt(reclaimed, 10)},
	})
	return ids, reclaimed, nil
}
