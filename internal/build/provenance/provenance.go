// Package provenance says of a build what it was made from, and how, as a SLSA predicate in the form that BuildKit gives it: version 0.2 or 1, with the
// modes min and max.
//
// Invariants: no content of a secret and no credential of an address is in a predicate, and neither is the value of a build argument whose name says that it is
// a secret. What was left out is not called complete.
package provenance

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"ply/internal/build/ops"
	"ply/internal/errs"
	"ply/internal/oci"
)

// The types of the predicates, and of the builds that they describe.
const (
	Type1  = "https://slsa.dev/provenance/v1"
	Type02 = "https://slsa.dev/provenance/v0.2"

	buildType1  = "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md"
	buildType02 = "https://mobyproject.org/buildkit@v1"
)

// Options say what is wanted.
type Options struct {
	Version      string // "v1" or "v0.2"
	Max          bool   // with the steps of the build and its arguments
	InlineOnly   bool   // for images at registries and in the store only
	Reproducible bool   // the client says that the build is
	Complete     bool   // an error when a material is not known by its digest
	BuilderID    string
}

// ParseOptions reads the attributes of the option attest:provenance. Errors: errs.Invalid for what is unknown, errs.Unimplemented for what ply does not have.
func ParseOptions(attrs map[string]string) (o Options, err error) {
	o = Options{Version: "v1", Max: true}
	flag := func(k, v string, into *bool) {
		b, parseErr := strconv.ParseBool(v)
		if parseErr != nil {
			err = errs.New(errs.Invalid, "provenance: %s=%.100s is not a boolean", k, v)
		}
		*into = b
	}
	for _, k := range slices.Sorted(maps.Keys(attrs)) {
		v := attrs[k]
		switch k {
		case "version":
			if o.Version = v; v != "v1" && v != "v0.2" {
				err = errs.New(errs.Invalid, "invalid provenance SLSA version: %.100s", v)
			}
		case "mode":
			o.Max = v == "max" || v == "full"
			if !o.Max && v != "min" {
				err = errs.New(errs.Invalid, "provenance: invalid mode %q", v)
			}
		case "inline-only":
			flag(k, v, &o.InlineOnly)
		case "reproducible":
			flag(k, v, &o.Reproducible)
		case "complete-materials":
			flag(k, v, &o.Complete)
		case "builder-id":
			o.BuilderID = v
		case "capture-usage":
			var usage bool
			if flag(k, v, &usage); usage {
				err = errs.New(errs.Unimplemented, "provenance: capture-usage is not supported")
			}
		default:
			err = errs.New(errs.Invalid, "provenance: unknown attribute %.100q", k)
		}
		if err != nil {
			return o, err
		}
	}
	return o, nil
}

// Material is something that a build was made from.
type Material struct {
	URI    string            `json:"uri"`
	Digest map[string]string `json:"digest,omitempty"`
}

// Build is what happened.
type Build struct {
	Args      map[string]string // options of the front end
	Graph     *ops.Graph
	Materials []Material
	ID        string
	Started   time.Time
	Finished  time.Time
}

// Predicate returns the type of the predicate about a build, and its JSON.
func Predicate(b Build, o Options) (typ string, data []byte, err error) {
	p := b.predicate(o)
	if o.Complete && !p.RunDetails.Metadata.Completeness.ResolvedDependencies {
		return "", nil, errs.New(errs.Precondition, "provenance materials are incomplete: the build uses a directory of the client, or an image without a digest")
	}
	var v any = p
	typ = Type1
	if o.Version == "v0.2" {
		v, typ = p.v02(), Type02
	}
	data, err = json.Marshal(v)
	if err != nil {
		return "", nil, errs.New(errs.Internal, "provenance: %w", err)
	}
	if len(data) > oci.MaxAttestation {
		return "", nil, errs.New(errs.Exhausted, "the provenance has %d bytes, the limit is %d", len(data), oci.MaxAttestation).WithHint("Use --provenance=mode=min.")
	}
	return typ, b.scrub(data), nil
}

// The predicate of version 1.
type (
	predicate struct {
		BuildDefinition definition `json:"buildDefinition"`
		RunDetails      details    `json:"runDetails"`
	}
	definition struct {
		BuildType            string     `json:"buildType"`
		ExternalParameters   external   `json:"externalParameters"`
		InternalParameters   internal   `json:"internalParameters"`
		ResolvedDependencies []Material `json:"resolvedDependencies,omitempty"`
	}
	external struct {
		ConfigSource configSource `json:"configSource"`
		Request      parameters   `json:"request"`
	}
	configSource struct {
		URI    string            `json:"uri,omitempty"`
		Digest map[string]string `json:"digest,omitempty"`
		Path   string            `json:"path,omitempty"`
	}
	parameters struct {
		Frontend string            `json:"frontend,omitempty"`
		Args     map[string]string `json:"args,omitempty"`
		Secrets  []named           `json:"secrets,omitempty"`
		SSH      []named           `json:"ssh,omitempty"`
		Locals   []local           `json:"locals,omitempty"`
	}
	named struct {
		ID       string `json:"id"`
		Optional bool   `json:"optional,omitempty"`
	}
	local struct {
		Name string `json:"name"`
	}
	internal struct {
		BuildConfig     *buildConfig `json:"buildConfig,omitempty"`
		BuilderPlatform string       `json:"builderPlatform"`
	}
	details struct {
		Builder  builder  `json:"builder"`
		Metadata metadata `json:"metadata"`
	}
	builder struct {
		ID string `json:"id"`
	}
	metadata struct {
		InvocationID string       `json:"invocationId,omitempty"`
		StartedOn    *time.Time   `json:"startedOn,omitempty"`
		FinishedOn   *time.Time   `json:"finishedOn,omitempty"`
		BuildKit     buildKit     `json:"buildkit_metadata"`
		Hermetic     bool         `json:"buildkit_hermetic,omitempty"`
		Completeness completeness `json:"buildkit_completeness"`
		Reproducible bool         `json:"buildkit_reproducible,omitempty"`
	}
	completeness struct {
		Request              bool `json:"request"`
		ResolvedDependencies bool `json:"resolvedDependencies"`
	}
	buildKit struct {
		VCS    map[string]string `json:"vcs,omitempty"`
		Source *source           `json:"source,omitempty"`
	}
)

// hostArgs are options about the host, and those about attestations.
var hostArgs = []string{"cgroup-parent", "image-resolve-mode", "platform", "cache-imports", "cache-from"}

// predicate makes the predicate of version 1.
func (b Build) predicate(o Options) *predicate {
	args := map[string]string{}
	complete := true
	vcs := map[string]string{}
	var src configSource
	contextKey := "context"
	if k := b.Args["contextkey"]; k != "" {
		contextKey = k
	}
	for k, v := range b.Args {
		name, isArg := strings.CutPrefix(k, "build-arg:")
		switch {
		case slices.Contains(hostArgs, k) || strings.HasPrefix(k, "attest:") || strings.HasPrefix(name, "BUILDKIT_ATTEST_"):
		case k == contextKey:
			src.URI = Redact(v)
		case k == "filename":
			src.Path = v
		case strings.HasPrefix(k, "vcs:"):
			if v != "" {
				vcs[strings.TrimPrefix(k, "vcs:")] = Redact(v)
			}
		case isArg && (!o.Max || IsSecret(name)), strings.HasPrefix(k, "label:") && !o.Max:
			complete = false
		case strings.HasPrefix(k, "context:"):
			args[k] = Redact(v)
		case isArg: // a proxy or another address may have a password
			args[k] = Redact(v)
			complete = complete && args[k] == v
		default:
			args[k] = v
		}
	}
	for _, m := range b.Materials {
		if m.URI == src.URI || strings.HasPrefix(src.URI, m.URI+"#") {
			src.Digest = m.Digest
		}
	}
	req := parameters{Frontend: "dockerfile.v0", Args: args}
	known := !slices.ContainsFunc(b.Materials, func(m Material) bool { return len(m.Digest) == 0 })
	hermetic := b.uses(&req)
	known = known && len(req.Locals) == 0
	p := &predicate{
		BuildDefinition: definition{
			BuildType: buildType1, ResolvedDependencies: b.Materials,
			InternalParameters: internal{BuilderPlatform: oci.HostPlatform().String()},
		},
		RunDetails: details{Builder: builder{o.BuilderID}, Metadata: metadata{
			InvocationID: b.ID, StartedOn: &b.Started, FinishedOn: &b.Finished, Reproducible: o.Reproducible, Hermetic: known && hermetic,
			Completeness: completeness{Request: complete, ResolvedDependencies: known},
		}},
	}
	if len(vcs) > 0 {
		p.RunDetails.Metadata.BuildKit.VCS = vcs
	}
	if o.Max {
		p.BuildDefinition.InternalParameters.BuildConfig, p.RunDetails.Metadata.BuildKit.Source = b.steps()
	} else {
		req.Secrets, req.SSH = nil, nil
	}
	p.BuildDefinition.ExternalParameters = external{src, req}
	return p
}

// uses notes what of the client the build used, and reports whether no step had a network.
func (b Build) uses(req *parameters) (hermetic bool) {
	hermetic = true
	add := func(to *[]named, n named) {
		if !slices.Contains(*to, n) {
			*to = append(*to, n)
		}
	}
	for _, v := range b.Graph.Vertices {
		switch op := v.Op.(type) {
		case *ops.Local:
			if l := (local{op.Name}); !slices.Contains(req.Locals, l) {
				req.Locals = append(req.Locals, l)
			}
		case *ops.Exec:
			hermetic = hermetic && op.Network == ops.NetworkNone
			for _, m := range op.Mounts {
				switch m.Kind {
				case ops.MountSecret:
					add(&req.Secrets, named{m.SecretID, m.Optional})
				case ops.MountSSH:
					add(&req.SSH, named{m.SecretID, m.Optional})
				}
			}
			for _, s := range op.SecretEnv {
				add(&req.Secrets, named{s.ID, s.Optional})
			}
		}
	}
	return hermetic
}

// secretName matches names that say that the value is a secret; BuildKit's check of Dockerfiles warns about the same.
var secretName = regexp.MustCompile(`(?i)(^|_)(apikey|auth|credentials?|key|password|pword|passwd|passphrase|secret|token)s?($|_)`)

// IsSecret reports whether the name of a build argument says that its value is a secret.
func IsSecret(name string) bool {
	return secretName.MatchString(name) && !strings.Contains(strings.ToLower(name), "public")
}

const redacted = "xxxxx"

// scrub replaces the values of secret build arguments, and credentials in others, wherever a step repeats them.
func (b Build) scrub(data []byte) []byte {
	for _, k := range slices.Sorted(maps.Keys(b.Args)) {
		name, ok := strings.CutPrefix(k, "build-arg:")
		v := b.Args[k]
		to := Redact(v)
		if ok && IsSecret(name) && len(v) >= 4 {
			to = redacted
		}
		if !ok || to == v {
			continue
		}
		text, err := json.Marshal(v)
		with, err2 := json.Marshal(to)
		if err != nil || err2 != nil {
			continue // a string is always encoded
		}
		data = bytes.ReplaceAll(data, text[1:len(text)-1], with[1:len(with)-1])
	}
	return data
}

// Redact returns an address without the credentials in it.
func Redact(address string) string {
	u, err := url.Parse(address)
	if err != nil || u.User == nil {
		return address
	}
	if _, secret := u.User.Password(); secret {
		u.User = url.UserPassword(redacted, redacted)
	} else if u.Scheme == "http" || u.Scheme == "https" {
		u.User = url.User(redacted) // a token is often given as the user
	}
	return u.String()
}
