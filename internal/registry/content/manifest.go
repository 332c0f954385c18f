package content

import (
	"bytes"
	"encoding/json"
	"mime"
	"strings"

	"ply/internal/errs"
	"ply/internal/oci"
)

// Limits on manifests, beside those of package oci.
const (
	MaxManifest    = 8 << 20 // bytes
	maxReferences  = 20_000  // descriptors of one manifest
	maxMediaType   = 255     // bytes
	maxAnnotations = 1 << 20 // bytes of the annotations of a manifest with a subject, which lists of referrers repeat
)

// Descriptor refers to content.
type Descriptor struct {
	MediaType    string            `json:"mediaType"`
	Digest       Digest            `json:"digest"`
	Size         int64             `json:"size"`
	URLs         []string          `json:"urls,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	ArtifactType string            `json:"artifactType,omitempty"`
	Platform     *oci.Platform     `json:"platform,omitempty"`
}

// Foreign reports whether the content may be somewhere else than in this registry.
func (d Descriptor) Foreign() bool {
	return d.MediaType == oci.MediaTypeDockerForeignLayer ||
		strings.HasPrefix(d.MediaType, "application/vnd.oci.image.layer.nondistributable.")
}

// Manifest is what the registry knows about the content of a manifest.
type Manifest struct {
	MediaType    string
	Blobs        []Descriptor // configs and layers
	Manifests    []Descriptor // the children of an index
	Subject      *Descriptor
	ArtifactType string // by the rule for lists of referrers: the manifest's, or else the media type of its config
	Annotations  map[string]string
}

type manifestDocument struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	ArtifactType  string            `json:"artifactType"`
	Config        *Descriptor       `json:"config"`
	Layers        []Descriptor      `json:"layers"`
	Blobs         []Descriptor      `json:"blobs"`
	Manifests     []Descriptor      `json:"manifests"`
	FSLayers      json.RawMessage   `json:"fsLayers"`
	Subject       *Descriptor       `json:"subject"`
	Annotations   map[string]string `json:"annotations"`
}

// ParseManifest reads a manifest that was pushed with the given content type, which may be "". The error's class is
// errs.Invalid when the document contradicts its type, or is ambiguous.
func ParseManifest(data []byte, contentType string) (*Manifest, error) {
	if len(data) > MaxManifest {
		return nil, errs.New(errs.Invalid, "manifest is %d bytes, the limit is %d", len(data), MaxManifest)
	}
	given := contentType
	if parsed, _, err := mime.ParseMediaType(contentType); err == nil {
		given = parsed
	}
	if len(given) > maxMediaType || strings.ContainsFunc(given, func(r rune) bool { return r < ' ' || r > '~' }) {
		return nil, errs.New(errs.Invalid, "manifest: content type %q is not a media type", clip(given))
	}
	if first := bytes.TrimLeft(data, " \t\r\n"); len(first) == 0 || first[0] != '{' {
		return nil, errs.New(errs.Invalid, "manifest: is not a JSON object")
	}
	var doc manifestDocument
	if err := oci.DecodeJSON(data, &doc); err != nil {
		return nil, errs.New(errs.Invalid, "manifest: %w", err)
	}
	mediaType, err := doc.mediaType(given)
	if err != nil {
		return nil, err
	}
	m := &Manifest{MediaType: mediaType, Manifests: doc.Manifests, Subject: doc.Subject, ArtifactType: doc.ArtifactType, Annotations: doc.Annotations}
	if doc.Config != nil {
		m.Blobs = append(m.Blobs, *doc.Config)
		if m.ArtifactType == "" {
			m.ArtifactType = doc.Config.MediaType
		}
	}
	m.Blobs = append(append(m.Blobs, doc.Layers...), doc.Blobs...)
	return m, m.check()
}

func (doc *manifestDocument) mediaType(given string) (string, error) {
	image, index := doc.Config != nil || doc.Layers != nil, doc.Manifests != nil
	mediaType := doc.MediaType
	specific := func(s string) bool {
		return s != "" && s != "application/json" && s != "text/plain" && s != "application/octet-stream" && s != "application/x-www-form-urlencoded"
	}
	switch {
	case len(mediaType) > maxMediaType:
		return "", errs.New(errs.Invalid, "manifest: mediaType %q is too long", clip(mediaType))
	case image && index:
		return "", errs.New(errs.Invalid, "manifest: is an image and an index at once")
	case doc.SchemaVersion == 1 || doc.FSLayers != nil:
		return "", errs.New(errs.Invalid, "manifest: Docker schema 1 is not supported").WithHint("Push the image again with a current engine.")
	case mediaType != "" && specific(given) && mediaType != given:
		return "", errs.New(errs.Invalid, "manifest: says it is %s, was sent as %s", clip(mediaType), clip(given))
	case mediaType == "" && specific(given):
		mediaType = given
	case mediaType == "" && index:
		mediaType = oci.MediaTypeOCIIndex
	case mediaType == "" && image:
		mediaType = oci.MediaTypeOCIManifest
	case mediaType == "":
		return "", errs.New(errs.Invalid, "manifest: has no media type, neither in the request nor in the document")
	}
	known := oci.IsIndex(mediaType) || oci.IsManifest(mediaType)
	switch {
	case known && doc.SchemaVersion != 2:
		return "", errs.New(errs.Invalid, "manifest: schemaVersion is %d, want 2", doc.SchemaVersion)
	case oci.IsManifest(mediaType) && (index || doc.Config == nil), oci.IsIndex(mediaType) && (image || !index):
		return "", errs.New(errs.Invalid, "manifest: content does not fit its media type %s", mediaType)
	}
	return mediaType, nil
}

func (m *Manifest) check() error {
	if n := len(m.Blobs) + len(m.Manifests); n > maxReferences {
		return errs.New(errs.Invalid, "manifest: refers to %d objects, the limit is %d", n, maxReferences)
	}
	all := [][]Descriptor{m.Blobs, m.Manifests}
	if m.Subject != nil {
		all = append(all, []Descriptor{*m.Subject})
		size := 0
		for k, v := range m.Annotations {
			size += len(k) + len(v)
		}
		if size > maxAnnotations {
			return errs.New(errs.Invalid, "manifest: has a subject and %d bytes of annotations, the limit is %d", size, maxAnnotations)
		}
	}
	for _, list := range all {
		for _, d := range list {
			if d.Digest == "" || d.Size < 0 || len(d.MediaType) > maxMediaType {
				return errs.New(errs.Invalid, "manifest: descriptor of %q: digest, size or media type is missing or out of range", d.Digest)
			}
		}
	}
	return nil
}
