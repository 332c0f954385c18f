package push

import (
	"encoding/json"

	"ply/internal/errs"
	"ply/internal/image"
	"ply/internal/oci"
)

// dockerManifest is a schema 2 manifest. Its fields are in docker's order, so that the same image gets the same digest as from
// docker.
type dockerManifest struct {
	SchemaVersion int                `json:"schemaVersion"`
	MediaType     string             `json:"mediaType"`
	Config        dockerDescriptor   `json:"config"`
	Layers        []dockerDescriptor `json:"layers"`
}

type dockerDescriptor struct {
	MediaType string     `json:"mediaType"`
	Size      int64      `json:"size"`
	Digest    oci.Digest `json:"digest"`
}

// ociManifest is an OCI manifest.
type ociManifest struct {
	SchemaVersion int             `json:"schemaVersion"`
	MediaType     string          `json:"mediaType"`
	Config        ociDescriptor   `json:"config"`
	Layers        []ociDescriptor `json:"layers"`
}

type ociDescriptor struct {
	MediaType string     `json:"mediaType"`
	Digest    oci.Digest `json:"digest"`
	Size      int64      `json:"size"`
}

// makeManifest returns a manifest that lists layers. errs.Invalid when a layer has no media type in the format.
func makeManifest(format oci.Format, img *image.Image, layers []oci.Descriptor) (data []byte, mediaType string, err error) {
	size := int64(len(img.Raw))
	if format == oci.FormatDocker {
		m := dockerManifest{
			SchemaVersion: 2, MediaType: oci.MediaTypeDockerManifest, Layers: []dockerDescriptor{},
			Config: dockerDescriptor{oci.MediaTypeDockerConfig, size, oci.Digest(img.ID)},
		}
		for _, l := range layers {
			t, ok := layerType(l.MediaType, format)
			if !ok {
				return nil, "", errs.New(errs.Invalid, "layer %s: %s has no counterpart in docker's format", l.Digest, l.MediaType)
			}
			m.Layers = append(m.Layers, dockerDescriptor{t, l.Size, l.Digest})
		}
		data, err = json.MarshalIndent(m, "", "   ")
		return data, m.MediaType, err
	}
	m := ociManifest{
		SchemaVersion: 2, MediaType: oci.MediaTypeOCIManifest, Layers: []ociDescriptor{},
		Config: ociDescriptor{oci.MediaTypeOCIConfig, oci.Digest(img.ID), size},
	}
	for _, l := range layers {
		t, ok := layerType(l.MediaType, format)
		if !ok {
			return nil, "", errs.New(errs.Invalid, "layer %s: unknown media type %s", l.Digest, l.MediaType)
		}
		m.Layers = append(m.Layers, ociDescriptor{t, l.Digest, l.Size})
	}
	data, err = json.Marshal(m)
	return data, m.MediaType, err
}

// layerType returns the media type that a layer has in a format; false when it has none.
func layerType(mediaType string, format oci.Format) (string, bool) {
	docker := format == oci.FormatDocker
	pick := func(d, o string) (string, bool) {
		if docker {
			return d, d != ""
		}
		return o, true
	}
	switch mediaType {
	case oci.MediaTypeDockerLayerGzip, oci.MediaTypeDockerForeignLayer, oci.MediaTypeOCILayerGzip:
		return pick(oci.MediaTypeDockerLayerGzip, oci.MediaTypeOCILayerGzip)
	case oci.MediaTypeDockerLayer, oci.MediaTypeOCILayer:
		return pick(oci.MediaTypeDockerLayer, oci.MediaTypeOCILayer)
	case oci.MediaTypeOCILayerZstd:
		return pick("", oci.MediaTypeOCILayerZstd)
	}
	return "", false
}
