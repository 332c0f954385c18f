package erofs

import (
	"archive/tar"
	"slices"
	"strings"
	"testing"

	"ply/internal/durable"
	"ply/internal/durable/faultfs"
)

// A further index of an existing layer gets its record last, when the names of its files are durable.
func TestRecordOfAnotherIndexComesLast(t *testing.T) {
	var ops []string
	d, err := Open(&faultfs.FS{Under: durable.OS, Trace: func(op string) { ops = append(ops, op) }}, t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	one := put(t, d, nil, pack(t, entry{name: "f", body: "one"}))
	two := put(t, d, nil, pack(t, entry{name: "f", body: "two"}))
	top := pack(t, entry{name: "l", kind: tar.TypeLink, link: "f"})
	layer := put(t, d, one, top).Top()
	ops = nil
	put(t, d, two, top)
	var got []string
	for _, op := range ops {
		if what, path, _ := strings.Cut(op, " "); path == d.layerDir(layer) || strings.HasPrefix(path, d.layerDir(layer)+"/") {
			got = append(got, what+strings.TrimPrefix(path, d.layerDir(layer)))
		}
	}
	index := "index-" + two.ID().Hex()
	want := []string{"rename/" + chainFile(index), "rename/" + index + ".erofs", "syncdir", "rename/" + index + ".json", "syncdir"}
	if !slices.Equal(got, want) {
		t.Errorf("operations in the layer's directory:\n%q, want\n%q", got, want)
	}
}
