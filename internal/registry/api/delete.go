package api

import (
	"net/http"

	"ply/internal/errs"
	"ply/internal/registry/access"
	"ply/internal/registry/content"
	"ply/internal/registry/metadata"
)

// Delete deletes a manifest, a tag, or with neither a repository, for a caller that another handler has identified, and tells of it. The
// error's class is errs.Forbidden when the caller may not, or nothing can be deleted, and errs.Conflict for a tag that may not move.
func (h *Handler) Delete(r *http.Request, caller access.Caller, repo content.Repository, d content.Digest, tag content.Tag) error {
	switch {
	case !caller.May(repo, access.Delete):
		return errs.New(errs.Forbidden, "you may not delete in repository %s", repo)
	case h.ReadOnly || h.NoDelete:
		return errs.New(errs.Forbidden, "this registry deletes nothing")
	}
	var err error
	if d == "" && tag == "" {
		err = h.Repositories.DeleteRepository(r.Context(), repo)
	} else {
		err = h.deleteReference(r.Context(), repo, d, tag, metadata.Condition{})
	}
	if err == nil {
		h.notify(&request{r: r, caller: caller, repo: repo}, Event{Action: "delete", Digest: d, Tag: tag})
	}
	return err
}
