package bakefile

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/dotenv"
	"github.com/compose-spec/compose-go/v2/template"
	"github.com/docker/go-units"
	"go.yaml.in/yaml/v3"

	"ply/internal/errs"
)

// isCompose reports whether a file is a compose file: by its name, or because it has services.
func isCompose(f File) bool {
	name := strings.ToLower(f.Name)
	switch {
	case strings.HasSuffix(name, ".yml"), strings.HasSuffix(name, ".yaml"):
		return true
	case strings.HasSuffix(name, ".json"), strings.HasSuffix(name, ".hcl"):
		return false
	}
	var top map[string]any
	return yaml.Unmarshal(f.Data, &top) == nil && top["services"] != nil
}

// project is what compose files say about builds.
type project struct {
	env      map[string]string
	services map[string]map[string]any
	secrets  map[string]map[string]any
	options  *Options
	read     int // bytes of files that others name
	files    int
	envFiles []string // that environments were read from
}

// compose adds the services of compose files that are built, and the group of all of them.
func compose(out *Bake, files []File, o Options) error {
	p := &project{env: map[string]string{}, services: map[string]map[string]any{}, secrets: map[string]map[string]any{}, options: &o}
	for _, kv := range o.Environ {
		k, v, _ := strings.Cut(kv, "=")
		p.env[k] = v
	}
	maps.Copy(p.env, o.Set)
	if err := p.dotenv(".env", true); err != nil {
		return err
	}
	for _, f := range files {
		if err := p.file(f, "", 0); err != nil {
			return err
		}
	}
	if len(p.services) == 0 {
		return errs.New(errs.Invalid, "%s: empty compose file: it has no services", files[0].Name)
	}
	group := &Group{Targets: []string{}}
	for _, name := range slices.Sorted(maps.Keys(p.services)) {
		s := p.services[name]
		b, err := mapping(s["build"], "context")
		if err != nil {
			return errs.New(errs.Invalid, "services.%s.build: %w", name, err)
		}
		if b == nil {
			continue
		}
		t, err := p.target(s, b)
		if err != nil {
			return errs.New(errs.Invalid, "services.%s: %w", name, err)
		}
		id := strings.ReplaceAll(name, ".", "_")
		if id == "" || sanitize(id) != id {
			return errs.New(errs.Invalid, "invalid service name %q: only letters, digits, _, - and dots are allowed", name)
		}
		out.Targets[id] = t
		if group.Targets = append(group.Targets, id); len(group.Targets) > maxTargets {
			return errs.New(errs.Exhausted, "more than %d services", maxTargets)
		}
	}
	out.Groups["default"] = group
	out.EnvFiles = p.envFiles
	return nil
}

// open reads a file that a compose file names.
func (p *project) open(name string) ([]byte, error) {
	if p.options.ReadFile == nil {
		return nil, fs.ErrNotExist
	}
	data, err := p.options.ReadFile(name)
	if err != nil {
		return nil, err
	}
	p.files++
	if p.read += len(data); p.read > MaxSize || p.files > maxTargets {
		return nil, errs.New(errs.Exhausted, "%s: the files that compose files name are larger than %d bytes, or more than %d", name, MaxSize, maxTargets)
	}
	return data, nil
}

// dotenv adds the variables of a file that are not set.
func (p *project) dotenv(name string, optional bool) error {
	vars, err := p.envFile(name)
	if optional && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, errIsDir)) {
		return nil
	}
	if err != nil {
		return err
	}
	for k, v := range vars {
		if _, set := p.env[k]; !set {
			p.env[k] = v
		}
	}
	return nil
}

// errIsDir is the error of a file that is a directory.
var errIsDir = errors.New("is a directory")

func (p *project) envFile(name string) (map[string]string, error) {
	data, err := p.open(name)
	if err != nil {
		return nil, err
	}
	vars, err := dotenv.UnmarshalBytesWithLookup(data, p.lookup)
	if err != nil {
		return nil, errs.New(errs.Invalid, "%s: %v", name, err)
	}
	return vars, nil
}

func (p *project) lookup(name string) (string, bool) {
	v, ok := p.env[name]
	return v, ok
}

// load reads the YAML of a file, with its variables replaced. Paths in it are relative to dir.
func (p *project) load(f File, dir string) (map[string]any, error) {
	var node yaml.Node
	var top map[string]any
	if err := yaml.Unmarshal(f.Data, &node); err != nil {
		return nil, errs.New(errs.Invalid, "%s: %v", f.Name, err)
	}
	if err := tagged(&node); err != nil {
		return nil, errs.New(errs.Unimplemented, "%s:%w", f.Name, err)
	}
	if err := node.Decode(&top); err != nil {
		return nil, errs.New(errs.Invalid, "%s: %v", f.Name, err)
	}
	left := maxNodes
	v, err := p.interpolate(top, &left)
	if err != nil {
		return nil, errs.New(errs.Invalid, "%s: %w", f.Name, err)
	}
	m, _ := v.(map[string]any)
	for name, s := range section(m, "services") {
		if err := relative(s, dir); err != nil {
			return nil, errs.New(errs.Invalid, "%s: services.%s: %w", f.Name, name, err)
		}
	}
	for _, s := range section(m, "secrets") {
		if file, ok := s["file"].(string); ok {
			s["file"] = join(dir, file)
		}
	}
	return m, nil
}

// tagged reports a tag that changes how files are merged.
func tagged(n *yaml.Node) error {
	if n.Tag == "!reset" || n.Tag == "!override" {
		return errs.New(errs.Unimplemented, "%d: the tag %s is not supported by ply bake", n.Line, n.Tag)
	}
	for _, c := range n.Content { // aliases are not followed
		if err := tagged(c); err != nil {
			return err
		}
	}
	return nil
}

// maxNodes bounds the values of a compose file with its aliases followed.
const maxNodes = 1 << 20

// interpolate replaces the variables in all values.
func (p *project) interpolate(v any, left *int) (any, error) {
	if *left--; *left < 0 {
		return nil, errs.New(errs.Exhausted, "more than %d values", maxNodes)
	}
	switch v := v.(type) {
	case string:
		return template.Substitute(v, p.lookup)
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			var err error
			if out[i], err = p.interpolate(e, left); err != nil {
				return nil, err
			}
		}
		return out, nil
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			var err error
			if out[k], err = p.interpolate(e, left); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	return v, nil
}

// section returns the mappings of a section; what is empty is an empty one.
func section(m map[string]any, key string) map[string]map[string]any {
	out := map[string]map[string]any{}
	all, _ := m[key].(map[string]any)
	for name, v := range all {
		one, _ := v.(map[string]any)
		if one == nil {
			one = map[string]any{}
		}
		out[name] = one
		all[name] = one
	}
	return out
}

// join returns a path that is relative to a directory.
func join(dir, name string) string {
	if path.IsAbs(name) || strings.HasPrefix(name, "~") {
		return name
	}
	return path.Join(dir, name)
}

// local reports whether the context of a build is a path.
func local(s string) bool {
	return !strings.Contains(s, "://") && !strings.HasPrefix(s, "git@") && !strings.HasPrefix(s, "github.com/") && !strings.HasPrefix(s, "service:") && !strings.HasPrefix(s, "target:") && !strings.HasPrefix(s, "docker-image:")
}

// relative makes the paths of a service those from the working directory.
func relative(s map[string]any, dir string) error {
	b, err := mapping(s["build"], "context")
	if err != nil || b == nil {
		return err
	}
	s["build"] = b
	context, ok := b["context"].(string)
	if !ok {
		context = "."
	}
	if local(context) {
		context = join(dir, context)
	}
	b["context"] = context
	if more, err := pairsOf(b["additional_contexts"]); err == nil && len(more) > 0 {
		list := map[string]any{}
		for k, v := range more {
			if v != nil {
				list[k] = *v
				if local(*v) {
					list[k] = join(dir, *v)
				}
			}
		}
		b["additional_contexts"] = list
	}
	var env []any
	for _, f := range sequence(s["env_file"]) {
		m, err := mapping(f, "path")
		if err != nil {
			return err
		}
		if name, ok := m["path"].(string); ok {
			m["path"] = join(dir, name)
		}
		env = append(env, m)
	}
	if env != nil {
		s["env_file"] = env
	}
	return nil
}

// file adds a compose file: first those that it includes. depth is how many files include each other.
func (p *project) file(f File, dir string, depth int) error {
	if depth > maxDepth {
		return errs.New(errs.Invalid, "%s: more than %d compose files include each other", f.Name, maxDepth)
	}
	m, err := p.load(f, dir)
	if err != nil {
		return err
	}
	for _, one := range sequence(m["include"]) {
		inc, err := mapping(one, "path")
		if err != nil {
			return errs.New(errs.Invalid, "%s: include: %w", f.Name, err)
		}
		if inc["env_file"] != nil {
			return errs.New(errs.Unimplemented, "%s: include with env_file is not supported by ply bake", f.Name)
		}
		for _, n := range sequence(inc["path"]) {
			name, _ := n.(string)
			name = join(dir, name)
			data, err := p.open(name)
			if err != nil {
				return errs.New(errs.Invalid, "%s: include: %w", f.Name, err)
			}
			below := path.Dir(name)
			if d, ok := inc["project_directory"].(string); ok {
				below = join(dir, d)
			}
			if err := p.file(File{Name: name, Data: data}, below, depth+1); err != nil {
				return err
			}
		}
	}
	services := section(m, "services")
	done := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(services)) {
		if err := p.extend(services, name, dir, f.Name, done, 0); err != nil {
			return err
		}
	}
	for name, s := range services {
		p.services[name] = merge(p.services[name], s, "")
	}
	for name, s := range section(m, "secrets") {
		p.secrets[name] = merge(p.secrets[name], s, "")
	}
	return nil
}

// extend puts into a service what it extends.
func (p *project) extend(services map[string]map[string]any, name, dir, file string, done map[string]bool, depth int) error {
	s := services[name]
	if done[name] || s["extends"] == nil {
		return nil
	}
	if depth > maxDepth {
		return errs.New(errs.Invalid, "%s: services.%s: extends: more than %d services, or a circle of them", file, name, maxDepth)
	}
	e, err := mapping(s["extends"], "service")
	if err != nil {
		return errs.New(errs.Invalid, "%s: services.%s.extends: %w", file, name, err)
	}
	from, _ := e["service"].(string)
	other := services
	if f, ok := e["file"].(string); ok {
		f = join(dir, f)
		data, err := p.open(f)
		if err != nil {
			return errs.New(errs.Invalid, "%s: services.%s: extends: %w", file, name, err)
		}
		m, err := p.load(File{Name: f, Data: data}, path.Dir(f))
		if err != nil {
			return err
		}
		other = section(m, "services")
		err = p.extend(other, from, path.Dir(f), f, map[string]bool{}, depth+1)
		if err != nil {
			return err
		}
	} else if err := p.extend(services, from, dir, file, done, depth+1); err != nil {
		return err
	}
	if other[from] == nil {
		return errs.New(errs.NotFound, "%s: cannot extend service %q: service %q not found", file, name, from)
	}
	delete(s, "extends")
	services[name], done[name] = merge(other[from], s, ""), true
	return nil
}

// merge returns a mapping with those of another one over it: mappings are joined, sequences are appended, and other values are replaced. Sequences of KEY=VALUE are mappings.
func merge(base, over map[string]any, at string) map[string]any {
	out := maps.Clone(base)
	if out == nil {
		out = map[string]any{}
	}
	for k, v := range over {
		old, both := out[k]
		where := at + "." + k
		switch {
		case !both || old == nil:
			out[k] = v
		case v == nil:
		case where == ".build":
			a, _ := mapping(old, "context")
			b, _ := mapping(v, "context")
			if !strings.Contains(at, "build") && b["context"] == "." && a["context"] != nil {
				b = maps.Clone(b)
				delete(b, "context") // it is the default
			}
			out[k] = merge(a, b, where)
		case keyed[where]:
			a, errA := pairsOf(old)
			b, errB := pairsOf(v)
			if errA != nil || errB != nil {
				out[k] = v
				continue
			}
			maps.Copy(a, b)
			m := map[string]any{}
			for name, s := range a {
				m[name] = nil
				if s != nil {
					m[name] = *s
				}
			}
			out[k] = m
		default:
			a, isMap := old.(map[string]any)
			b, alsoMap := v.(map[string]any)
			list, isList := old.([]any)
			more, alsoList := v.([]any)
			switch {
			case isMap && alsoMap:
				out[k] = merge(a, b, where)
			case isList && alsoList:
				joined := slices.Clone(list)
				for _, e := range more {
					if !slices.ContainsFunc(joined, func(o any) bool { return fmt.Sprint(o) == fmt.Sprint(e) }) {
						joined = append(joined, e)
					}
				}
				out[k] = joined
			default:
				out[k] = v
			}
		}
	}
	return out
}

// keyed are the mappings that may be written as sequences of KEY=VALUE.
var keyed = map[string]bool{".environment": true, ".build.args": true, ".build.labels": true, ".build.additional_contexts": true, ".build.extra_hosts": true}

// mapping returns a mapping, or what the short form of one means.
func mapping(v any, short string) (map[string]any, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil //nolint:nilnil // there is none
	case string:
		return map[string]any{short: v}, nil
	case map[string]any:
		return v, nil
	}
	return nil, errs.New(errs.Invalid, "want a mapping or a string")
}

func sequence(v any) []any {
	switch v := v.(type) {
	case nil:
		return nil
	case []any:
		return v
	}
	return []any{v}
}

// scalar returns a value as text.
func scalar(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case bool, int, int64, uint64, float64:
		return fmt.Sprint(v), true
	}
	return "", false
}

// scalars returns a sequence of texts. One text is split at spaces.
func scalars(v any) (out []string, err error) {
	if s, ok := v.(string); ok {
		return strings.Fields(s), nil
	}
	for _, e := range sequence(v) {
		s, ok := scalar(e)
		if !ok {
			return nil, errs.New(errs.Invalid, "want a list of strings")
		}
		out = append(out, s)
	}
	return out, nil
}

// pairsOf returns a mapping of texts, or the one that a sequence of KEY=VALUE or KEY:VALUE means; nil = it has no value.
func pairsOf(v any) (map[string]*string, error) {
	out := map[string]*string{}
	switch v := v.(type) {
	case nil:
	case map[string]any:
		for k, e := range v {
			if list, ok := e.([]any); ok { // the addresses of a host
				all, err := scalars(list)
				if err != nil {
					return nil, err
				}
				e = strings.Join(all, ",")
			}
			s, ok := scalar(e)
			if !ok && e != nil {
				return nil, errs.New(errs.Invalid, "%s: want a string", k)
			}
			out[k] = nil
			if ok {
				out[k] = &s
			}
		}
	case []any:
		for _, e := range v {
			s, ok := scalar(e)
			if !ok {
				return nil, errs.New(errs.Invalid, "want KEY=VALUE")
			}
			k, value, has := strings.Cut(s, "=")
			out[k] = nil
			if has {
				out[k] = &value
			}
		}
	default:
		return nil, errs.New(errs.Invalid, "want a mapping or a list")
	}
	return out, nil
}

// fields reads the values of a build. The first error stays.
type fields struct {
	m   map[string]any
	err error
}

func (f *fields) fail(key string, err error) {
	if f.err == nil && err != nil {
		f.err = errs.New(errs.Invalid, "%s: %w", key, err)
	}
}

func (f *fields) text(key string) *string {
	if f.m[key] == nil {
		return nil
	}
	s, ok := scalar(f.m[key])
	if !ok {
		f.fail(key, errs.New(errs.Invalid, "want a string"))
	}
	if s == "" {
		return nil
	}
	return &s
}

func (f *fields) list(key string) []string {
	out, err := scalars(f.m[key])
	f.fail(key, err)
	return out
}

func (f *fields) pairs(key string) map[string]*string {
	out, err := pairsOf(f.m[key])
	f.fail(key, err)
	return out
}

func (f *fields) truth(key string) *bool {
	s := f.text(key)
	if s == nil {
		return nil
	}
	b, err := strconv.ParseBool(*s)
	f.fail(key, err)
	return &b
}

func (f *fields) entries(key string, k kind) (out Entries) {
	for _, s := range f.list(key) {
		e, err := k.parse(s)
		f.fail(key, err)
		out = append(out, e...)
	}
	return out
}

// buildKeys are the keys of a build.
var buildKeys = []string{"additional_contexts", "args", "cache_from", "cache_to", "context", "dockerfile", "dockerfile_inline", "entitlements", "extra_hosts", "isolation", "labels", "network",
	"no_cache", "no_cache_filter", "platforms", "privileged", "provenance", "pull", "sbom", "secrets", "shm_size", "ssh", "tags", "target", "ulimits"}

// target returns the target of a service.
func (p *project) target(s, b map[string]any) (*Target, error) {
	f := &fields{m: b}
	for k := range b {
		if !slices.Contains(buildKeys, k) && !strings.HasPrefix(k, "x-") {
			return nil, errs.New(errs.Invalid, "build: additional property %q is not allowed", k)
		}
	}
	t := &Target{Context: f.text("context"), Dockerfile: f.text("dockerfile"), DockerfileInline: f.text("dockerfile_inline"), Network: f.text("network"), Target: f.text("target"),
		Tags: f.list("tags"), Platforms: f.list("platforms"), NoCacheFilter: f.list("no_cache_filter"), Entitlements: f.list("entitlements"),
		CacheFrom: f.entries("cache_from", cache), CacheTo: f.entries("cache_to", cache), ExtraHosts: map[string]*string{}, Labels: map[string]*string{}}
	empty := ""
	for k, v := range f.pairs("labels") {
		t.Labels[k] = &empty
		if v != nil {
			t.Labels[k] = v
		}
	}
	for k, v := range f.pairs("extra_hosts") {
		if v == nil { // HOST:ADDRESS
			var addr string
			if k, addr, _ = strings.Cut(k, ":"); addr == "" {
				f.fail("extra_hosts", errs.New(errs.Invalid, "want HOST=ADDRESS"))
			}
			v = &addr
		}
		t.ExtraHosts[k] = v
	}
	var err error
	if t.Args, err = p.args(s, f.pairs("args")); err != nil {
		return nil, err
	}
	t.Contexts = contexts(f.pairs("additional_contexts"))
	if size := f.text("shm_size"); size != nil {
		n, err := units.RAMInBytes(*size)
		f.fail("shm_size", err)
		if n > 0 {
			text := units.BytesSize(float64(n))
			t.ShmSize = &text
		}
	}
	for _, flag := range []struct {
		key string
		to  **bool
	}{{"no_cache", &t.NoCache}, {"pull", &t.Pull}} {
		if v := f.truth(flag.key); v != nil && *v {
			*flag.to = v
		}
	}
	for _, typ := range []string{"sbom", "provenance"} {
		v := f.text(typ)
		if v == nil {
			continue
		}
		e, err := attestation.parse(Attestation(typ, *v))
		f.fail(typ, err)
		t.Attest = append(t.Attest, e...)
	}
	t.limits(f)
	if err := p.secretsOf(t, b["secrets"]); err != nil {
		return nil, err
	}
	t.agents(f)
	if err := t.extension(b["x-bake"]); err != nil {
		return nil, errs.New(errs.Invalid, "x-bake: %w", err)
	}
	if image, ok := s["image"].(string); ok && image != "" && len(t.Tags) == 0 {
		t.Tags = []string{image}
	}
	if i := f.text("isolation"); i != nil && *i != "default" {
		f.fail("isolation", errs.New(errs.Unimplemented, "%s is not supported", *i))
	}
	if priv := f.truth("privileged"); priv != nil && *priv {
		f.fail("privileged", errs.New(errs.Unimplemented, "a build is not privileged: a step asks for more with RUN --security=insecure"))
	}
	return t, f.err
}

// Attestation returns the value of --attest for one of --sbom and --provenance.
func Attestation(typ, value string) string {
	if on, err := strconv.ParseBool(value); err == nil {
		return "type=" + typ + ",disabled=" + strconv.FormatBool(!on)
	}
	return "type=" + typ + "," + value
}

// args returns the arguments of a build. Those without a value have that of the service's environment, or of the caller's.
func (p *project) args(s map[string]any, args map[string]*string) (map[string]*string, error) {
	out := map[string]*string{}
	var env map[string]*string
	for k, v := range args {
		if v == nil {
			if env == nil {
				var err error
				if env, err = p.environment(s); err != nil {
					return nil, err
				}
			}
			if v = env[k]; v == nil {
				if set, ok := p.env[k]; ok {
					v = &set
				}
			}
		}
		if v != nil {
			out[k] = v
		}
	}
	return out, nil
}

// environment returns the environment of a service.
func (p *project) environment(s map[string]any) (map[string]*string, error) {
	out := map[string]*string{}
	for _, one := range sequence(s["env_file"]) {
		m, err := mapping(one, "path")
		if err != nil {
			return nil, errs.New(errs.Invalid, "env_file: %w", err)
		}
		name, _ := m["path"].(string)
		vars, err := p.envFile(name)
		if required, ok := m["required"].(bool); ok && !required && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, errs.New(errs.Invalid, "env_file: %w", err)
		}
		p.envFiles = append(p.envFiles, name)
		for k, v := range vars {
			out[k] = &v
		}
	}
	more, err := pairsOf(s["environment"])
	if err != nil {
		return nil, errs.New(errs.Invalid, "environment: %w", err)
	}
	for k, v := range more {
		if v == nil {
			if set, ok := p.env[k]; ok {
				v = &set
			}
		}
		out[k] = v
	}
	return out, nil
}

// contexts returns named contexts. A service as a context is its target.
func contexts(m map[string]*string) map[string]string {
	out := map[string]string{}
	for k, v := range m {
		if v == nil {
			continue
		}
		out[k] = *v
		for _, prefix := range []string{"service:", "target:"} {
			if rest, ok := strings.CutPrefix(*v, prefix); ok {
				out[k] = "target:" + strings.ReplaceAll(rest, ".", "_")
			}
		}
	}
	return out
}

func (t *Target) limits(f *fields) {
	m, err := mapping(f.m["ulimits"], "")
	f.fail("ulimits", err)
	for _, name := range slices.Sorted(maps.Keys(m)) {
		soft, hard := m[name], m[name]
		if both, ok := m[name].(map[string]any); ok {
			soft, hard = both["soft"], both["hard"]
		}
		a, _ := scalar(soft)
		b, _ := scalar(hard)
		u, err := units.ParseUlimit(name + "=" + a + ":" + b)
		if err != nil {
			f.fail("ulimits", err)
			continue
		}
		t.Ulimits = append(t.Ulimits, u.String())
	}
}

// secretsOf adds the secrets that a build names.
func (p *project) secretsOf(t *Target, v any) error {
	for _, one := range sequence(v) {
		m, err := mapping(one, "source")
		if err != nil {
			return errs.New(errs.Invalid, "secrets: %w", err)
		}
		name, _ := m["source"].(string)
		from := p.secrets[name]
		if external, _ := scalar(from["external"]); external == "true" {
			return errs.New(errs.Unimplemented, "unsupported external secret %s", name)
		}
		e := Entry{}
		for key, text := range map[string]any{"id": name, "src": from["file"], "env": from["environment"]} {
			if s, ok := text.(string); ok && s != "" {
				e[key] = s
			}
		}
		t.Secret = append(t.Secret, e)
	}
	return nil
}

func (t *Target) agents(f *fields) {
	all, err := pairsOf(f.m["ssh"])
	if s, ok := f.m["ssh"].(string); ok {
		all, err = map[string]*string{s: nil}, nil
	}
	f.fail("ssh", err)
	for _, id := range slices.Sorted(maps.Keys(all)) {
		s := SSH{ID: id}
		if v := all[id]; v != nil && *v != "" {
			s.Paths = []string{*v}
		}
		t.SSH = append(t.SSH, s)
	}
}

// extension adds what x-bake says, for which the format of compose files has no place.
func (t *Target) extension(v any) error {
	if v == nil {
		return nil
	}
	m, ok := v.(map[string]any)
	if !ok {
		return errs.New(errs.Invalid, "want a mapping")
	}
	f := &fields{m: m}
	for _, key := range slices.Sorted(maps.Keys(m)) {
		switch key {
		case "tags":
			t.Tags = unique(append(t.Tags, f.list(key)...))
		case "platforms":
			t.Platforms = unique(append(t.Platforms, f.list(key)...))
		case "no-cache-filter":
			t.NoCacheFilter = unique(append(t.NoCacheFilter, f.list(key)...))
		case "cache-from":
			t.CacheFrom = cache.join(t.CacheFrom, f.entries(key, cache))
		case "cache-to":
			t.CacheTo = cache.join(t.CacheTo, f.entries(key, cache))
		case "output":
			t.Output = output.join(t.Output, f.entries(key, output))
		case "secret":
			t.Secret = secret.join(t.Secret, f.entries(key, secret))
		case "ssh":
			var more []SSH
			for _, s := range f.list(key) {
				more = append(more, parseSSH(s))
			}
			t.SSH = joinSSH(t.SSH, more)
		case "pull":
			t.Pull = f.truth(key)
		case "no-cache":
			t.NoCache = f.truth(key)
		case "contexts":
			for k, v := range contexts(f.pairs(key)) {
				if _, has := t.Contexts[k]; !has {
					t.Contexts[k] = v
				}
			}
		default:
			f.fail(key, errs.New(errs.Invalid, "unknown key"))
		}
	}
	return f.err
}
