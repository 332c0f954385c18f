package export

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"ply/internal/errs"
	"ply/internal/oci"
)

// Built is the image of one platform.
type Built struct {
	Platform   oci.Platform
	Config     []byte
	Chain      oci.Chain
	Predicates []Predicate // what is attested about it
}

// Predicate is a claim about an image.
type Predicate struct {
	Type string // a URI
	File string // its name where an output is files: "provenance.json"
	Data []byte // JSON
}

// Document is a manifest, an index, a config or an attestation, with its exact bytes.
type Document struct {
	oci.Descriptor
	Data []byte
}

func document(mediaType string, data []byte) Document {
	return Document{oci.Descriptor{MediaType: mediaType, Digest: oci.DigestOf(data), Size: int64(len(data))}, data}
}

// Layer is a layer in the form that a manifest lists.
type Layer struct {
	oci.Descriptor
	Chain oci.Chain // up to the layer
}

// Content is everything that an image consists of.
type Content struct {
	Root    Document     // the index, or the only manifest
	Blobs   []Document   // configs and attestations
	Layers  []Layer      // each once
	Images  []Document   // the manifests of the images, in the order of the platforms
	Attests []Document   // the manifests of the attestations
	Configs []oci.Digest // of Images
}

// IsIndex reports whether the root is an index.
func (c *Content) IsIndex() bool { return oci.IsIndex(c.Root.MediaType) }

// Manifests returns all manifests but the root, children only.
func (c *Content) Manifests() []Document {
	if !c.IsIndex() {
		return nil
	}
	return slices.Concat(c.Images, c.Attests)
}

// The documents, with their fields in the order of the specification.
type (
	descriptor struct {
		MediaType    string            `json:"mediaType"`
		Digest       oci.Digest        `json:"digest"`
		Size         int64             `json:"size"`
		Annotations  map[string]string `json:"annotations,omitempty"`
		Data         []byte            `json:"data,omitempty"`
		Platform     *oci.Platform     `json:"platform,omitempty"`
		ArtifactType string            `json:"artifactType,omitempty"`
	}
	manifest struct {
		SchemaVersion int               `json:"schemaVersion"`
		MediaType     string            `json:"mediaType"`
		ArtifactType  string            `json:"artifactType,omitempty"`
		Config        descriptor        `json:"config"`
		Layers        []descriptor      `json:"layers"`
		Subject       *descriptor       `json:"subject,omitempty"`
		Annotations   map[string]string `json:"annotations,omitempty"`
	}
	index struct {
		SchemaVersion int               `json:"schemaVersion"`
		MediaType     string            `json:"mediaType"`
		Manifests     []descriptor      `json:"manifests"`
		Annotations   map[string]string `json:"annotations,omitempty"`
	}
)

func describe(d oci.Descriptor) descriptor {
	return descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size, Annotations: d.Annotations, Platform: d.Platform, ArtifactType: d.ArtifactType}
}

// attestationPlatform is the platform of the manifest of an attestation, which no host has.
var attestationPlatform = oci.Platform{Architecture: "unknown", OS: "unknown"}

const (
	mediaTypeInToto      = "application/vnd.in-toto+json"
	mediaTypeEmpty       = "application/vnd.oci.empty.v1+json"
	artifactAttestation  = "application/vnd.docker.attestation.manifest.v1+json"
	annotationPredicate  = "in-toto.io/predicate-type"
	referenceAttestation = "attestation-manifest"
)

// Assemble makes the documents of images whose layers have the given forms. asIndex asks for an index also for a single image without attestations.
// Errors: errs.Invalid for annotations that have no place.
func (o *Output) Assemble(images []Built, layers [][]oci.Descriptor, asIndex bool) (*Content, error) {
	for _, b := range images {
		asIndex = asIndex || len(b.Predicates) > 0
	}
	if err := o.checkAnnotations(images, asIndex); err != nil {
		return nil, err
	}
	if o.Format == oci.FormatDocker && slices.ContainsFunc(images, func(b Built) bool { return len(b.Predicates) > 0 }) {
		return nil, errs.New(errs.Invalid, "cannot export attestations with \"oci-mediatypes=false\"")
	}
	c := &Content{}
	seen := map[oci.Digest]bool{}
	for i, b := range images {
		m, err := o.imageManifest(c, b, layers[i], seen)
		if err != nil {
			return nil, err
		}
		c.Images = append(c.Images, m)
	}
	if !asIndex {
		if len(c.Images) != 1 {
			return nil, errs.New(errs.Internal, "%d images without an index", len(c.Images))
		}
		c.Root = c.Images[0]
		return c, nil
	}
	for i, b := range images {
		if len(b.Predicates) == 0 {
			continue
		}
		a, err := o.attestation(c, b, c.Images[i])
		if err != nil {
			return nil, err
		}
		c.Attests = append(c.Attests, a)
	}
	return c, o.index(c)
}

// checkAnnotations refuses annotations for which there is no document.
func (o *Output) checkAnnotations(images []Built, asIndex bool) error {
	for _, a := range o.Annotations {
		if a.Platform != nil && !slices.ContainsFunc(images, func(b Built) bool { return samePlatform(*a.Platform, b.Platform) }) {
			return errs.New(errs.Invalid, "invalid annotation: no platform %s found in source", a.Platform)
		}
		if !asIndex && (a.On == OnIndex || a.On == OnIndexDescriptor) {
			return errs.New(errs.Invalid, "index annotations not supported for single platform export")
		}
	}
	return nil
}

func samePlatform(a, b oci.Platform) bool {
	return a.OS == b.OS && a.Architecture == b.Architecture && a.Variant == b.Variant
}

// notes returns the annotations for a place.
func (o *Output) notes(on Place, p *oci.Platform) map[string]string {
	var out map[string]string
	add := func(platform bool) {
		for _, a := range o.Annotations {
			if a.On != on || (a.Platform != nil) != platform || platform && (p == nil || !samePlatform(*a.Platform, *p)) {
				continue
			}
			if out == nil {
				out = map[string]string{}
			}
			out[a.Key] = a.Value
		}
	}
	add(false)
	add(true)
	return out
}

func encode(v any) ([]byte, error) {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return nil, errs.New(errs.Internal, "manifest: %w", err)
	}
	if len(data) > oci.MaxManifest {
		return nil, errs.New(errs.Invalid, "a manifest of %d bytes is longer than registries accept (%d)", len(data), oci.MaxManifest)
	}
	return data, nil
}

func (o *Output) imageManifest(c *Content, b Built, layers []oci.Descriptor, seen map[oci.Digest]bool) (Document, error) {
	if len(layers) != len(b.Chain) {
		return Document{}, errs.New(errs.Internal, "%d layers have a form, the image has %d", len(layers), len(b.Chain))
	}
	m := manifest{SchemaVersion: 2, MediaType: oci.MediaTypeOCIManifest, Layers: []descriptor{}, Annotations: o.notes(OnManifest, &b.Platform)}
	configType := oci.MediaTypeOCIConfig
	if o.Format == oci.FormatDocker {
		m.MediaType, configType = oci.MediaTypeDockerManifest, oci.MediaTypeDockerConfig
	}
	config := document(configType, b.Config)
	m.Config = describe(config.Descriptor)
	for i, l := range layers {
		m.Layers = append(m.Layers, descriptor{MediaType: l.MediaType, Digest: l.Digest, Size: l.Size})
		if !seen[l.Digest] {
			seen[l.Digest] = true
			c.Layers = append(c.Layers, Layer{oci.Descriptor{MediaType: l.MediaType, Digest: l.Digest, Size: l.Size}, b.Chain[:i+1]})
		}
	}
	data, err := encode(m)
	if err != nil {
		return Document{}, err
	}
	d := document(m.MediaType, data)
	p := b.Platform
	d.Platform, d.Annotations = &p, o.notes(OnManifestDescriptor, &b.Platform)
	c.add(config)
	c.Configs = append(c.Configs, config.Digest)
	return d, nil
}

// add adds a blob once.
func (c *Content) add(d Document) {
	if !slices.ContainsFunc(c.Blobs, func(have Document) bool { return have.Digest == d.Digest }) {
		c.Blobs = append(c.Blobs, d)
	}
}

// statement is an in-toto statement.
type statement struct {
	Type          string          `json:"_type"`
	PredicateType string          `json:"predicateType"`
	Subject       []subject       `json:"subject"`
	Predicate     json.RawMessage `json:"predicate"`
}

type subject struct {
	Name   string            `json:"name"`
	Digest map[string]string `json:"digest"`
}

const statementType = "https://in-toto.io/Statement/v1"

func digestSet(d oci.Digest) map[string]string { return map[string]string{"sha256": d.Hex()} }

// attestation makes the manifest of the attestations of an image.
func (o *Output) attestation(c *Content, b Built, image Document) (Document, error) {
	subjects := []subject{}
	for _, n := range o.Names {
		subjects = append(subjects, subject{PackageURL("docker", n, &b.Platform), digestSet(image.Digest)})
	}
	m := manifest{SchemaVersion: 2, MediaType: oci.MediaTypeOCIManifest, Layers: []descriptor{}}
	var diffs oci.Chain
	for _, p := range b.Predicates {
		data, err := json.Marshal(statement{statementType, p.Type, subjects, p.Data})
		if err != nil {
			return Document{}, errs.New(errs.Internal, "attestation: %w", err)
		}
		blob := document(mediaTypeInToto, data)
		c.add(blob)
		l := describe(blob.Descriptor)
		l.Annotations = map[string]string{annotationPredicate: p.Type}
		m.Layers = append(m.Layers, l)
		diffs = append(diffs, oci.DiffID(blob.Digest))
	}
	if o.Artifact {
		empty := document(mediaTypeEmpty, []byte("{}"))
		c.add(empty)
		m.ArtifactType = artifactAttestation
		m.Config = describe(empty.Descriptor)
		m.Config.Data = empty.Data
		m.Subject = &descriptor{MediaType: image.MediaType, Digest: image.Digest, Size: image.Size}
	} else {
		raw, err := json.Marshal(oci.Config{Architecture: "unknown", OS: "unknown", RootFS: oci.RootFS{Type: "layers", DiffIDs: diffs}})
		if err != nil {
			return Document{}, errs.New(errs.Internal, "attestation: %w", err)
		}
		config := document(oci.MediaTypeOCIConfig, raw)
		c.add(config)
		m.Config = describe(config.Descriptor)
	}
	data, err := encode(m)
	if err != nil {
		return Document{}, err
	}
	d := document(m.MediaType, data)
	d.Platform = &attestationPlatform
	d.Annotations = map[string]string{oci.AnnotationReferenceType: referenceAttestation, oci.AnnotationReferenceDigest: string(image.Digest)}
	return d, nil
}

func (o *Output) index(c *Content) error {
	x := index{SchemaVersion: 2, MediaType: oci.MediaTypeOCIIndex, Annotations: o.notes(OnIndex, nil)}
	if o.Format == oci.FormatDocker {
		x.MediaType = oci.MediaTypeDockerManifestList
	}
	for _, d := range slices.Concat(c.Images, c.Attests) {
		x.Manifests = append(x.Manifests, describe(d.Descriptor))
	}
	data, err := encode(x)
	if err != nil {
		return err
	}
	c.Root = document(x.MediaType, data)
	c.Root.Annotations = o.notes(OnIndexDescriptor, nil)
	return nil
}

// PackageURL returns the package URL of an image: pkg:docker/NAME@TAG?platform=….
func PackageURL(typ string, ref oci.Reference, p *oci.Platform) string {
	parts := strings.Split(ref.FamiliarName(), "/")
	for i := range parts {
		parts[i] = url.QueryEscape(parts[i])
	}
	out := "pkg:" + typ + "/" + strings.Join(parts, "/")
	var q []string
	if d := ref.Digest(); d != "" {
		q = append(q, "digest="+url.QueryEscape(string(d)))
	} else {
		ref = ref.WithDefaultTag()
	}
	if t := ref.Tag(); t != "" {
		out += "@" + url.PathEscape(t)
	}
	if p != nil {
		q = append(q, "platform="+url.QueryEscape(p.String()))
	}
	if len(q) > 0 {
		out += "?" + strings.Join(q, "&")
	}
	return out
}

// layerType returns the media type of a layer that a codec has packed, in the format of the output.
func (o *Output) layerType(codec string) (string, error) {
	docker := o.Format == oci.FormatDocker
	switch {
	case codec == "gzip" && docker:
		return oci.MediaTypeDockerLayerGzip, nil
	case codec == "gzip":
		return oci.MediaTypeOCILayerGzip, nil
	case codec == "zstd" && !docker:
		return oci.MediaTypeOCILayerZstd, nil
	case codec == "none" && docker:
		return oci.MediaTypeDockerLayer, nil
	case codec == "none":
		return oci.MediaTypeOCILayer, nil
	}
	return "", fmt.Errorf("layers packed by %s have no media type", codec)
}
