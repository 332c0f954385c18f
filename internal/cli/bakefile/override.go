package bakefile

import (
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"ply/internal/errs"
)

// override is a value of --set.
type override struct {
	pattern, key, sub, value string
	add                      bool
}

// parseOverrides reads values of --set: PATTERN.KEY[.SUB]=VALUE, or PATTERN.KEY+=VALUE, which adds to a list. An argument without a value gets that of the environment.
func parseOverrides(list []string) ([]override, error) {
	var out []override
	for _, s := range list {
		name, value, has := strings.Cut(s, "=")
		o := override{value: value}
		name, o.add = strings.CutSuffix(name, "+")
		parts := strings.SplitN(name, ".", 3)
		if len(parts) < 2 {
			return nil, errs.New(errs.Invalid, "invalid override key %s, expected target.name", name)
		}
		o.pattern, o.key = parts[0], parts[1]
		if len(parts) == 3 {
			o.sub = parts[2]
		}
		switch o.key { // as the flags of build are named
		case "platform":
			o.key = "platforms"
		case "secrets":
			o.key = "secret"
		}
		if !has {
			if o.key != "args" {
				return nil, errs.New(errs.Invalid, "invalid override %s, expected target.name=value", s)
			}
			if o.value, has = os.LookupEnv(o.sub); !has || !environmentAllowed() {
				continue
			}
		}
		if _, err := path.Match(o.pattern, ""); err != nil {
			return nil, errs.New(errs.Invalid, "could not match targets with '%s': %v", o.pattern, err)
		}
		out = append(out, o)
	}
	// The first value of a list replaces it, and further ones are added. What pushes or loads changes the outputs, after they are known.
	seen := map[string]bool{}
	for i := range out {
		k := out[i].pattern + "." + out[i].key
		out[i].add = out[i].add || seen[k]
		seen[k] = true
	}
	slices.SortStableFunc(out, func(a, b override) int { return after(a.key) - after(b.key) })
	return out, nil
}

func after(key string) int {
	if key == "push" || key == "load" {
		return 1
	}
	return 0
}

func (o *override) matches(name string) bool {
	ok, _ := path.Match(o.pattern, name)
	return ok || o.pattern == name
}

func (o *override) apply(t *Target) error {
	value := o.value
	if l, k := t.entries(o.key); l != nil {
		found, err := k.parse(value)
		if err != nil {
			return errs.New(errs.Invalid, "invalid value for %s: %w", o.key, err)
		}
		if o.add || k == attestation {
			found = k.join(*l, found)
		}
		*l = found
		return nil
	}
	if l := t.list(o.key); l != nil && o.key != "inherits" {
		if o.add || o.key == "entitlements" || o.key == "annotations" {
			*l = append(slices.Clone(*l), value)
		} else {
			*l = []string{value}
		}
		return nil
	}
	if p := t.text(o.key); p != nil && o.key != "dockerfile-inline" {
		*p = &value
		return nil
	}
	if m := t.pairs(o.key); m != nil || o.key == "contexts" {
		if o.sub == "" {
			return errs.New(errs.Invalid, "invalid format for %s, expecting %s.<name>=<value>", o.key, o.key)
		}
		if m != nil {
			mergeMap(m, map[string]*string{o.sub: &value})
			return nil
		}
		if t.Contexts == nil {
			t.Contexts = map[string]string{}
		}
		t.Contexts[o.sub] = value
		return nil
	}
	if o.key == "ssh" {
		one := []SSH{parseSSH(value)}
		if o.add {
			one = joinSSH(t.SSH, one)
		}
		t.SSH = one
		return nil
	}
	b, err := strconv.ParseBool(value)
	p := t.truth(o.key)
	switch {
	case p == nil && after(o.key) == 0:
		return errs.New(errs.Invalid, "unknown key: %s", o.key)
	case err != nil:
		return errs.New(errs.Invalid, "invalid value %s for boolean key %s", value, o.key)
	case p != nil:
		*p = &b
	case o.key == "push":
		t.push(b)
	case b:
		t.load()
	}
	return nil
}

// push makes the outputs push, or not.
func (t *Target) push(on bool) {
	var out Entries
	add := on
	for _, e := range t.Output {
		if !on && e["type"] == "registry" {
			continue
		}
		if e["type"] != "docker" {
			add = false
		}
		if e["type"] == "image" {
			e = Entry(cloneOf(e))
			e["push"] = strconv.FormatBool(on)
		}
		out = append(out, e)
	}
	if add {
		out = append(out, Entry{"type": "image", "push": "true"})
	}
	t.Output = out
}

// load adds an image in the engine, unless there is one or the outputs are something else than images.
func (t *Target) load() {
	for _, e := range t.Output {
		switch e["type"] {
		case "docker":
			if e["dest"] == "" {
				return
			}
		case "image", "registry", "oci":
		default:
			return
		}
	}
	t.Output = append(slices.Clone(t.Output), Entry{"type": "docker"})
}

func cloneOf(e Entry) Entry {
	out := Entry{}
	for k, v := range e {
		out[k] = v
	}
	return out
}

// environmentAllowed reports whether the environment may set variables.
func environmentAllowed() bool {
	off, err := strconv.ParseBool(os.Getenv("BUILDX_BAKE_DISABLE_VARS_ENV_LOOKUP"))
	return err != nil || !off
}
