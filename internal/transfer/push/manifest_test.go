package push

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"ply/internal/image"
	"ply/internal/oci"
)

// A schema 2 manifest is byte for byte as docker writes it. With two layers and sizes of these numbers of digits it has 741 bytes.
func TestDockerManifestBytes(t *testing.T) {
	d := oci.DigestOf([]byte("x"))
	img := &image.Image{ID: oci.ImageID(d), Raw: make([]byte, 2000)}
	data, mediaType, err := makeManifest(oci.FormatDocker, img, []oci.Descriptor{
		{MediaType: oci.MediaTypeOCILayerGzip, Digest: d, Size: 28_568_000},
		{MediaType: oci.MediaTypeDockerLayerGzip, Digest: d, Size: 60_000_000},
	})
	if err != nil || mediaType != oci.MediaTypeDockerManifest {
		t.Fatal(mediaType, err)
	}
	want := `{
   "schemaVersion": 2,
   "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
   "config": {
      "mediaType": "application/vnd.docker.container.image.v1+json",
      "size": 2000,
      "digest": "` + string(d) + `"
   },
   "layers": [
      {
         "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
         "size": 28568000,
         "digest": "` + string(d) + `"
      },
      {
         "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
         "size": 60000000,
         "digest": "` + string(d) + `"
      }
   ]
}`
	if diff := cmp.Diff(want, string(data)); diff != "" {
		t.Error(diff)
	}
	if len(data) != 741 {
		t.Errorf("length %d, want 741", len(data))
	}
}
