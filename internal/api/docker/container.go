package docker

import (
	"context"
	"net/http"
	"strings"
	"time"

	"ply/internal/api/docker/stream"
	"ply/internal/container"
	"ply/internal/container/session"
	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/wire"
)

func (s *server) containerRoutes(add adder) {
	add(get, "/containers/json", s.containerList)
	add(post, "/containers/create", s.containerCreate)
	add(post, "/containers/prune", s.containerPrune)
	add(get, "/containers/{id}/json", s.containerInspect)
	add(get, "/containers/{id}/top", s.containerTop)
	add(get, "/containers/{id}/logs", s.containerLogs)
	add(get, "/containers/{id}/changes", s.containerChanges)
	add(get, "/containers/{id}/export", s.containerExport)
	add(get, "/containers/{id}/stats", s.containerStats)
	add(post, "/containers/{id}/resize", s.containerResize)
	add(post, "/containers/{id}/start", s.containerStart)
	add(post, "/containers/{id}/stop", s.containerStop)
	add(post, "/containers/{id}/restart", s.containerRestart)
	add(post, "/containers/{id}/kill", s.containerKill)
	add(post, "/containers/{id}/update", s.containerUpdate)
	add(post, "/containers/{id}/rename", s.containerRename)
	add(post, "/containers/{id}/pause", s.containerPause)
	add(post, "/containers/{id}/unpause", s.containerUnpause)
	add(post, "/containers/{id}/attach", s.containerAttach)
	add(get, "/containers/{id}/attach/ws", s.containerAttachWS)
	add(post, "/containers/{id}/wait", s.containerWait)
	add(remove, "/containers/{id}", s.containerRemove)
	add(head, "/containers/{id}/archive", s.archiveStat)
	add(get, "/containers/{id}/archive", s.archiveGet)
	add(put, "/containers/{id}/archive", s.archivePut)
	add(post, "/containers/{id}/exec", s.execCreate)
	add(post, "/exec/{id}/start", s.execStart)
	add(post, "/exec/{id}/resize", s.execResize)
	add(get, "/exec/{id}/json", s.execInspect)
}

// done answers 204 when err is nil.
func (c *call) done(err error) error {
	if err != nil {
		return err
	}
	return c.none(http.StatusNoContent)
}

func (s *server) containerStart(c *call) error {
	if c.get("checkpoint") != "" || c.get("checkpoint-dir") != "" {
		return unavailable("starting from a checkpoint", "checkpoints are not kept")
	}
	b, err := c.bytes()
	if err != nil {
		return err
	}
	if t := strings.TrimSpace(string(b)); t != "" && t != "{}" && t != "null" {
		return errs.New(errs.Invalid, "starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24")
	}
	return c.done(s.Containers.Start(c.ctx(), c.vars["id"]))
}

// patience reads t, the seconds to wait before a kill.
func (c *call) patience() (*int, error) {
	t, ok, err := c.int("t")
	if err != nil || !ok {
		return nil, err
	}
	if t < -1 {
		t = -1
	}
	return &t, nil
}

func (s *server) containerStop(c *call) error {
	t, err := c.patience()
	if err != nil {
		return err
	}
	return c.done(s.Containers.Stop(c.lasting(), c.vars["id"], c.get("signal"), t))
}

func (s *server) containerRestart(c *call) error {
	t, err := c.patience()
	if err != nil {
		return err
	}
	return c.done(s.Containers.Restart(c.lasting(), c.vars["id"], c.get("signal"), t))
}

// lasting is for work that must not stop half-way because the client went away.
func (c *call) lasting() context.Context { return context.WithoutCancel(c.ctx()) }

func (s *server) containerKill(c *call) error {
	return c.done(s.Containers.Kill(c.ctx(), c.vars["id"], c.get("signal")))
}

func (s *server) containerPause(c *call) error {
	return c.done(s.Containers.Pause(c.ctx(), c.vars["id"]))
}

func (s *server) containerUnpause(c *call) error {
	return c.done(s.Containers.Unpause(c.ctx(), c.vars["id"]))
}

func (s *server) containerRemove(c *call) error {
	return c.done(s.Containers.Remove(c.lasting(), c.vars["id"], c.bool("force"), c.bool("v"), c.bool("link")))
}

func (s *server) containerRename(c *call) error {
	name := strings.TrimPrefix(c.get("name"), "/")
	if name == "" {
		return errs.New(errs.Invalid, "Neither old nor new names may be empty")
	}
	return c.done(s.Containers.Rename(c.ctx(), c.vars["id"], name))
}

func (s *server) containerUpdate(c *call) error {
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
	}{{body.CgroupParent != "", "CgroupParent"}, {len(body.Devices) > 0, "Devices"}, {len(body.DeviceCgroupRules) > 0, "DeviceCgroupRules"},
		{len(body.Ulimits) > 0, "Ulimits"}, {body.OomKillDisable != nil && *body.OomKillDisable, "OomKillDisable"}} {
		if o.set {
			return unsupported(o.name, "it cannot be changed after create")
		}
	}
	var policy *spec.RestartPolicy
	if body.RestartPolicy.Name != "" {
		p := restartPolicy(body.RestartPolicy)
		policy = &p
	}
	warnings, err := s.Containers.Update(c.ctx(), c.vars["id"], limits(&body.Resources), policy)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, struct{ Warnings []string }{notNil(warnings)})
}

func (s *server) containerResize(c *call) error {
	h, w, err := c.size()
	if err != nil {
		return err
	}
	if err := s.Sessions.Resize(c.ctx(), c.vars["id"], h, w); err != nil {
		return err
	}
	return c.none(http.StatusOK)
}

func (s *server) containerPrune(c *call) error {
	filters, err := c.filters()
	if err != nil {
		return err
	}
	ids, freed, err := s.Containers.Prune(c.ctx(), filters)
	if err != nil {
		return err
	}
	answer := struct {
		ContainersDeleted []string
		SpaceReclaimed    int64
	}{nil, freed}
	for _, id := range ids {
		answer.ContainersDeleted = append(answer.ContainersDeleted, string(id))
	}
	return c.json(http.StatusOK, answer)
}

func (s *server) containerTop(c *call) error {
	args := strings.Fields(c.get("ps_args"))
	if len(args) == 0 {
		args = []string{"-ef"}
	}
	titles, rows, err := s.Containers.Top(c.ctx(), c.vars["id"], args)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, struct {
		Titles    []string
		Processes []container.Process
	}{notNil(titles), notNil(rows)})
}

func (s *server) containerChanges(c *call) error {
	type change struct {
		Path string
		Kind int
	}
	changes, err := s.Containers.Changes(c.ctx(), c.vars["id"])
	if err != nil {
		return err
	}
	var list []change // null when nothing changed, as docker answers
	for _, ch := range changes {
		list = append(list, change{ch.Path, int(ch.Kind)})
	}
	return c.json(http.StatusOK, list)
}

func (s *server) containerExport(c *call) error {
	c.w.Header().Set("Content-Type", "application/octet-stream")
	return s.Files.Export(c.ctx(), c.vars["id"], c.w)
}

// containerWait sends its headers before the container ends: clients start the container only when they have them.
func (s *server) containerWait(c *call) error {
	cond := container.WaitCondition(c.get("condition"))
	switch cond {
	case "":
		cond = container.WaitNotRunning
	case container.WaitNotRunning, container.WaitNextExit, container.WaitRemoved:
	default:
		return errs.New(errs.Invalid, "invalid condition: %q", clip(string(cond)))
	}
	ch, err := s.Containers.Wait(c.ctx(), c.vars["id"], cond)
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
	type waitError struct{ Message string }
	answer := struct {
		StatusCode int
		Error      *waitError `json:",omitempty"`
	}{StatusCode: exit.Code}
	if exit.Error != "" {
		answer.Error = &waitError{exit.Error}
	}
	b, err := encode(answer)
	if err == nil {
		_, err = c.w.Write(b)
	}
	return err
}

func (s *server) containerLogs(c *call) error {
	opts := session.LogOptions{Stdout: c.bool("stdout"), Stderr: c.bool("stderr"), Follow: c.bool("follow"),
		Timestamps: c.bool("timestamps"), Details: c.bool("details"), Tail: -1}
	if !opts.Stdout && !opts.Stderr {
		return errs.New(errs.Invalid, "Bad parameters: you must choose at least one stream")
	}
	var err error
	if opts.Since, err = c.time("since"); err != nil {
		return err
	}
	if opts.Until, err = c.time("until"); err != nil {
		return err
	}
	if tail := c.get("tail"); tail != "" && tail != "all" {
		n, _, err := c.int("tail")
		if err != nil {
			return err
		}
		if n >= 0 {
			opts.Tail = n
		}
	}
	ctr, err := s.Containers.Get(c.ctx(), c.vars["id"], false)
	if err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", c.streamType(ctr.Spec.Tty))
	out := &flusher{w: c.w, rc: http.NewResponseController(c.w), always: opts.Follow}
	if opts.Follow {
		// A reader of logs must see an empty log as an open stream, not as silence.
		stop := time.AfterFunc(50*time.Millisecond, out.begin)
		defer stop.Stop()
	}
	mux := stream.NewMux(out)
	stdout, stderr := mux.Stdout(), mux.Stderr()
	if ctr.Spec.Tty {
		stdout, stderr = out, out
	}
	err = s.Sessions.Logs(c.ctx(), c.vars["id"], opts, stdout, stderr)
	if out.end() && err != nil {
		if c.ctx().Err() != nil { // the client left
			return nil
		}
		return err
	}
	if err == nil && !c.w.wrote {
		return c.none(http.StatusOK)
	}
	return err
}

// streamType is the media type of output: framed or, with a terminal, raw. Before 1.42 both had one name.
func (c *call) streamType(tty bool) string {
	if tty || c.v < 42 {
		return stream.TypeRaw
	}
	return stream.TypeMux
}
