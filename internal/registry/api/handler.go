package api

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"ply/internal/errs"
	"ply/internal/registry/access"
	"ply/internal/registry/content"
	"ply/internal/registry/metadata"
	"ply/internal/registry/repository"
)

// Options configure a Handler.
type Options struct {
	Repositories *repository.Service
	Copies       Copies // nil = none
	// Notify is told of every event; nil = no one is. It returns when the event is durable.
	Notify   func(context.Context, Event) error
	Gate     access.Gate  // nil = access.Open
	ReadOnly bool         // nothing can be changed
	NoDelete bool         // nothing can be deleted
	Redirect bool         // blobs are read from where the store says, when it can
	Log      *slog.Logger // nil = none
	// Stall is how long a client may send nothing in the middle of a body; 0 = 1 minute.
	Stall time.Duration
}

// Copies are repositories whose content comes from other registries when clients ask for it.
type Copies interface {
	// Covers reports whether a repository is a copy.
	Covers(repo content.Repository) bool
	// Locate returns the repository that serves a request to read. Registry is what the client says it mirrors, or "". Pushing is true
	// for a question that clients ask before a push.
	Locate(ctx context.Context, repo content.Repository, registry string, pushing bool) (content.Repository, error)

	// These serve copies as repository.Service serves other repositories.
	Manifest(ctx context.Context, repo content.Repository, d content.Digest, tag content.Tag) (metadata.Manifest, []byte, error)
	OpenBlob(ctx context.Context, repo content.Repository, d content.Digest) (io.ReadSeekCloser, int64, error)
	StatBlob(ctx context.Context, repo content.Repository, d content.Digest) (int64, error)
	// Tags lists n tags behind after, and whether there are more.
	Tags(ctx context.Context, repo content.Repository, after content.Tag, n int) (tags []content.Tag, more bool, err error)
	Referrers(ctx context.Context, repo content.Repository, subject content.Digest) ([]content.Descriptor, error)
}

// Handler serves the paths below /v2.
type Handler struct {
	Options
}

// New returns a handler.
func New(o Options) *Handler {
	if o.Gate == nil {
		o.Gate = access.Open
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Stall == 0 {
		o.Stall = time.Minute
	}
	return &Handler{o}
}

// ServeHTTP decides what a request means and whether it is allowed, and serves it.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// A deadline of the request before stays on the connection.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Time{})
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if err := h.serve(w, r); err != nil {
		e := translate(err)
		if e.Status >= 500 {
			h.Log.Error("request failed", "method", r.Method, "path", r.URL.Path, "status", e.Status, "err", err)
		}
		writeError(w, r, e)
	}
}

func (h *Handler) serve(w http.ResponseWriter, r *http.Request) error {
	t := parsePath(r.URL.Path)
	if r.URL.RawPath != "" && strings.Contains(strings.ToLower(r.URL.RawPath), "%2f") {
		t = target{} // another spelling of a path, which a proxy in front may take for another path
	}
	caller, err := h.Gate.Identify(r)
	if err != nil {
		return h.refuse(w, r, t, err)
	}
	access.Tell(w, caller)
	methods, ok := routes[t.kind]
	if !ok {
		if !caller.May("", access.Pull) { // do not answer strangers about paths
			return h.denied(w, r, caller, "")
		}
		return errNotFound
	}
	q := &request{w: w, r: r, caller: caller, ref: t.ref}
	to, ok := methods[r.Method]
	if t.name != "" {
		if q.repo, err = content.ParseRepository(t.name); err != nil {
			e := *errName
			e.Detail = t.name
			return &e
		}
	}
	if q.repo != "" && to.action == access.Pull && h.Copies != nil {
		pushing := t.kind == kindBlob && r.Method == http.MethodHead
		if q.repo, err = h.Copies.Locate(r.Context(), q.repo, r.URL.Query().Get("ns"), pushing); err != nil {
			return err
		}
	}
	needs := to.action
	if !ok {
		needs = access.Pull
	}
	switch {
	case q.repo == "" && !caller.May("", access.Pull):
		return h.denied(w, r, caller, "")
	case q.repo != "" && !caller.May(q.repo, needs):
		return h.denied(w, r, caller, q.repo, scope(needs)...)
	}
	if !ok || h.ReadOnly && needs != access.Pull && needs != "" || h.NoDelete && needs == access.Delete {
		w.Header().Set("Allow", strings.Join(slices.Sorted(maps.Keys(methods)), ", "))
		return fail(http.StatusMethodNotAllowed, "UNSUPPORTED", "the operation is unsupported")
	}
	if needs == access.Push && h.copies(q.repo) {
		return fail(http.StatusMethodNotAllowed, "UNSUPPORTED", "repository "+string(q.repo)+" is a copy of another registry's; push to a name outside of it")
	}
	return to.serve(h, q)
}

func (h *Options) copies(repo content.Repository) bool {
	return h.Copies != nil && h.Copies.Covers(repo)
}

// content returns what serves a repository.
func (h *Handler) content(repo content.Repository) interface {
	Manifest(ctx context.Context, repo content.Repository, d content.Digest, tag content.Tag) (metadata.Manifest, []byte, error)
	OpenBlob(ctx context.Context, repo content.Repository, d content.Digest) (io.ReadSeekCloser, int64, error)
	StatBlob(ctx context.Context, repo content.Repository, d content.Digest) (int64, error)
} {
	if h.copies(repo) {
		return h.Copies
	}
	return h.Repositories
}

// scope returns the actions that a client should ask for in order to do one. Clients that push also read.
func scope(a access.Action) []access.Action {
	switch a {
	case access.Push:
		return []access.Action{access.Pull, access.Push}
	case access.Delete:
		return access.Actions()
	}
	return []access.Action{access.Pull}
}

// denied returns the error for a caller who may not do something: to log in, where that helps. The error says what was asked for. Docker's engine takes one
// that only has the usual message for a failure that may pass, and tries again for most of a minute.
func (h *Handler) denied(w http.ResponseWriter, r *http.Request, c access.Caller, repo content.Repository, a ...access.Action) error {
	e := *errDenied
	if challenge := h.Gate.Challenge(r, c, repo, a...); challenge != "" {
		w.Header().Set("WWW-Authenticate", challenge)
		e = *errUnauthorized
	}
	type item struct {
		Type   string             `json:"Type"`
		Name   content.Repository `json:"Name"`
		Action access.Action      `json:"Action"`
	}
	var detail []item
	for _, action := range a {
		detail = append(detail, item{"repository", repo, action})
	}
	if detail != nil {
		e.Detail = detail
	}
	return &e
}

// refuse returns the error for credentials that are wrong.
func (h *Handler) refuse(w http.ResponseWriter, r *http.Request, t target, err error) error {
	if errors.Is(err, errs.Exhausted) {
		return &Error{Status: http.StatusTooManyRequests, Code: "TOOMANYREQUESTS", Message: err.Error(), Cause: err}
	}
	if errors.Is(err, errs.Unauthorized) {
		repo, perr := content.ParseRepository(t.name)
		var actions []access.Action
		if perr == nil {
			actions = scope(routes[t.kind][r.Method].action)
		}
		if c := h.Gate.Challenge(r, nil, repo, actions...); c != "" {
			w.Header().Set("WWW-Authenticate", c)
		}
	}
	return err
}

func (h *Handler) base(q *request) error {
	q.w.Header().Set("Content-Type", "application/json")
	q.w.Header().Set("Content-Length", "2")
	if q.r.Method != http.MethodHead {
		_, _ = q.w.Write([]byte("{}"))
	}
	return nil
}

func (h *Handler) deleteRepository(q *request) error {
	if err := h.Repositories.DeleteRepository(q.r.Context(), q.repo); err != nil {
		if errors.Is(err, errs.Conflict) {
			return immutableTag(err)
		}
		return missing(err, errRepository, map[string]any{"name": q.repo})
	}
	h.notify(q, Event{Action: "delete"})
	q.w.WriteHeader(http.StatusAccepted)
	return nil
}
