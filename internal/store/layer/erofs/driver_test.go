package erofs_test

import (
	"testing"

	"ply/internal/durable"
	"ply/internal/store/layer"
	"ply/internal/store/layer/erofs"
	"ply/internal/store/layer/layertest"
)

func openDefault(t *testing.T, root string) layer.Driver {
	t.Helper()
	d, err := erofs.Open(durable.OS, root, erofs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDriver(t *testing.T) { layertest.Run(t, openDefault) }

func BenchmarkDriver(b *testing.B) {
	layertest.RunBenchmarks(b, func(b *testing.B, root string) layer.Driver {
		d, err := erofs.Open(durable.OS, root, erofs.Options{})
		if err != nil {
			b.Fatal(err)
		}
		return d
	})
}
