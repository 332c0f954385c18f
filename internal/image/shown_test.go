package image_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"ply/internal/image"
	"ply/internal/image/imagetest"
	"ply/internal/oci"
)

// A config that is damaged after it was listed is listed as damaged, and a list shows the same as before when it was not.
func TestListSeesConfigsThatChanged(t *testing.T) {
	f := imagetest.New(t)
	one := f.Image(imagetest.Spec{Name: "one", Layers: [][]byte{imagetest.Tar(t, "a", "a")}, Hours: 2})
	f.Image(imagetest.Spec{Name: "two", Layers: [][]byte{imagetest.Tar(t, "b", "b")}, Hours: 1})
	want, err := f.Images.Get(t.Context(), "one")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second is remembered
		list, err := f.Images.List(t.Context(), image.ListOptions{})
		if err != nil || len(list) != 2 {
			t.Fatalf("List = %v, %v", list, err)
		}
		for _, img := range list {
			if img.Damaged != nil || img.ID == one && (!img.Created().Equal(want.Created()) || img.Config.Platform().String() != want.Config.Platform().String()) {
				t.Errorf("listed as %+v", img)
			}
		}
	}
	path := filepath.Join(f.Store.Root, "blobs", "sha256", oci.Digest(one).Hex())
	if err := os.WriteFile(path, bytes.Repeat([]byte("x"), len(want.Raw)), 0o600); err != nil { // as large as before
		t.Fatal(err)
	}
	list, err := f.Images.List(t.Context(), image.ListOptions{})
	if err != nil || len(list) != 2 {
		t.Fatalf("List = %v, %v", list, err)
	}
	for _, img := range list {
		if (img.Damaged != nil) != (img.ID == one) {
			t.Errorf("listed as %+v", img)
		}
	}
}
