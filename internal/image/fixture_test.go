package image_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"ply/internal/image"
	"ply/internal/image/imagetest"
	"ply/internal/oci"
	"ply/internal/store/meta"
)

// addManifest adds a manifest to an image, and its digest as a name, as a pull from repository does.
func addManifest(t *testing.T, f *imagetest.Fixture, id oci.ImageID, repository string) oci.Digest {
	t.Helper()
	img, err := f.Images.Get(t.Context(), string(id))
	if err != nil {
		t.Fatal(err)
	}
	m := oci.Manifest{SchemaVersion: 2, MediaType: oci.MediaTypeDockerManifest,
		Config: oci.Descriptor{MediaType: oci.MediaTypeDockerConfig, Digest: oci.Digest(id), Size: int64(len(img.Raw))}, Layers: []oci.Descriptor{}}
	for _, d := range img.Chain {
		m.Layers = append(m.Layers, oci.Descriptor{MediaType: oci.MediaTypeDockerLayerGzip, Digest: oci.DigestOf([]byte("packed " + d)), Size: 100})
	}
	raw, err := json.MarshalIndent(m, "", "   ")
	if err != nil {
		t.Fatal(err)
	}
	d, err := f.Store.Blobs.Put(raw)
	if err != nil {
		t.Fatal(err)
	}
	name := imagetest.Ref(t, repository).WithDigest(d)
	_, err = f.Images.Put(t.Context(), nil, image.PutOptions{
		Config:   img.Raw,
		Manifest: &oci.Descriptor{MediaType: m.MediaType, Digest: d, Size: int64(len(raw))},
		Names:    []oci.Reference{name},
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func flipBlob(t *testing.T, f *imagetest.Fixture, d oci.Digest) {
	t.Helper()
	p := filepath.Join(f.Store.Root, "blobs", "sha256", d.Hex())
	b, err := os.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(p, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func setUsed(t *testing.T, f *imagetest.Fixture, id oci.ImageID, at time.Time) {
	t.Helper()
	update(t, f, func(tx *meta.Tx) error {
		rec, err := tx.Images.Get(id)
		if err != nil {
			return err
		}
		rec.LastUsed = at
		return tx.Images.Put(id, rec)
	})
}
