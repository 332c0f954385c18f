package overlay2_test

import (
	"testing"

	"ply/internal/durable"
	"ply/internal/store/layer"
	"ply/internal/store/layer/layertest"
	"ply/internal/store/layer/overlay2"
)

func open(t *testing.T, root string) layer.Driver {
	t.Helper()
	d, err := overlay2.Open(durable.OS, root, overlay2.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDriver(t *testing.T) { layertest.Run(t, open) }

func BenchmarkDriver(b *testing.B) {
	layertest.RunBenchmarks(b, func(b *testing.B, root string) layer.Driver {
		d, err := overlay2.Open(durable.OS, root, overlay2.Options{})
		if err != nil {
			b.Fatal(err)
		}
		return d
	})
}

func TestFaults(t *testing.T) {
	layertest.RunFaults(t, func(fsys durable.FS, root string) (layer.Driver, error) {
		return overlay2.Open(fsys, root, overlay2.Options{})
	})
}
