package container

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/image"
	"ply/internal/image/change"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/store/layer"
)

// Changes lists what a container's writable layer adds, modifies and deletes.
func (s *Service) Changes(ctx context.Context, ref string) (out []Change, err error) {
	c, err := s.find(ref)
	if err != nil {
		return nil, err
	}
	if err := c.root.Reserve(); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.root.Release()) }()
	return s.env.opts.Store.Layers.Changes(ctx, c.paths.writable, c.chain())
}

// Commit makes an image of a container: the layers of its image and one more with the content of the writable layer. A
// running container is frozen meanwhile, unless opts.Pause is false. The content of volumes is not in the image;
// the result names their mount points. Errors: NotFound, Conflict, Invalid for a change.
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
	if err := c.root.Reserve(); err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, c.root.Release()) }()
	lease := s.env.opts.Store.Lease()
	defer lease.Release()
	chain := c.chain()
	lease.Layer(chain)
	diff, err := s.commitLayer(ctx, c, chain, lease, opts.Pause, time.Time{})
	if err != nil {
		return res, err
	}
	cfg.RootFS.DiffIDs = append(slices.Clone(chain), diff)
	o := image.CreateOptions{Config: cfg, Format: opts.Format, Name: opts.Name, Message: opts.Message}
	if base != nil {
		o.Parent = base.ID
	}
	if res.ID, err = s.env.opts.Images.Create(ctx, lease, o); err != nil {
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
	c.publish("commit", "comment", opts.Message, "imageID", string(res.ID), "imageRef", name)
	return res, nil
}

// baseImage returns the image that the container was made from; nil when it was removed by force.
func (s *Service) baseImage(ctx context.Context, c *ctr) (*image.Image, error) {
	c.mu.Lock()
	id := c.rec.Image
	c.mu.Unlock()
	img, err := s.env.opts.Images.Get(ctx, string(id))
	if errors.Is(err, errs.NotFound) {
		return nil, nil
	}
	return img, err
}

// commitConfig returns the config of the new image without its layers.
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
	// The history may lack entries: the base image was removed, or its history does not name every layer. The entry of the
	// new layer must be at the layer's position.
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

// commitLayer stores the writable layer as a layer. One pass reads, hashes, indexes and writes it.
func (s *Service) commitLayer(ctx context.Context, c *ctr, chain oci.Chain, lease *store.Lease, pause bool, latest time.Time) (_ oci.DiffID, err error) {
	// A removal holds the slot and waits for our reference to the root, so ctx, which bounds waiting for the slot below,
	// ends with the removal.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.done, cancel)()
	defer func() {
		if err != nil && c.done.Err() != nil {
			err = errs.New(errs.NotFound, "No such container: %s", c.id)
		}
	}()
	if pause {
		thaw, err := c.freezeForCommit(ctx)
		if err != nil {
			return "", err
		}
		defer thaw()
	}
	drv := s.env.opts.Store.Layers
	w, err := drv.Create(ctx)
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Abort())
		}
	}()
	if err := diff(ctx, drv, c.paths.writable, chain, w, latest); err != nil {
		return "", err
	}
	w.End()
	id := w.DiffID()
	lease.Layer(append(slices.Clone(chain), id))
	info, err := w.Commit(ctx, chain, id)
	if err != nil {
		return "", err
	}
	return info.DiffID, s.env.opts.Store.RecordLayer(info, nil)
}

func diff(ctx context.Context, drv layer.Driver, dir string, chain oci.Chain, w io.Writer, latest time.Time) error {
	if latest.IsZero() {
		return drv.Diff(ctx, dir, chain, w)
	}
	c := layer.Clamp(w, latest)
	return errors.Join(drv.Diff(ctx, dir, chain, c), c.Close())
}

// freezeForCommit freezes a running container. thaw lets it go on, unless another request has done so. A container that is
// just ending is not frozen: when freezeForCommit returns, its end is recorded.
func (c *ctr) freezeForCommit(ctx context.Context) (thaw func(), err error) {
	const tries = 5 // a restart policy may start it again before the next try
	for range tries {
		w := c.wait(WaitNextExit)
		thaw, err = c.tryFreeze(ctx)
		if err == nil || ctx.Err() != nil || !w.await(ctx, endWait) {
			w.cancel()
			return thaw, err
		}
		w.cancel()
	}
	return nil, err
}

// tryFreeze is freezeForCommit without waiting for the end of a container that cannot be frozen.
func (c *ctr) tryFreeze(ctx context.Context) (thaw func(), err error) {
	if err := c.lock(ctx); err != nil {
		return nil, err
	}
	defer c.release()
	l, err := c.running()
	if err != nil || c.status() != StatusRunning {
		return func() {}, nil // no process changes files
	}
	if err := l.freeze(ctx); err != nil {
		return nil, errs.New(errs.Conflict, "cannot pause container %s: %w", c.id, err)
	}
	c.publish("pause")
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
		err := l.thaw(ctx)
		if errors.Is(err, errs.Precondition) || errors.Is(err, errs.Unavailable) {
			return // it was killed, and its end will be recorded
		}
		if err != nil {
			c.env.log.Error("container was not thawed after its commit", "container", c.id, "err", err)
			return
		}
		c.publish("unpause")
	}, nil
}
