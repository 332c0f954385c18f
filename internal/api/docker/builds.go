package docker

import (
	"net/http"
	"time"

	"ply/internal/build/history"
	"ply/internal/wire"
)

// historyHandlers serves the history of builds.
type historyHandlers struct{ builder Builder }

func (h historyHandlers) routes(add adder) {
	add(get, "/builds", h.list)
	add(get, "/builds/{id}", h.inspect)
	add(get, "/builds/{id}/logs", h.logs)
	add(remove, "/builds/{id}", h.remove)
}

func (h historyHandlers) list(c *call) error {
	list, err := h.builder.History().List()
	if err != nil {
		return err
	}
	out := []wire.PastBuild{}
	for _, r := range list {
		b := buildOf(r)
		b.Vertices = nil
		out = append(out, b)
	}
	return c.json(http.StatusOK, out)
}

func (h historyHandlers) inspect(c *call) error {
	r, err := h.builder.History().Get(c.vars["id"])
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, buildOf(r))
}

func (h historyHandlers) logs(c *call) error {
	r, err := h.builder.History().Get(c.vars["id"])
	if err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	return h.builder.History().WriteLog(c.ctx(), r.ID, c.w)
}

func (h historyHandlers) remove(c *call) error {
	_, err := h.builder.History().Remove(c.vars["id"])
	return c.done(err)
}

func buildOf(r *history.Record) wire.PastBuild {
	done, cached := r.Counts()
	b := wire.PastBuild{
		ID: r.ID, Name: r.Name, Status: r.Status(), Tags: r.Tags, Target: r.Target, File: r.File, Platforms: r.Platforms, Started: r.Started,
		Steps: done, Cached: cached, Error: r.Error, Warnings: r.Warnings, LogSize: r.LogSize, LogCut: r.LogCut, Outputs: r.Answers,
	}
	end := time.Now()
	if !r.Ended.IsZero() {
		end = r.Ended
		b.Ended = &end
	}
	b.Duration = int64(max(0, end.Sub(r.Started)))
	for _, id := range r.Images {
		b.Images = append(b.Images, string(id))
	}
	for i := range r.Steps {
		s := &r.Steps[i]
		b.Vertices = append(b.Vertices, wire.PastStep{
			Digest: string(s.Digest), Name: s.Name, Started: s.Started, Duration: int64(s.Took), Cached: s.Cached, Done: s.Done, Miss: s.Miss, Error: s.Error,
		})
	}
	return b
}
