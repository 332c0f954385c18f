package erofs_test

import (
	"testing"

	"ply/internal/durable"
	"ply/internal/memory"
	"ply/internal/store/layer"
	"ply/internal/store/layer/erofs"
	"ply/internal/store/layer/layertest"
)

// with returns a function that opens the driver with options.
func with(opts erofs.Options) layertest.Open {
	return func(t *testing.T, root string) layer.Driver {
		t.Helper()
		d, err := erofs.Open(durable.OS, root, opts)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
}

func open(fsys durable.FS, root string) (layer.Driver, error) {
	return erofs.Open(fsys, root, erofs.Options{})
}

func TestDriver(t *testing.T) { layertest.Run(t, with(erofs.Options{})) }

// The mode for disks without direct access.
func TestBuffered(t *testing.T) { layertest.RunMounts(t, with(erofs.Options{Buffered: true})) }

// The mode for kernels that cannot stack detached mounts.
func TestAttached(t *testing.T) { layertest.RunMounts(t, with(erofs.Options{Attached: true})) }

// The mode for layers whose index finds no memory while they are written: they are indexed when they are committed.
func TestWithoutMemory(t *testing.T) {
	layertest.RunMounts(t, with(erofs.Options{Memory: memory.NewPool(0, 16<<20)}))
}

func TestFaults(t *testing.T)     { layertest.RunFaults(t, open) }
func TestVersions(t *testing.T)   { layertest.RunVersions(t, open) }
func TestDurability(t *testing.T) { layertest.RunDurability(t, open) }

func BenchmarkDriver(b *testing.B) {
	layertest.RunBenchmarks(b, func(b *testing.B, root string) layer.Driver {
		d, err := open(durable.OS, root)
		if err != nil {
			b.Fatal(err)
		}
		return d
	})
}
