package build

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/csv"
	"encoding/hex"
	"maps"
	"slices"
	"strings"
	"time"

	"ply/internal/build/export"
	"ply/internal/build/ops"
	"ply/internal/build/provenance"
	"ply/internal/build/sbom"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/version"
)

// attests says what a build is to say about itself.
type attests struct {
	provenance *provenance.Options // nil = none
	sbom       bool
}

// parseAttests reads the options attest:TYPE and the build arguments BUILDKIT_ATTEST_TYPE.
func parseAttests(options map[string]string) (a attests, err error) {
	for _, k := range slices.Sorted(maps.Keys(options)) {
		name, ok := strings.CutPrefix(k, "attest:")
		if !ok {
			if name, ok = strings.CutPrefix(k, "build-arg:BUILDKIT_ATTEST_"); !ok {
				continue
			}
		}
		attrs := map[string]string{}
		if options[k] != "" {
			list, err := csv.NewReader(strings.NewReader(options[k])).Read()
			if err != nil {
				return a, errs.New(errs.Invalid, "%s: %w", k, err)
			}
			for _, f := range list {
				key, value, _ := strings.Cut(f, "=")
				attrs[key] = value
			}
		}
		delete(attrs, "type")
		off := attrs["disabled"]
		delete(attrs, "disabled")
		if off != "" && off != "false" {
			continue
		}
		switch strings.ToLower(name) {
		case "provenance":
			o, err := provenance.ParseOptions(attrs)
			if err != nil {
				return a, err
			}
			a.provenance = &o
		case "sbom":
			for _, key := range slices.Sorted(maps.Keys(attrs)) {
				if attrs[key] != "" {
					return a, errs.New(errs.Unimplemented, "sbom: the attribute %s=%.200s is not supported: the engine scans the image itself", key, attrs[key])
				}
			}
			a.sbom = true
		default:
			return a, errs.New(errs.Invalid, "unknown attestation type %.100q", name)
		}
	}
	return a, nil
}

// attested is a predicate about the image of one platform.
type attested struct {
	export.Predicate
	inlineOnly bool
}

// attest makes the attestations about every image.
func (x *exporting) attest(ctx context.Context) error {
	x.predicates = make([][]attested, len(x.images))
	for i, m := range x.images {
		if x.attests.sbom {
			err := x.step("generating sbom for "+m.out.Platform.String(), func(*ops.Vertex) error { return x.scan(ctx, i, m) })
			if err != nil {
				return err
			}
		}
		b := x.record(m)
		if o := x.attests.provenance; o != nil {
			typ, data, err := provenance.Predicate(b, *o)
			if err != nil {
				return err
			}
			x.predicates[i] = append(x.predicates[i], attested{export.Predicate{Type: typ, File: "provenance.json", Data: data}, o.InlineOnly})
		}
		_, data, err := provenance.Predicate(b, provenance.Options{Version: "v1"})
		if err != nil {
			return err
		}
		key := "buildx.build.provenance"
		if x.asIndex && len(x.images) > 1 {
			key += "/" + m.out.Platform.String()
		}
		x.res.Answers[key] = base64.StdEncoding.EncodeToString(data)
	}
	return nil
}

func (x *exporting) scan(ctx context.Context, i int, m *made) error {
	t, err := x.tree(ctx, m)
	if err != nil {
		return err
	}
	found, err := sbom.Scan(ctx, t)
	if err != nil {
		return err
	}
	created := time.Now()
	if m.out.Epoch != nil {
		created = *m.out.Epoch
	}
	subject := "image"
	if len(x.req.Tags) > 0 {
		subject = x.req.Tags[0].Familiar()
	}
	data, err := found.Document(subject, created, "ply-"+version.Version)
	if err != nil {
		return err
	}
	x.predicates[i] = append(x.predicates[i], attested{export.Predicate{Type: sbom.Type, File: "sbom.spdx.json", Data: data}, false})
	return nil
}

// record says what the image of a platform was made from.
func (x *exporting) record(m *made) provenance.Build {
	b := provenance.Build{Args: x.req.Front.Options, Graph: m.out.Graph, Started: x.started, Finished: time.Now().UTC(), ID: x.invocation}
	add := func(mat provenance.Material) {
		if !slices.ContainsFunc(b.Materials, func(have provenance.Material) bool { return have.URI == mat.URI }) {
			b.Materials = append(b.Materials, mat)
		}
	}
	for _, v := range m.out.Graph.Vertices {
		switch op := v.Op.(type) {
		case *ops.Image:
			ref, err := oci.ParseReference(op.Ref)
			if err != nil {
				continue // it was resolved, so it is one
			}
			p := v.Platform
			if p.Architecture == "" {
				p = oci.HostPlatform()
			}
			mat := provenance.Material{URI: export.PackageURL("docker", ref, &p)}
			if d := x.digestOf(op.Ref, v.Platform, ref); d != "" {
				mat.Digest = map[string]string{"sha256": d.Hex()}
			}
			add(mat)
		case *ops.Git:
			mat := provenance.Material{URI: provenance.Redact(op.Remote)}
			if op.Ref != "" {
				mat.URI += "#" + op.Ref
			}
			if origin := x.origin(v); origin != "" {
				mat.Digest = map[string]string{map[bool]string{true: "sha256", false: "sha1"}[len(origin) == 64]: origin}
			}
			add(mat)
		case *ops.HTTP:
			mat := provenance.Material{URI: provenance.Redact(op.URL)}
			if origin := x.origin(v); origin != "" {
				mat.Digest = map[string]string{"sha256": oci.Digest(origin).Hex()}
			}
			add(mat)
		}
	}
	return b
}

// origin returns what a source was resolved to.
func (b *running) origin(v *ops.Vertex) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.origins[v.Digest]
}

// digestOf returns the digest of the manifest or index by which the registry of a base image knows it, or "".
func (b *running) digestOf(name string, p oci.Platform, ref oci.Reference) oci.Digest {
	if d := ref.Digest(); d != "" {
		return d
	}
	b.mu.Lock()
	e := b.images[name+" "+p.String()]
	b.mu.Unlock()
	if e == nil || e.img == nil {
		return ""
	}
	for _, d := range e.img.Digests {
		if d.Name() == ref.Name() {
			return d.Digest()
		}
	}
	return ""
}

// newInvocation returns an ID for a build.
func newInvocation() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
