package container

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/image"
	"ply/internal/oci"
	"ply/internal/store/meta"
	"ply/internal/volume"
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

// List gives containers, newest first. Errors: Invalid for a filter that is unknown or malformed.
func (s *Service) List(ctx context.Context, opts ListOptions) ([]*Container, error) {
	f, err := s.parseFilters(ctx, opts.Filters)
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
		if f.match(v) {
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
	all := opts.All || opts.Limit > 0 || len(opts.Filters["status"]) > 0 || len(opts.Filters["exited"]) > 0
	var out []*Container
	before, since := f.before == nil, f.since == nil
	for _, e := range found {
		if !before {
			before = e.v.ID == *f.before
			continue
		}
		if !since && e.v.ID == *f.since {
			break
		}
		active := e.v.State.Status == StatusRunning || e.v.State.Status == StatusPaused || e.v.State.Status == StatusRestarting
		if !all && !active && f.before == nil && f.since == nil {
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

// filter is what `ps --filter` asks for.
type filter struct {
	raw           map[string][]string
	exited        []int
	ancestors     map[oci.ImageID]bool
	before, since *oci.ContainerID
	none          bool // nothing can match
}

var filterNames = []string{
	"id", "name", "label", "exited", "status", "ancestor", "before", "since", "volume", "network", "publish", "expose", "health", "is-task", "isolation",
}

var statusNames = []Status{StatusCreated, StatusRunning, StatusPaused, StatusRestarting, StatusRemoving, StatusExited, StatusDead}

func (s *Service) parseFilters(ctx context.Context, raw map[string][]string) (*filter, error) {
	f := &filter{raw: raw}
	for k, vs := range raw {
		if !slices.Contains(filterNames, k) {
			return nil, invalid("invalid filter '%s'", clip(k))
		}
		for _, v := range vs {
			if err := f.parse(s, k, v); err != nil {
				return nil, err
			}
		}
	}
	if names := raw["ancestor"]; len(names) > 0 {
		var err error
		if f.ancestors, err = s.descendants(ctx, names); err != nil {
			return nil, err
		}
	}
	return f, nil
}

func (f *filter) parse(s *Service, k, v string) error {
	switch k {
	case "exited":
		n, err := strconv.Atoi(v)
		if err != nil {
			return invalid("invalid filter 'exited=%s'", clip(v))
		}
		f.exited = append(f.exited, n)
	case "status":
		if !slices.Contains(statusNames, Status(v)) {
			return invalid("invalid filter 'status=%s'", clip(v))
		}
	case "health":
		if !slices.Contains([]string{"none", "starting", "healthy", "unhealthy"}, v) {
			return invalid("invalid filter 'health=%s'", clip(v))
		}
	case "is-task":
		b, err := strconv.ParseBool(v)
		if err != nil {
			return invalid("invalid filter 'is-task=%s'", clip(v))
		}
		f.none = f.none || b // there are no swarm tasks here
	case "before", "since":
		c, err := s.find(v)
		if err != nil {
			return err
		}
		if k == "before" {
			f.before = &c.id
		} else {
			f.since = &c.id
		}
	case "publish", "expose":
		if _, _, _, err := spec.ParsePort(v); err != nil {
			return err
		}
	}
	return nil
}

// descendants gives the named images and all that were made from them.
func (s *Service) descendants(ctx context.Context, names []string) (map[oci.ImageID]bool, error) {
	roots := map[oci.ImageID]bool{}
	for _, n := range names {
		img, err := s.opts.Images.Get(ctx, n)
		if errors.Is(err, errs.NotFound) {
			continue // docker: no match, no error
		}
		if err != nil {
			return nil, err
		}
		roots[img.ID] = true
	}
	out := map[oci.ImageID]bool{}
	err := s.opts.Store.Meta.View(func(tx *meta.Tx) error {
		var chains []oci.Chain
		for id, rec := range tx.Images.All() {
			if roots[id] {
				out[id] = true
				chains = append(chains, rec.Chain)
			}
		}
		for id, rec := range tx.Images.All() {
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
					out[id] = true // the same layers below: what docker calls an ancestor too
				}
			}
		}
		return nil
	})
	return out, err
}

func (f *filter) match(c *Container) bool {
	if f.none {
		return false
	}
	any := func(key string, ok func(v string) bool) bool {
		vs := f.raw[key]
		return len(vs) == 0 || slices.ContainsFunc(vs, ok)
	}
	health := "none"
	if c.State.Health != nil {
		health = c.State.Health.Status
	}
	return any("id", func(v string) bool { return matchText(v, string(c.ID)) }) &&
		any("name", func(v string) bool { return matchText(v, c.Name) || matchText(v, "/"+c.Name) }) &&
		volume.MatchLabels(f.raw["label"], c.Spec.Labels) &&
		any("status", func(v string) bool { return v == string(c.State.Status) }) &&
		(len(f.exited) == 0 || c.State.Status == StatusExited && slices.Contains(f.exited, c.State.ExitCode)) &&
		(f.ancestors == nil || f.ancestors[c.Image]) &&
		any("health", func(v string) bool { return v == health }) &&
		any("volume", func(v string) bool {
			return slices.ContainsFunc(c.Mounts, func(m volume.Mount) bool { return m.Name == v || m.Source == v || m.Target == v })
		}) &&
		any("network", func(v string) bool {
			if v == c.Spec.NetworkMode {
				return true
			}
			for n, e := range c.Networks {
				if n == v || strings.HasPrefix(e.NetworkID, v) {
					return true
				}
			}
			return false
		}) &&
		any("publish", func(v string) bool { return publishes(c, v) }) &&
		any("expose", func(v string) bool { return exposes(c, v) }) &&
		any("isolation", func(v string) bool { return v == "" || v == "default" })
}

// matchText: a regular expression, as docker takes them, or plain text.
func matchText(pattern, s string) bool {
	if strings.Contains(s, pattern) {
		return true
	}
	re, err := regexp.Compile(pattern)
	return err == nil && re.MatchString(s)
}

func publishes(c *Container, v string) bool {
	lo, hi, proto, err := spec.ParsePort(v)
	if err != nil {
		return false
	}
	for _, p := range c.Ports {
		if p.Proto == proto && p.HostPort != 0 && (p.ContainerPort >= lo && p.ContainerPort <= hi || p.HostPort >= lo && p.HostPort <= hi) {
			return true
		}
	}
	return false
}

func exposes(c *Container, v string) bool {
	lo, hi, proto, err := spec.ParsePort(v)
	if err != nil {
		return false
	}
	for _, e := range c.Spec.ExposedPorts {
		elo, ehi, eproto, err := spec.ParsePort(e)
		if err == nil && eproto == proto && elo <= hi && lo <= ehi {
			return true
		}
	}
	return false
}

// Prune removes containers that do not run. Filters: until, label, label!.
func (s *Service) Prune(ctx context.Context, filters map[string][]string) (ids []oci.ContainerID, reclaimed int64, err error) {
	until := time.Time{}
	for k, vs := range filters {
		switch k {
		case "label", "label!":
		case "until":
			if len(vs) != 1 {
				return nil, 0, invalid("more than one until filter specified")
			}
			if until, err = image.ParseTime(vs[0], time.Now()); err != nil {
				return nil, 0, err
			}
		default:
			return nil, 0, invalid("invalid filter '%s'", clip(k))
		}
	}
	for _, c := range s.all() {
		if ctx.Err() != nil {
			return ids, reclaimed, context.Cause(ctx)
		}
		v := s.snapshot(c)
		if c.isActive() || v.State.Status == StatusRemoving ||
			!until.IsZero() && !v.Created.Before(until) ||
			!volume.MatchLabels(filters["label"], v.Spec.Labels) ||
			len(filters["label!"]) > 0 && volume.MatchLabels(filters["label!"], v.Spec.Labels) {
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
