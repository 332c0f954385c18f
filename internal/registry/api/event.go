package api

import (
	"context"

	"ply/internal/registry/content"
)

// Event is a change that a client made, or a pull.
type Event struct {
	Action     string // push, pull, mount or delete
	Repository content.Repository
	From       content.Repository // of a mount
	Digest     content.Digest     // "" = a tag or a repository was deleted
	Tag        content.Tag
	MediaType  string // of a blob: application/octet-stream; "" = a tag or a repository was deleted
	Size       int64  // bytes, where it is known

	User, Address, Host, Method, UserAgent string // of the request
}

// blobType is the media type of all blobs.
const blobType = "application/octet-stream"

// notify tells of an event before the request is acknowledged.
func (h *Handler) notify(q *request, e Event) {
	if h.Notify == nil {
		return
	}
	e.Repository, e.User = q.repo, q.caller.Name()
	e.Address, e.Host, e.Method, e.UserAgent = q.r.RemoteAddr, q.r.Host, q.r.Method, q.r.UserAgent()
	// The change is made, whether the client still waits or not.
	if err := h.Notify(context.WithoutCancel(q.r.Context()), e); err != nil {
		h.Log.Error("an event is lost", "action", e.Action, "repository", e.Repository, "err", err)
	}
}
