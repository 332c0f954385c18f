package docker

import (
	"net/http"
	"time"

	"ply/internal/errs"
	"ply/internal/volume"
	"ply/internal/wire"
)

// volumeHandlers serves volumes.
type volumeHandlers struct{ volumes Volumes }

func (h volumeHandlers) routes(add adder) {
	add(get, "/volumes", h.list)
	add(post, "/volumes/create", h.create)
	add(post, "/volumes/prune", h.prune)
	add(get, "/volumes/{name}", h.inspect)
	add(remove, "/volumes/{name}", h.remove)
	// Docker has none of these.
	add(get, "/volumes/{name}/export", h.export)
	add(post, "/volumes/{name}/import", h.importInto)
	add(post, "/volumes/{name}/copy", h.copyTo)
	add(post, "/volumes/{name}/rename", h.rename)
}

func volumeOf(v *volume.Volume) wire.Volume {
	a := wire.Volume{Driver: v.Driver, Labels: v.Labels, Mountpoint: v.Mountpoint, Name: v.Name, Options: v.Options, Scope: "local"}
	if v.Damaged != nil { // clients show the driver in lists, and nothing else that could say it
		a.Driver, a.Status = "damaged", map[string]any{"Damaged": v.Damaged.Error()}
	}
	if !v.Created.IsZero() {
		a.CreatedAt = v.Created.Format(time.RFC3339)
	}
	return a
}

func (h volumeHandlers) list(c *call) error {
	filters, err := c.filters()
	if err != nil {
		return err
	}
	volumes, err := h.volumes.List(c.ctx(), filters)
	if err != nil {
		return err
	}
	answer := wire.Volumes{Volumes: make([]wire.Volume, 0, len(volumes))}
	for _, v := range volumes {
		answer.Volumes = append(answer.Volumes, volumeOf(v))
		if v.Damaged != nil {
			answer.Warnings = append(answer.Warnings, v.Damaged.Error())
		}
	}
	return c.json(http.StatusOK, answer)
}

func (h volumeHandlers) create(c *call) error {
	var body wire.VolumeBody
	if err := c.body(&body, true); err != nil {
		return err
	}
	if body.ClusterVolumeSpec != nil {
		return unsupported("ClusterVolumeSpec", "this engine is not part of a cluster")
	}
	v, err := h.volumes.Create(c.ctx(), body.Name, body.Driver, body.Labels, body.DriverOpts)
	if err != nil {
		return err
	}
	return c.json(http.StatusCreated, volumeOf(v))
}

func (h volumeHandlers) inspect(c *call) error {
	v, err := h.volumes.Get(c.ctx(), c.vars["name"])
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, volumeOf(v))
}

func (h volumeHandlers) remove(c *call) error {
	return c.done(h.volumes.Remove(c.ctx(), c.vars["name"], c.bool("force")))
}

func (h volumeHandlers) prune(c *call) error {
	filters, err := c.filters()
	if err != nil {
		return err
	}
	if c.v < 42 { // until 1.41 named volumes were pruned too
		filters["all"] = []string{"true"}
	}
	names, freed, err := h.volumes.Prune(c.ctx(), filters)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, wire.VolumesPruned{VolumesDeleted: names, SpaceReclaimed: freed})
}

// newName reads the parameter name.
func (c *call) newName() (string, error) {
	name := c.get("name")
	if name == "" {
		return "", errs.New(errs.Invalid, "bad parameter: 'name' cannot be empty")
	}
	return name, nil
}

// export answers with the content of a volume. A volume that is not there is found out before the first byte.
func (h volumeHandlers) export(c *call) error {
	c.w.Header().Set("Content-Type", "application/x-tar")
	return h.volumes.Export(c.ctx(), c.vars["name"], c.w)
}

// importInto fills a volume from the body, a tar stream. It answers with the volume.
func (h volumeHandlers) importInto(c *call) error {
	v, err := h.volumes.Import(c.ctx(), c.vars["name"], c.r.Body)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, volumeOf(v))
}

// copyTo makes the volume of the parameter name from another one. It answers with the new volume.
func (h volumeHandlers) copyTo(c *call) error {
	name, err := c.newName()
	if err != nil {
		return err
	}
	v, err := h.volumes.Copy(c.ctx(), c.vars["name"], name)
	if err != nil {
		return err
	}
	return c.json(http.StatusCreated, volumeOf(v))
}

func (h volumeHandlers) rename(c *call) error {
	name, err := c.newName()
	if err != nil {
		return err
	}
	return c.done(h.volumes.Rename(c.ctx(), c.vars["name"], name))
}
