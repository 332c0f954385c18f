package server

import (
	"context"
	"errors"
	"strings"
	"time"

	"ply/internal/errs"
	"ply/internal/registry/api"
	"ply/internal/registry/content"
	"ply/internal/registry/notify"
	"ply/internal/registry/proxy"
	"ply/internal/registry/remote"
	"ply/internal/registry/replicate"
)

// Replicate says what is copied to other registries.
type Replicate struct {
	Rules    []string // each PATTERN=URL, where the path of the URL goes before the names
	Interval time.Duration
	Deletes  bool
}

// replicationRule is a rule, read.
type replicationRule struct {
	pattern         content.Pattern
	address, prefix string
}

func (r *Replicate) parse() (list []replicationRule, err error) {
	for _, s := range r.Rules {
		pattern, address, ok := strings.Cut(s, "=")
		if !ok {
			return nil, errs.New(errs.Invalid, "replicate: %q is not PATTERN=URL", s)
		}
		p, err := content.ParsePattern(pattern)
		if err != nil {
			return nil, errs.New(errs.Invalid, "replicate: %w", err)
		}
		u, err := remote.ParseURL(address)
		if err != nil {
			return nil, errs.New(errs.Invalid, "replicate: %w", err)
		}
		prefix := strings.Trim(u.Path, "/")
		if prefix != "" {
			if _, err := content.ParseRepository(prefix); err != nil {
				return nil, errs.New(errs.Invalid, "replicate: %w", err)
			}
		}
		u.Path = ""
		list = append(list, replicationRule{p, u.String(), prefix})
	}
	return list, nil
}

// Validate reports what is wrong.
func (r *Replicate) Validate() error {
	_, err := r.parse()
	if err == nil && r.Interval > 0 && r.Interval < time.Minute {
		err = errs.New(errs.Invalid, "replicate-interval: %v is less than a minute", r.Interval)
	}
	return err
}

// openReplicator returns nil when nothing is copied.
func (s *Server) openReplicator(o *Options, copies *proxy.Proxy) (*replicate.Replicator, error) {
	list, err := o.Replicate.parse()
	if err != nil || len(list) == 0 {
		return nil, err
	}
	dial, err := newDialing(&o.Proxy)
	if err != nil {
		return nil, err
	}
	ro := replicate.Options{Repositories: s.repositories, Interval: o.Replicate.Interval, Deletes: o.Replicate.Deletes, Events: replicate.Events{
		Copied: s.metrics.Replicated,
		Done: func(rule string, took time.Duration, err error) {
			s.metrics.ReplicationTried(err != nil)
			if err != nil {
				o.Log.Warn("replication is tried again", "rule", rule, "dur", took, "err", err)
			}
		},
		Swept: func(rule string, r replicate.Report, err error) {
			if err != nil {
				o.Log.Warn("comparison with another registry", "rule", rule, "repositories", r.Repositories, "missing", r.Missing, "err", err)
				return
			}
			o.Log.Info("comparison with another registry", "rule", rule, "repositories", r.Repositories, "references", r.References, "missing", r.Missing)
		},
		Failed: func(what string, err error) { o.Log.Error("replication: "+what, "err", err) },
	}}
	if copies != nil {
		ro.Skip = copies.Covers // they are incomplete, and are copies already
	}
	for i, l := range list {
		r, err := dial.registry(l.address)
		if err != nil {
			return nil, err
		}
		ro.Rules = append(ro.Rules, replicate.Rule{Pattern: l.pattern, Registry: r, Prefix: l.prefix, Text: o.Replicate.Rules[i]})
	}
	return replicate.Start(context.Background(), ro)
}

// openNotifier returns nil when no one is told.
func (s *Server) openNotifier(o *Options) (*notify.Notifier, error) {
	if len(o.Webhooks) == 0 {
		return nil, nil //nolint:nilnil // there is none
	}
	return notify.Start(context.Background(), notify.Options{
		Endpoints: o.Webhooks, Documents: s.repositories.Metadata, URL: o.URL,
		Sent: func(endpoint string, took time.Duration, err error) {
			s.metrics.WebhookTried(err != nil)
			if err != nil {
				o.Log.Warn("webhook is tried again", "endpoint", endpoint, "dur", took, "err", err)
			}
		},
		Dropped: func(endpoint string) { s.metrics.WebhookDropped() },
		Failed:  func(what string, err error) { o.Log.Error("webhooks: "+what, "err", err) },
	})
}

// told passes an event on.
func (g *generation) told(ctx context.Context, e api.Event) (err error) {
	if g.notifier != nil {
		err = g.notifier.Notify(ctx, notify.Event{
			Action: e.Action, Repository: e.Repository, From: e.From, Digest: e.Digest, Tag: e.Tag, MediaType: e.MediaType, Size: e.Size,
			User: e.User, Address: e.Address, Host: e.Host, Method: e.Method, UserAgent: e.UserAgent,
		})
	}
	if g.replicator == nil || e.MediaType == "application/octet-stream" || e.Digest == "" && e.Tag == "" {
		return err
	}
	reference := string(e.Tag)
	if reference == "" {
		reference = string(e.Digest)
	}
	switch e.Action {
	case notify.Push:
		err = errors.Join(err, g.replicator.Pushed(ctx, e.Repository, reference))
	case notify.Delete:
		err = errors.Join(err, g.replicator.Deleted(ctx, e.Repository, reference))
	}
	return err
}
