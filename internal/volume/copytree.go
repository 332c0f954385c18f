package volume

import (
	"context"
	"os"
)

// CopyTree copies a directory of an image into dir, an empty directory, as Populate does for a volume. It syncs nothing.
func CopyTree(ctx context.Context, dir string, src *os.File) error {
	return (&Service{}).fill(ctx, src, dir)
}
