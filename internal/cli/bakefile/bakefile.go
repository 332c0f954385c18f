// Package bakefile reads the files of `bake`, in HCL and in JSON, and compose files, with the meaning that buildx gives them: variables that the environment
// overrides, functions, groups, targets that inherit from others, and matrices of targets.
//
// Invariants: a name that the format does not have is a warning with its place in the file; expressions that need each other in a circle are errors, and targets
// that inherit from each other in one end; a file and what it expands to are bounded.
package bakefile

import (
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

// Group names targets and other groups.
type Group struct {
	Description string   `json:"description,omitempty"`
	Targets     []string `json:"targets"`
}

// Variable is a variable of the files, with the value that it has.
type Variable struct {
	Name        string  `json:"name"`
	Description string  `json:"description,omitempty"`
	Type        string  `json:"type,omitempty"`
	Value       *string `json:"value,omitempty"`
}

// Bake is what files define.
type Bake struct {
	Groups    map[string]*Group  `json:"group,omitempty"`
	Targets   map[string]*Target `json:"target"`
	Variables []Variable         `json:"-"`
	Warnings  []string           `json:"-"` // what the files say and nothing reads, with its place
	EnvFiles  []string           `json:"-"` // files of env_file from which arguments may have their values
}

// Select returns the targets that names mean, with all that they inherit and those from which they begin, and the groups among the names. Without names it is "default".
// A name may be a pattern. Overrides have the form of --set: PATTERN.KEY=VALUE. Errors: errs.NotFound for an unknown name, errs.Invalid.
func (b *Bake) Select(names, overrides []string) (*Bake, error) {
	if len(names) == 0 {
		names = []string{"default"}
	}
	var wanted []string
	for _, n := range names {
		found, err := b.matching(strings.ReplaceAll(n, ".", "_")) // services of compose files may have dots
		if err != nil {
			return nil, err
		}
		wanted = append(wanted, found...)
	}
	wanted = unique(wanted)
	set, err := parseOverrides(overrides)
	if err != nil {
		return nil, err
	}
	for _, s := range set {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(b.Targets)), s.matches) {
			return nil, errs.New(errs.NotFound, "could not find any target matching '%s'", s.pattern)
		}
	}
	r := &selection{bake: b, set: set, out: &Bake{Groups: map[string]*Group{}, Targets: map[string]*Target{}, EnvFiles: b.EnvFiles}, linked: map[string]bool{}}
	for _, n := range wanted {
		targets, groups := b.expand(n, map[string]bool{})
		for _, g := range groups {
			r.out.Groups[g] = b.Groups[g]
		}
		for _, t := range targets {
			if err := r.add(t); err != nil {
				return nil, err
			}
		}
	}
	r.defaults(wanted)
	for _, n := range slices.Sorted(maps.Keys(r.out.Targets)) {
		if err := r.link(n, nil); err != nil {
			return nil, err
		}
	}
	return r.out, nil
}

// matching returns the groups and targets that a pattern matches.
func (b *Bake) matching(pattern string) ([]string, error) {
	if !strings.ContainsAny(pattern, "*?[]") {
		return []string{pattern}, nil
	}
	var out []string
	for _, n := range slices.Concat(slices.Sorted(maps.Keys(b.Groups)), slices.Sorted(maps.Keys(b.Targets))) {
		if ok, err := path.Match(pattern, n); ok && err == nil {
			out = append(out, n)
		}
	}
	if len(out) == 0 {
		return nil, errs.New(errs.NotFound, "could not find any target matching %q", pattern)
	}
	return out, nil
}

// expand returns the targets of a group and the groups below it, or the target of a name. seen are the groups that were expanded.
func (b *Bake) expand(name string, seen map[string]bool) (targets, groups []string) {
	g := b.Groups[name]
	if g == nil || seen[name] {
		if g != nil && b.Targets[name] == nil {
			return nil, nil // a group may name itself through another one
		}
		return []string{name}, nil
	}
	seen[name] = true
	groups = []string{name}
	for _, n := range g.Targets {
		t, more := b.expand(n, seen)
		targets, groups = append(targets, t...), append(groups, more...)
	}
	return unique(targets), groups
}

// selection is a Select under way.
type selection struct {
	bake *Bake
	set  []override
	out  *Bake

	linked map[string]bool // whose contexts are followed
}

// defaults makes the group "default" of what was asked for.
func (r *selection) defaults(wanted []string) {
	var list []string
	if g := r.out.Groups["default"]; g != nil {
		list = slices.Clone(g.Targets)
		wanted = slices.DeleteFunc(slices.Clone(wanted), func(n string) bool { return n == "default" })
	}
	list = unique(append(list, wanted...))
	slices.Sort(list)
	g := &Group{Targets: list}
	if old := r.out.Groups["default"]; old != nil {
		g.Description = old.Description
	}
	r.out.Groups["default"] = g
}

// add adds a target.
func (r *selection) add(name string) error {
	if r.out.Targets[name] != nil {
		return nil
	}
	t, err := r.resolve(name, map[string]*Target{}, 0)
	if err != nil {
		return err
	}
	t.Inherits = nil
	if t.Context == nil {
		here := "."
		t.Context = &here
	}
	if t.Dockerfile == nil || *t.Dockerfile == "" {
		usual := "Dockerfile"
		t.Dockerfile = &usual
	}
	r.out.Targets[name] = t
	if len(r.out.Targets) > maxTargets {
		return errs.New(errs.Exhausted, "more than %d targets", maxTargets)
	}
	return nil
}

// resolve returns a target with what it inherits and the overrides of all of these. A target that inherits from itself has what the others set.
func (r *selection) resolve(name string, done map[string]*Target, depth int) (*Target, error) {
	if t, ok := done[name]; ok {
		return t, nil
	}
	t := r.bake.Targets[name]
	if t == nil {
		return nil, errs.New(errs.NotFound, "failed to find target %s", name)
	}
	if depth > maxDepth {
		return nil, errs.New(errs.Exhausted, "target %s inherits through more than %d others", name, maxDepth)
	}
	done[name] = nil
	out := &Target{}
	for _, from := range t.Inherits {
		base, err := r.resolve(from, done, depth+1)
		if err != nil {
			return nil, err
		}
		if base != nil {
			out.merge(base)
		}
	}
	out.merge(t)
	for _, s := range r.set {
		if s.matches(name) {
			if err := s.apply(out); err != nil {
				return nil, err
			}
		}
	}
	out.clean()
	done[name] = out
	return out, nil
}

// link adds the targets from which a target begins, and what they may do, which it may, too.
func (r *selection) link(name string, above []string) error {
	if r.linked[name] {
		return nil
	}
	t := r.out.Targets[name]
	above = append(above, name)
	for _, k := range slices.Sorted(maps.Keys(t.Contexts)) {
		other, ok := strings.CutPrefix(t.Contexts[k], "target:")
		if !ok {
			continue
		}
		if slices.Contains(above, other) {
			return errs.New(errs.Invalid, "infinite loop from %s to %s through their contexts", name, other)
		}
		if r.out.Targets[other] == nil {
			if err := r.add(other); err != nil {
				return err
			}
			r.out.Targets[other].Linked, r.out.Targets[other].Output = true, Entries{{"type": "cacheonly"}}
		}
		if err := r.link(other, above); err != nil {
			return err
		}
		o := r.out.Targets[other]
		t.Entitlements = unique(append(slices.Clone(t.Entitlements), o.Entitlements...))
		if len(t.Platforms) > 1 && len(o.Platforms) > 1 && slices.ContainsFunc(t.Platforms, func(p string) bool { return !slices.Contains(o.Platforms, p) }) {
			return errs.New(errs.Invalid, "target %s can't be used by %s because its platforms %v are not a subset of %v", other, name, t.Platforms, o.Platforms)
		}
	}
	r.linked[name] = true
	return nil
}
