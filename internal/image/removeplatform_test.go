package image_test

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"ply/internal/errs"
	"ply/internal/image"
	"ply/internal/image/imagetest"
	"ply/internal/oci"
)

// putIndex records images for some architectures and an index of them with names, and returns the images.
func putIndex(t *testing.T, f *imagetest.Fixture, names string, archs ...string) (ids []oci.ImageID) {
	t.Helper()
	put := func(v any, mediaType string) oci.Descriptor {
		raw, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		d, err := f.Store.Blobs.Put(raw)
		if err != nil {
			t.Fatal(err)
		}
		return oci.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(raw))}
	}
	var o image.PutIndexOptions
	idx := oci.Index{SchemaVersion: 2, MediaType: oci.MediaTypeOCIIndex}
	for _, arch := range archs {
		id, err := f.Images.Create(t.Context(), nil, image.CreateOptions{Config: oci.Config{Created: &imagetest.Day, Architecture: arch, OS: "linux"}})
		if err != nil {
			t.Fatal(err)
		}
		img, err := f.Images.Get(t.Context(), string(id))
		if err != nil {
			t.Fatal(err)
		}
		m := put(oci.Manifest{SchemaVersion: 2, MediaType: oci.MediaTypeOCIManifest, Layers: []oci.Descriptor{},
			Config: oci.Descriptor{MediaType: oci.MediaTypeOCIConfig, Digest: oci.Digest(id), Size: int64(len(img.Raw))}}, oci.MediaTypeOCIManifest)
		ids = append(ids, id)
		o.Images = append(o.Images, image.PutOptions{Config: img.Raw, Manifest: &m})
		m.Platform = &oci.Platform{OS: "linux", Architecture: arch}
		idx.Manifests = append(idx.Manifests, m)
	}
	o.Index = put(idx, oci.MediaTypeOCIIndex)
	for n := range strings.FieldsSeq(names) {
		o.Names = append(o.Names, imagetest.Ref(t, n))
	}
	lease := f.Store.Lease()
	defer lease.Release()
	if _, err := f.Images.PutIndex(t.Context(), lease, o); err != nil {
		t.Fatal(err)
	}
	return ids
}

// The image of one platform goes from every index that lists it. Names mean one of the others then, that for this host if it is there, and the last image takes the names
// along. Without Force, of an unknown platform, and while a container runs, nothing is removed.
func TestRemovePlatforms(t *testing.T) {
	f := imagetest.New(t)
	ids := putIndex(t, f, "multi:1 other:1", "s390x", "amd64", "arm64")
	if again := putIndex(t, f, "fewer:1", "amd64", "arm64"); !slices.Equal(again, ids[1:]) {
		t.Fatalf("images %v, want %v", again, ids[1:])
	}
	remove := func(ref string, force bool, platforms ...string) error {
		_, err := f.Images.Remove(t.Context(), ref, image.RemoveOptions{Force: force, Platforms: platforms})
		return err
	}
	means := func(ref string, want oci.ImageID, listed ...oci.ImageID) {
		t.Helper()
		img, err := f.Images.Get(t.Context(), ref)
		if err != nil {
			t.Error(err)
			return
		}
		x, err := f.Images.Index(ref)
		if err != nil || x == nil || !slices.Equal(x.Images, listed) || img.ID != want {
			t.Errorf("%s means %s, and its index %v, %v; want %s of %v", ref, img.ID.Short(), x, err, want.Short(), listed)
		}
	}
	if err := remove("multi:1", false, "linux/arm64"); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "--force") {
		t.Errorf("without force: %v", err)
	}
	if err := remove("multi:1", true, "linux/arm64", "linux/riscv64"); !errors.Is(err, errs.NotFound) {
		t.Errorf("an unknown platform: %v", err)
	}
	f.InUse[ids[1]], f.Running[ctr] = []string{ctr}, true
	if err := remove("multi:1", true, "linux/arm64", "linux/amd64"); !errors.Is(err, errs.Conflict) {
		t.Errorf("a running container: %v", err)
	}
	means("multi:1", ids[1], ids...)
	delete(f.InUse, ids[1])
	if err := remove("multi:1", true, "linux/amd64"); err != nil {
		t.Fatal(err)
	}
	means("multi:1", ids[0], ids[0], ids[2])
	means("other:1", ids[0], ids[0], ids[2])
	means("fewer:1", ids[2], ids[2])
	if _, err := f.Images.Get(t.Context(), string(ids[1])); !errors.Is(err, errs.NotFound) {
		t.Errorf("the image is still there: %v", err)
	}
	if err := remove("other:1", true, "linux/arm64"); err != nil {
		t.Fatal(err)
	}
	means("multi:1", ids[0], ids[0])
	if _, err := f.Images.Get(t.Context(), "fewer:1"); !errors.Is(err, errs.NotFound) {
		t.Errorf("the name of an index without images: %v", err)
	}
	if err := remove("other:1", true, "linux/s390x"); err != nil {
		t.Fatal(err)
	}
	if list, err := f.Images.List(t.Context(), image.ListOptions{All: true}); err != nil || len(list) != 0 {
		t.Errorf("left: %v, %v", list, err)
	}
}
