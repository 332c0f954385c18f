package imagetest_test

import (
	"testing"

	"ply/internal/image/imagetest"
	"ply/internal/store/layer"
	"ply/internal/store/layer/layertest"
)

func TestDriver(t *testing.T) {
	layertest.RunTars(t, func(t *testing.T, root string) layer.Driver { return imagetest.NewDriver(root) })
}
