package docker

import (
	"context"
	"errors"
	"net/http"

	"ply/internal/container"
	"ply/internal/container/session"
	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/wire"
)

func (h sessionHandlers) execCreate(c *call) error {
	var body wire.ExecBody
	if err := c.body(&body, false); err != nil {
		return err
	}
	if len(body.Cmd) == 0 {
		return errs.New(errs.Invalid, "No exec command specified")
	}
	spec := spec.ExecSpec{Cmd: body.Cmd, Env: body.Env, User: body.User, WorkingDir: body.WorkingDir, Tty: body.Tty, Privileged: body.Privileged,
		AttachStdin: body.AttachStdin, AttachStdout: body.AttachStdout, AttachStderr: body.AttachStderr, DetachKeys: body.DetachKeys}
	if body.ConsoleSize != nil && c.v >= 42 {
		spec.ConsoleSize = *body.ConsoleSize
	}
	id, err := h.sessions.ExecCreate(c.ctx(), c.vars["id"], spec)
	if err != nil {
		return err
	}
	return c.json(http.StatusCreated, wire.ExecCreated{ID: id})
}

func (h sessionHandlers) execStart(c *call) error {
	var body wire.ExecStart
	if err := c.body(&body, true); err != nil {
		return err
	}
	id := c.vars["id"]
	exec, err := h.sessions.ExecGet(c.ctx(), id)
	if err != nil {
		return err
	}
	var size [2]uint
	if body.ConsoleSize != nil && c.v >= 42 && (body.Tty || exec.Spec.Tty) { // otherwise there is no terminal that has a size
		size = *body.ConsoleSize
	}
	if body.Detach {
		if err := h.sessions.ExecStart(c.lasting(), id, session.AttachOptions{}, true, size); err != nil {
			return err
		}
		return c.none(http.StatusOK)
	}
	done, err := c.stream()
	if err != nil {
		return err
	}
	defer done()
	l, ctx := newLine(c, c.streamType(body.Tty), body.Tty)
	spec := exec.Spec
	return l.run(ctx, spec.AttachStdin, spec.AttachStdout, spec.AttachStderr, func(ctx context.Context, opts session.AttachOptions) error {
		opts.DetachKeys = spec.DetachKeys
		err := h.sessions.ExecStart(ctx, id, opts, false, size)
		if l.opened() {
			return err
		}
		// A command that could not run has an exit code. Clients expect the message in the stream, and ask for the code later.
		if err != nil {
			if now, getErr := h.sessions.ExecGet(c.ctx(), id); getErr != nil || now.ExitCode == nil || exec.ExitCode != nil && !h.runs(c.ctx(), exec.Container) {
				return err
			}
		}
		return errors.Join(err, l.open())
	})
}

// runs reports whether a container takes execs.
func (h sessionHandlers) runs(ctx context.Context, id oci.ContainerID) bool {
	ctr, err := h.containers.Get(ctx, string(id), false)
	return err == nil && ctr.State.Status == container.StatusRunning
}

func (h sessionHandlers) execResize(c *call) error {
	height, width, err := c.size()
	if err != nil {
		return err
	}
	if err := h.sessions.ExecResize(c.ctx(), c.vars["id"], height, width); err != nil {
		return err
	}
	return c.none(http.StatusCreated)
}

func (h sessionHandlers) execInspect(c *call) error {
	e, err := h.sessions.ExecGet(c.ctx(), c.vars["id"])
	if err != nil {
		return err
	}
	var args []string
	entrypoint := ""
	if len(e.Spec.Cmd) > 0 {
		entrypoint, args = e.Spec.Cmd[0], e.Spec.Cmd[1:]
	}
	return c.json(http.StatusOK, wire.ExecDetail{
		ID: e.ID, Running: e.Running, ExitCode: e.ExitCode, ContainerID: string(e.Container), DetachKeys: e.Spec.DetachKeys, Pid: e.PID,
		OpenStdin: e.Spec.AttachStdin, OpenStderr: e.Spec.AttachStderr, OpenStdout: e.Spec.AttachStdout,
		ProcessConfig: wire.ExecProcess{Tty: e.Spec.Tty, Entrypoint: entrypoint, Arguments: notNil(args), Privileged: e.Spec.Privileged, User: e.Spec.User},
	})
}
