package vfs_test

import (
	"testing"

	"ply/internal/durable"
	"ply/internal/store/layer"
	"ply/internal/store/layer/layertest"
	"ply/internal/store/layer/vfs"
)

func open(t *testing.T, root string) layer.Driver {
	t.Helper()
	d, err := vfs.Open(durable.OS, root, vfs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDriver(t *testing.T) { layertest.Run(t, open) }

func BenchmarkDriver(b *testing.B) {
	layertest.RunBenchmarks(b, func(b *testing.B, root string) layer.Driver {
		d, err := vfs.Open(durable.OS, root, vfs.Options{})
		if err != nil {
			b.Fatal(err)
		}
		return d
	})
}

func TestFaults(t *testing.T) {
	layertest.RunFaults(t, func(fsys durable.FS, root string) (layer.Driver, error) {
		return vfs.Open(fsys, root, vfs.Options{})
	})
}

func TestVersions(t *testing.T) {
	layertest.RunVersions(t, func(fsys durable.FS, root string) (layer.Driver, error) {
		return vfs.Open(fsys, root, vfs.Options{})
	})
}

func TestDurability(t *testing.T) {
	layertest.RunDurability(t, func(fsys durable.FS, root string) (layer.Driver, error) {
		return vfs.Open(fsys, root, vfs.Options{})
	})
}
