package docker

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"time"

	"ply/internal/container/rootfs"
	"ply/internal/errs"
	"ply/internal/wire"
)

// fileHandlers serves docker cp and export.
type fileHandlers struct{ files Files }

func (h fileHandlers) routes(add adder) {
	add(head, "/containers/{id}/archive", h.stat)
	add(get, "/containers/{id}/archive", h.copyFrom)
	add(put, "/containers/{id}/archive", h.copyTo)
	add(get, "/containers/{id}/export", h.export)
}

func (c *call) copyPath() (string, error) {
	path := c.get("path")
	if path == "" {
		return "", errs.New(errs.Invalid, "bad parameter: 'path' cannot be empty")
	}
	return path, nil
}

func (c *call) setStat(st rootfs.Info) error {
	b, err := json.Marshal(wire.PathStat{Name: st.Name, Size: st.Size, Mode: st.Mode, Mtime: st.ModTime, LinkTarget: st.LinkTarget})
	if err != nil {
		return errs.New(errs.Internal, "path %s: %w", st.Name, err)
	}
	c.w.Header().Set(wire.PathStatHeader, base64.StdEncoding.EncodeToString(b))
	return nil
}

func (h fileHandlers) stat(c *call) error {
	path, err := c.copyPath()
	if err != nil {
		return err
	}
	st, err := h.files.PathStat(c.ctx(), c.vars["id"], path)
	if err != nil {
		return err
	}
	if err := c.setStat(st); err != nil {
		return err
	}
	return c.none(http.StatusOK)
}

func (h fileHandlers) copyFrom(c *call) error {
	path, err := c.copyPath()
	if err != nil {
		return err
	}
	return h.files.CopyFrom(c.ctx(), c.vars["id"], path, func(st rootfs.Info) error {
		c.w.Header().Set("Content-Type", "application/x-tar")
		return c.setStat(st)
	}, c.copyWriter())
}

func (h fileHandlers) copyTo(c *call) error {
	path, err := c.copyPath()
	if err != nil {
		return err
	}
	if err := h.files.CopyTo(c.ctx(), c.vars["id"], path, c.copyReader(), c.bool("noOverwriteDirNonDir"), c.bool("copyUIDGID")); err != nil {
		return err
	}
	return c.none(http.StatusOK)
}

func (h fileHandlers) export(c *call) error {
	c.w.Header().Set("Content-Type", "application/octet-stream")
	return h.files.Export(c.ctx(), c.vars["id"], c.copyWriter())
}

// copyWriter returns the answer as a writer with a deadline, so that a removal of the container can end a copy whose client does
// not read.
func (c *call) copyWriter() io.Writer {
	return struct {
		io.Writer
		writeDeadline
	}{c.w, http.NewResponseController(c.w)}
}

// copyReader returns the request's body as a reader with a deadline, so that a removal of the container can end a copy whose client
// does not write.
func (c *call) copyReader() io.Reader {
	return struct {
		io.Reader
		readDeadline
	}{c.r.Body, http.NewResponseController(c.w)}
}

type writeDeadline interface{ SetWriteDeadline(time.Time) error }

type readDeadline interface{ SetReadDeadline(time.Time) error }
