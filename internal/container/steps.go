package container

import (
	"context"
	"errors"
	"os"
	"slices"
	"time"

	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/image"
	"ply/internal/oci"
	"ply/internal/store"
)

// Steps is what a builder needs of the containers besides the Service: containers of images that it composes, and their layers. Safe for concurrent use.
type Steps struct{ s *Service }

// NewSteps returns the access of a builder to the containers of s.
func NewSteps(s *Service) *Steps { return &Steps{s} }

// CreateFrom is Service.Create for an image that the caller has looked up. The defaults of sp are those of img.Config, which may be another config than that of the image:
// a build step takes nothing of it but the layers. The variables of private are only in memory until the process starts: no record has them, so they are lost when
// plyd ends before. The container does not survive a power cut; what the
// builder does not remove before plyd ends, it finds by Container.Step afterwards.
func (b *Steps) CreateFrom(ctx context.Context, sp spec.Spec, private []string, img *image.Image) (oci.ContainerID, []string, error) {
	if err := ctx.Err(); err != nil {
		return "", nil, err
	}
	sp.Image = string(img.ID)
	id, warnings, err := create(ctx, b.s, sp, img, true)
	if err != nil {
		return "", nil, err
	}
	c, err := b.s.find(string(id))
	if err != nil {
		return "", nil, err
	}
	c.mu.Lock()
	c.private = slices.Clone(private)
	c.mu.Unlock()
	return id, warnings, nil
}

// LayerOptions of CommitLayer.
type LayerOptions struct {
	Prepare func(root *os.File) error // is called before, with the container's root; may be nil
	Latest  time.Time                 // no file of the layer is younger; zero = files keep their times
}

// CommitLayer stores the writable layer of a container that does not run as a layer, and returns the chain with it on top, which the lease protects.
// Errors: NotFound; Conflict while the container runs.
func (b *Steps) CommitLayer(ctx context.Context, ref string, lease *store.Lease, o LayerOptions) (_ oci.Chain, err error) {
	c, err := b.s.find(ref)
	if err != nil {
		return nil, err
	}
	if c.isActive() {
		return nil, errs.New(errs.Conflict, "container %s is running", c.id)
	}
	if o.Prepare != nil {
		if err := withRoot(ctx, c, o.Prepare); err != nil {
			return nil, err
		}
	}
	if err := c.root.Reserve(); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.root.Release()) }()
	chain := c.chain()
	lease.Layer(chain)
	diff, err := b.s.commitLayer(ctx, c, chain, lease, false, o.Latest)
	if err != nil {
		return nil, err
	}
	return append(slices.Clone(chain), diff), nil
}
