package server

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"time"

	"ply/internal/errs"
	"ply/internal/record"
	"ply/internal/registry/api"
	"ply/internal/registry/notify"
	"ply/internal/registry/policy"
)

// Policy has the rules of the owner, each in the form that package policy reads.
type Policy struct {
	Quotas, Immutable, Retention []string
	Interval                     time.Duration // between two removals of tags; 0 = never
}

// rules are the rules of a Policy, read.
type rules struct {
	quotas    []policy.Quota
	immutable policy.Immutable
	retention []policy.Retention
}

func (p *Policy) parse() (r rules, err error) {
	for _, s := range p.Quotas {
		q, err := policy.ParseQuota(s)
		if err != nil {
			return r, errs.New(errs.Invalid, "quota: %w", err)
		}
		r.quotas = append(r.quotas, q)
	}
	for _, s := range p.Immutable {
		t, err := policy.ParseTags(s)
		if err != nil {
			return r, errs.New(errs.Invalid, "immutable: %w", err)
		}
		r.immutable = append(r.immutable, t)
	}
	for _, s := range p.Retention {
		t, err := policy.ParseRetention(s)
		if err != nil {
			return r, errs.New(errs.Invalid, "retention: %w", err)
		}
		r.retention = append(r.retention, t)
	}
	return r, nil
}

// Validate reports what is wrong.
func (p *Policy) Validate() error {
	_, err := p.parse()
	return err
}

const (
	retentionKind    = "retention"
	retentionKey     = "last"
	retentionVersion = 1
	retentionLook    = time.Minute // between two looks whether it is time
)

// retentionRecord says when tags were removed the last time.
type retentionRecord struct {
	Started time.Time `json:"started"`
}

// retain removes tags when it is time, until ctx is done.
func (s *Server) retain(ctx context.Context) {
	tick := time.NewTicker(retentionLook)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			if err := s.retainAt(ctx, now); err != nil && ctx.Err() == nil {
				s.o.Log.Error("retention", "err", err)
			}
		}
	}
}

// retainAt removes tags if it is time. Of several replicas one does it.
func (s *Server) retainAt(ctx context.Context, now time.Time) error {
	g := s.current.join()
	defer g.requests.Done()
	if g.o.Policy.Interval == 0 || len(g.rules.retention) == 0 {
		return nil
	}
	docs := s.repositories.Metadata
	old, err := docs.Document(ctx, retentionKind, retentionKey)
	var last retentionRecord
	switch {
	case errors.Is(err, errs.NotFound):
		old = nil
	case err != nil:
		return err
	default:
		if err := record.Unmarshal("retention", old, retentionVersion, &last); err != nil {
			return err
		}
	}
	if now.Sub(last.Started) < g.o.Policy.Interval {
		return nil
	}
	v, err := record.Marshal(retentionVersion, retentionRecord{now.UTC()})
	if err != nil {
		return err
	}
	if err := docs.SwapDocument(ctx, retentionKind, retentionKey, old, v); err != nil {
		if errors.Is(err, errs.Precondition) {
			return nil
		}
		return err
	}
	outcome, err := s.keeper(g, g.rules, byRetention).Run(ctx)
	s.metrics.Retained(outcome.Tags, outcome.Manifests, err != nil)
	s.o.Log.Info("retention", "tags", outcome.Tags, "manifests", outcome.Manifests)
	return err
}

// keeper returns what removes tags by rules for user, and tells of it as of other deletions.
func (s *Server) keeper(g *generation, r rules, user string) *policy.Keeper {
	return &policy.Keeper{
		Store: s.noted(user), Rules: r.retention, Immutable: r.immutable,
		Removed: func(ctx context.Context, r policy.Removal) {
			s.o.Log.Info("tag is not kept", "repository", r.Repository, "tag", r.Tag, "digest", r.Digest, "updated", r.Updated)
			e := api.Event{Action: notify.Delete, Repository: r.Repository, Tag: r.Tag, Digest: r.Digest}
			if err := g.told(context.WithoutCancel(ctx), e); err != nil {
				s.o.Log.Error("an event is lost", "repository", r.Repository, "err", err)
			}
		},
	}
}

const retentionPath = "/retention"

// controlRetention removes tags by the rules of the request, and writes a line for each.
func (s *Server) controlRetention(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	p := Policy{Retention: q["rule"], Immutable: q["immutable"]}
	rules, err := p.parse()
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	g := s.current.join()
	defer g.requests.Done()
	k := s.keeper(g, rules, cmp.Or(q.Get("user"), byRetention))
	k.DryRun = q.Get("dry-run") == "true"
	writeRetention(r.Context(), json.NewEncoder(w), k)
}

// RetentionLine is a line that tells of a removal, or of the end.
type RetentionLine struct {
	*policy.Removal
	Outcome *policy.Outcome `json:"outcome,omitempty"`
	Error   string          `json:"error,omitempty"`
}

func writeRetention(ctx context.Context, out *json.Encoder, k *policy.Keeper) {
	tell := k.Removed
	k.Removed = func(ctx context.Context, r policy.Removal) {
		if tell != nil && !k.DryRun {
			tell(ctx, r)
		}
		_ = out.Encode(RetentionLine{Removal: &r}) // the command may be gone
	}
	outcome, err := k.Run(ctx)
	last := RetentionLine{Outcome: &outcome}
	if err != nil {
		last.Error = err.Error()
	}
	_ = out.Encode(last)
}

// AskRetention removes tags at the registry that serves a root for a user, and returns its lines. The error's class is errs.Unavailable when none
// does. The caller closes them.
func AskRetention(ctx context.Context, o Options, user string, dryRun bool) (io.ReadCloser, error) {
	q := url.Values{"rule": o.Policy.Retention, "immutable": o.Policy.Immutable, "dry-run": {strconv.FormatBool(dryRun)}, "user": {user}}
	t := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", filepath.Join(o.Root, controlSocket))
	}}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://registry"+retentionPath+"?"+q.Encode(), http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := t.RoundTrip(r)
	if err != nil {
		return nil, errs.New(errs.Unavailable, "%s: no registry serves it: %w", o.Root, err)
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return nil, errs.New(errs.Invalid, "the registry answers: %s", bytes.TrimSpace(b))
	}
	return resp.Body, nil
}

// Retain removes tags of a registry that has a database, or does not serve, for a user.
func Retain(ctx context.Context, o Options, user string, dryRun bool, out *json.Encoder) error {
	rules, err := o.Policy.parse()
	if err != nil {
		return err
	}
	meta, blobs, err := OpenStores(ctx, o)
	if err != nil {
		return err
	}
	writeRetention(ctx, out, &policy.Keeper{Store: Noted(meta, o, user), Rules: rules.retention, Immutable: rules.immutable, DryRun: dryRun})
	return errors.Join(blobs.Close(), meta.Close())
}

// Reload serves with new options from now on. Those that only Open reads stay as they are.
func (s *Server) Reload(o Options) error {
	if o.Log == nil {
		o.Log = s.o.Log
	}
	o.Root, o.Database, o.S3, o.URL = s.o.Root, s.o.Database, s.o.S3, s.o.URL
	g, err := s.generate(&o)
	if err != nil {
		return err
	}
	s.current.replace(g)
	return nil
}
