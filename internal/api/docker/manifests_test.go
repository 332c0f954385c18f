package docker

import (
	"testing"

	"ply/internal/wire"
)

// An image that is listed with its manifests is as large as they are, and two manifests of one image count its files once.
func TestTotal(t *testing.T) {
	manifest := func(id, image string, content, unpacked int64) wire.ImageManifest {
		m := wire.ImageManifest{ID: id}
		m.Size.Content, m.Size.Total = content, content+unpacked
		if image != "" {
			m.ImageData = &wire.ImageManifestData{Image: image}
			m.ImageData.Size.Unpacked = unpacked
		}
		return m
	}
	amd64, arm64, attestation := manifest("a", "1", 10, 100), manifest("b", "2", 20, 200), manifest("c", "", 3, 0)
	again, absent := manifest("d", "1", 11, 100), manifest("e", "", 0, 0)
	for _, c := range []struct {
		list []wire.ImageManifest
		want int64
	}{
		{nil, 0},
		{[]wire.ImageManifest{amd64}, 110},
		{[]wire.ImageManifest{amd64, arm64, attestation, absent}, 333},
		{[]wire.ImageManifest{amd64, again}, 121},
		{[]wire.ImageManifest{amd64, amd64}, 110},
	} {
		if got := total(c.list); got != c.want {
			t.Errorf("total(%+v) = %d, want %d", c.list, got, c.want)
		}
	}
}
