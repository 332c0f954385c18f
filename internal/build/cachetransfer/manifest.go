package cachetransfer

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"slices"
	"time"

	"ply/internal/errs"
	"ply/internal/oci"
)

// InlineField is the field of an image's config that holds the records of an inline cache, in base64.
const InlineField = "moby.buildkit.cache.v0"

// Source has the parts of a cache.
type Source interface {
	// Manifest returns a manifest that an index lists.
	Manifest(ctx context.Context, d oci.Descriptor) ([]byte, error)
	// Blob returns a blob of at most limit bytes, whose digest was checked.
	Blob(ctx context.Context, d oci.Descriptor, limit int64) ([]byte, error)
}

// Dir is a directory of a client with blobs, in the form of an OCI layout.
type Dir interface {
	// Open opens a blob. Its content is not checked. The error's class is errs.NotFound when the directory does not have it.
	Open(ctx context.Context, d oci.Digest) (io.ReadCloser, error)
	// Write stores a blob. It reads r to the end, or not at all when the directory has the blob.
	Write(ctx context.Context, d oci.Descriptor, r io.Reader) error
}

// maxImages is how many images of an index are looked at for inline caches.
const maxImages = 32

// either is a manifest or an index.
type either struct {
	Config    *oci.Descriptor  `json:"config"`
	Layers    []oci.Descriptor `json:"layers"`
	Manifests []oci.Descriptor `json:"manifests"`
}

// Read returns the caches that a manifest or index leads to: its own, or the inline caches of the images. There may be none.
func Read(ctx context.Context, src Source, manifest []byte) ([]*Cache, error) {
	var m either
	if err := decodeManifest(manifest, &m); err != nil {
		return nil, err
	}
	var layers []oci.Descriptor
	conf := m.Config
	if conf == nil {
		for i := range m.Manifests {
			if d := &m.Manifests[i]; d.MediaType == MediaType {
				conf = d
			} else {
				layers = append(layers, *d)
			}
		}
	} else {
		layers = m.Layers
	}
	if conf != nil && conf.MediaType == MediaType {
		data, err := src.Blob(ctx, *conf, MaxConfig)
		if err != nil {
			return nil, err
		}
		c, err := Decode(data, layers)
		if err != nil {
			return nil, err
		}
		return []*Cache{c}, nil
	}
	if m.Config != nil {
		return inline(ctx, src, &m)
	}
	var all []*Cache
	for i, d := range m.Manifests {
		if i == maxImages {
			break
		}
		if !oci.IsManifest(d.MediaType) || d.Platform != nil && d.Platform.OS == "unknown" {
			continue
		}
		data, err := src.Manifest(ctx, d)
		if err != nil {
			return nil, err
		}
		var image either
		if err := decodeManifest(data, &image); err != nil {
			return nil, err
		}
		c, err := inline(ctx, src, &image)
		if err != nil {
			return nil, err
		}
		all = append(all, c...)
	}
	return all, nil
}

func decodeManifest(data []byte, m *either) error {
	if len(data) > oci.MaxManifest {
		return invalid("its manifest has %d bytes", len(data))
	}
	if err := json.Unmarshal(data, m); err != nil {
		return invalid("its manifest: %v", err)
	}
	all := append(m.Layers[:len(m.Layers):len(m.Layers)], m.Manifests...)
	if m.Config != nil {
		all = append(all, *m.Config)
	}
	if slices.ContainsFunc(all, func(d oci.Descriptor) bool { return d.Digest == "" }) {
		return invalid("its manifest names a blob that has no digest")
	}
	return nil
}

// inline returns the cache in the config of an image; none when it has none.
func inline(ctx context.Context, src Source, m *either) ([]*Cache, error) {
	if m.Config == nil {
		return nil, nil
	}
	data, err := src.Blob(ctx, *m.Config, oci.MaxConfig)
	if err != nil {
		return nil, err
	}
	var conf struct {
		RootFS  oci.RootFS    `json:"rootfs"`
		History []oci.History `json:"history"`
		Records string        `json:"moby.buildkit.cache.v0"`
	}
	if err := json.Unmarshal(data, &conf); err != nil {
		return nil, invalid("the config of an image: %v", err)
	}
	if conf.Records == "" || len(conf.RootFS.DiffIDs) != len(m.Layers) {
		return nil, nil
	}
	records, err := base64.StdEncoding.DecodeString(conf.Records)
	if err != nil {
		return nil, invalid("the records of an image: %v", err)
	}
	for i := range m.Layers {
		m.Layers[i].Annotations = map[string]string{DiffID: string(conf.RootFS.DiffIDs[i])}
	}
	c, err := DecodeInline(records, m.Layers)
	if err != nil {
		return nil, err
	}
	return []*Cache{c}, nil
}

// Format is the form of a manifest.
type Format struct {
	Docker bool // docker's media types instead of those of OCI
	Index  bool // an index that lists layers, instead of the manifest of an artifact
}

// Manifest returns the manifest of a cache and its descriptor.
func (f Format) Manifest(conf oci.Descriptor, layers []oci.Descriptor) ([]byte, oci.Descriptor, error) {
	type manifest struct {
		SchemaVersion int              `json:"schemaVersion"`
		MediaType     string           `json:"mediaType"`
		Config        *oci.Descriptor  `json:"config,omitempty"`
		Layers        []oci.Descriptor `json:"layers,omitempty"`
		Manifests     []oci.Descriptor `json:"manifests,omitempty"`
	}
	m := manifest{SchemaVersion: 2}
	switch {
	case !f.Index && f.Docker:
		return nil, conf, errs.New(errs.Invalid, "a cache of docker's media types cannot be an image manifest").WithHint("Leave image-manifest=true or oci-mediatypes=false out.")
	case !f.Index:
		m.MediaType, m.Config, m.Layers = oci.MediaTypeOCIManifest, &conf, layers
	default:
		m.MediaType, m.Manifests = oci.MediaTypeOCIIndex, append(layers[:len(layers):len(layers)], conf)
		if f.Docker {
			m.MediaType = oci.MediaTypeDockerManifestList
		}
	}
	data, err := json.Marshal(m)
	if err != nil {
		return nil, conf, errs.New(errs.Internal, "build cache: %w", err)
	}
	return data, oci.Descriptor{MediaType: m.MediaType, Digest: oci.DigestOf(data), Size: int64(len(data))}, nil
}

// Annotate returns the annotations of a layer.
func Annotate(d oci.DiffID, created time.Time) map[string]string {
	return map[string]string{DiffID: string(d), createdAt: created.UTC().Format(time.RFC3339Nano)}
}
