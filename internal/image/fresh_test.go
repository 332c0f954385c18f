package image_test

import (
	"slices"
	"sync"
	"testing"

	"ply/internal/image"
	"ply/internal/image/imagetest"
	"ply/internal/oci"
)

// What was changed is in the next list, whatever was listed before.
func TestListsAreNeverStale(t *testing.T) {
	f := imagetest.New(t)
	listed := func() (names []string) {
		t.Helper()
		list, err := f.Images.List(t.Context(), image.ListOptions{Shared: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, img := range list {
			for _, n := range img.Names {
				names = append(names, n.Familiar())
			}
		}
		slices.Sort(names)
		return names
	}
	size := func() int64 {
		t.Helper()
		n, err := f.Images.LayersSize(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	check := func(what string, layers int64, want ...string) {
		t.Helper()
		for range 2 { // the second time from what is remembered
			if got := listed(); !slices.Equal(got, want) {
				t.Errorf("%s: listed %q, want %q", what, got, want)
			}
			if got := size(); got != layers {
				t.Errorf("%s: layers of %d bytes, want %d", what, got, layers)
			}
		}
		views, err := f.Images.Tree(t.Context(), image.TreeOptions{})
		if err != nil || (len(views) == 0) != (len(want) == 0) {
			t.Errorf("%s: %d trees, %v", what, len(views), err)
		}
	}
	check("at the beginning", 0)
	f.Image(imagetest.Spec{Name: "one:1", Layers: [][]byte{imagetest.Tar(t, "a", "1234")}})
	check("a new image", 4, "one:1")
	if err := f.Images.Tag(t.Context(), "one:1", imagetest.Ref(t, "other:1")); err != nil {
		t.Fatal(err)
	}
	check("a tag", 4, "one:1", "other:1")
	f.Image(imagetest.Spec{Name: "two:1", Layers: [][]byte{imagetest.Tar(t, "a", "1234"), imagetest.Tar(t, "b", "12")}})
	check("an image on the same layer", 6, "one:1", "other:1", "two:1")
	for _, c := range []struct {
		remove string
		layers int64
		left   []string
	}{{"other:1", 6, []string{"one:1", "two:1"}}, {"two:1", 4, []string{"one:1"}}, {"one:1", 0, nil}} {
		if _, err := f.Images.Remove(t.Context(), c.remove, image.RemoveOptions{}); err != nil {
			t.Fatal(err)
		}
		check("without "+c.remove, c.layers, c.left...)
	}
}

// Lists that are made at the same time, from the same catalog, do not disturb each other, nor a removal.
func TestListsAtTheSameTime(t *testing.T) {
	f, _ := gallery(t)
	var wg sync.WaitGroup
	for k := range 4 {
		wg.Go(func() {
			for range 20 {
				if _, err := f.Images.List(t.Context(), image.ListOptions{All: true, Shared: k%2 == 0}); err != nil {
					t.Error(err)
				}
				if _, err := f.Images.Tree(t.Context(), image.TreeOptions{Listed: &image.ListOptions{}}); err != nil {
					t.Error(err)
				}
				if _, err := f.Images.History(t.Context(), "top"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Go(func() {
		for range 5 {
			if err := f.Images.Tag(t.Context(), "top", imagetest.Ref(t, "again:1")); err != nil {
				t.Error(err)
			}
			if _, err := f.Images.Remove(t.Context(), "again:1", image.RemoveOptions{}); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	list, err := f.Images.List(t.Context(), image.ListOptions{Filters: map[string][]string{"reference": {"h:5000/team/other"}}})
	if err != nil || len(list) != 1 || !slices.Equal(list[0].Names, []oci.Reference{imagetest.Ref(t, "h:5000/team/other:v1")}) {
		t.Errorf("%v, %v", list, err)
	}
}
