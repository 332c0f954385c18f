package web

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/registry/access"
	"ply/internal/registry/content"
	"ply/internal/registry/metadata"
)

// manifest is a manifest of a repository, read as far as it is an image or an index.
type manifest struct {
	metadata.Manifest
	Repo      content.Repository
	Reference string // as the visitor named it
	Payload   []byte
	Parsed    *content.Manifest
	Image     *oci.Manifest // nil = it is none
	Index     *oci.Index    // nil = it is none
}

// resolve returns the manifest that a tag or digest of a page names.
func (v *visit) resolve(repo content.Repository, reference string) (*manifest, error) {
	d, tag, err := parseReference(reference)
	if err != nil {
		return nil, errNoPage
	}
	if tag != "" {
		t, err := v.h.metadata.Tag(v.r.Context(), repo, tag)
		if err != nil {
			return nil, err
		}
		d = t.Digest
	}
	m, err := v.load(repo, d)
	if err == nil {
		m.Reference = reference
	}
	return m, err
}

func (v *visit) load(repo content.Repository, d content.Digest) (*manifest, error) {
	known, payload, err := v.h.metadata.Payload(v.r.Context(), repo, d)
	if err != nil {
		return nil, err
	}
	m := &manifest{Manifest: known, Repo: repo, Reference: string(d), Payload: payload}
	if m.Parsed, err = content.ParseManifest(payload, known.MediaType); err != nil {
		return nil, err
	}
	// What the registry keeps but is no image is shown by its descriptors.
	switch {
	case oci.IsIndex(known.MediaType):
		m.Index, _ = oci.DecodeIndex(payload, known.MediaType)
	case oci.IsManifest(known.MediaType):
		m.Image, _ = oci.DecodeManifest(payload, known.MediaType)
	}
	return m, nil
}

// size returns the bytes of an image with its layers; 0 = not known.
func (m *manifest) size() (n int64) {
	if m.Index != nil {
		return 0
	}
	for _, b := range m.Parsed.Blobs {
		n += b.Size
	}
	return n
}

// platforms lists those of an index.
func (m *manifest) platforms() (list []string) {
	for _, d := range m.Parsed.Manifests {
		if d.Platform != nil && d.Platform.OS != "unknown" && len(list) < 20 {
			list = append(list, d.Platform.String())
		}
	}
	return list
}

// kindOf says what a manifest is.
func kindOf(mediaType, artifactType string) string {
	switch {
	case oci.IsIndex(mediaType):
		return "index"
	case !oci.IsManifest(mediaType):
		return mediaType
	case artifactType == "" || artifactType == oci.MediaTypeOCIConfig || artifactType == oci.MediaTypeDockerConfig:
		return "image"
	}
	return artifactType
}

// config reads the config of an image. The error's class is errs.NotFound when there is none, or its bytes are not here.
func (v *visit) config(m *manifest) (*oci.Config, error) {
	if m.Image == nil || kindOf(m.MediaType, m.ArtifactType) != "image" {
		return nil, errs.New(errs.NotFound, "it is no image")
	}
	data, err := v.blob(m.Repo, content.Digest(m.Image.Config.Digest), oci.MaxConfig)
	if err != nil {
		return nil, err
	}
	return oci.DecodeConfig(data)
}

// blob reads a small blob.
func (v *visit) blob(repo content.Repository, d content.Digest, limit int64) ([]byte, error) {
	f, size, err := v.h.Repositories.OpenBlob(v.r.Context(), repo, d)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read from
	if size > limit {
		return nil, errs.New(errs.Invalid, "blob %s has %d bytes, the limit is %d", d, size, limit)
	}
	return io.ReadAll(io.LimitReader(f, limit))
}

// layerRow is a layer with the step that made it, or a step that made none.
type layerRow struct {
	Step    string
	Created *time.Time
	Layer   *oci.Descriptor // nil = the step made none
	Number  int             // of the layer, from 1
}

// rows joins the layers of an image and its history, which may have more or fewer entries.
func rows(layers []oci.Descriptor, history []oci.History) (list []layerRow) {
	next := 0
	for _, step := range history {
		row := layerRow{Step: step.CreatedBy, Created: step.Created}
		if !step.EmptyLayer && next < len(layers) {
			row.Layer = &layers[next]
			next++
			row.Number = next
		}
		list = append(list, row)
	}
	for ; next < len(layers); next++ {
		list = append(list, layerRow{Layer: &layers[next], Number: next + 1})
	}
	return list
}

// related is something that says something about a manifest: an attestation, a signature.
type related struct {
	Digest content.Digest
	Tag    content.Tag // "" = it is found by its subject
	Kind   string
	Size   int64
}

const maxRelated = 100

// relatedTo finds what refers to a manifest: by its subject, in its index, and by the tags that cosign makes.
func (v *visit) relatedTo(ctx context.Context, m *manifest) ([]related, error) {
	referrers, err := v.h.metadata.Referrers(ctx, m.Repo, m.Digest, "", maxRelated)
	if err != nil && !errors.Is(err, errs.NotFound) {
		return nil, err
	}
	var list []related
	for _, r := range referrers {
		list = append(list, related{Digest: r.Digest, Kind: kindOf(r.MediaType, r.ArtifactType), Size: r.Size})
	}
	for suffix, kind := range map[string]string{".sig": "signature", ".att": "attestation", ".sbom": "bill of materials"} {
		tag := content.Tag(string(m.Digest.Algorithm()) + "-" + m.Digest.Hex() + suffix)
		if len(tag) > content.MaxTag {
			continue
		}
		t, err := v.h.metadata.Tag(ctx, m.Repo, tag)
		if errors.Is(err, errs.NotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		list = append(list, related{Digest: t.Digest, Tag: tag, Kind: kind + " of cosign"})
	}
	slices.SortFunc(list, func(a, b related) int { return strings.Compare(a.Kind+string(a.Digest), b.Kind+string(b.Digest)) })
	return list, nil
}

// child is a manifest in an index.
type child struct {
	oci.Descriptor
	Platform string
	About    string // the digest that an attestation is about
}

func (v *visit) manifest(m *manifest) error {
	about, err := v.relatedTo(v.r.Context(), m)
	if err != nil {
		return err
	}
	data := map[string]any{
		"M": m, "Kind": kindOf(m.MediaType, m.ArtifactType), "Related": about, "Deletes": v.caller.May(m.Repo, access.Delete), "Size": m.size(),
		"Raw": indented(m.Payload), "ByDigest": strings.Contains(m.Reference, ":"),
	}
	if m.Index != nil {
		var children []child
		for _, d := range m.Index.Manifests {
			c := child{Descriptor: d, About: d.Annotations["vnd.docker.reference.digest"]}
			if d.Platform != nil {
				c.Platform = d.Platform.String()
			}
			if c.About != "" {
				c.Platform = "attestation"
			}
			children = append(children, c)
		}
		data["Children"] = children
	}
	if config, err := v.config(m); err == nil {
		data["Config"], data["Layers"] = config, rows(m.Image.Layers, config.History)
		data["Ports"], data["Volumes"] = slices.Sorted(maps.Keys(config.Config.ExposedPorts)), slices.Sorted(maps.Keys(config.Config.Volumes))
	} else if m.Image != nil {
		data["Layers"] = rows(m.Image.Layers, nil)
		if kindOf(m.MediaType, m.ArtifactType) == "image" {
			data["NoConfig"] = true
		}
	}
	v.show("manifest", http.StatusOK, string(m.Repo)+":"+m.Reference, data)
	return nil
}

const maxRaw = 256 << 10 // bytes of a manifest that are shown

func indented(payload []byte) string {
	if len(payload) > maxRaw {
		return ""
	}
	var v json.RawMessage = payload
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return ""
	}
	return string(b)
}
