package docker

import (
	"strconv"

	"ply/internal/api/direct"
	"ply/internal/api/docker/stream"
	"ply/internal/errs"
	"ply/internal/wire"
)

// directHandlers serves the builds of ply's command line.
type directHandlers struct{ server *direct.Server }

func (h directHandlers) routes(add adder) {
	add(post, "/build/direct", h.build)
	add(post, "/build/direct/stream", h.stream)
}

func (h directHandlers) build(c *call) error {
	var b wire.DirectBuild
	if err := c.body(&b, false); err != nil {
		return err
	}
	req, err := h.server.Request(&b)
	if err != nil {
		return err
	}
	done, err := c.stream()
	if err != nil {
		return err
	}
	defer done()
	conn, err := stream.Hijack(c.w, c.r, stream.TypeRaw)
	if err != nil {
		return err
	}
	return h.server.Serve(c.ctx(), conn.Conn, &b, req)
}

// stream takes over a connection as a stream that a build waits for. The build closes it.
func (h directHandlers) stream(c *call) error {
	id, err := strconv.ParseUint(c.get("id"), 10, 64)
	if err != nil {
		return errs.New(errs.Invalid, "parameter id: %q is not a number", clip(c.get("id")))
	}
	conn, err := stream.Hijack(c.w, c.r, stream.TypeRaw)
	if err != nil {
		return err
	}
	if err := h.server.Attach(c.get("token"), id, conn); err != nil {
		_ = conn.Close() // the error that matters is reported
		return err
	}
	return nil
}
