package oci

import (
	"bytes"
	"encoding/json"
	"io"
	"mime"
	"reflect"
	"strings"
	"sync"

	"ply/internal/errs"
)

// Limits on what is decoded.
const (
	MaxManifest      = 4 << 20  // bytes of a manifest or an index
	MaxConfig        = 8 << 20  // bytes of a config
	MaxAttestation   = 64 << 20 // bytes of an attestation
	MaxJSONDepth     = 64       // objects and arrays around a value
	MaxJSONValues    = 200_000  // values of a document, those in arrays and objects included
	MaxIndexChildren = 1000     // manifests of an index
	MaxIndexDepth    = 8        // indexes inside each other
	MaxLayers        = 500      // layers of an image; the kernel's limit for an overlay
	MaxLayerSize     = 64 << 30 // bytes of a layer as a registry serves it
)

// IsIndex reports whether a media type is an index or a manifest list.
func IsIndex(mediaType string) bool {
	return mediaType == MediaTypeOCIIndex || mediaType == MediaTypeDockerManifestList
}

// IsManifest reports whether a media type is an image manifest.
func IsManifest(mediaType string) bool {
	return mediaType == MediaTypeOCIManifest || mediaType == MediaTypeDockerManifest
}

// FormatOf returns the format that the media type of a manifest or an index belongs to.
func FormatOf(mediaType string) Format {
	if mediaType == MediaTypeDockerManifest || mediaType == MediaTypeDockerManifestList {
		return FormatDocker
	}
	return FormatOCI
}

// SniffManifest returns the media type of data: it compares the field mediaType, the content type with which data was served,
// and which fields there are. The error's class is errs.Invalid when they contradict each other, as in CVE-2021-41190, or when
// data is neither a manifest nor an index.
func SniffManifest(data []byte, contentType string) (string, error) {
	if len(data) > MaxManifest {
		return "", errs.New(errs.Invalid, "manifest is %d bytes, the limit is %d", len(data), MaxManifest)
	}
	if err := checkJSON(data, reflect.TypeFor[manifestShape]()); err != nil {
		return "", errs.New(errs.Invalid, "manifest: %w", err)
	}
	var shape manifestShape
	if err := json.Unmarshal(data, &shape); err != nil {
		return "", errs.New(errs.Invalid, "manifest: %w", err)
	}
	hasLayers, hasManifests := shape.Layers != nil || shape.Config != nil, shape.Manifests != nil
	switch {
	case hasLayers && hasManifests:
		return "", errs.New(errs.Invalid, "manifest: is an image and an index at once").
			WithHint("Nothing that publishes images in earnest makes such a document; do not trust its source.")
	case shape.SchemaVersion == 1 || shape.FSLayers != nil:
		return "", errs.New(errs.Invalid, "manifest: Docker schema 1 is no longer readable").
			WithHint("Push the image again with a current engine.")
	case shape.SchemaVersion != 0 && shape.SchemaVersion != 2: // some programs leave it out, and the content says what it is
		return "", errs.New(errs.Invalid, "manifest: schemaVersion is %d, want 2", shape.SchemaVersion)
	case !hasLayers && !hasManifests:
		return "", errs.New(errs.Invalid, "manifest: has neither layers nor manifests")
	}
	given := contentType
	if parsed, _, err := mime.ParseMediaType(contentType); err == nil {
		given = parsed
	}
	if !IsIndex(given) && !IsManifest(given) {
		given = "" // an unspecific type, such as application/json or text/plain
	}
	mediaType := shape.MediaType
	switch {
	case mediaType == "" && given != "":
		mediaType = given
	case mediaType == "" && hasManifests:
		mediaType = MediaTypeOCIIndex
	case mediaType == "":
		mediaType = MediaTypeOCIManifest
	case given != "" && given != mediaType:
		return "", errs.New(errs.Invalid, "manifest: says it is %s, was served as %s", clip(mediaType), clip(given))
	}
	switch {
	case IsIndex(mediaType) && hasManifests, IsManifest(mediaType) && hasLayers:
		return mediaType, nil
	case IsIndex(mediaType), IsManifest(mediaType):
		return "", errs.New(errs.Invalid, "manifest: content does not fit its media type %s", mediaType)
	}
	return "", errs.New(errs.Invalid, "manifest: media type %q is not an image's", clip(mediaType))
}

type manifestShape struct {
	SchemaVersion int             `json:"schemaVersion"`
	MediaType     string          `json:"mediaType"`
	Config        json.RawMessage `json:"config"`
	Layers        json.RawMessage `json:"layers"`
	Manifests     json.RawMessage `json:"manifests"`
	FSLayers      json.RawMessage `json:"fsLayers"`
}

// DecodeManifest decodes an image manifest. MediaType is the content type with which it was served, "" when that is unknown. The
// error's class is errs.Invalid.
func DecodeManifest(data []byte, mediaType string) (*Manifest, error) {
	got, err := SniffManifest(data, mediaType)
	if err != nil {
		return nil, err
	}
	if !IsManifest(got) {
		return nil, errs.New(errs.Invalid, "manifest: is an index (%s), want one image", got)
	}
	var m Manifest
	if err := decode(data, &m); err != nil {
		return nil, errs.New(errs.Invalid, "manifest: %w", err)
	}
	m.MediaType = got
	if len(m.Layers) > MaxLayers {
		return nil, errs.New(errs.Invalid, "manifest: has %d layers, the limit is %d", len(m.Layers), MaxLayers)
	}
	if err := checkDescriptor(m.Config, MaxConfig); err != nil {
		return nil, errs.New(errs.Invalid, "manifest: config: %w", err)
	}
	for i, l := range m.Layers {
		if err := checkDescriptor(l, MaxLayerSize); err != nil {
			return nil, errs.New(errs.Invalid, "manifest: layer %d: %w", i, err)
		}
	}
	return &m, nil
}

// DecodeIndex decodes an index or manifest list. MediaType is the content type with which it was served, "" when that is unknown.
// The error's class is errs.Invalid.
func DecodeIndex(data []byte, mediaType string) (*Index, error) {
	got, err := SniffManifest(data, mediaType)
	if err != nil {
		return nil, err
	}
	if !IsIndex(got) {
		return nil, errs.New(errs.Invalid, "index: is an image manifest (%s)", got)
	}
	var i Index
	if err := decode(data, &i); err != nil {
		return nil, errs.New(errs.Invalid, "index: %w", err)
	}
	i.MediaType = got
	if len(i.Manifests) > MaxIndexChildren {
		return nil, errs.New(errs.Invalid, "index: has %d manifests, the limit is %d", len(i.Manifests), MaxIndexChildren)
	}
	for n, d := range i.Manifests {
		if err := checkDescriptor(d, MaxManifest); err != nil {
			return nil, errs.New(errs.Invalid, "index: manifest %d: %w", n, err)
		}
	}
	return &i, nil
}

func checkDescriptor(d Descriptor, limit int64) error {
	if d.Digest == "" {
		return errs.New(errs.Invalid, "descriptor has no digest")
	}
	if d.Size < 0 || d.Size > limit {
		return errs.New(errs.Invalid, "%s: size %d is not between 0 and %d", d.Digest, d.Size, limit)
	}
	return nil
}

// DecodeConfig decodes an image config. Its history may have more or fewer entries than there are layers: some builders leave
// the history out or squash layers without changing it, and it is only displayed. The error's class is errs.Invalid.
func DecodeConfig(data []byte) (*Config, error) {
	if len(data) > MaxConfig {
		return nil, errs.New(errs.Invalid, "config is %d bytes, the limit is %d", len(data), MaxConfig)
	}
	var c Config
	if err := decode(data, &c); err != nil {
		return nil, errs.New(errs.Invalid, "config: %w", err)
	}
	if c.RootFS.Type != "layers" {
		return nil, errs.New(errs.Invalid, "config: rootfs type is %q, want layers", clip(c.RootFS.Type))
	}
	if len(c.RootFS.DiffIDs) > MaxLayers {
		return nil, errs.New(errs.Invalid, "config: has %d layers, the limit is %d", len(c.RootFS.DiffIDs), MaxLayers)
	}
	for i, d := range c.RootFS.DiffIDs {
		if err := checkDigest(string(d)); err != nil {
			return nil, errs.New(errs.Invalid, "config: diff_id %d: %w", i, err)
		}
	}
	for _, e := range c.Config.Env {
		if strings.IndexByte(e, 0) >= 0 {
			return nil, errs.New(errs.Invalid, "config: Env %q holds a NUL", clip(e))
		}
	}
	return &c, nil
}

// DecodeJSON is json.Unmarshal for untrusted bytes. It refuses trailing data, duplicate keys, keys that differ from a known one
// only in case, and values nested deeper than MaxJSONDepth. The caller limits the length.
func DecodeJSON(data []byte, v any) error { return decode(data, v) }

// decode is json.Unmarshal after checkJSON.
func decode(data []byte, v any) error {
	if err := checkJSON(data, reflect.TypeOf(v).Elem()); err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}

// checkJSON refuses what JSON decoders treat differently: trailing data, duplicate keys, keys that differ from a known one only in
// case, which encoding/json accepts, and deep nesting. Keys that t does not have are accepted. It also refuses documents with
// many values: two bytes can make encoding/json allocate hundreds.
func checkJSON(data []byte, t reflect.Type) error {
	if bytes.HasPrefix(data, []byte("\xef\xbb\xbf")) {
		return errs.New(errs.Invalid, "starts with a byte order mark")
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	c := &jsonChecker{Decoder: d}
	if err := c.value(t, 0); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF { //nolint:errorlint // the decoder returns it unwrapped
		return errs.New(errs.Invalid, "has data after its end")
	}
	return nil
}

// jsonChecker reads one document.
type jsonChecker struct {
	*json.Decoder
	values int // so far
}

func (d *jsonChecker) value(t reflect.Type, depth int) error {
	if d.values++; d.values > MaxJSONValues {
		return errs.New(errs.Invalid, "has more than %d values", MaxJSONValues)
	}
	if depth > MaxJSONDepth {
		return errs.New(errs.Invalid, "is nested deeper than %d", MaxJSONDepth)
	}
	tok, err := d.Token()
	if err != nil {
		if err == io.EOF { //nolint:errorlint // the decoder returns it unwrapped
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	delim, ok := tok.(json.Delim)
	if !ok {
		return nil
	}
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if delim == '[' {
		var elem reflect.Type
		if t != nil && (t.Kind() == reflect.Slice || t.Kind() == reflect.Array) && t.Elem().Kind() != reflect.Uint8 {
			elem = t.Elem()
		}
		for d.More() {
			if err := d.value(elem, depth+1); err != nil {
				return err
			}
		}
	} else if err := d.object(t, depth); err != nil {
		return err
	}
	_, err = d.Token()
	return err
}

func (d *jsonChecker) object(t reflect.Type, depth int) error {
	var known map[string]reflect.Type
	var elem reflect.Type
	if t != nil && t.Kind() == reflect.Struct {
		known = fieldsOf(t)
	} else if t != nil && t.Kind() == reflect.Map {
		elem = t.Elem()
	}
	seen := map[string]bool{}
	for d.More() {
		tok, err := d.Token()
		if err != nil {
			return err
		}
		key, _ := tok.(string)
		if seen[key] {
			return errs.New(errs.Invalid, "key %q appears twice", clip(key))
		}
		seen[key] = true
		next := elem
		if known != nil {
			var ok bool
			if next, ok = known[key]; !ok {
				for name := range known {
					if strings.EqualFold(name, key) {
						return errs.New(errs.Invalid, "key %q is not written %q", clip(key), name)
					}
				}
			}
		}
		if err := d.value(next, depth+1); err != nil {
			return err
		}
	}
	return nil
}

var fieldCache sync.Map // reflect.Type → map[string]reflect.Type

func fieldsOf(t reflect.Type) map[string]reflect.Type {
	if m, ok := fieldCache.Load(t); ok {
		return m.(map[string]reflect.Type)
	}
	m := map[string]reflect.Type{}
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" {
			name = f.Name
		}
		if f.IsExported() && name != "-" {
			m[name] = f.Type
		}
	}
	fieldCache.Store(t, m)
	return m
}
