package meta

import (
	"testing"
	"time"

	"ply/internal/oci"
	"ply/internal/record"
	"ply/internal/record/recordtest"
)

var (
	when   = time.Date(2026, 8, 1, 12, 30, 0, 123456789, time.UTC)
	digest = oci.Digest("sha256:" + hex("d1"))
	form   = oci.Descriptor{
		MediaType: "application/vnd.oci.image.layer.v1.tar+gzip", Digest: digest, Size: 5, URLs: []string{"https://example.com/layer"},
		Annotations: map[string]string{"a": "b"}, ArtifactType: "application/example",
		Platform: &oci.Platform{Architecture: "arm64", OS: "linux", OSVersion: "6.1", OSFeatures: []string{"f"}, Variant: "v8"},
	}

	goldenName  = Name{Image: oci.ImageID(digest), Updated: when, Index: digest}
	goldenIndex = Index{
		MediaType: "application/vnd.oci.image.index.v1+json", Size: 9, Images: []oci.ImageID{oci.ImageID(digest)}, Artifacts: []oci.Descriptor{form}, Blobs: []oci.Digest{digest},
	}
	goldenImage = Image{
		Parent: oci.ImageID("sha256:" + hex("aa")), Format: oci.FormatOCI, Chain: oci.Chain{oci.DiffID("sha256:" + hex("bb"))},
		Manifests: []oci.Descriptor{form}, Created: when, LastUsed: when.Add(time.Hour), Step: "base",
	}
	goldenLayer = Layer{Size: 7, TarSize: 10240, Blobs: []LayerBlob{
		{Descriptor: form, Codec: "gzip level=6", Repositories: []string{"docker.io/library/busybox"}},
	}}
	goldenStep = Step{
		Outputs: []StepOutput{{Index: 1, Chain: oci.Chain{oci.DiffID("sha256:" + hex("bb"))}}}, Name: "[2/3] RUN make",
		Parts: []StepPart{{What: "the instruction", Sum: "sha256:" + hex("cc")}}, Created: when, Used: when.Add(time.Hour), Uses: 3, Took: time.Second,
	}
	goldenStepKey = StepKey{Step: digest}
	goldenVolume  = Volume{
		Driver: "local", Labels: map[string]string{"k": "v"}, Options: map[string]string{"type": "tmpfs"}, Created: when, Anonymous: true,
	}
)

func hex(pair string) string {
	s := ""
	for range 32 {
		s += pair
	}
	return s
}

// The form in which each record is stored. Records of container.Service and network.Service have their golden files there.
func TestGoldenRecords(t *testing.T) {
	golden(t, "name", names, goldenName)
	golden(t, "image", images, goldenImage)
	before := goldenImage
	before.Step = "" // added later
	unversioned(t, "image", images, before)
	plain := goldenName
	plain.Index = "" // added later
	unversioned(t, "name", names, plain)
	golden(t, "index", indexes, goldenIndex)
	unversioned(t, "layer", layers, goldenLayer)
	unversioned(t, "volume", volumes, goldenVolume)
	golden(t, "layer", layers, goldenLayer)
	golden(t, "volume", volumes, goldenVolume)
	golden(t, "step", steps, goldenStep)
	golden(t, "stepkey", stepKeys, goldenStepKey)
}

func golden[V any](t *testing.T, name string, tab table, v V) {
	t.Helper()
	recordtest.Filled(t, v)
	data, err := record.Marshal(tab.version, v) // the database adds the checksum
	if err != nil {
		t.Fatal(err)
	}
	recordtest.Golden(t, name+".v1.json", data)
	recordtest.Decodes(t, name+".v1.json", tab.version, v)
}

// unversioned reads a record as builds before the first release wrote it.
func unversioned[V any](t *testing.T, name string, tab table, v V) {
	t.Helper()
	recordtest.Decodes(t, name+".unversioned.json", tab.version, v)
}
