package policy

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"ply/internal/errs"
	"ply/internal/registry/content"
	"ply/internal/registry/metadata"
)

// Keeper removes the tags that no rule keeps.
type Keeper struct {
	Store     metadata.Store
	Rules     []Retention      // the first one that matches a tag decides
	Immutable Immutable        // never removed
	DryRun    bool             // reports what would be removed, and removes nothing
	Now       func() time.Time // nil = time.Now
	// Removed is told of every tag, before it is removed in a dry run; may be nil.
	Removed func(ctx context.Context, r Removal)
}

// Removal is a tag that is not kept.
type Removal struct {
	Repository content.Repository `json:"repository"`
	Tag        content.Tag        `json:"tag"`
	Digest     content.Digest     `json:"digest"`
	Updated    time.Time          `json:"updated"`
}

// Outcome says what was removed, or would be.
type Outcome struct {
	Tags      int `json:"tags"`
	Manifests int `json:"manifests"` // that no tag led to any more; not known in a dry run
}

// Run removes once. It goes on after an error of one repository and returns all of them.
func (k *Keeper) Run(ctx context.Context) (o Outcome, all error) {
	for after := content.Repository(""); ; {
		repos, err := k.Store.Repositories(ctx, after, page)
		if err != nil {
			return o, errors.Join(all, err)
		}
		for _, repo := range repos {
			after = repo
			if slices.ContainsFunc(k.Rules, func(r Retention) bool { return r.Pattern.Matches(repo) }) {
				all = errors.Join(all, k.repository(ctx, repo, &o))
			}
			if err := ctx.Err(); err != nil {
				return o, errors.Join(all, err)
			}
		}
		if len(repos) < page {
			return o, all
		}
	}
}

func (k *Keeper) repository(ctx context.Context, repo content.Repository, o *Outcome) error {
	groups := make([][]metadata.Tag, len(k.Rules))
	err := metadata.EachTag(ctx, k.Store, repo, func(name content.Tag) error {
		i := slices.IndexFunc(k.Rules, func(r Retention) bool { return r.Matches(repo, name) })
		if i < 0 || len(k.Immutable.Fixed(repo, name)) > 0 {
			return nil
		}
		t, err := k.Store.Tag(ctx, repo, name)
		if errors.Is(err, errs.NotFound) {
			return nil
		}
		groups[i] = append(groups[i], t)
		return err
	})
	if err != nil {
		return err
	}
	var all error
	for i, tags := range groups {
		for _, t := range k.unkept(k.Rules[i], tags) {
			all = errors.Join(all, k.remove(ctx, repo, t, o))
		}
	}
	return all
}

// unkept returns the tags that a rule does not keep.
func (k *Keeper) unkept(r Retention, tags []metadata.Tag) (list []metadata.Tag) {
	now := time.Now()
	if k.Now != nil {
		now = k.Now()
	}
	slices.SortFunc(tags, func(a, b metadata.Tag) int { return cmp.Or(b.Updated.Compare(a.Updated), cmp.Compare(a.Name, b.Name)) })
	for i, t := range tags {
		if i >= r.Keep && (r.Age == 0 || now.Sub(t.Updated) > r.Age) {
			list = append(list, t)
		}
	}
	return list
}

func (k *Keeper) remove(ctx context.Context, repo content.Repository, t metadata.Tag, o *Outcome) error {
	removal := Removal{repo, t.Name, t.Digest, t.Updated}
	if k.DryRun {
		o.Tags++
		if k.Removed != nil {
			k.Removed(ctx, removal)
		}
		return nil
	}
	if now, err := k.Store.Tag(ctx, repo, t.Name); err != nil || !now.Updated.Equal(t.Updated) {
		return ignore(err) // it was pushed again, or is gone
	}
	err := k.Store.DeleteTag(ctx, repo, t.Name, metadata.Condition{OneOf: []content.Digest{t.Digest}})
	if err != nil {
		return ignore(err)
	}
	o.Tags++
	if k.Removed != nil {
		k.Removed(ctx, removal)
	}
	return k.collect(ctx, repo, t.Digest, o)
}

// ignore returns nil for an error that says that someone was faster.
func ignore(err error) error {
	if errors.Is(err, errs.NotFound) || errors.Is(err, errs.Precondition) {
		return nil
	}
	return err
}

// collect removes a manifest that no tag leads to any more, and what only it led to.
func (k *Keeper) collect(ctx context.Context, repo content.Repository, d content.Digest, o *Outcome) error {
	m, payload, err := k.Store.Payload(ctx, repo, d)
	if err != nil {
		return ignore(err)
	}
	referrers, err := k.Store.Referrers(ctx, repo, d, "", page)
	if err != nil {
		return err
	}
	done, err := k.Store.CollectManifest(ctx, repo, d, time.Now())
	if err != nil || !done {
		return err
	}
	o.Manifests++
	var all error
	if parsed, err := content.ParseManifest(payload, m.MediaType); err == nil {
		for _, child := range parsed.Manifests {
			all = errors.Join(all, k.collect(ctx, repo, child.Digest, o))
		}
	}
	for _, r := range referrers {
		all = errors.Join(all, k.collect(ctx, repo, r.Digest, o))
	}
	return all
}
