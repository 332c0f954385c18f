package docker

import (
	"net/http"

	"ply/internal/container"
	"ply/internal/wire"
)

// checkpointHandlers serves the checkpoints of containers.
type checkpointHandlers struct{ checkpoints Checkpoints }

func (h checkpointHandlers) routes(add adder) {
	add(get, "/containers/{id}/checkpoints", h.list)
	add(post, "/containers/{id}/checkpoints", h.create)
	add(remove, "/containers/{id}/checkpoints/{checkpoint}", h.remove)
}

func (h checkpointHandlers) list(c *call) error {
	names, err := h.checkpoints.List(c.ctx(), c.vars["id"], c.get("dir"))
	if err != nil {
		return err
	}
	list := make([]wire.Checkpoint, len(names))
	for i, name := range names {
		list[i].Name = name
	}
	return c.json(http.StatusOK, list)
}

func (h checkpointHandlers) create(c *call) error {
	var o wire.CheckpointOptions
	if err := c.body(&o, false); err != nil {
		return err
	}
	p := container.Checkpoint{Name: o.CheckpointID, Dir: o.CheckpointDir}
	if err := h.checkpoints.Create(c.ctx(), c.vars["id"], p, !o.Exit); err != nil {
		return err
	}
	return c.none(http.StatusCreated)
}

func (h checkpointHandlers) remove(c *call) error {
	return c.done(h.checkpoints.Remove(c.ctx(), c.vars["id"], container.Checkpoint{Name: c.vars["checkpoint"], Dir: c.get("dir")}))
}
