package builder

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"

	"ply/internal/errs"
	"ply/internal/oci"
)

// layoutRef returns the reference of an image in an OCI layout with its digest, which the engine needs. ref is ":tag", "@digest", both, or "" for the tag latest
// or the only image.
func layoutRef(dir, ref string) (string, error) {
	tag, digest, ok := strings.Cut(ref, "@")
	if ok {
		if _, err := oci.ParseDigest(digest); err != nil {
			return "", err
		}
		return ref, nil
	}
	f, err := os.Open(filepath.Join(dir, "index.json"))
	if err != nil {
		return "", err
	}
	defer f.Close()
	var index struct {
		Manifests []oci.Descriptor `json:"manifests"`
	}
	if err := json.NewDecoder(io.LimitReader(f, oci.MaxManifest)).Decode(&index); err != nil {
		return "", errs.New(errs.Invalid, "%s: %w", f.Name(), err)
	}
	want := strings.TrimPrefix(tag, ":")
	shown := want
	if shown == "" {
		shown = "latest"
	}
	for _, d := range index.Manifests {
		if name := d.Annotations["org.opencontainers.image.ref.name"]; name == want && want != "" || want == "" && (name == "latest" || len(index.Manifests) == 1) {
			return ":" + shown + "@" + string(d.Digest), nil
		}
	}
	return "", errs.New(errs.NotFound, "%s has no image with the tag %s", dir, shown)
}
