package importer

import (
	"fmt"
	"slices"
	"testing"

	"ply/internal/dockerroot"
	"ply/internal/oci"
)

// An image comes after the one that it was made from, however long the line is. Images that name each other as parents come too, once each.
func TestParentsFirst(t *testing.T) {
	id := func(n int) oci.ImageID { return oci.ImageID(oci.DigestOf(fmt.Append(nil, n))) }
	const line = 50_000
	var all []dockerroot.Image
	for n := range line {
		all = append(all, dockerroot.Image{ID: id(n), Parent: id(n + 1)}) // the last one has a parent that is not here
	}
	all = append(all, dockerroot.Image{ID: id(-1), Parent: id(-2)}, dockerroot.Image{ID: id(-2), Parent: id(-1)}, dockerroot.Image{ID: id(-3), Parent: id(-3)})
	at := map[oci.ImageID]int{}
	for i, img := range parentsFirst(slices.Clone(all)) {
		at[img.ID] = i
	}
	if len(at) != len(all) {
		t.Errorf("%d images, want %d", len(at), len(all))
	}
	for n := range line - 1 {
		if at[id(n)] < at[id(n+1)] {
			t.Fatalf("image %d comes before its parent", n)
		}
	}
}

func TestVisible(t *testing.T) {
	if got, want := visible("layer: a\nb\x1b[2J\u009b\tç日"), "layer: a b\ufffd[2J\ufffd\ufffdç日"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
