package image

import (
	"fmt"
	"testing"

	"ply/internal/oci"
	"ply/internal/store/meta"
)

// A prune looks at each image once to know which ones stand on it, however long their chain is. Records that lead back to themselves have an end.
func TestDepth(t *testing.T) {
	id := func(n int) oci.ImageID { return oci.ImageID(fmt.Sprintf("sha256:%064x", n)) }
	const n = 100_000
	c := &catalog{images: map[oci.ImageID]meta.Image{}}
	for i := range n {
		rec := meta.Image{}
		if i > 0 {
			rec.Parent = id(i - 1)
		}
		c.images[id(i)] = rec
	}
	c.images[id(n)] = meta.Image{Parent: id(n + 1)}
	c.images[id(n+1)] = meta.Image{Parent: id(n)}
	known := map[oci.ImageID]int{}
	for i := range n {
		if got := c.depth(id(i), known); got != i+1 {
			t.Fatalf("depth of %d: %d", i, got)
		}
	}
	alone := map[oci.ImageID]int{}
	if got := c.depth(id(n-1), alone); got != n {
		t.Errorf("from the end: %d", got)
	}
	if a, b := c.depth(id(n), known), c.depth(id(n+1), known); a != 2 || b != 1 {
		t.Errorf("in a circle: %d and %d", a, b)
	}
}
