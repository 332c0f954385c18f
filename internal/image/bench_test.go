package image_test

import (
	"fmt"
	"testing"

	"ply/internal/image"
	"ply/internal/image/imagetest"
)

// BenchmarkList lists 100 images of 10 layers, half of which are shared.
func BenchmarkList(b *testing.B) {
	f := imagetest.New(b)
	var layers [][]byte
	for i := range 10 {
		layers = append(layers, imagetest.Tar(b, fmt.Sprint("f", i), "x"))
	}
	for i := range 100 {
		f.Image(imagetest.Spec{Name: fmt.Sprintf("image%d", i), Layers: append(layers[:9:9], imagetest.Tar(b, "own", fmt.Sprint(i))), Hours: i})
	}
	b.Run("list", func(b *testing.B) {
		for b.Loop() {
			if _, err := f.Images.List(b.Context(), image.ListOptions{}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("get", func(b *testing.B) {
		for b.Loop() {
			if _, err := f.Images.Get(b.Context(), "image50"); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("tree", func(b *testing.B) {
		for b.Loop() {
			if _, err := f.Images.Tree(b.Context(), image.TreeOptions{Listed: &image.ListOptions{}}); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkRemove removes an image of 10 layers and frees its space.
func BenchmarkRemove(b *testing.B) {
	f := imagetest.New(b)
	var layers [][]byte
	for i := range 10 {
		layers = append(layers, imagetest.Tar(b, fmt.Sprint("f", i), "x"))
	}
	for b.Loop() {
		b.StopTimer()
		f.Image(imagetest.Spec{Name: "x", Layers: layers})
		b.StartTimer()
		if _, err := f.Images.Remove(b.Context(), "x", image.RemoveOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}
