package docker

import (
	"errors"
	"net/http"
	"slices"
	"time"

	"ply/internal/container"
	"ply/internal/errs"
	"ply/internal/image"
	"ply/internal/oci"
	"ply/internal/wire"
)

// usageHandlers serves the use of disk space.
type usageHandlers struct {
	images     Images
	containers containerLister
	volumes    Volumes
	builder    Builder
	now        func() time.Time
}

func (h usageHandlers) routes(add adder) { add(get, "/system/df", h.diskUsage) }

// diskUsage answers GET /system/df. With totals=1, which is ply's, it answers with sums instead of lists: they are much smaller.
func (h usageHandlers) diskUsage(c *call) error {
	types := c.q["type"]
	for _, t := range types {
		if !slices.Contains([]string{"container", "image", "volume", "build-cache"}, t) {
			return errs.New(errs.Invalid, "unknown object type: %s", clip(t))
		}
	}
	wanted := func(t string) bool { return len(types) == 0 || slices.Contains(types, t) }
	var answer wire.DiskUsage
	containers, err := h.containers.List(c.ctx(), container.ListOptions{All: true, Size: wanted("container")})
	if err != nil {
		return err
	}
	if wanted("image") {
		uses := map[oci.ImageID]int64{}
		for _, ctr := range containers {
			uses[ctr.Image]++
		}
		images, err := h.images.List(c.ctx(), image.ListOptions{Shared: true})
		if err != nil {
			return err
		}
		answer.Images = []wire.Image{}
		for _, img := range images {
			answer.Images = append(answer.Images, summaryOf(img, c.v, uses[img.ID], true))
		}
		if answer.LayersSize, err = h.images.LayersSize(c.ctx()); err != nil {
			return err
		}
	}
	if wanted("container") {
		answer.Containers = []wire.Container{}
		now := h.now()
		for _, ctr := range containers {
			answer.Containers = append(answer.Containers, containerSummaryOf(ctr, c.v, true, now))
		}
	}
	if wanted("volume") {
		volumes, err := h.volumes.List(c.ctx(), map[string][]string{})
		if err != nil {
			return err
		}
		answer.Volumes = []wire.Volume{}
		for _, v := range volumes {
			a := volumeOf(v)
			size, err := h.volumes.Size(c.ctx(), v.Name)
			if errors.Is(err, errs.NotFound) {
				continue // it was removed after the list was made
			}
			if err != nil {
				return err
			}
			a.UsageData = &wire.VolumeUsage{Size: size, RefCount: int64(v.RefCount)}
			answer.Volumes = append(answer.Volumes, a)
		}
	}
	if wanted("build-cache") {
		if answer.BuildCache, err = buildCacheOf(c.ctx(), h.builder); err != nil {
			return err
		}
	}
	if c.v < 42 {
		answer.BuilderSize = new(int64)
	}
	if c.bool("totals") {
		t := answer.Total()
		answer = wire.DiskUsage{LayersSize: answer.LayersSize, Totals: &t}
	}
	return c.json(http.StatusOK, answer)
}
