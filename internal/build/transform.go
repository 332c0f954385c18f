package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"ply/internal/build/cachetransfer"
	"ply/internal/build/dockerfile"
	"ply/internal/build/export"
	"ply/internal/build/ops"
	"ply/internal/build/solver"
	"ply/internal/errs"
	"ply/internal/oci"
)

// point is the file system after an instruction.
type point struct {
	stage string
	ref   string // of a FROM, the image
	chain oci.Chain
}

// transform returns the images as an output wants them: squashed, or without files and times younger than the epoch.
func (x *exporting) transform(ctx context.Context, o *export.Output) (*exporting, error) {
	if o.Squash == "" && o.Epoch == nil && !o.Rewrite {
		return x, nil
	}
	y := *x
	y.images = slices.Clone(x.images)
	for i, m := range x.images {
		m := *m
		epoch := x.epoch(o, &m)
		if o.Squash != "" {
			if err := x.squash(ctx, o.Squash, epoch, &m); err != nil {
				return nil, fmt.Errorf("squash: %w", err)
			}
		}
		if o.Rewrite && epoch == nil {
			x.l.Warn(dockerfile.Warning{Message: "rewrite-timestamp is specified, but no source-date-epoch was found", Note: true})
		}
		if o.Rewrite && epoch != nil {
			if err := x.clamp(ctx, *epoch, &m); err != nil {
				return nil, fmt.Errorf("rewrite-timestamp: %w", err)
			}
		}
		if o.Epoch != nil {
			err := m.edit(func(c *oci.Config, _ map[string]json.RawMessage) {
				c.Created = o.Epoch
				for n := range c.History {
					if h := &c.History[n]; h.Created == nil || h.Created.After(*o.Epoch) {
						h.Created = o.Epoch
					}
				}
			})
			if err != nil {
				return nil, err
			}
		}
		y.images[i] = &m
	}
	return &y, nil
}

// edit changes the config of an image and keeps what it does not know.
func (m *made) edit(change func(c *oci.Config, fields map[string]json.RawMessage)) error {
	c, fields, err := decodeConfig(m.raw)
	if err != nil {
		return err
	}
	change(&c, fields)
	for key, v := range map[string]any{"created": c.Created, "history": c.History, "rootfs": c.RootFS} {
		if fields[key], err = json.Marshal(v); err != nil {
			return errs.New(errs.Internal, "image config: %w", err)
		}
	}
	if c.Created == nil {
		delete(fields, "created")
	}
	if m.raw, err = json.Marshal(fields); err != nil {
		return errs.New(errs.Internal, "image config: %w", err)
	}
	m.chain = c.RootFS.DiffIDs
	return nil
}

// base returns how many layers of an image are those of its base image.
func (m *made) base() int {
	if m.out.BaseConfig == nil {
		return 0
	}
	c, _, err := decodeConfig(m.out.BaseConfig)
	if err != nil {
		return 0
	}
	return common(m.chain, c.RootFS.DiffIDs)
}

// common returns how many layers two chains begin with together.
func common(a, b oci.Chain) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}

// squashFrom returns how many layers stay when those after the stage or the image of that name become one.
func (m *made) squashFrom(name string) (int, error) {
	if name == export.SquashNew {
		return m.base(), nil
	}
	found := -1
	image := ""
	if ref, err := oci.ParseReference(name); err == nil {
		image = ref.WithDefaultTag().String()
	}
	for _, p := range m.points {
		if strings.EqualFold(p.stage, name) || p.ref != "" && p.ref == image {
			found = len(p.chain)
			if common(m.chain, p.chain) < len(p.chain) {
				return 0, errs.New(errs.Invalid, "%s is no base of the image", name)
			}
		}
	}
	if found < 0 {
		return 0, errs.New(errs.NotFound, "the image is not built on a stage or an image %s", name)
	}
	return found, nil
}

// squash makes one layer of those above the first ones that stay.
func (x *exporting) squash(ctx context.Context, from string, epoch *time.Time, m *made) error {
	stay, err := m.squashFrom(from)
	if err != nil || len(m.chain)-stay < 2 {
		return err
	}
	below, err := x.job.Tree(ctx, &solver.Result{Chain: m.chain[:stay]})
	if err != nil {
		return err
	}
	above, err := x.tree(ctx, m)
	if err != nil {
		return err
	}
	var latest time.Time
	if epoch != nil {
		latest = *epoch
	}
	var chain oci.Chain
	err = x.step("squashing the layers for "+m.out.Platform.String(), func(*ops.Vertex) (err error) {
		chain, err = x.s.runner.Layer(ctx, x.lease, m.chain[:stay], func(w io.Writer) (err error) {
			var layers []io.Reader
			for n := stay; n < len(m.chain); n++ {
				t, err := x.s.o.Store.Layers.Tar(ctx, m.chain[:n+1])
				if err != nil {
					return err
				}
				defer errs.Close(&err, t)
				layers = append(layers, t)
			}
			return export.Squash(ctx, below, above, layers, latest, w)
		})
		return err
	})
	if err != nil {
		return err
	}
	old := oci.DigestOf(m.raw)
	m.parent = "" // its layers are not those of the step before
	return m.edit(func(c *oci.Config, fields map[string]json.RawMessage) {
		n := 0
		for i := range c.History {
			if h := &c.History[i]; !h.EmptyLayer {
				if n++; n > stay {
					h.EmptyLayer = true
				}
			}
		}
		c.History = append(c.History, oci.History{Created: c.Created, Comment: "merge " + string(old) + " to " + string(m.chain[:stay].ID())})
		c.RootFS.DiffIDs = chain
		delete(fields, cachetransfer.InlineField) // it counts the layers
	})
}

// clamp replaces the layers above the base image that have files younger than the epoch.
func (x *exporting) clamp(ctx context.Context, epoch time.Time, m *made) error {
	stay := m.base()
	chain := slices.Clone(m.chain[:stay])
	changed := false
	for n := stay; n < len(m.chain); n++ {
		younger, err := x.younger(ctx, m.chain[:n+1], epoch)
		if err != nil {
			return err
		}
		changed = changed || younger
		if !changed {
			chain = append(chain, m.chain[n])
			continue
		}
		// A layer on another one is stored again, even if it stays the same: a driver may keep it by what is below.
		chain, err = x.s.runner.Layer(ctx, x.lease, chain, func(w io.Writer) (err error) {
			t, err := x.s.o.Store.Layers.Tar(ctx, m.chain[:n+1])
			if err != nil {
				return err
			}
			defer errs.Close(&err, t)
			if !younger {
				_, err = io.Copy(w, t)
				return err
			}
			return export.Clamp(ctx, t, epoch, w)
		})
		if err != nil {
			return err
		}
	}
	if !changed {
		return nil
	}
	m.parent = ""
	return m.edit(func(c *oci.Config, _ map[string]json.RawMessage) { c.RootFS.DiffIDs = chain })
}

func (x *exporting) younger(ctx context.Context, chain oci.Chain, epoch time.Time) (bool, error) {
	t, err := x.s.o.Store.Layers.Tar(ctx, chain)
	if err != nil {
		return false, err
	}
	younger, err := export.Younger(ctx, t, epoch)
	return younger, errors.Join(err, t.Close())
}
