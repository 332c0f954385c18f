package builder

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"ply/internal/errs"
	"ply/internal/wire"
)

// maxIndex is the largest index of a cache in a directory, in bytes.
const maxIndex = 16 << 20

// layoutIndex is the index.json of an OCI layout. Descriptors keep what they have.
type layoutIndex struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType,omitempty"`
	Manifests     []json.RawMessage `json:"manifests"`
}

// layoutEntry is what is read of a descriptor.
type layoutEntry struct {
	Digest      string            `json:"digest"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

const (
	refName     = "org.opencontainers.image.ref.name"
	indexType   = "application/vnd.oci.image.index.v1+json"
	layoutText  = `{"imageLayoutVersion":"1.0.0"}`
	defaultTag  = "latest"
	cacheAnswer = "cache.manifest"
)

func readIndex(dir string) (idx layoutIndex, err error) {
	st, err := os.Stat(filepath.Join(dir, "index.json"))
	if err != nil {
		return idx, err
	}
	if st.Size() > maxIndex {
		return idx, errs.New(errs.Invalid, "index.json is larger than %d bytes", maxIndex)
	}
	data, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err == nil {
		err = json.Unmarshal(data, &idx)
	}
	return idx, err
}

// errNoCache says that there is no cache that could be read. A build goes on without it, as with BuildKit's clients: the first one of a pipeline has none.
var errNoCache = errors.New("no cache")

// addCacheDir makes the directory of a cache known, and finds the manifest of one that is read. The error is errNoCache when there is none.
func (p *plan) addCacheDir(c *wire.BuildOption) error {
	dir := c.Attrs["src"]
	if dir == "" {
		dir = c.Attrs["dest"]
	}
	if dir == "" {
		return errs.New(errs.Invalid, "src or dest is missing")
	}
	known := func() error {
		if p.resources.Blobs == nil {
			p.resources.Blobs = map[string]string{}
		}
		p.resources.Blobs[dir] = dir
		return nil
	}
	if c.Attrs["src"] == "" {
		return known()
	}
	if c.Attrs["digest"] != "" {
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: %w", errNoCache, err)
		}
		return known()
	}
	idx, err := readIndex(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", errNoCache, err)
	}
	if err != nil {
		return err
	}
	tag := c.Attrs["tag"]
	if tag == "" {
		tag = defaultTag
	}
	for _, raw := range idx.Manifests {
		var e layoutEntry
		if err := json.Unmarshal(raw, &e); err != nil {
			return err
		}
		if e.Annotations[refName] == tag || len(idx.Manifests) == 1 {
			c.Attrs["digest"] = e.Digest
			return known()
		}
	}
	return fmt.Errorf("%w: %s has none with the tag %s", errNoCache, dir, tag)
}

// writeCacheIndexes names the cache that a build wrote in the index of each directory.
func (p *plan) writeCacheIndexes(answers map[string]string) error {
	text := answers[cacheAnswer]
	if text == "" {
		return nil
	}
	raw, err := decodeAnswer(text)
	if err != nil {
		return errs.New(errs.Invalid, "descriptor of the cache: %w", err)
	}
	for _, c := range p.request.CacheTo {
		if c.Type != "local" {
			continue
		}
		tag := c.Attrs["tag"]
		if tag == "" {
			tag = defaultTag
		}
		if err := writeCacheIndex(c.Attrs["dest"], tag, raw); err != nil {
			return err
		}
	}
	return nil
}

// decodeAnswer returns the JSON of an answer, which may be in base64, as in BuildKit's protocol.
func decodeAnswer(text string) ([]byte, error) {
	raw := []byte(text)
	if !strings.HasPrefix(text, "{") {
		var err error
		if raw, err = base64.StdEncoding.DecodeString(text); err != nil {
			return nil, err
		}
	}
	if len(raw) == 0 || raw[0] != '{' || !json.Valid(raw) {
		return nil, errs.New(errs.Invalid, "no JSON object")
	}
	return raw, nil
}

// writeCacheIndex adds a descriptor to the index of a directory under a tag, in place of the one that has it.
func writeCacheIndex(dir, tag string, raw []byte) error {
	idx, err := readIndex(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errs.New(errs.Invalid, "cache in %s: %w", dir, err)
	}
	var desc map[string]any
	if err := json.Unmarshal(raw, &desc); err != nil {
		return errs.New(errs.Invalid, "descriptor of the cache: %w", err)
	}
	desc["annotations"] = map[string]string{refName: tag}
	entry, err := json.Marshal(desc)
	if err != nil {
		return err
	}
	idx.SchemaVersion, idx.MediaType = 2, indexType
	idx.Manifests = slices.DeleteFunc(idx.Manifests, func(raw json.RawMessage) bool {
		var e layoutEntry
		return json.Unmarshal(raw, &e) == nil && e.Annotations[refName] == tag
	})
	idx.Manifests = append(idx.Manifests, entry)
	data, err := json.Marshal(idx)
	if err != nil {
		return err
	}
	if err := replaceFile(filepath.Join(dir, "oci-layout"), []byte(layoutText)); err != nil {
		return err
	}
	return replaceFile(filepath.Join(dir, "index.json"), data)
}
