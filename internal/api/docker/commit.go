package docker

import (
	"net/http"

	"ply/internal/container"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/wire"
)

// commit answers POST /commit. Warnings is ply's own: it names the mounts whose content is not in the image.
func (h containerHandlers) commit(c *call) error {
	opts := container.CommitOptions{Author: c.get("author"), Message: c.get("comment"), Changes: c.q["changes"],
		Pause: c.boolOr("pause", true), Format: oci.Format(c.get("format"))}
	if repo := c.get("repo"); repo != "" {
		name, err := repoTag(repo, c.get("tag"))
		if err != nil {
			return err
		}
		if name.Digest() != "" {
			return errs.New(errs.Invalid, "cannot commit to digest reference")
		}
		opts.Name = name.WithDefaultTag()
	}
	var body wire.Config
	if err := c.body(&body, true); err != nil {
		return err
	}
	rc, err := runConfig(&body)
	if err != nil {
		return err
	}
	opts.Config = rc
	if c.get("container") == "" {
		return errs.New(errs.Invalid, "parameter container is missing")
	}
	result, err := h.commits.Commit(c.ctx(), c.get("container"), opts)
	if err != nil {
		return err
	}
	var warnings []string
	for _, path := range result.LeftOut {
		warnings = append(warnings, "the image does not hold what is in "+path+": it is a mount, and a commit keeps only the container's own layer")
	}
	return c.json(http.StatusCreated, wire.Committed{ID: result.ID.String(), Warnings: warnings})
}
