// Package bakefile reads the files of `bake`, in HCL and in JSON, with the meaning that buildx gives them: variables that the environment
// overrides, functions, groups, targets that inherit from others, and matrices of targets.
//
// Invariants: a name that the format does not have is an error with its place in the file; expressions that need each other in a circle, and
// targets that inherit from each other in one, are errors; a file and what it expands to are bounded.
package bakefile

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"ply/internal/errs"
)

// File is the text of a file.
type File struct {
	Name string
	Data []byte
}

// Limits of files and of what they expand to.
const (
	MaxSize    = 4 << 20 // bytes of all files
	maxTargets = 4096
	maxDepth   = 64 // of groups and of inheritance
)

// Target is one build. Lists are in the form of the flags of build.
type Target struct {
	Inherits         []string           `json:"inherits,omitempty"`
	Description      string             `json:"description,omitempty"`
	Annotations      []string           `json:"annotations,omitempty"`
	Args             map[string]*string `json:"args,omitempty"` // nil = that of the environment
	Attest           []string           `json:"attest,omitempty"`
	CacheFrom        []string           `json:"cache-from,omitempty"`
	CacheTo          []string           `json:"cache-to,omitempty"`
	Call             *string            `json:"call,omitempty"`
	Context          *string            `json:"context,omitempty"`
	Contexts         map[string]string  `json:"contexts,omitempty"`
	Dockerfile       *string            `json:"dockerfile,omitempty"`
	DockerfileInline *string            `json:"dockerfile-inline,omitempty"`
	Entitlements     []string           `json:"entitlements,omitempty"`
	ExtraHosts       map[string]string  `json:"extra-hosts,omitempty"`
	Labels           map[string]*string `json:"labels,omitempty"`
	Network          *string            `json:"network,omitempty"`
	NoCache          *bool              `json:"no-cache,omitempty"`
	NoCacheFilter    []string           `json:"no-cache-filter,omitempty"`
	Output           []string           `json:"output,omitempty"`
	Platforms        []string           `json:"platforms,omitempty"`
	Pull             *bool              `json:"pull,omitempty"`
	Secret           []string           `json:"secret,omitempty"`
	ShmSize          *string            `json:"shm-size,omitempty"`
	SSH              []string           `json:"ssh,omitempty"`
	Tags             []string           `json:"tags,omitempty"`
	Target           *string            `json:"target,omitempty"`
	Ulimits          []string           `json:"ulimits,omitempty"`
}

// Group names targets and other groups.
type Group struct {
	Description string   `json:"description,omitempty"`
	Targets     []string `json:"targets"`
}

// Bake is what files define.
type Bake struct {
	Groups  map[string]*Group  `json:"group,omitempty"`
	Targets map[string]*Target `json:"target"`
}

// Select returns the targets that names mean, with all that they inherit, and the groups among the names. Without names it is "default".
// Overrides have the form of --set: PATTERN.KEY=VALUE. Errors: errs.NotFound for an unknown name, errs.Invalid.
func (b *Bake) Select(names, overrides []string) (*Bake, error) {
	if len(names) == 0 {
		names = []string{"default"}
	}
	out := &Bake{Groups: map[string]*Group{}, Targets: map[string]*Target{}}
	var list []string
	for _, n := range names {
		found, err := b.expand(n, nil)
		if err != nil {
			return nil, err
		}
		if g := b.Groups[n]; g != nil {
			out.Groups[n] = g
		}
		list = append(list, found...)
	}
	if out.Groups["default"] == nil {
		out.Groups["default"] = &Group{Targets: names}
	}
	set, err := parseOverrides(overrides)
	if err != nil {
		return nil, err
	}
	for _, s := range set {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(b.Targets)), s.matches) {
			return nil, errs.New(errs.NotFound, "could not find any target matching '%s'", s.pattern)
		}
	}
	for i := 0; i < len(list); i++ {
		n := list[i]
		if out.Targets[n] != nil {
			continue
		}
		t, err := b.resolve(n, set, nil)
		if err != nil {
			return nil, err
		}
		out.Targets[n] = t
		for _, c := range t.Contexts { // what a target begins from is built too
			if other, ok := strings.CutPrefix(c, "target:"); ok {
				list = append(list, other)
			}
		}
		if len(out.Targets) > maxTargets {
			return nil, errs.New(errs.Exhausted, "more than %d targets", maxTargets)
		}
	}
	return out, nil
}

// expand returns the targets of a group, or the target of a name.
func (b *Bake) expand(name string, above []string) ([]string, error) {
	if slices.Contains(above, name) || len(above) > maxDepth {
		return nil, nil // a group may name itself through another one
	}
	g := b.Groups[name]
	if g == nil {
		if b.Targets[name] == nil {
			return nil, errs.New(errs.NotFound, "failed to find target %s", name)
		}
		return []string{name}, nil
	}
	var out []string
	for _, n := range g.Targets {
		if n == name && b.Targets[n] != nil {
			out = append(out, n)
			continue
		}
		more, err := b.expand(n, append(above, name))
		if err != nil {
			return nil, err
		}
		out = append(out, more...)
	}
	return out, nil
}

// resolve returns a target with what it inherits.
func (b *Bake) resolve(name string, set []override, above []string) (*Target, error) {
	t := b.Targets[name]
	if t == nil {
		return nil, errs.New(errs.NotFound, "failed to find target %s", name)
	}
	if slices.Contains(above, name) || len(above) > maxDepth {
		return nil, errs.New(errs.Invalid, "infinite loop in the inheritance of target %s", name)
	}
	out := &Target{}
	for _, from := range t.Inherits {
		base, err := b.resolve(from, nil, append(above, name))
		if err != nil {
			return nil, err
		}
		out.merge(base)
	}
	out.merge(t)
	out.Inherits = nil
	for _, s := range set {
		if s.matches(name) {
			if err := s.apply(out); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

func mergeMap[V any](to *map[string]V, from map[string]V) {
	if len(from) > 0 && *to == nil {
		*to = map[string]V{}
	}
	maps.Copy(*to, from)
}

// merge takes over what another target sets: maps are joined, and other values replaced.
func (t *Target) merge(from *Target) {
	mergeMap(&t.Args, from.Args)
	mergeMap(&t.Contexts, from.Contexts)
	mergeMap(&t.Labels, from.Labels)
	mergeMap(&t.ExtraHosts, from.ExtraHosts)
	for _, p := range []struct{ to, from **string }{
		{&t.Call, &from.Call}, {&t.Context, &from.Context}, {&t.Dockerfile, &from.Dockerfile}, {&t.DockerfileInline, &from.DockerfileInline},
		{&t.Network, &from.Network}, {&t.ShmSize, &from.ShmSize}, {&t.Target, &from.Target},
	} {
		if *p.from != nil {
			*p.to = *p.from
		}
	}
	for _, p := range []struct{ to, from **bool }{{&t.NoCache, &from.NoCache}, {&t.Pull, &from.Pull}} {
		if *p.from != nil {
			*p.to = *p.from
		}
	}
	for _, p := range []struct{ to, from *[]string }{
		{&t.CacheTo, &from.CacheTo}, {&t.NoCacheFilter, &from.NoCacheFilter}, {&t.Output, &from.Output}, {&t.Platforms, &from.Platforms},
		{&t.Tags, &from.Tags}, {&t.Ulimits, &from.Ulimits},
	} {
		if *p.from != nil {
			*p.to = *p.from
		}
	}
	for _, p := range []struct{ to, from *[]string }{
		{&t.Annotations, &from.Annotations}, {&t.Attest, &from.Attest}, {&t.CacheFrom, &from.CacheFrom}, {&t.Secret, &from.Secret}, {&t.SSH, &from.SSH}, {&t.Entitlements, &from.Entitlements},
	} {
		for _, v := range *p.from {
			if !slices.Contains(*p.to, v) {
				*p.to = append(slices.Clone(*p.to), v)
			}
		}
	}
	if from.Description != "" {
		t.Description = from.Description
	}
	if from.Inherits != nil {
		t.Inherits = from.Inherits
	}
}

// override is a value of --set.
type override struct {
	pattern, key, sub, value string
	add                      bool
}

func parseOverrides(list []string) ([]override, error) {
	var out []override
	for _, s := range list {
		name, value, ok := strings.Cut(s, "=")
		if !ok {
			return nil, errs.New(errs.Invalid, "invalid override %s, expected target.name=value", s)
		}
		o := override{value: value}
		if name, o.add = strings.CutSuffix(name, "+"); name == "" {
			return nil, errs.New(errs.Invalid, "invalid override %s, expected target.name=value", s)
		}
		parts := strings.SplitN(name, ".", 3)
		if len(parts) < 2 {
			return nil, errs.New(errs.Invalid, "invalid override key %s, expected target.name", name)
		}
		o.pattern, o.key = parts[0], parts[1]
		if len(parts) == 3 {
			o.sub = parts[2]
		}
		if _, err := path.Match(o.pattern, ""); err != nil {
			return nil, errs.New(errs.Invalid, "invalid override %s: %v", s, err)
		}
		out = append(out, o)
	}
	// The first value of a list replaces it, and further ones are added.
	seen := map[string]bool{}
	for i := range out {
		k := out[i].pattern + "." + out[i].key
		out[i].add = out[i].add || seen[k]
		seen[k] = true
	}
	return out, nil
}

func (o *override) matches(name string) bool {
	ok, _ := path.Match(o.pattern, name)
	return ok
}

// lists are the keys of overrides whose value is a list; some have an older name.
func (t *Target) list(key string) *[]string {
	switch key {
	case "annotations":
		return &t.Annotations
	case "attest":
		return &t.Attest
	case "cache-from":
		return &t.CacheFrom
	case "cache-to":
		return &t.CacheTo
	case "entitlements":
		return &t.Entitlements
	case "no-cache-filter":
		return &t.NoCacheFilter
	case "output":
		return &t.Output
	case "platform", "platforms":
		return &t.Platforms
	case "secret", "secrets":
		return &t.Secret
	case "ssh":
		return &t.SSH
	case "tags":
		return &t.Tags
	case "ulimits":
		return &t.Ulimits
	}
	return nil
}

func (t *Target) text(key string) **string {
	switch key {
	case "call":
		return &t.Call
	case "context":
		return &t.Context
	case "dockerfile":
		return &t.Dockerfile
	case "dockerfile-inline":
		return &t.DockerfileInline
	case "network":
		return &t.Network
	case "shm-size":
		return &t.ShmSize
	case "target":
		return &t.Target
	}
	return nil
}

func (o *override) apply(t *Target) error {
	value := o.value
	if l := t.list(o.key); l != nil {
		if o.add {
			*l = append(slices.Clone(*l), value)
		} else {
			*l = []string{value}
		}
		return nil
	}
	if p := t.text(o.key); p != nil {
		*p = &value
		return nil
	}
	switch o.key {
	case "args", "labels", "contexts", "extra-hosts":
		if o.sub == "" {
			return errs.New(errs.Invalid, "override %s.%s needs the name of a value: %s.%s.NAME=VALUE", o.pattern, o.key, o.pattern, o.key)
		}
		one := map[string]string{o.sub: value}
		switch o.key {
		case "args":
			mergeMap(&t.Args, map[string]*string{o.sub: &value})
		case "labels":
			mergeMap(&t.Labels, map[string]*string{o.sub: &value})
		case "contexts":
			mergeMap(&t.Contexts, one)
		default:
			mergeMap(&t.ExtraHosts, one)
		}
		return nil
	case "no-cache", "pull":
		var b bool
		switch value {
		case "true", "1", "":
			b = true
		case "false", "0":
		default:
			return errs.New(errs.Invalid, "invalid value %s for boolean key %s", value, o.key)
		}
		if o.key == "pull" {
			t.Pull = &b
		} else {
			t.NoCache = &b
		}
		return nil
	}
	return errs.New(errs.Invalid, "unknown key: %s", fmt.Sprint(o.key))
}
