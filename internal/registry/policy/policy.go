// Package policy has the rules that the owner of a registry sets for repositories: how many bytes they may have, which tags may not
// move, and which tags are kept for how long.
//
// Invariants: the bytes of a quota are reserved before anything is stored, so that writers at the same time do not exceed it together.
// Retention removes a tag only while it points at the manifest that was looked at, and never one that may not move.
package policy

import (
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"

	"ply/internal/errs"
	"ply/internal/registry/content"
)

// Tags stands for tags of repositories.
type Tags struct {
	Pattern content.Pattern
	Glob    string // of tags: * stands for any characters, ? for one
}

// ParseTags reads PATTERN or PATTERN:GLOB. The error's class is errs.Invalid.
func ParseTags(s string) (Tags, error) {
	pattern, glob, ok := strings.Cut(s, ":")
	if !ok {
		glob = "*"
	}
	p, err := content.ParsePattern(pattern)
	if err != nil {
		return Tags{}, err
	}
	if _, err := path.Match(glob, ""); err != nil || glob == "" || len(glob) > content.MaxTag || strings.ContainsAny(glob, `\/[]`) {
		return Tags{}, errs.New(errs.Invalid, "%q is not a pattern of tags, such as v*", glob)
	}
	return Tags{p, glob}, nil
}

// Matches reports whether a tag is one of them.
func (t Tags) Matches(repo content.Repository, tag content.Tag) bool {
	ok, _ := path.Match(t.Glob, string(tag)) // it was checked
	return ok && t.Pattern.Matches(repo)
}

// Immutable are tags that may not move.
type Immutable []Tags

// Fixed returns those of tags that may not move.
func (rules Immutable) Fixed(repo content.Repository, tags ...content.Tag) (fixed []content.Tag) {
	for _, tag := range tags {
		for _, r := range rules {
			if r.Matches(repo, tag) {
				fixed = append(fixed, tag)
				break
			}
		}
	}
	return fixed
}

// Applies reports whether a repository may have tags that may not move.
func (rules Immutable) Applies(repo content.Repository) bool {
	for _, r := range rules {
		if r.Pattern.Matches(repo) {
			return true
		}
	}
	return false
}

// Retention says which of its tags are kept: the newest ones, and those that were pushed not long ago.
type Retention struct {
	Tags
	Keep int           // how many of the newest; 0 = none for being new
	Age  time.Duration // 0 = none for its age
}

// ParseRetention reads PATTERN[:GLOB]=KEEP, PATTERN[:GLOB]=DAYSd, or both as KEEP/DAYSd.
func ParseRetention(s string) (r Retention, err error) {
	i := strings.LastIndex(s, "=")
	if i < 0 {
		return r, errs.New(errs.Invalid, "%q is not PATTERN:TAGS=KEEP/DAYSd", s)
	}
	if r.Tags, err = ParseTags(s[:i]); err != nil {
		return r, err
	}
	for i, part := range strings.Split(s[i+1:], "/") {
		days, isAge := strings.CutSuffix(part, "d")
		n, err := strconv.Atoi(days)
		if err != nil || n < 1 || n > 100_000 || i > 1 {
			return r, errs.New(errs.Invalid, "%q is not PATTERN:TAGS=KEEP/DAYSd", s)
		}
		if isAge {
			r.Age = time.Duration(n) * 24 * time.Hour
		} else {
			r.Keep = n
		}
	}
	return r, nil
}

// Quota is how many bytes the repositories of a pattern may have together.
type Quota struct {
	Pattern content.Pattern
	Bytes   int64
}

// ParseQuota reads PATTERN=BYTES, such as team/**=10G.
func ParseQuota(s string) (Quota, error) {
	pattern, size, ok := strings.Cut(s, "=")
	if !ok {
		return Quota{}, errs.New(errs.Invalid, "%q is not PATTERN=BYTES", s)
	}
	p, err := content.ParsePattern(pattern)
	if err != nil {
		return Quota{}, err
	}
	n, err := units.RAMInBytes(size)
	if err != nil || n < 0 {
		return Quota{}, errs.New(errs.Invalid, "%q is not a number of bytes, such as 500M or 20G", size)
	}
	return Quota{p, n}, nil
}
