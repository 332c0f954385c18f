package bakefile

import (
	"encoding/csv"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"

	"ply/internal/errs"
)

// Target is one build. Its JSON is that of buildx bake --print.
type Target struct {
	Description      string             `json:"description,omitempty"`
	Inherits         []string           `json:"inherits,omitempty"`
	Annotations      []string           `json:"annotations,omitempty"`
	Attest           Entries            `json:"attest,omitempty"`
	Context          *string            `json:"context,omitempty"`
	Contexts         map[string]string  `json:"contexts,omitempty"`
	Dockerfile       *string            `json:"dockerfile,omitempty"`
	DockerfileInline *string            `json:"dockerfile-inline,omitempty"`
	Args             map[string]*string `json:"args,omitempty"`
	Labels           map[string]*string `json:"labels,omitempty"`
	Tags             []string           `json:"tags,omitempty"`
	CacheFrom        Entries            `json:"cache-from,omitempty"`
	CacheTo          Entries            `json:"cache-to,omitempty"`
	Target           *string            `json:"target,omitempty"`
	Secret           Entries            `json:"secret,omitempty"`
	SSH              []SSH              `json:"ssh,omitempty"`
	Platforms        []string           `json:"platforms,omitempty"`
	Output           Entries            `json:"output,omitempty"`
	Pull             *bool              `json:"pull,omitempty"`
	NoCache          *bool              `json:"no-cache,omitempty"`
	Network          *string            `json:"network,omitempty"`
	NoCacheFilter    []string           `json:"no-cache-filter,omitempty"`
	ShmSize          *string            `json:"shm-size,omitempty"`
	Ulimits          []string           `json:"ulimits,omitempty"`
	Call             *string            `json:"call,omitempty"`
	Entitlements     []string           `json:"entitlements,omitempty"`
	ExtraHosts       map[string]*string `json:"extra-hosts,omitempty"`

	// Linked says that the target is built only because others begin from it.
	Linked bool `json:"-"`
}

// MarshalJSON escapes what a bake file would take for a template, so that the output can be read as one.
func (t *Target) MarshalJSON() ([]byte, error) {
	type plain Target
	out := plain(*t)
	escape := strings.NewReplacer("${", "$${", "%{", "%%{").Replace
	one := func(s *string) *string {
		if s == nil {
			return nil
		}
		e := escape(*s)
		return &e
	}
	all := func(m map[string]*string) map[string]*string {
		m = maps.Clone(m)
		for k, v := range m {
			m[k] = one(v)
		}
		return m
	}
	out.Annotations = slices.Clone(t.Annotations)
	for i, a := range out.Annotations {
		out.Annotations[i] = escape(a)
	}
	out.DockerfileInline, out.Labels, out.Args, out.ExtraHosts = one(t.DockerfileInline), all(t.Labels), all(t.Args), all(t.ExtraHosts)
	return json.Marshal(out)
}

// Entry is an attestation, a cache, an output or a secret: the attributes of the flag, such as type and dest.
type Entry map[string]string

// Entries are those of a target, in their order.
type Entries []Entry

// MarshalJSON writes what buildx writes: disabled, which only attestations have, as a truth value, and the ID of a secret first.
func (e Entry) MarshalJSON() ([]byte, error) {
	if _, ok := e["type"]; !ok { // a secret
		return json.Marshal(struct {
			ID  string `json:"id,omitempty"`
			Src string `json:"src,omitempty"`
			Env string `json:"env,omitempty"`
		}{e["id"], e["src"], e["env"]})
	}
	m := make(map[string]any, len(e))
	for k, v := range e {
		m[k] = v
		if k == "disabled" {
			m[k] = v == "true"
		}
	}
	return json.Marshal(m)
}

// String returns the entry as the value of a flag.
func (e Entry) String() string {
	var list []string
	for _, k := range slices.Sorted(maps.Keys(e)) {
		list = append(list, field(k+"="+e[k]))
	}
	return strings.Join(list, ",")
}

// Flags returns the entries as values of a flag.
func (list Entries) Flags() (out []string) {
	for _, e := range list {
		out = append(out, e.String())
	}
	return out
}

// field quotes a field of CSV if it needs that.
func field(s string) string {
	if strings.ContainsAny(s, ",\"\n") {
		return `"` + strings.ReplaceAll(s, `"`, `""`) + `"`
	}
	return s
}

// SSH is an agent or keys that a target gets.
type SSH struct {
	ID    string   `json:"id,omitempty"`
	Paths []string `json:"paths,omitempty"`
}

// Flag returns the value of --ssh.
func (s *SSH) Flag() string {
	if len(s.Paths) == 0 {
		return s.ID
	}
	return s.ID + "=" + strings.Join(s.Paths, ",")
}

func parseSSH(text string) SSH {
	id, paths, ok := strings.Cut(text, "=")
	if !ok {
		return SSH{ID: id}
	}
	return SSH{ID: id, Paths: strings.Split(paths, ",")}
}

// kind is what the entries of an attribute are.
type kind int

const (
	attestation kind = iota
	cache
	output
	secret
)

// parse reads the value of a flag. A list of images in the older form of a cache gives several entries.
func (k kind) parse(text string) (Entries, error) {
	if text == "" {
		return nil, nil
	}
	r := csv.NewReader(strings.NewReader(text))
	fields, err := r.Read()
	if err != nil {
		return nil, errs.New(errs.Invalid, "%s: %v", text, err)
	}
	if k == cache && !strings.Contains(text, "=") {
		var out Entries
		for _, f := range fields {
			out = append(out, Entry{"type": "registry", "ref": f})
		}
		return out, nil
	}
	if k == output && len(fields) == 1 && fields[0] == text && !strings.HasPrefix(text, "type=") {
		if text == "-" {
			return Entries{{"type": "tar", "dest": "-"}}, nil
		}
		return Entries{{"type": "local", "dest": text}}, nil
	}
	e := Entry{}
	for _, f := range fields {
		key, value, ok := strings.Cut(f, "=")
		if !ok {
			return nil, errs.New(errs.Invalid, "invalid value %s", f)
		}
		e[strings.ToLower(strings.TrimSpace(key))] = value
	}
	e, err = k.check(e)
	if err != nil {
		return nil, err
	}
	return Entries{e}, nil
}

// check returns an entry in its normal form.
func (k kind) check(e Entry) (Entry, error) {
	if k == secret {
		out := Entry{}
		for key, v := range e {
			switch key {
			case "id", "env":
				out[key] = v
			case "src", "source":
				out["src"] = v
			case "type":
				if v != "file" && v != "env" {
					return nil, errs.New(errs.Invalid, "unsupported secret type %q", v)
				}
			default:
				return nil, errs.New(errs.Invalid, "unexpected key '%s' of a secret", key)
			}
		}
		if e["type"] == "env" && out["env"] == "" {
			out["env"] = out["src"]
			delete(out, "src")
		}
		return out, nil
	}
	if e["type"] == "" {
		return nil, errs.New(errs.Invalid, "the type is missing: %s", e)
	}
	if d, ok := e["disabled"]; ok && k == attestation {
		off, err := strconv.ParseBool(d)
		if err != nil {
			return nil, errs.New(errs.Invalid, "invalid value disabled=%s", d)
		}
		if e["disabled"] = "true"; !off {
			delete(e, "disabled")
		}
	}
	return e, nil
}

// join returns entries and further ones. Of attestations and secrets the last one of a type or name counts, and equal entries count once.
func (k kind) join(list, more Entries) Entries {
	var out Entries
	for _, e := range slices.Concat(list, more) {
		at := slices.IndexFunc(out, func(o Entry) bool {
			switch k {
			case attestation:
				return o["type"] == e["type"]
			case secret:
				return o["id"] == e["id"]
			}
			return maps.Equal(o, e)
		})
		if at >= 0 {
			out[at] = e
		} else {
			out = append(out, e)
		}
	}
	return out
}

func joinSSH(list, more []SSH) []SSH {
	var out []SSH
	for _, s := range slices.Concat(list, more) {
		if at := slices.IndexFunc(out, func(o SSH) bool { return o.ID == s.ID }); at >= 0 {
			out[at] = s
		} else {
			out = append(out, s)
		}
	}
	return out
}

func mergeMap(to *map[string]*string, from map[string]*string) {
	for k, v := range from {
		if v == nil {
			continue
		}
		if *to == nil {
			*to = map[string]*string{}
		}
		(*to)[k] = v
	}
}

// merge takes over what another target sets. Maps, annotations, attestations, caches that are read, secrets, agents, limits, stages without a cache and entitlements are
// joined; other values are replaced.
func (t *Target) merge(from *Target) {
	mergeMap(&t.Args, from.Args)
	mergeMap(&t.Labels, from.Labels)
	mergeMap(&t.ExtraHosts, from.ExtraHosts)
	if len(from.Contexts) > 0 && t.Contexts == nil {
		t.Contexts = map[string]string{}
	}
	maps.Copy(t.Contexts, from.Contexts)
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
	for _, p := range []struct{ to, from *[]string }{{&t.Platforms, &from.Platforms}, {&t.Tags, &from.Tags}} {
		if *p.from != nil {
			*p.to = slices.Clone(*p.from)
		}
	}
	for _, p := range []struct{ to, from *[]string }{
		{&t.Annotations, &from.Annotations}, {&t.NoCacheFilter, &from.NoCacheFilter}, {&t.Ulimits, &from.Ulimits}, {&t.Entitlements, &from.Entitlements}, {&t.Inherits, &from.Inherits},
	} {
		if *p.from != nil {
			*p.to = slices.Concat(*p.to, *p.from)
		}
	}
	for _, p := range []struct{ to, from *Entries }{{&t.CacheTo, &from.CacheTo}, {&t.Output, &from.Output}} {
		if *p.from != nil {
			*p.to = slices.Clone(*p.from)
		}
	}
	for _, p := range []struct {
		kind     kind
		to, from *Entries
	}{{attestation, &t.Attest, &from.Attest}, {secret, &t.Secret, &from.Secret}, {cache, &t.CacheFrom, &from.CacheFrom}} {
		if *p.from != nil {
			*p.to = p.kind.join(*p.to, *p.from)
		}
	}
	if from.SSH != nil {
		t.SSH = joinSSH(t.SSH, from.SSH)
	}
	if from.Description != "" {
		t.Description = from.Description
	}
}

// clean removes what stands twice and what is empty.
func (t *Target) clean() {
	for _, l := range []*[]string{&t.Annotations, &t.Tags, &t.Platforms, &t.NoCacheFilter, &t.Ulimits, &t.Entitlements} {
		if l == &t.Entitlements && t.Network != nil && *t.Network == "host" {
			*l = append(slices.Clone(*l), "network.host")
		}
		*l = unique(*l)
	}
	t.Attest, t.Secret, t.SSH = attestation.join(nil, t.Attest), secret.join(nil, t.Secret), joinSSH(nil, t.SSH)
	t.CacheFrom, t.CacheTo, t.Output = cache.join(nil, t.CacheFrom), cache.join(nil, t.CacheTo), output.join(nil, t.Output)
	maps.DeleteFunc(t.Contexts, func(_, v string) bool { return v == "" })
}

// unique returns a list without empty strings and without those that were there before.
func unique(list []string) []string {
	if list == nil {
		return nil
	}
	seen := map[string]bool{"": true}
	out := []string{}
	for _, s := range list {
		if !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
	}
	return out
}

// entries are the attributes whose value is a list of entries.
func (t *Target) entries(key string) (*Entries, kind) {
	switch key {
	case "attest":
		return &t.Attest, attestation
	case "cache-from":
		return &t.CacheFrom, cache
	case "cache-to":
		return &t.CacheTo, cache
	case "output":
		return &t.Output, output
	case "secret":
		return &t.Secret, secret
	}
	return nil, 0
}

// list are the attributes whose value is a list of strings.
func (t *Target) list(key string) *[]string {
	switch key {
	case "annotations":
		return &t.Annotations
	case "entitlements":
		return &t.Entitlements
	case "inherits":
		return &t.Inherits
	case "no-cache-filter":
		return &t.NoCacheFilter
	case "platforms":
		return &t.Platforms
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

func (t *Target) truth(key string) **bool {
	switch key {
	case "no-cache":
		return &t.NoCache
	case "pull":
		return &t.Pull
	}
	return nil
}

// pairs are the attributes whose value is a map.
func (t *Target) pairs(key string) *map[string]*string {
	switch key {
	case "args":
		return &t.Args
	case "labels":
		return &t.Labels
	case "extra-hosts":
		return &t.ExtraHosts
	}
	return nil
}
