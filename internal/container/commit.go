package container

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/image"
	"ply/internal/image/change"
	"ply/internal/oci"
	"ply/internal/store"
)

// Changes lists what a container's writable layer adds, modifies and deletes.
func (s *Service) Changes(ctx context.Context, ref string) (out []Change, err error) {
	c, err := s.find(ref)
	if err != nil {
		return nil, err
	}
	if err := s.holdRoot(c); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.unmountRoot(c)) }()
	return s.opts.Store.Layers.Changes(ctx, c.writableDir(), c.chain())
}

func (c *ctr) chain() oci.Chain {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec.Chain
}

// Commit makes an image of a container: its image's layers and one more with what the writable layer holds. A
// running container is frozen meanwhile, unless opts.Pause is false. What lies in volumes is not in the image;
// the result names their places. Errors: NotFound, Conflict, Invalid for a change.
func (s *Service) Commit(ctx context.Context, ref string, opts CommitOptions) (res CommitResult, err error) {
	c, err := s.find(ref)
	if err != nil {
		return res, err
	}
	switch st := c.status(); st {
	case StatusDead, StatusRemoving:
		return res, errs.New(errs.Conflict, "You cannot commit container %s which is %s", c.id, st)
	}
	base, err := s.baseImage(ctx, c)
	if err != nil {
		return res, err
	}
	cfg, err := s.commitConfig(c, base, &opts)
	if err != nil {
		return res, err
	}
	if err := s.holdRoot(c); err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, s.unmountRoot(c)) }()
	lease := s.opts.Store.Lease()
	defer lease.Release()
	chain := c.chain()
	lease.Layer(chain)
	diff, err := s.commitLayer(ctx, c, chain, lease, opts.Pause)
	if err != nil {
		return res, err
	}
	cfg.RootFS.DiffIDs = append(slices.Clone(chain), diff)
	o := image.CreateOptions{Config: cfg, Format: opts.Format, Name: opts.Name, Message: opts.Message}
	if base != nil {
		o.Parent = base.ID
	}
	if res.ID, err = s.opts.Images.Create(ctx, lease, o); err != nil {
		return res, err
	}
	c.mu.Lock()
	for _, m := range c.rec.Mounts {
		res.LeftOut = append(res.LeftOut, m.Target)
	}
	c.mu.Unlock()
	name := ""
	if !opts.Name.IsZero() {
		name = opts.Name.Familiar()
	}
	s.publish(c, "commit", "comment", opts.Message, "imageID", string(res.ID), "imageRef", name)
	return res, nil
}

// baseImage gives the image that the container was made from; nil when it was removed by force.
func (s *Service) baseImage(ctx context.Context, c *ctr) (*image.Image, error) {
	c.mu.Lock()
	id := c.rec.Image
	c.mu.Unlock()
	img, err := s.opts.Images.Get(ctx, string(id))
	if errors.Is(err, errs.NotFound) {
		return nil, nil
	}
	return img, err
}

// commitConfig makes the config of the new image, but for its layers.
func (s *Service) commitConfig(c *ctr, base *image.Image, opts *CommitOptions) (cfg oci.Config, err error) {
	c.mu.Lock()
	r := &c.rec
	run := r.Spec.RunConfig()
	by := strings.Join(append([]string{r.Path}, r.Args...), " ")
	cfg.OS, cfg.Architecture, cfg.Variant = r.Platform.OS, r.Platform.Architecture, r.Platform.Variant
	layers := len(r.Chain)
	c.mu.Unlock()
	if base != nil {
		cfg = base.Config
		cfg.History = slices.Clone(cfg.History)
	}
	// The base's history went with its image, or never told of every layer: the new layer's entry must stand at its place.
	for n := madeLayers(cfg.History); n < layers; n++ {
		cfg.History = append(cfg.History, oci.History{})
	}
	if opts.Config != nil {
		over := spec.Spec{}
		over.Take(opts.Config)
		over.Merge(&run)
		run = over.RunConfig()
	}
	if err := change.Apply(&run, opts.Changes); err != nil {
		return cfg, err
	}
	now := time.Now().UTC()
	cfg.Created, cfg.Author, cfg.Comment, cfg.Container, cfg.Config = &now, opts.Author, opts.Message, string(c.id), run
	cfg.ContainerConfig, cfg.Parent, cfg.DockerVersion = nil, "", ""
	cfg.History = append(cfg.History, oci.History{Created: &now, CreatedBy: by, Author: opts.Author, Comment: opts.Message})
	return cfg, nil
}

// madeLayers counts the steps of a history that made a layer.
func madeLayers(history []oci.History) int {
	n := 0
	for _, h := range history {
		if !h.EmptyLayer {
			n++
		}
	}
	return n
}

// commitLayer turns the writable layer into a stored one, in one pass: walked, hashed, indexed, synced.
func (s *Service) commitLayer(ctx context.Context, c *ctr, chain oci.Chain, lease *store.Lease, pause bool) (_ oci.DiffID, err error) {
	// A removal holds the slot and waits for our hold on the root: nothing below may wait for the slot longer.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.done, cancel)()
	defer func() {
		if err != nil && c.done.Err() != nil {
			err = errs.New(errs.NotFound, "No such container: %s", c.id)
		}
	}()
	if pause {
		thaw, err := s.hold(ctx, c)
		if err != nil {
			return "", err
		}
		defer thaw()
	}
	drv := s.opts.Store.Layers
	w, err := drv.Create(ctx)
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Abort())
		}
	}()
	if err := drv.Diff(ctx, c.writableDir(), chain, w); err != nil {
		return "", err
	}
	info, err := w.Commit(ctx, chain, "")
	if err != nil {
		return "", err
	}
	lease.Layer(append(slices.Clone(chain), info.DiffID))
	return info.DiffID, s.opts.Store.RecordLayer(info, nil)
}

// hold freezes a running container; thaw lets it go on, unless somebody else has done so.
func (s *Service) hold(ctx context.Context, c *ctr) (thaw func(), err error) {
	if err := c.lock(ctx); err != nil {
		return nil, err
	}
	defer c.release()
	l, err := c.running()
	if err != nil || c.status() != StatusRunning {
		return func() {}, nil // nothing moves
	}
	if err := c.freeze(ctx, l); err != nil {
		if errors.Is(err, errs.Precondition) || errors.Is(err, errs.Unavailable) {
			return func() {}, nil // it ended in this moment
		}
		return nil, errs.New(errs.Conflict, "cannot pause container %s: %w", c.id, err)
	}
	s.publish(c, "pause")
	return func() {
		ctx, cancel := context.WithTimeout(c.done, cleanupLimit)
		defer cancel()
		if c.acquire(ctx) != nil {
			return // it is being removed
		}
		defer c.release()
		c.mu.Lock()
		ours := c.life == l && c.rec.State.Status == StatusPaused
		c.mu.Unlock()
		if !ours {
			return
		}
		err := c.thaw(ctx, l)
		if errors.Is(err, errs.Precondition) || errors.Is(err, errs.Unavailable) {
			return // it was killed, and its end comes to us yet
		}
		if err != nil {
			s.log.Error("container stays frozen after its commit", "container", c.id, "err", err)
			return
		}
		s.publish(c, "unpause")
	}, nil
}
