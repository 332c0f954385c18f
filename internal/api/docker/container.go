package docker

import (
	"context"
	"net/http"
	"strings"
	"time"

	"ply/internal/container"
	"ply/internal/errs"
	"ply/internal/wire"
)

// containerHandlers serves the life and the state of containers, and the images made from them.
type containerHandlers struct {
	containers  Lifecycle
	checkpoints Checkpoints
	state       ContainerState
	commits     Committer
	images      imageGetter
	now         func() time.Time
}

func (h containerHandlers) routes(add adder) {
	add(get, "/containers/json", h.list)
	add(post, "/containers/create", h.create)
	add(post, "/containers/prune", h.prune)
	add(get, "/containers/{id}/json", h.inspect)
	add(get, "/containers/{id}/top", h.top)
	add(get, "/containers/{id}/changes", h.changes)
	add(get, "/containers/{id}/stats", h.stats)
	add(post, "/containers/{id}/start", h.start)
	add(post, "/containers/{id}/stop", h.stop)
	add(post, "/containers/{id}/restart", h.restart)
	add(post, "/containers/{id}/kill", h.kill)
	add(post, "/containers/{id}/update", h.update)
	add(post, "/containers/{id}/rename", h.rename)
	add(post, "/containers/{id}/pause", h.pause)
	add(post, "/containers/{id}/unpause", h.unpause)
	add(post, "/containers/{id}/wait", h.wait)
	add(remove, "/containers/{id...}", h.remove) // a link is named CONTAINER/ALIAS
	add(post, "/commit", h.commit)
}

// done answers 204 when err is nil.
func (c *call) done(err error) error {
	if err != nil {
		return err
	}
	return c.none(http.StatusNoContent)
}

func (h containerHandlers) start(c *call) error {
	b, err := c.bytes()
	if err != nil {
		return err
	}
	if t := strings.TrimSpace(string(b)); t != "" && t != "{}" && t != "null" {
		return errs.New(errs.Invalid, "starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24")
	}
	name, dir := c.get("checkpoint"), c.get("checkpoint-dir")
	if name == "" && dir != "" {
		return errs.New(errs.Invalid, "checkpoint-dir %q needs a checkpoint", clip(dir))
	}
	if name != "" {
		return c.done(h.checkpoints.Start(c.ctx(), c.vars["id"], container.Checkpoint{Name: name, Dir: dir}))
	}
	return c.done(h.containers.Start(c.ctx(), c.vars["id"]))
}

// stopTimeout reads t, the seconds to wait before a kill. nil is the timeout of the container.
func (c *call) stopTimeout() (*int, error) {
	t, ok, err := c.int("t")
	if err != nil || !ok {
		return nil, err
	}
	if t < -1 {
		t = -1
	}
	return &t, nil
}

func (h containerHandlers) stop(c *call) error {
	t, err := c.stopTimeout()
	if err != nil {
		return err
	}
	return c.done(h.containers.Stop(c.lasting(), c.vars["id"], c.get("signal"), t))
}

func (h containerHandlers) restart(c *call) error {
	t, err := c.stopTimeout()
	if err != nil {
		return err
	}
	return c.done(h.containers.Restart(c.lasting(), c.vars["id"], c.get("signal"), t))
}

// lasting returns a context for work that must not stop half-way when the client disconnects.
func (c *call) lasting() context.Context { return context.WithoutCancel(c.ctx()) }

func (h containerHandlers) kill(c *call) error {
	return c.done(h.containers.Kill(c.ctx(), c.vars["id"], c.get("signal")))
}

func (h containerHandlers) pause(c *call) error {
	return c.done(h.containers.Pause(c.ctx(), c.vars["id"]))
}

func (h containerHandlers) unpause(c *call) error {
	return c.done(h.containers.Unpause(c.ctx(), c.vars["id"]))
}

func (h containerHandlers) remove(c *call) error {
	return c.done(h.containers.Remove(c.lasting(), c.vars["id"], c.bool("force"), c.bool("v"), c.bool("link")))
}

func (h containerHandlers) rename(c *call) error {
	name := strings.TrimPrefix(c.get("name"), "/")
	if name == "" {
		return errs.New(errs.Invalid, "Neither old nor new names may be empty")
	}
	return c.done(h.containers.Rename(c.ctx(), c.vars["id"], name))
}

func (h containerHandlers) update(c *call) error {
	var body wire.UpdateBody
	if err := c.body(&body, false); err != nil {
		return err
	}
	if err := refuseResources(&body.Resources, ""); err != nil {
		return err
	}
	for _, o := range []struct {
		set  bool
		name string
	}{{body.CgroupParent != "", "CgroupParent"}, {len(body.Devices) > 0, "Devices"}, {len(body.DeviceRequests) > 0, "DeviceRequests"}, {len(body.DeviceCgroupRules) > 0, "DeviceCgroupRules"},
		{len(body.Ulimits) > 0, "Ulimits"}, {body.OomKillDisable != nil && *body.OomKillDisable, "OomKillDisable"}} {
		if o.set {
			return unsupported(o.name, "it cannot be changed after create")
		}
	}
	change := container.Settings{Resources: updatedLimits(&body.Resources, c.v)}
	if body.RestartPolicy.Name != "" {
		p := restartPolicy(body.RestartPolicy)
		change.RestartPolicy = &p
	}
	if body.PortBindings != nil {
		list, err := portBindings(body.PortBindings)
		if err != nil {
			return err
		}
		change.Ports = &container.Ports{List: list}
	}
	warnings, err := h.containers.Update(c.ctx(), c.vars["id"], change)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, wire.Updated{Warnings: notNil(warnings)})
}

func (h containerHandlers) prune(c *call) error {
	filters, err := c.filters()
	if err != nil {
		return err
	}
	ids, freed, err := h.containers.Prune(c.ctx(), filters)
	if err != nil {
		return err
	}
	answer := wire.ContainersPruned{SpaceReclaimed: freed}
	for _, id := range ids {
		answer.ContainersDeleted = append(answer.ContainersDeleted, string(id))
	}
	return c.json(http.StatusOK, answer)
}

func (h containerHandlers) top(c *call) error {
	args := strings.Fields(c.get("ps_args"))
	if len(args) == 0 {
		args = []string{"-ef"}
	}
	titles, rows, err := h.state.Top(c.ctx(), c.vars["id"], args)
	if err != nil {
		return err
	}
	answer := wire.Processes{Titles: notNil(titles), Processes: make([][]string, len(rows))}
	for i, r := range rows {
		answer.Processes[i] = r
	}
	return c.json(http.StatusOK, answer)
}

func (h containerHandlers) changes(c *call) error {
	changes, err := h.state.Changes(c.ctx(), c.vars["id"])
	if err != nil {
		return err
	}
	var list []wire.Change // as in Docker, null when nothing changed
	for _, ch := range changes {
		list = append(list, wire.Change{Path: ch.Path, Kind: int(ch.Kind)})
	}
	return c.json(http.StatusOK, list)
}

// wait sends its headers before the container ends. Clients wait for them before they start the container.
func (h containerHandlers) wait(c *call) error {
	cond := container.WaitCondition(c.get("condition"))
	switch cond {
	case "":
		cond = container.WaitNotRunning
	case container.WaitNotRunning, container.WaitNextExit, container.WaitRemoved:
	default:
		return errs.New(errs.Invalid, "invalid condition: %q", clip(string(cond)))
	}
	done, err := c.wait()
	if err != nil {
		return err
	}
	defer done()
	ch, err := h.containers.Wait(c.ctx(), c.vars["id"], cond)
	if err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", "application/json")
	if c.v >= 30 {
		c.w.WriteHeader(http.StatusOK)
		if err := http.NewResponseController(c.w).Flush(); err != nil {
			return err
		}
	}
	var exit container.Exit
	var ok bool
	select {
	case exit, ok = <-ch:
	case <-c.ctx().Done():
		return c.ctx().Err()
	}
	if !ok {
		exit = container.Exit{Code: -1, Error: "the engine stopped watching the container"}
	}
	answer := wire.WaitResult{StatusCode: exit.Code, OOMKilled: exit.OOMKilled}
	if exit.Error != "" {
		answer.Error = &wire.WaitError{Message: exit.Error}
	}
	b, err := encode(answer)
	if err == nil {
		_, err = c.w.Write(b)
	}
	return err
}
