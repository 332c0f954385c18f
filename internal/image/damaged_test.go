package image_test

import (
	"errors"
	"strings"
	"testing"

	"ply/internal/errs"
	"ply/internal/image"
	"ply/internal/image/imagetest"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/store/meta"
	"ply/internal/store/meta/metatest"
)

// An image whose record has changed on disk, but is still JSON, is listed as damaged with its names and its size, and is not pruned.
func TestFalsifiedImageIsListed(t *testing.T) {
	f := imagetest.New(t)
	one := f.Image(imagetest.Spec{Name: "one", Layers: [][]byte{imagetest.Tar(t, "a", "a")}})
	f.Image(imagetest.Spec{Name: "two", Layers: [][]byte{imagetest.Tar(t, "b", "b")}, Hours: 1})
	before, err := f.Images.Get(t.Context(), "one")
	if err != nil {
		t.Fatal(err)
	}
	f.Edit(func(path string) {
		metatest.Falsify(t, path, "images", string(one), string(before.Chain[0]), "sha256:"+strings.Repeat("0", 64))
	})
	list, err := f.Images.List(t.Context(), image.ListOptions{})
	if err != nil || len(list) != 2 {
		t.Fatalf("List = %v, %v", list, err)
	}
	for _, img := range list {
		damaged := img.ID == one
		if (img.Damaged != nil) != damaged || len(img.Names) != 1 || img.Size == 0 && damaged != (before.Size == 0) {
			t.Errorf("listed as %+v", img)
		}
	}
	if _, err := f.Images.Get(t.Context(), "one"); !errors.Is(err, errs.DataLoss) || !strings.Contains(err.Error(), "system check --repair") {
		t.Errorf("Get = %v, want class DataLoss and the way out", err)
	}
	if err := f.Images.Touch(t.Context(), one); !errors.Is(err, errs.DataLoss) {
		t.Errorf("Touch = %v, want class DataLoss", err)
	}
	got, _, err := f.Images.Prune(t.Context(), image.PruneOptions{Filters: map[string][]string{"dangling": {"false"}}})
	if err != nil || len(got) != 3 { // the name, the image and the layer of two
		t.Errorf("Prune = %v, %v", got, err)
	}
}

// A name whose record is damaged is listed, refuses to be used, and goes by force or when it is set again. Other names do not change.
func TestDamagedName(t *testing.T) {
	f := imagetest.New(t)
	one := f.Image(imagetest.Spec{Name: "one", Layers: [][]byte{imagetest.Tar(t, "a", "a")}})
	if err := f.Images.Tag(t.Context(), "one", imagetest.Ref(t, "other")); err != nil {
		t.Fatal(err)
	}
	damage := func() {
		f.Edit(func(path string) {
			metatest.Falsify(t, path, "names", "docker.io/library/one:latest", string(one)[:10], "sha256:000")
		})
	}
	damage()
	list, err := f.Images.List(t.Context(), image.ListOptions{})
	if err != nil || len(list) != 2 {
		t.Fatalf("List = %v, %v; want the image and the damaged name", list, err)
	}
	for _, img := range list {
		if want := map[bool]string{true: "one:latest", false: "other:latest"}[img.ID == ""]; len(img.Names) != 1 ||
			img.Names[0].Familiar() != want || (img.Damaged != nil) != (img.ID == "") {
			t.Errorf("listed as %+v", img)
		}
	}
	if list, err := f.Images.List(t.Context(), image.ListOptions{Filters: map[string][]string{"reference": {"other"}}}); err != nil || len(list) != 1 {
		t.Errorf("List of other = %v, %v", list, err)
	}
	if _, err := f.Images.Get(t.Context(), "one"); !errors.Is(err, errs.DataLoss) || !strings.Contains(err.Error(), "rmi -f") {
		t.Errorf("Get = %v, want class DataLoss and the way out", err)
	}
	if _, err := f.Images.Remove(t.Context(), "one", image.RemoveOptions{}); !errors.Is(err, errs.DataLoss) {
		t.Errorf("Remove = %v, want class DataLoss", err)
	}
	got, err := f.Images.Remove(t.Context(), "one", image.RemoveOptions{Force: true})
	if err != nil || len(got) != 1 || got[0].Untagged != "one:latest" {
		t.Errorf("Remove by force = %v, %v", got, err)
	}
	if _, err := f.Images.Get(t.Context(), "one"); !errors.Is(err, errs.NotFound) {
		t.Errorf("Get after the removal = %v, want class NotFound", err)
	}
	if err := f.Images.Tag(t.Context(), "other", imagetest.Ref(t, "one")); err != nil {
		t.Fatal(err)
	}
	damage()
	if err := f.Images.Tag(t.Context(), "other", imagetest.Ref(t, "one")); err != nil {
		t.Errorf("Tag over a damaged name = %v", err)
	}
	if img, err := f.Images.Get(t.Context(), "one"); err != nil || img.ID != one {
		t.Errorf("Get after it was set again = %v, %v", img, err)
	}
}

// A container whose record has changed on disk may need any image: images stay, with their layers, until it is gone.
func TestImagesStayBelowADamagedContainer(t *testing.T) {
	f := imagetest.NewWith(t, store.Options{Grace: 1})
	one := f.Image(imagetest.Spec{Name: "one", Layers: [][]byte{imagetest.Tar(t, "a", "a")}})
	two := f.Image(imagetest.Spec{Name: "two", Layers: [][]byte{imagetest.Tar(t, "b", "b")}})
	img, err := f.Images.Get(t.Context(), "one")
	if err != nil {
		t.Fatal(err)
	}
	type record struct {
		Image oci.ImageID `json:"image"`
		Chain oci.Chain   `json:"chain"`
	}
	id := oci.ContainerID(strings.Repeat("c1", 32))
	err = f.Store.Meta.Update(func(tx *meta.Tx) error {
		return meta.As[record](tx.Containers).Put(id, record{one, img.Chain})
	})
	if err != nil {
		t.Fatal(err)
	}
	f.Edit(func(path string) { // it says now that it uses neither
		metatest.Falsify(t, path, "containers", string(id), string(one), "sha256:"+strings.Repeat("0", 64))
	})
	for _, name := range []string{"one", "two"} {
		if _, err := f.Images.Remove(t.Context(), name, image.RemoveOptions{}); !errors.Is(err, errs.Conflict) || !strings.Contains(err.Error(), id.Short()) {
			t.Errorf("Remove %s = %v, want class Conflict and the container", name, err)
		}
	}
	if got, err := f.Images.Remove(t.Context(), "one", image.RemoveOptions{Force: true}); err != nil || len(got) != 1 || got[0].Untagged == "" {
		t.Errorf("Remove by force = %v, %v; want the name only", got, err)
	}
	if got, _, err := f.Images.Prune(t.Context(), image.PruneOptions{Filters: map[string][]string{"dangling": {"false"}}}); err != nil || len(got) != 0 {
		t.Errorf("Prune = %v, %v; want nothing", got, err)
	}
	if _, err := f.Store.Collect(t.Context()); !errors.Is(err, errs.DataLoss) {
		t.Errorf("Collect = %v, want class DataLoss", err)
	}
	if _, err := f.Driver.Stat(t.Context(), img.Chain); err != nil {
		t.Errorf("the layer of the container: %v", err)
	}
	err = f.Store.Meta.Update(func(tx *meta.Tx) error { return tx.Containers.Delete(id) })
	if err != nil {
		t.Fatal(err)
	}
	if got, err := f.Images.Remove(t.Context(), string(one), image.RemoveOptions{}); err != nil || len(got) != 2 {
		t.Errorf("Remove once the container is gone = %v, %v", got, err)
	}
	if _, err := f.Driver.Stat(t.Context(), img.Chain); !errors.Is(err, errs.NotFound) {
		t.Errorf("the layer once the image is gone: %v", err)
	}
	if _, err := f.Images.Get(t.Context(), string(two)); err != nil {
		t.Error(err)
	}
}
