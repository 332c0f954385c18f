package server

import (
	"context"
	"errors"
	"net/http"
	"time"

	"ply/internal/errs"
	"ply/internal/registry/audit"
	"ply/internal/registry/content"
	"ply/internal/registry/metadata"
)

// The names in the audit log of what removes tags and manifests by itself.
const (
	byCollection = "@gc"
	byRetention  = "@retention"
)

// noted is a database whose removals of tags, manifests and repositories are in the audit log. It is for what is no request of a client.
type noted struct {
	metadata.Store
	user string
	note func(context.Context, audit.Entry) error
}

// noted returns the database of this registry for one who removes by itself.
func (s *Server) noted(user string) metadata.Store {
	if s.o.Audit.Max == 0 {
		return s.repositories.Metadata
	}
	return noted{s.repositories.Metadata, user, func(_ context.Context, e audit.Entry) error {
		s.audit.Record(e)
		return nil
	}}
}

// Noted returns a database that a command has opened itself, with the removals that user makes in its audit log.
func Noted(meta metadata.Store, o Options, user string) metadata.Store {
	if o.Audit.Max == 0 {
		return meta
	}
	return noted{meta, user, func(ctx context.Context, e audit.Entry) error { return audit.Write(ctx, meta, e) }}
}

// removed notes what was removed, and its repository if that was the last that it had.
func (n noted) removed(ctx context.Context, repo content.Repository, reference string) error {
	ctx = context.WithoutCancel(ctx) // it is removed
	err := n.note(ctx, audit.Entry{User: n.user, Action: "delete", Repository: string(repo), Reference: reference, Status: http.StatusAccepted})
	if _, gone := n.Tags(ctx, repo, "", 1); errors.Is(gone, errs.NotFound) {
		err = errors.Join(err, n.note(ctx, audit.Entry{User: n.user, Action: "delete", Repository: string(repo), Status: http.StatusAccepted}))
	}
	return err
}

// CollectManifest removes a manifest that nothing needs.
func (n noted) CollectManifest(ctx context.Context, repo content.Repository, d content.Digest, before time.Time) (bool, error) {
	done, err := n.Store.CollectManifest(ctx, repo, d, before)
	if done {
		err = errors.Join(err, n.removed(ctx, repo, string(d)))
	}
	return done, err
}

// DeleteManifest removes a manifest and its tags.
func (n noted) DeleteManifest(ctx context.Context, repo content.Repository, d content.Digest) error {
	if err := n.Store.DeleteManifest(ctx, repo, d); err != nil {
		return err
	}
	return n.removed(ctx, repo, string(d))
}

// DeleteTag removes a tag.
func (n noted) DeleteTag(ctx context.Context, repo content.Repository, tag content.Tag, c metadata.Condition) error {
	if err := n.Store.DeleteTag(ctx, repo, tag, c); err != nil {
		return err
	}
	return n.removed(ctx, repo, string(tag))
}
