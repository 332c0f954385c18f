// Package drivers compares the storage drivers with each other.
package drivers

import (
	"testing"

	"ply/internal/durable"
	"ply/internal/store/layer"
	"ply/internal/store/layer/erofs"
	"ply/internal/store/layer/layertest"
	"ply/internal/store/layer/overlay2"
	"ply/internal/store/layer/vfs"
)

// TestSameTrees runs the same random scripts on all drivers; the trees and the failures must be the same.
func TestSameTrees(t *testing.T) {
	layertest.RunTogether(t, map[string]layertest.Open{
		"erofs": func(t *testing.T, root string) layer.Driver {
			d, err := erofs.Open(durable.OS, root, erofs.Options{})
			return opened(t, d, err)
		},
		"overlay2": func(t *testing.T, root string) layer.Driver {
			d, err := overlay2.Open(durable.OS, root, overlay2.Options{})
			return opened(t, d, err)
		},
		"vfs": func(t *testing.T, root string) layer.Driver {
			d, err := vfs.Open(durable.OS, root, vfs.Options{})
			return opened(t, d, err)
		},
	})
}

func opened(t *testing.T, d layer.Driver, err error) layer.Driver {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return d
}
