package docker

import (
	"net/http"
	"time"

	"ply/internal/volume"
)

func (s *server) volumeRoutes(add adder) {
	add(get, "/volumes", s.volumeList)
	add(post, "/volumes/create", s.volumeCreate)
	add(post, "/volumes/prune", s.volumePrune)
	add(get, "/volumes/{name}", s.volumeInspect)
	add(remove, "/volumes/{name}", s.volumeRemove)
}

type volumeAnswer struct {
	CreatedAt  string `json:",omitempty"`
	Driver     string
	Labels     map[string]string
	Mountpoint string
	Name       string
	Options    map[string]string
	Scope      string
	UsageData  *volumeUsage `json:",omitempty"`
}

type volumeUsage struct {
	Size     int64
	RefCount int
}

func volumeOf(v *volume.Volume) volumeAnswer {
	a := volumeAnswer{Driver: v.Driver, Labels: v.Labels, Mountpoint: v.Mountpoint, Name: v.Name, Options: v.Options, Scope: "local"}
	if !v.Created.IsZero() {
		a.CreatedAt = v.Created.Format(time.RFC3339)
	}
	return a
}

func (s *server) volumeList(c *call) error {
	filters, err := c.filters()
	if err != nil {
		return err
	}
	volumes, err := s.Volumes.List(c.ctx(), filters)
	if err != nil {
		return err
	}
	answer := struct {
		Volumes  []volumeAnswer
		Warnings []string
	}{Volumes: make([]volumeAnswer, 0, len(volumes))}
	for _, v := range volumes {
		answer.Volumes = append(answer.Volumes, volumeOf(v))
	}
	return c.json(http.StatusOK, answer)
}

func (s *server) volumeCreate(c *call) error {
	var body struct {
		Name, Driver       string
		DriverOpts, Labels map[string]string
		ClusterVolumeSpec  *struct{}
	}
	if err := c.body(&body, true); err != nil {
		return err
	}
	if body.ClusterVolumeSpec != nil {
		return unsupported("ClusterVolumeSpec", "this engine is no part of a cluster")
	}
	v, err := s.Volumes.Create(c.ctx(), body.Name, body.Driver, body.Labels, body.DriverOpts)
	if err != nil {
		return err
	}
	return c.json(http.StatusCreated, volumeOf(v))
}

func (s *server) volumeInspect(c *call) error {
	v, err := s.Volumes.Get(c.ctx(), c.vars["name"])
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, volumeOf(v))
}

func (s *server) volumeRemove(c *call) error {
	return c.done(s.Volumes.Remove(c.ctx(), c.vars["name"], c.bool("force")))
}

func (s *server) volumePrune(c *call) error {
	filters, err := c.filters()
	if err != nil {
		return err
	}
	if c.v < 42 { // before, named volumes were pruned too
		filters["all"] = []string{"true"}
	}
	names, freed, err := s.Volumes.Prune(c.ctx(), filters)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, struct {
		VolumesDeleted []string
		SpaceReclaimed int64
	}{names, freed})
}
